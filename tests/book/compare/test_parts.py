"""Three parts of the rows: disjoint, stratified, and prepared by what the training part shows."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lossbook.book.compare import Rows, split


def drawn(n: int, k: int, seed: int) -> Rows:
    rng = np.random.default_rng(seed)
    numbers = rng.standard_normal((n, 3)) * [1, 100, 0.01] + [0, 5, 1]
    numbers[rng.random((n, 3)) < 0.1] = np.nan
    texts = rng.choice(["a", "b", "c", "rare"], (n, 1), p=[0.5, 0.3, 0.19, 0.01]).astype(object)
    y = np.concatenate([np.arange(10 * k) % k, rng.integers(k, size=n - 10 * k)])
    return Rows("drawn", y, tuple(map(str, range(k))), n, numbers, ("x", "y", "z"), texts, ("t",))


@settings(max_examples=25, deadline=None)
@given(n=st.integers(50, 200), k=st.integers(2, 5), seed=st.integers(0, 1000))
def test_no_row_leaks(n: int, k: int, seed: int) -> None:
    rows = drawn(n, k, seed)
    parts = split(rows, seed)
    assert sorted(np.concatenate(parts.places).tolist()) == list(range(n))  # each row in one part
    for part, places in zip(parts[:3], parts.places, strict=True):
        assert torch.equal(part.y, torch.from_numpy(rows.y[places]))  # type: ignore[union-attr]
        assert set(rows.y[places]) == set(range(k))  # every class in every part
    # Whatever the rows outside the training part hold, the training rows look the same.
    changed = drawn(n, k, seed)
    outside = np.concatenate(parts.places[1:])
    held = ~np.isnan(changed.numbers[outside])
    changed.numbers[outside] = np.where(held, 1e6, np.nan)
    changed.texts[outside] = "unheard of"
    assert torch.equal(split(changed, seed).train.x, parts.train.x)
    # And they are standardised by themselves.
    seen = parts.train.x[:, 0]
    assert abs(float(seen.mean())) < 1e-5


def test_splits_follow_the_seed() -> None:
    rows = drawn(100, 2, 0)
    assert torch.equal(split(rows, 3).test.x, split(rows, 3).test.x)
    assert not np.array_equal(split(rows, 3).places[2], split(rows, 4).places[2])

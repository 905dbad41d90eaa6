"""CaPE's targets: limits, loops, calibration of the result, order and dtype, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lossbook.losses.calibration import cape_targets, targets


def outcomes(n: int = 40, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    p = torch.rand(n, dtype=torch.float64, generator=generator)
    return p, (torch.rand(n, dtype=torch.float64, generator=generator) < p).long()


def test_one_bin_is_the_base_rate_and_n_bins_are_the_outcomes() -> None:
    p, y = outcomes()
    torch.testing.assert_close(cape_targets(p, y, n_bins=1), torch.full_like(p, y.double().mean().item()))
    assert torch.equal(cape_targets(p, y, n_bins=len(p)), y.double())


def test_narrow_kernel_is_the_outcomes_and_a_wide_one_the_base_rate() -> None:
    p, y = outcomes()
    torch.testing.assert_close(cape_targets(p, y, kind="kde", sigma=1e-6), y.double())
    wide = cape_targets(p, y, kind="kde", sigma=1e6)
    torch.testing.assert_close(wide, torch.full_like(p, y.double().mean().item()))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 30), n_bins=st.integers(1, 30))
def test_bins_are_those_of_a_loop(seed: int, n: int, n_bins: int) -> None:
    n_bins = min(n, n_bins)
    p, y = outcomes(n, seed)
    order = np.argsort(p.numpy(), kind="stable")
    want = np.empty(n)
    for b in range(n_bins):
        group = order[int(b * n / n_bins) : int((b + 1) * n / n_bins)]
        want[group] = y.numpy()[group].mean()
    np.testing.assert_allclose(cape_targets(p, y, n_bins=n_bins).numpy(), want, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 25), window=st.integers(1, 40), sigma=st.floats(0.01, 2))
def test_kernel_is_that_of_a_loop(seed: int, n: int, window: int, sigma: float) -> None:
    p, y = outcomes(n, seed)
    order = np.argsort(p.numpy(), kind="stable")
    want = np.empty(n)
    for place, i in enumerate(order):
        near = order[max(0, place - window) : place + window]
        w = np.exp(-(((p.numpy()[near] - p.numpy()[i]) / sigma) ** 2) / 2)
        want[i] = (w * y.numpy()[near]).sum() / w.sum()
    np.testing.assert_allclose(cape_targets(p, y, kind="kde", window=window, sigma=sigma).numpy(), want, rtol=1e-9)


def test_kernel_in_parts_is_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    p, y = outcomes(300)
    whole = cape_targets(p, y, kind="kde", window=20)
    monkeypatch.setattr(targets, "_CHUNK", 7 * 40)
    torch.testing.assert_close(cape_targets(p, y, kind="kde", window=20), whole)


@pytest.mark.parametrize("kind", ["bin", "kde"])
def test_targets_find_the_probability_behind_the_outcomes(kind: str) -> None:
    """Predictions in the right order but too extreme; targets come close to the truth, the predictions do not."""
    truth, y = outcomes(20_000)
    p = (8 * (truth - 0.5)).sigmoid()
    found = cape_targets(p, y, kind=kind, n_bins=50, sigma=0.02, window=500)
    error = (found - truth).square().mean()
    assert error < 1e-3
    assert (p - truth).square().mean() > 5 * error


@pytest.mark.parametrize("kind", ["bin", "kde"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_order_dtype_and_gradient(kind: str, dtype: torch.dtype) -> None:
    p, y = outcomes(30)
    p = p.to(dtype).requires_grad_(True)
    found = cape_targets(p, y, kind=kind, n_bins=5)
    assert found.dtype == dtype and not found.requires_grad
    # Half precision ties, and ties keep their order: rows that tie stay apart.
    if dtype != torch.float16:
        rows = torch.randperm(30, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(cape_targets(p[rows], y[rows], kind=kind, n_bins=5), found[rows])
    torch.testing.assert_close(cape_targets(p.detach().numpy(), y.numpy(), kind=kind, n_bins=5), found)


GOOD = {"probs": torch.tensor([0.1, 0.5, 0.9]), "target": torch.tensor([0, 1, 1]), "n_bins": 2}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"kind": "spline"}, "kind must be 'bin' or 'kde', but is 'spline'"),
        ({"probs": torch.tensor([0.1, 1.5, 0.9])}, r"probs\[1\] is 1.5, outside \[0, 1\]"),
        ({"probs": torch.tensor([0.1, float("nan"), 0.9])}, r"probs\[1\] is nan"),
        ({"probs": torch.ones(3, 2)}, r"probs must have shape \(N,\)"),
        ({"probs": torch.tensor([]), "target": torch.tensor([])}, "probs is empty"),
        ({"target": torch.tensor([0, 1])}, "target has 2 entries, but there are 3 predictions"),
        ({"target": torch.tensor([0, 2, 1])}, r"target\[1\] is 2, outside"),
        ({"target": torch.tensor([0, 0.5, 1])}, r"target must hold 0 and 1, but target\[1\] is 0.5"),
        ({"n_bins": 0}, "n_bins must be a whole number of at least 1"),
        ({"n_bins": 4}, "n_bins must be at most the number of samples, 3, but is 4"),
        ({"window": 2.5}, "window must be a whole number of at least 1, but is 2.5"),
        ({"sigma": 0.0}, "sigma must lie in"),
    ],
)
def test_bad_input(change: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        cape_targets(**{**GOOD, **change})

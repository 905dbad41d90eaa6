"""Recall across two embeddings: by hand, the peer, padding, ties, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors
from torch.nn.functional import pad

from lossbook.metrics import cross_recall, retrieval


def draws(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_by_hand() -> None:
    gallery = [[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]
    query = [[2.0, 1.0], [1.0, 3.0], [-1.0, -0.1]]
    assert cross_recall(query, gallery, [0, 1, 2], [0, 1, 2]) == 1
    assert cross_recall(query, gallery, [1, 1, 2], [0, 1, 2]) == pytest.approx(2 / 3)
    assert cross_recall(query, gallery, [1, 1, 2], [0, 1, 2], k=2) == 1
    # The first query has none of its class there and does not count.
    assert cross_recall(query, gallery, [7, 1, 1], [0, 1, 2]) == 0.5


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 5), narrow=st.sampled_from([3, 5]))
def test_agrees_with_sklearn(seed: int, k: int, narrow: int) -> None:
    query, gallery = draws(30, 5, seed), draws(40, narrow, seed + 1)
    labels = torch.randint(4, (70,), generator=torch.Generator().manual_seed(seed))
    near = NearestNeighbors(n_neighbors=k, metric="cosine").fit(pad(gallery, (0, 5 - narrow)).numpy())
    found = near.kneighbors(query.numpy(), return_distance=False)
    expected = np.mean([(labels[30:].numpy()[row] == labels[i].item()).any() for i, row in enumerate(found)])
    assert cross_recall(query, gallery, labels[:30], labels[30:], k=k) == pytest.approx(expected)


def test_same_items_are_left_out_and_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = draws(50, 4, 0), torch.arange(50) % 5
    assert cross_recall(x, x, labels, labels) == 1
    near = NearestNeighbors(n_neighbors=2, metric="cosine").fit(x.numpy())
    second = near.kneighbors(x.numpy(), return_distance=False)[:, 1]
    expected = float((labels[second] == labels).double().mean())
    assert cross_recall(x, x, labels, labels, same_items=True) == pytest.approx(expected)
    monkeypatch.setattr(retrieval, "_SIMILARITIES", 120)
    assert cross_recall(x, x, labels, labels, same_items=True) == pytest.approx(expected)


def test_an_embedding_that_collapsed_recalls_nothing() -> None:
    ones, labels = torch.ones(6, 3), torch.arange(6) % 2
    assert cross_recall(ones, ones, labels, labels) == 0
    assert cross_recall(0 * ones, ones, labels, labels) == 0
    assert cross_recall(ones, ones, labels, labels, k=4) == 1


def test_an_unrelated_embedding_is_at_chance_and_a_rotation_loses_nothing_of_its_own() -> None:
    labels = torch.arange(400) % 10
    old = draws(400, 16, 0) * 0.1 + draws(10, 16, 1)[labels]
    turned = old @ torch.linalg.qr(draws(16, 16, 2)).Q
    assert cross_recall(old, old, labels, labels, same_items=True) == 1
    assert cross_recall(turned, turned, labels, labels, same_items=True) == 1
    assert cross_recall(turned, old, labels, labels, same_items=True) < 0.5


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"query": torch.zeros(3)}, r"query must have shape \(N, d\)"),
        ({"gallery": torch.zeros(3, 2).long()}, "gallery must be floating point"),
        ({"query_labels": [0, 1]}, r"query_labels must have shape \(3,\), a label a row of query"),
        ({"gallery_labels": [0.0, 1.0, 2.0]}, "gallery_labels must hold integer labels"),
        ({"gallery": torch.tensor([[np.nan, 0.0]] * 3)}, r"gallery\[0, 0\] is nan"),
        ({"k": 0}, "k must be a whole number of at least 1"),
        ({"gallery": torch.ones(2, 2), "gallery_labels": [0, 1], "same_items": True}, "gallery must have 3 rows"),
        ({"gallery_labels": [7, 8, 9]}, "no query has an item of its class in the gallery"),
    ],
)
def test_bad_input_is_refused_by_name(change: dict, sentence: str) -> None:
    good = {"query": torch.ones(3, 2), "gallery": torch.ones(3, 2), "query_labels": [0, 1, 2]}
    with pytest.raises(ValueError, match=sentence):
        cross_recall(**({**good, "gallery_labels": [0, 1, 2]} | change))

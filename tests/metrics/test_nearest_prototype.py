"""nearest_prototype against scikit-learn, and spurious_gap."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import NearestCentroid

from lossbook.metrics import nearest_prototype, spurious_gap


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(2, 6))
def test_scikit_learn(seed: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    support, target = rng.normal(size=(10 * k, 4)), np.arange(10 * k) % k
    features = rng.normal(size=(50, 4))
    model = NearestCentroid().fit(support, target)
    euclidean = nearest_prototype(features, model.centroids_, distance="euclidean")
    assert euclidean.dtype == torch.int64 and np.array_equal(euclidean, model.predict(features))
    cosine = nearest_prototype(torch.from_numpy(features), model.centroids_)
    assert np.array_equal(cosine, cosine_similarity(features, model.centroids_).argmax(axis=1))


def test_lengths_matter_to_one_distance_only() -> None:
    features = torch.tensor([[3.0, 1.0], [0.1, 0.0]])
    prototypes = torch.tensor([[9.0, 0.0], [1.0, 1.0]])
    assert nearest_prototype(features, prototypes).tolist() == [0, 0]
    assert nearest_prototype(features, prototypes, distance="euclidean").tolist() == [1, 1]


def test_ties_and_features_of_length_zero_take_the_first() -> None:
    prototypes = torch.tensor([[1.0, 1.0], [1.0, 1.0], [-1.0, 0.0]])
    assert nearest_prototype(torch.tensor([[2.0, 2.0], [0.0, 0.0]]), prototypes).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"features": torch.ones(3)}, r"features must have shape \(N, d\)"),
        ({"features": torch.full((3, 2), float("nan"))}, r"features\[0, 0\] is nan"),
        ({"prototypes": torch.ones(2, 3)}, "prototypes must have the 2 columns of features, but have 3"),
        ({"prototypes": torch.full((2, 2), float("nan"))}, r"prototypes\[0, 0\] is nan"),
        ({"prototypes": torch.tensor([[1.0, 0.0], [0.0, 0.0]])}, r"prototypes\[1\] is zero and has no direction"),
        ({"distance": "manhattan"}, "distance must be 'cosine' or 'euclidean', but is 'manhattan'"),
    ],
)
def test_bad_input_is_refused(change: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        nearest_prototype(**{"features": torch.ones(3, 2), "prototypes": torch.eye(2), **change})


def test_spurious_gap() -> None:
    assert spurious_gap(0.9, 0.25) == pytest.approx(0.65)
    assert spurious_gap(torch.tensor([1.0, 0.8]), [0.5]) == pytest.approx(0.4)
    assert spurious_gap(np.array([0, 1]), 1) == pytest.approx(-0.5)


@pytest.mark.parametrize(
    ("aligned", "conflicting", "sentence"),
    [
        (90.0, 0.5, r"acc_aligned\[0\] is 90.0, outside \[0, 1\]"),
        (0.9, [0.5, float("nan")], r"acc_conflicting\[1\] is nan"),
        (0.9, torch.ones(0), "acc_conflicting is empty"),
    ],
)
def test_spurious_gap_refuses(aligned, conflicting, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        spurious_gap(aligned, conflicting)

"""Loki: the closed cases (complete graph, path, tree), brute force, the locus against a grid, bad input."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lossbook.adapt import frechet_predict, locus
from lossbook.theory import tree_distance


def simplex(n: int, k: int, seed: int = 0, concentration: float = 2.0) -> Tensor:
    logits = torch.randn(n, k, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return (concentration * logits).softmax(dim=1)


def complete(m: int) -> Tensor:
    return 1 - torch.eye(m, dtype=torch.float64)


def path(m: int) -> Tensor:
    places = torch.arange(m, dtype=torch.float64)
    return (places[:, None] - places).abs()


def random_tree(m: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return [-1, *(int(torch.randint(i, (), generator=generator)) for i in range(1, m))]


def test_complete_graph_is_argmax() -> None:
    probs = torch.cat((simplex(500, 6), torch.full((1, 6), 1 / 6), torch.tensor([[0, 0.3, 0.1, 0.3, 0, 0.3]])))
    assert torch.equal(frechet_predict(probs, complete(6)), probs.argmax(dim=1))
    # Labels never observed stay out of reach: the same distance from all.
    assert torch.equal(frechet_predict(probs, complete(9)[:, :6]), probs.argmax(dim=1))


@settings(max_examples=50, deadline=None)
@given(p=st.floats(0, 1), length=st.integers(1, 40))
def test_path_with_its_ends_observed_is_the_nearest_place(p: float, length: int) -> None:
    place = (1 - p) * length
    if abs(place % 1 - 0.5) < 1e-6:
        return
    predicted = frechet_predict(torch.tensor([[p, 1 - p]], dtype=torch.float64), path(length + 1)[:, [0, -1]])
    assert int(predicted) == round(place)


def test_ties_go_to_the_first_label() -> None:
    between = frechet_predict(torch.tensor([[0.5, 0.5]]), path(4)[:, [0, 3]])
    assert int(between) == 1


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), m=st.integers(2, 12), k=st.integers(1, 6), t=st.floats(0.2, 5))
def test_brute_force(seed: int, m: int, k: int, t: float) -> None:
    k = min(k, m)
    distances = tree_distance(random_tree(m, seed))[:, :k]
    probs = simplex(20, k, seed)
    predicted = frechet_predict(probs, distances, temperature=t)
    for row, found in zip(probs, predicted, strict=True):
        w = row ** (1 / t) / (row ** (1 / t)).sum()
        cost = [sum(float(w[j]) * float(distances[y, j]) ** 2 for j in range(k)) for y in range(m)]
        assert cost[int(found)] == pytest.approx(min(cost), rel=1e-9, abs=1e-12)


def test_temperature_limits_and_zero_probabilities() -> None:
    probs, distances = torch.tensor([[0.5, 0.0, 0.3, 0.2]]), path(4)
    # Cold: the largest probability alone; hot: all with a chance count the same, those without count nothing.
    assert int(frechet_predict(probs, distances, temperature=1e-300)) == 0
    assert int(frechet_predict(probs, distances, temperature=1e9)) == round((0 + 2 + 3) / 3)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    probs, distances = simplex(50, 4), tree_distance(random_tree(30, 1))[:, :4]
    whole = frechet_predict(probs, distances)
    monkeypatch.setattr("lossbook.adapt.geometry._CHUNK", 64)
    assert torch.equal(frechet_predict(probs, distances), whole)


def on_paths(distances: Tensor, observed: list[int]) -> Tensor:
    """Nodes v with d(a, v) + d(v, b) = d(a, b) for some observed a, b."""
    found = torch.zeros(len(distances), dtype=torch.bool)
    found[observed] = True
    for a, b in combinations(observed, 2):
        found |= distances[a] + distances[b] == distances[a, b]
    return found


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), m=st.integers(2, 14), k=st.integers(1, 5))
def test_locus_of_a_tree_is_all_that_lies_on_paths(seed: int, m: int, k: int) -> None:
    distances = tree_distance(random_tree(m, seed))
    observed = torch.randperm(m, generator=torch.Generator().manual_seed(seed))[:k].tolist()
    reachable = locus(distances[:, observed])
    assert torch.equal(reachable, on_paths(distances, observed))


def test_observed_leaves_reach_the_whole_tree() -> None:
    parents = random_tree(25, 3)
    leaves = [i for i in range(25) if parents.count(i) == 0 or (i == 0 and parents.count(0) == 1)]
    assert locus(tree_distance(parents)[:, leaves]).all()


def test_locus_of_other_spaces() -> None:
    assert locus(complete(7)[:, :3]).tolist() == [True] * 3 + [False] * 4
    assert locus(torch.zeros(1, 2)).tolist() == [True]
    # The corners of a square, two opposite ones observed: the others are reached, if only in a tie with each other.
    corners = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]])
    manhattan = (corners[:, None] - corners).abs().sum(dim=2)
    assert locus(manhattan[:, [0, 3]]).all()


def test_locus_agrees_with_a_grid_of_predictions() -> None:
    """Points of the plane, three of them observed: what a fine grid of probabilities predicts, and no more."""
    points = torch.rand(15, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    distances = torch.cdist(points, points)[:, :3]
    steps = 300
    grid = torch.tensor([(i, j, steps - i - j) for i in range(steps + 1) for j in range(steps + 1 - i)]) / steps
    predicted = torch.zeros(15, dtype=torch.bool)
    predicted[frechet_predict(grid.double(), distances)] = True
    assert torch.equal(locus(distances), predicted)
    assert 3 < predicted.sum() < 15


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"distances": path(4)[:3]}, r"a column for each of the 3 columns of probs.*\(3, 4\): is it transposed\?"),
        ({"distances": path(5)}, "distances must have a column for each of the 3 columns"),
        ({"distances": -path(4)[:, :3]}, r"distances must be at least 0, but distances\[0, 1\] is -1"),
        ({"distances": path(4)[:, :3].long()}, "distances must be floating point"),
        ({"distances": path(4)[:, :3] / 0}, r"distances\[0, 0\] is nan"),
        ({"probs": torch.tensor([[3.0, -1.0, 2.0]])}, r"probs\[0\] is not a probability vector.*logits"),
        ({"probs": torch.tensor([[0.5, 0.5, 0.5]])}, r"probs\[0\] is not a probability vector"),
        ({"probs": torch.ones(3)}, r"probs must be floating point of shape \(N, K\)"),
        ({"temperature": 0.0}, "temperature must lie in"),
    ],
)
def test_bad_input_is_refused(change: dict, sentence: str) -> None:
    arguments = {"probs": simplex(2, 3), "distances": path(4)[:, :3], **change}
    with pytest.raises(ValueError, match=sentence):
        frechet_predict(**arguments)


def test_locus_refuses_what_is_no_distance() -> None:
    with pytest.raises(ValueError, match="distances must be at least 0"):
        locus(-path(3))

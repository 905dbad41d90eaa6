"""Tree distance against breadth-first search (networkx, scipy), and bad trees."""

from __future__ import annotations

import networkx as nx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.csgraph import shortest_path

from lossbook.theory import tree_distance


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), m=st.integers(1, 40))
def test_shortest_paths_of_a_random_tree(seed: int, m: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    name = torch.randperm(m, generator=generator).tolist()
    parents = [-1] * m
    for i in range(1, m):
        parents[name[i]] = name[int(torch.randint(i, (), generator=generator))]
    found = tree_distance(parents)
    edges = torch.zeros(m, m)
    for i, parent in enumerate(parents):
        if parent >= 0:
            edges[i, parent] = 1
    expected = torch.from_numpy(shortest_path(edges.numpy(), directed=False, unweighted=True))
    assert found.dtype == torch.float64 and torch.equal(found, expected)


def test_balanced_tree_of_networkx() -> None:
    tree = nx.balanced_tree(3, 4)
    parents = [-1] + [next(iter(nx.predecessor(tree, 0)[i])) for i in range(1, len(tree))]
    expected = torch.from_numpy(nx.floyd_warshall_numpy(tree, nodelist=range(len(tree))))
    assert torch.equal(tree_distance(torch.tensor(parents)), expected)


@pytest.mark.parametrize(
    ("parents", "sentence"),
    [
        ([-1, 0, 7], r"parents\[2\] is 7, but the nodes are 0 to 2"),
        ([-2, 0], r"parents\[0\] is -2"),
        ([-1, -1, 0], "parents must have one root, marked by -1, but have 2"),
        ([1, 0], "parents must have one root, marked by -1, but have 0"),
        ([-1, 2, 3, 1], "parents lead in a circle from node 1"),
        ([-1, 1], "parents lead in a circle from node 1"),
        ([], r"parents must be m integers, but are torch.float32 of shape \(0,\)"),
        ([-1.0, 0.0], "parents must be m integers"),
        ([[-1]], "parents must be m integers"),
    ],
)
def test_what_is_no_tree_is_refused(parents: list, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        tree_distance(parents)

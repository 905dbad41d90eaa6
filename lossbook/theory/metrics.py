"""Distances between labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def tree_distance(parents: Sequence[int] | Tensor) -> Tensor:
    """Number of edges between any two nodes of a tree.

        d(i, j) = a_i + a_j - 2 a_ij,    a_i the ancestors of i, itself included, a_ij those that i and j share

    Args:
        parents: m integers, the parent of each node; -1 for the root, of which there is one. Any order of the nodes.

    Returns:
        D `(m, m)` float64, a metric: symmetric, 0 on the diagonal.

    Raises:
        ValueError: a parent is no node, there is not one root, or following the parents of a node leads in a circle.
    """
    parent = torch.as_tensor(parents)
    if parent.dim() != 1 or len(parent) == 0 or parent.is_floating_point() or parent.dtype == torch.bool:
        raise ValueError(f"parents must be m integers, but are {parent.dtype} of shape {tuple(parent.shape)}")
    m = len(parent)
    parent = parent.cpu().long()
    if (bad := (parent < -1) | (parent >= m)).any():
        node = int(bad.nonzero()[0, 0])
        raise ValueError(f"parents[{node}] is {int(parent[node])}, but the nodes are 0 to {m - 1}, and the root has -1")
    if (roots := int((parent == -1).sum())) != 1:
        raise ValueError(f"parents must have one root, marked by -1, but have {roots}")
    # All nodes climb together, a level a step; m is where they are once past the root.
    above = torch.cat((parent.where(parent >= 0, m), parent.new_tensor([m])))
    nodes = torch.arange(m)
    ancestor = torch.zeros(m, m + 1, dtype=torch.float64)
    place = nodes
    for _ in range(m):
        ancestor[nodes, place] = 1
        place = above[place]
        if (place == m).all():
            break
    else:
        raise ValueError(f"parents lead in a circle from node {int((place < m).nonzero()[0, 0])}")
    ancestor = ancestor[:, :m]
    count = ancestor.sum(dim=1)
    return count[:, None] + count - 2 * ancestor @ ancestor.T

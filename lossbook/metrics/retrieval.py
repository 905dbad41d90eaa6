"""How well scores, and embeddings, separate what matches from what does not."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from lossbook import checks
from lossbook.metrics._bins import check_choice
from lossbook.metrics._inputs import as_labels, as_matrix, as_tensor, as_unit_interval, finite_chunks

_SIMILARITIES = 2**22  # at a time: 32 MB of float64


def pooled_auc(scores: Any, labels: Any) -> float:
    """The area under the ROC curve of all scores in one pool: P(s+ > s-) + P(s+ = s-) / 2.

    The chance that a random positive is above a random negative, whichever query either belongs to. For a similarity
    matrix (B, B) with the matching pairs on the diagonal the labels are `torch.eye(B)`. Exact, in O(N log N).

    Args:
        scores: any shape, any real dtype; only their order counts, so that infinite ones are welcome.
        labels: the same shape, 0 and 1 or bool.

    Returns:
        A number in [0, 1]: 1/2 for scores that know nothing.

    Raises:
        ValueError: shapes differ, a score is NaN, a label is neither 0 nor 1, or one of the classes is missing.
    """
    s, y = as_tensor("scores", scores), as_tensor("labels", labels)
    if y.shape != s.shape:
        raise ValueError(f"labels must have the shape of scores, {tuple(s.shape)}, but have {tuple(y.shape)}")
    s, y = s.flatten(), y.flatten().to(s.device)
    if s.dtype in (torch.float16, torch.bfloat16, torch.bool):
        s = s.float()
    if checks.can_read(s) and s.is_floating_point() and (bad := torch.isnan(s)).any():
        raise ValueError(f"scores must not hold NaN, but entry {int(bad.nonzero()[0, 0])} of the flattened scores is")
    if checks.can_read(y) and (bad := (y != 0) & (y != 1)).any():
        row = int(bad.nonzero()[0, 0])
        raise ValueError(f"labels must hold 0 and 1, but entry {row} of the flattened labels is {y[row].item():g}")
    # Sorted, both: the binary searches of neighbours then touch the same memory.
    positive, negative = s[y == 1].sort().values, s[y == 0].sort().values
    if len(positive) == 0 or len(negative) == 0:
        raise ValueError(f"labels hold {len(positive)} ones and {len(negative)} zeros, but the AUC needs both")
    below = torch.searchsorted(negative, positive).sum()
    not_above = torch.searchsorted(negative, positive, right=True).sum()
    return int(below + not_above) / (2 * len(positive) * len(negative))


def cross_recall(
    query: Any, gallery: Any, query_labels: Any, gallery_labels: Any, *, k: int = 1, same_items: bool = False
) -> float:
    """Recall@k between two embeddings: queries by one model, say a new one, in a gallery embedded by another, old one.

    The fraction of queries with an item of their own class among the k nearest of the gallery by cosine similarity.
    The narrower embedding is padded with zeros. Ties count against the query, so that an embedding that has collapsed
    to a point recalls nothing. A vector of zeros has the similarity 0 with all. Queries without an item of their class
    in the gallery are left out.

    Args:
        query: (N, d) floating point.
        gallery: (M, d') floating point.
        query_labels: (N,) integers.
        gallery_labels: (M,) integers.
        k: at least 1.
        same_items: row i of query and of gallery are the same item, by two models or by one; it is then left out of
            its own ranking. N = M.

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: an argument is refused, or no query has an item of its class in the gallery.
    """
    q, g = as_matrix("query", query, "(N, d)"), as_matrix("gallery", gallery, "(M, d)")
    q_labels = as_labels("query_labels", query_labels, q, None, "query")
    g_labels = as_labels("gallery_labels", gallery_labels, g, None, "gallery").to(q.device)
    checks.finite("query", q)
    checks.finite("gallery", g)
    k = checks.whole("k", k, 1)
    if same_items and len(g) != len(q):
        raise ValueError(f"with same_items gallery must have {len(q)} rows, as query has, but has {len(g)}")
    # What sticks out beyond the narrower one meets zeros: it counts in the length only.
    width = min(q.shape[1], g.shape[1])
    g = normalize(g.to(q.device, torch.float64), dim=1)[:, :width]
    found, asked, step = 0, 0, max(1, _SIMILARITIES // len(g))
    for start in range(0, len(q), step):
        rows = slice(start, min(start + step, len(q)))
        scores = normalize(q[rows].double(), dim=1)[:, :width] @ g.T
        match = q_labels[rows, None] == g_labels
        if same_items:
            own = torch.arange(rows.start, rows.stop, device=g.device)[:, None] == torch.arange(len(g), device=g.device)
            scores, match = scores.masked_fill(own, -torch.inf), match & ~own
        best = scores.masked_fill(~match, -torch.inf).amax(dim=1, keepdim=True)
        ahead = ((scores >= best) & ~match).sum(dim=1)
        valid = match.any(dim=1)
        found += int((valid & (ahead < k)).sum())
        asked += int(valid.sum())
    if asked == 0:
        raise ValueError("no query has an item of its class in the gallery")
    return found / asked


def nearest_prototype(features: Any, prototypes: Any, *, distance: Literal["cosine", "euclidean"] = "cosine") -> Tensor:
    """The class of the nearest prototype: argmax_k cos(h, p_k), or argmin_k |h - p_k|.

    Of prototypes at the same distance the first one is taken. For unit vectors the two distances agree.

    Args:
        features: h (N, d), floating point.
        prototypes: p (K, d), e.g. from `adapt.prototypes.compute`, or class vectors and prototypes one after another.
        distance: "cosine" reads angles alone; a feature of length zero is then as near to all. "euclidean" is what
            prototypical networks take.

    Returns:
        (N,) int64 labels, on the device of features. Computed in float64.

    Raises:
        ValueError: wrong shape or dtype, a NaN, or a prototype of length zero where angles are asked for.
    """
    check_choice("distance", distance, ("cosine", "euclidean"))
    h = as_matrix("features", features, "(N, d)")
    p = as_matrix("prototypes", prototypes, "(K, d)").to(h.device, torch.float64)
    if p.shape[1] != h.shape[1]:
        raise ValueError(f"prototypes must have the {h.shape[1]} columns of features, but have {p.shape[1]}")
    checks.finite("prototypes", p)
    if distance == "euclidean":
        # |h - p|^2 / 2 = |h|^2 / 2 - (<h, p> - |p|^2 / 2)
        offset = -p.square().sum(dim=1) / 2
    else:
        if checks.can_read(p) and (zero := ~p.any(dim=1)).any():
            raise ValueError(f"prototypes[{int(zero.nonzero()[0, 0])}] is zero and has no direction")
        p, offset = normalize(p, dim=1), p.new_zeros(())
    return torch.cat([(chunk.double() @ p.T + offset).argmax(dim=1) for _, chunk in finite_chunks("features", h)])


def spurious_gap(acc_aligned: Any, acc_conflicting: Any) -> float:
    """What a spurious context is worth: accuracy where it goes with the class minus accuracy where it does not.

    Near 0 for a classifier that reads the concept, near 1 for one that reads the context alone; negative where the
    context misleads.

    Args:
        acc_aligned: accuracy in [0, 1] on queries in their class's own context; a number, or one an episode.
        acc_conflicting: the same on queries in another class's context.

    Returns:
        Difference of the two means, in [-1, 1].

    Raises:
        ValueError: an accuracy is NaN or outside [0, 1], or there is none.
    """
    aligned, conflicting = (
        as_unit_interval(name, as_tensor(name, value).double().flatten())
        for name, value in (("acc_aligned", acc_aligned), ("acc_conflicting", acc_conflicting))
    )
    return float(aligned.mean() - conflicting.mean())

"""Wrong labels: which they are, when they change a ranking, and what a noisy label is worth."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lossbook import checks
from lossbook.metrics._inputs import as_labels, as_matrix, probability_chunks, row_chunks


class ConfidentJoint(NamedTuple):
    """What `confident_joint` finds; the suspects are the rows with guess >= 0 and guess != labels."""

    counts: Tensor  #: (K, K) int64, C[a, b]: rows of given label a that confidently are of class b
    joint: Tensor  #: (K, K) float64, Q[a, b]: estimated share of all rows with given label a and true label b
    thresholds: Tensor  #: (K,) float64, t_j; infinite for a label that no row has
    guess: Tensor  #: (N,) int64, the class that each row confidently is of, or -1


def confident_joint(labels: Any, probs: Any) -> ConfidentJoint:
    """Confident learning: how many rows of each given label confidently belong to each class.

        t_j = mean of P_ij over the rows i with given label j
        C[a, b] = #{ i: given label a, b = argmax over { j: P_ij >= t_j } of P_ij }
        Q[a, b] = C[a, b] / Σ_b' C[a, b'] · N_a / N

    Rows that reach no threshold are not counted in C. A label whose rows all fail to be counted is taken to be right: Q
    has N_a/N at [a, a]. The thresholds hold up to 1e-6, which a mean is rounded by. Off the diagonal of Q is the
    estimated share of wrong labels, and its rows sum to the share of each given label.

    cleanlab's `count.compute_confident_joint(calibrate=False)` differs in two points: where several classes reach their
    threshold it takes the row's argmax even if that one class does not reach its own, and it raises the diagonal to at
    least 1.

    Args:
        labels: (N,) given integer labels in [0, K).
        probs: (N, K) probabilities from models that did not see the row (cross-validation). In-sample probabilities
            agree with the wrong labels that the model has learned.

    Returns:
        ConfidentJoint(counts, joint, thresholds, guess).

    Raises:
        ValueError: bad shape or dtype, a label out of range, rows that are no probabilities.

    Source: Northcutt, Jiang, Chuang 2021 (arXiv 1911.00068), equations 1 to 3; used by Northcutt, Athalye, Mueller 2021
    (arXiv 2103.14749).
    """
    probs = as_matrix("probs", probs)
    labels = as_labels("labels", labels, probs, probs.shape[1])
    n, k = probs.shape
    given = torch.bincount(labels, minlength=k)
    self_confidence = torch.zeros(k, dtype=torch.float64, device=probs.device)
    for rows, chunk in probability_chunks("probs", probs):
        own = chunk.gather(1, labels[rows, None])[:, 0].double()
        self_confidence.index_add_(0, labels[rows], own)
    thresholds = torch.where(given > 0, self_confidence / given, torch.inf)
    guess = torch.empty(n, dtype=torch.int64, device=probs.device)
    for rows, chunk in row_chunks(probs):
        best, which = torch.where(chunk >= thresholds - 1e-6, chunk, -1).max(dim=1)
        guess[rows] = torch.where(best >= 0, which, -1)
    kept = guess >= 0
    counts = torch.bincount(labels[kept] * k + guess[kept], minlength=k * k).view(k, k)
    total = counts.sum(dim=1, keepdim=True)
    share = torch.where(total > 0, counts / total, torch.eye(k, dtype=torch.float64, device=probs.device))
    return ConfidentJoint(counts, share * given[:, None] / n, thresholds, guess)


def prevalence_crossing(a: tuple[float, float], b: tuple[float, float]) -> float | None:
    """The share of wrong labels at which two models, judged by the given labels, change places.

    Of rows of which a share x is mislabelled, a model's accuracy against the given labels is (1 - x) clean + x
    mislabelled. Two models tie at

        x* = dc / (dc - dm),    dc = clean_A - clean_B,    dm = mislabelled_A - mislabelled_B

    Below x* the model that is better on clean rows leads, above it the one that agrees more with the wrong labels.

    Args:
        a, b: (clean, mislabelled) of model A and B: accuracy on the rows whose given label is right, and share of the
            mislabelled rows where the prediction is the given, wrong label. All in [0, 1].

    Returns:
        x* in (0, 1), or None where one model leads, or both tie, at every x in between: dc and dm have the same sign,
        or one is 0.

    Raises:
        ValueError: not a pair of numbers in [0, 1].

    Source: Northcutt, Athalye, Mueller 2021 (arXiv 2103.14749), noise prevalence; the formula by hand.
    """
    for name, pair in (("a", a), ("b", b)):
        if len(pair) != 2:
            raise ValueError(f"{name} must be a pair (clean, mislabelled), but is {pair!r}")
        for i, value in enumerate(pair):
            checks.parameter(f"{name}[{i}]", value, 0, 1)
    clean, mislabelled = a[0] - b[0], a[1] - b[1]
    if clean * mislabelled >= 0:
        return None
    return clean / (clean - mislabelled)


def effective_label_count(n: float, accuracy: float) -> float:
    """How many right labels n noisy ones of a binary question are worth: n_eff = (2a - 1)² n.

    Each label is right with probability a, whatever the question. Then P(label = 1) = (1 - a) + (2a - 1) p, and the
    Fisher information about the logit of p is (2a - 1)² times that of a right label where p = 1/2, and less than that
    elsewhere: n_eff is what noisy labels are worth on questions in doubt, and an upper bound otherwise. Labels of
    cost w beat right ones of cost 1 where (2a - 1)² > w. a and 1 - a are worth the same: always wrong is as good as
    always right, if one knows.

    Args:
        n: number of labels, at least 0.
        accuracy: a in [0, 1]; 1/2 is a coin.

    Raises:
        ValueError: an argument is out of its range.

    Source: standard asymptotics; the question is that of Mallen and Belrose 2024 (arXiv 2410.13215).
    """
    checks.parameter("n", n, 0, math.inf)
    checks.parameter("accuracy", accuracy, 0, 1)
    return (2 * accuracy - 1) ** 2 * n

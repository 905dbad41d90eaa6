"""Losses that shape distances and angles of features, so that classes of which none was seen have a place as well."""

from __future__ import annotations

import torch
from torch import Tensor

from lossbook import checks
from lossbook.losses.surrogate.family import cross_entropy


def normalized_softmax(
    features: Tensor, weight: Tensor, target: Tensor, *, scale: float | Tensor = 16.0, reduction: str = "mean"
) -> Tensor:
    """Normalised softmax loss: cross-entropy in which only angles count.

        loss_i = -log softmax(s cos(f_i, w_k))_{y_i},    k = 1..K

    In nats, range (0, 2 s + log K). With as many samples in every class, the mean is never below

        log(1 + (K - 1) exp(-s K / (K - 1))),

    and reaches that where features and class vectors are the same simplex ETF, which needs d >= K - 1: a small scale
    leaves a loss that no training removes (1.3 for K = 10, s = 1). The gradient in f is orthogonal to f and falls as
    1/|f|. Nothing is detached. A vector of length zero has cosine 0 with all others.

    Args:
        features: f `(N, d)`.
        weight: w `(K, d)`, the class vectors: the weight of `layers.CosineClassifier`.
        target: y `(N,)`, integer labels in [0, K).
        scale: s > 0. May be a 0-d tensor, and learned.
        reduction: "none", "mean" or "sum" over the rows.

    Raises:
        TypeError, ValueError: an argument is refused; the sentence names it.

    Source: Pereira, Joly, Valduriez, Porto 2021 (arXiv 2102.03243), for classes not seen in training, without the
        paper's further constraint on the latent space; loss and bound are those of Wang et al. 2017, NormFace (arXiv
        1704.06369).
    """
    checks.matrix("features", features)
    checks.matrix("weight", weight, "(K, d)", columns=features.shape[1])
    checks.labels("target", target, len(features), len(weight))
    checks.parameter("scale", scale, 0, open_low=True)
    f, w = (x.float() if x.itemsize < 4 else x for x in (features, weight))
    logits = scale * unit(f) @ unit(w).T
    return cross_entropy(logits, target, reduction=reduction).to(features.dtype)


def unit(vectors: Tensor) -> Tensor:
    """vectors (..., d) at length one; a zero stays zero, with a gradient of ordinary size, and a NaN stays NaN."""
    length = vectors.norm(dim=-1, keepdim=True)
    return vectors / torch.where(length == 0, 1.0, length)

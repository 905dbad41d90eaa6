"""A classifier in which only angles count."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from lossbook import checks
from lossbook.losses.metric import unit


class CosineClassifier(nn.Module):
    """Logits from angles alone: z_k = s cos(h, w_k), without bias.

    The length of a feature changes nothing, and no class can be favoured by a longer vector. The probabilities are
    bounded: the largest one possible is 1 / (1 + (K - 1) exp(-2 s)) where all other vectors point away. A vector of
    length zero has cosine 0 with all others. Cross-entropy of these logits is `losses.metric.normalized_softmax`.

    Args:
        dim: d, of the features.
        num_classes: K, at least 2.
        scale: s > 0, the inverse of a temperature.
        learn_scale: make s a parameter. It is kept as log s, so that it stays positive.

    Shapes: features (..., d); logits (..., K). `weight` (K, d) starts as torch.nn.Linear's does.

    Raises:
        ValueError: a size or the scale is out of range, or the features have another dimension.

    Source: Wang et al. 2017, NormFace (arXiv 1704.06369); Pereira, Joly, Valduriez, Porto 2021 (arXiv 2102.03243).
    """

    def __init__(self, dim: int, num_classes: int, scale: float = 16.0, learn_scale: bool = False) -> None:
        super().__init__()
        checks.parameter("scale", scale, 0, open_low=True)
        dim, num_classes = checks.whole("dim", dim, 1), checks.whole("num_classes", num_classes, 2)
        self.weight = nn.Parameter(torch.empty(num_classes, dim))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        log_scale = torch.tensor(float(scale)).log()
        if learn_scale:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)

    @property
    def scale(self) -> Tensor:
        """s, a 0-d tensor."""
        return self.log_scale.exp()

    def forward(self, features: Tensor) -> Tensor:
        """Logits, (..., K)."""
        return cosine_logits(features, self.weight, self.scale)

    def extra_repr(self) -> str:
        num_classes, dim = self.weight.shape
        return f"dim={dim}, num_classes={num_classes}, scale={self.scale.item():g}"


def cosine_logits(features: Tensor, weight: Tensor, scale: float | Tensor) -> Tensor:
    """scale cos(features, weight): `(..., d)` and `(K, d)` -> `(..., K)`."""
    if features.shape[-1:] != weight.shape[1:]:
        raise ValueError(f"features must have shape (..., {weight.shape[1]}), but have shape {tuple(features.shape)}")
    return scale * linear(unit(features), unit(weight))

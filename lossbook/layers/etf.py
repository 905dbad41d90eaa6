"""A classifier that is not trained: its rows are the simplex ETF that training would end in."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lossbook import checks
from lossbook.theory.etf import simplex_etf


class ETFClassifier(nn.Module):
    """A fixed classifier: z = s E h, with the rows of E (K, d) a simplex ETF (`lossbook.theory.simplex_etf`).

    No bias: the rows sum to 0. Features are not normalised. `weight` (K, d) is s E and `bias` None, as a
    torch.nn.Linear has them, so `lossbook.metrics.collapse_report` takes both. E is a buffer; its orientation comes
    from torch's global generator.

    Args:
        dim: d, at least K - 1.
        num_classes: K, at least 2.
        scale: s > 0, the length of the rows.
        learn_scale: make s a parameter. It is kept as log s, so that it stays positive.

    Shapes: features (..., d); logits (..., K).

    Raises:
        ValueError: a size or the scale is out of range, or the features have another dimension.

    Source: Zhu et al. 2021, A Geometric Analysis of Neural Collapse with Unconstrained Features: the fixed classifier.
    """

    frame: Tensor
    log_scale: Tensor

    def __init__(self, dim: int, num_classes: int, scale: float = 1.0, learn_scale: bool = False) -> None:
        super().__init__()
        checks.whole("num_classes", num_classes, 2)
        checks.whole("dim", dim, num_classes - 1)
        checks.parameter("scale", scale, 0, open_low=True)
        self.register_buffer("frame", simplex_etf(num_classes, dim, dtype=torch.get_default_dtype()))
        log_scale = torch.tensor(float(scale)).log()
        if learn_scale:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)
        self.bias = None

    @property
    def scale(self) -> Tensor:
        """s, a 0-d tensor."""
        return self.log_scale.exp()

    @property
    def weight(self) -> Tensor:
        """s E, (K, d)."""
        return self.scale * self.frame

    def forward(self, features: Tensor) -> Tensor:
        """Logits, (..., K)."""
        dim = self.frame.shape[1]
        if features.shape[-1:] != (dim,):
            raise ValueError(f"features must have shape (..., {dim}), but have shape {tuple(features.shape)}")
        return self.scale * nn.functional.linear(features, self.frame)

    def extra_repr(self) -> str:
        num_classes, dim = self.frame.shape
        return f"dim={dim}, num_classes={num_classes}, scale={self.scale.item():g}"

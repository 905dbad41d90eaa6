"""`GaussianPseudoNegatives`: a second class for those who have only one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lossbook import checks


class GaussianPseudoNegatives(nn.Module):
    """Pseudo-negatives near the genuine features: Gaussian samples about a mean that lags behind theirs.

        m_t = α m_{t-1}' + (1 - α) m_t',    z ~ N(m_t, σ² I),    m_t' the mean of batch t, m_0' = 0

    m_t mixes two batches; it is no running average. As m_0' is 0, the first samples of an epoch lie closer to the
    origin. They are drawn where the features are, before the map into the ball, as many as there are features, and are
    constants: no gradient reaches the features through them.

    Args:
        dim: d.
        momentum: α in [0, 1].
        variance: σ² > 0, the variance of each coordinate. The code of Hyp-OC calls it std_dev.

    Attributes:
        previous: `(d,)` the mean of the last batch; a buffer, saved with the module.

    Raises:
        ValueError: an argument is refused.

    Source: Narayan, Patel 2024 (arXiv 2404.14406), as their code has it.
    """

    previous: Tensor

    def __init__(self, dim: int, momentum: float = 0.8, variance: float = 1.0) -> None:
        super().__init__()
        checks.parameter("momentum", momentum, 0, 1)
        checks.parameter("variance", variance, 0, open_low=True)
        self.momentum, self.variance = momentum, variance
        self.register_buffer("previous", torch.zeros(checks.whole("dim", dim, 1)))

    @torch.no_grad()
    def sample(self, features: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """`(B, d)` samples for the genuine features `(B, d)` of this batch, which becomes the previous one.

        Args:
            features: floating point, B >= 1.
            generator: source of the noise, on the features' device; torch's global one if None.

        Raises:
            TypeError, ValueError: features are refused.
        """
        if not isinstance(features, Tensor):
            raise TypeError(f"features must be a torch.Tensor, but are {type(features).__name__}")
        dim = len(self.previous)
        if features.dim() != 2 or features.shape[1] != dim or len(features) == 0 or not features.is_floating_point():
            raise ValueError(
                f"features must be floating point of shape (B, {dim}), but are {features.dtype} of shape "
                f"{tuple(features.shape)}"
            )
        checks.finite("features", features)
        mean = features.mean(dim=0).to(self.previous)
        centre = self.momentum * self.previous + (1 - self.momentum) * mean
        self.previous.copy_(mean)
        noise = torch.randn(features.shape, generator=generator, dtype=features.dtype, device=features.device)
        return centre.to(features) + self.variance**0.5 * noise

    def reset(self) -> None:
        """Forget the last batch, as the code of Hyp-OC does at the start of every epoch."""
        self.previous.zero_()

    def extra_repr(self) -> str:
        return f"{len(self.previous)}, momentum={self.momentum}, variance={self.variance}"

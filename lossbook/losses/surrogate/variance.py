"""Bias loss: cross-entropy weighted by how much a row's features vary.

The arguments that all losses share are described in `lossbook.losses.surrogate`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lossbook import checks
from lossbook.losses._contract import prepare, reduce
from lossbook.losses.surrogate.family import cross_entropy


def bias_weights(
    features: Tensor,
    *,
    alpha: float | Tensor = 0.3,
    beta: float | Tensor = 0.3,
    normalize: str = "local",
    running_min: Tensor | float | None = None,
) -> Tensor:
    """The weights of the bias loss: more for a row whose features vary more than those of its batch.

        z_i = exp(alpha u_i) - beta,    u_i = (v_i - low) / (max_j v_j - min_j v_j),    0 where all v are equal
        v_i = variance of the D numbers in row i (divided by D - 1),    low = min_j v_j

    Range [1 - beta, e^alpha - beta] with "local". With "global", low is the least variance seen so far: u_i passes 1,
    the more so the closer the variances of the batch lie together, and there is no upper end. Detached.

    Args:
        features: `(N, ...)` with at least 2 numbers a row; in the paper the last convolutional map.
        alpha: >= 0.
        beta: in [0, 1].
        normalize: "local" or "global".
        running_min: of "global": the least variance before this batch; None: there was none. "local" ignores it.

    Returns:
        `(N,)`, at least float32.

    Raises:
        TypeError, ValueError: an argument is no tensor, has the wrong shape or dtype, is not finite or out of range.

    Source: Abrahamyan et al. 2021 (arXiv 2107.11170), and the authors' code for the variance and both scalings.
    """
    _parameters(alpha, beta, normalize, running_min)
    v = feature_variance(features)
    return _weights(v, torch.ones_like(v, dtype=torch.bool), alpha, beta, normalize, running_min)


def bias_loss(
    logits: Tensor,
    target: Tensor,
    features: Tensor,
    *,
    alpha: float | Tensor = 0.3,
    beta: float | Tensor = 0.3,
    normalize: str = "local",
    running_min: Tensor | float | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Bias loss: cross-entropy in which rows with poor features count less.

        loss = -z_y log p_y,    z = bias_weights(features)

    z_i is a constant for the gradient, which is z_i (p_k - 1[k = y]) in f_k and none in the features. `mean` divides by
    the number of rows, not by the sum of z. Range [0, inf). alpha = beta = 0: cross-entropy; alpha = 0: (1 - beta)
    times it. A row's weight depends on the batch; ignored rows are no part of it.

    Args:
        features: `(N, ...)`, detached here; `train.fit` and `train.sweep` hand it model.features(x).
        alpha, beta, normalize, running_min: as in `bias_weights`.

    Source: Abrahamyan et al. 2021 (arXiv 2107.11170).
    """
    _parameters(alpha, beta, normalize, running_min)
    f, y = prepare(logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)
    v = feature_variance(features)
    if len(v) != len(f):
        raise ValueError(f"features must have a row for each of the {len(f)} logits, but have {len(v)}")
    z = _weights(v, target.long() != ignore_index, alpha, beta, normalize, running_min)
    loss = z.to(f.dtype) * cross_entropy(f, y, reduction="none")
    return reduce(loss, logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)


def feature_variance(features: Tensor) -> Tensor:
    """The unbiased variance of the numbers in each row, `(N, ...)` -> `(N,)`, detached, at least float32."""
    if not isinstance(features, Tensor):
        raise TypeError(f"features must be a torch.Tensor, but is {type(features).__name__}")
    if features.dim() < 2 or not features.is_floating_point() or not len(features) or features[0].numel() < 2:
        raise ValueError(
            f"features must be floating point of shape (N, ...), rows of at least 2 numbers, but are "
            f"{features.dtype} of shape {tuple(features.shape)}"
        )
    checks.finite("features", features)
    if features.dtype in (torch.float16, torch.bfloat16):
        features = features.float()
    return features.detach().flatten(1).var(dim=1)


def _parameters(
    alpha: float | Tensor, beta: float | Tensor, normalize: str, running_min: Tensor | float | None
) -> None:
    checks.parameter("alpha", alpha, 0)
    checks.parameter("beta", beta, 0, 1)
    if normalize not in ("local", "global"):
        raise ValueError(f"normalize must be 'local' or 'global', but is {normalize!r}")
    if running_min is not None:
        checks.parameter("running_min", running_min, 0, infinite=True)


def _weights(
    v: Tensor,
    kept: Tensor,
    alpha: float | Tensor,
    beta: float | Tensor,
    normalize: str,
    running_min: Tensor | float | None,
) -> Tensor:
    low, high = v.where(kept, torch.inf).amin(), v.where(kept, -torch.inf).amax()
    spread = high - low
    if normalize == "global" and running_min is not None:
        low = low.minimum(torch.as_tensor(running_min, dtype=v.dtype, device=v.device))
    u = torch.where(kept & (spread > 0), (v - low) / spread, 0.0)
    return torch.exp(alpha * u) - beta


class BiasLoss(nn.Module):
    """`bias_loss` with normalize="global": the buffer `running_min` is the least variance of a training batch so far.

    It moves in training mode only, and makes a weight depend on the order of the data.

    Args:
        alpha: >= 0.
        beta: in [0, 1].

    Shapes: logits (N, C), target (N,), features (N, ...) -> scalar, the mean.

    Source: Abrahamyan et al. 2021 (arXiv 2107.11170); global is the default of the authors' code.
    """

    running_min: Tensor

    def __init__(self, alpha: float = 0.3, beta: float = 0.3) -> None:
        super().__init__()
        _parameters(alpha, beta, "global", None)
        self.alpha, self.beta = alpha, beta
        self.register_buffer("running_min", torch.tensor(torch.inf))

    def forward(self, logits: Tensor, target: Tensor, features: Tensor) -> Tensor:
        # The batch's own minimum enters there; it is stored afterwards, so that a refused batch changes nothing.
        loss = bias_loss(
            logits, target, features, alpha=self.alpha, beta=self.beta, normalize="global", running_min=self.running_min
        )
        if self.training:
            v = feature_variance(features).where(target.long() != -100, torch.inf)
            self.running_min = self.running_min.minimum(v.amin())
        return loss

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, beta={self.beta}"

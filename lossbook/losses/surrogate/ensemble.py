"""EnsLoss: a fresh random loss for every batch, drawn by its derivative.

Scores, targets and reductions are those of `lossbook.losses.surrogate.binary`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lossbook import checks
from lossbook.losses.surrogate.binary import margins, reduced


def ensloss_derivative(margin: Tensor, draws: Tensor, *, lam: float | Tensor = 0.0) -> Tensor:
    """The derivative, at the margins of one batch, of a random convex loss that is calibrated for classification.

        r_i = max(1 + lam e_i, 0)^{1 / lam},  exp(e_i) at lam = 0        inverse Box-Cox transform of the draws e
        g   = sort(-min(r, 1)), the most negative to the smallest margin, and so on: never decreasing in z
        g_i <- g_i / z_i where z_i > 1,  then g_i <- g_i - 1e-6

    Range [-1 - 1e-6, -1e-6]. A convex loss is calibrated if and only if it is differentiable at 0 with a negative slope
    there. The division makes the slope fade like 1/z: a loss with that slope falls as -log z does, more slowly than any
    line. r_i >= 1 where e_i >= 0, whatever lam is: lam shapes the smaller half of the slopes. Constant draws >= 0 give
    the hinge loss's slope -1 at all margins up to 1. The result is detached.

    Args:
        margin: z `(N,)`, positive where the prediction is right.
        draws: e `(N,)`, standard normal.
        lam: in [-100, 100]. The smaller, the nearer to 1 are the slopes below it; the paper uses 0, or a value drawn
            from [-1, 1].

    Raises:
        TypeError, ValueError: an argument is no tensor, has the wrong shape or dtype, is not finite or out of range.

    Source: Dai 2025 (arXiv 2409.00908), its algorithm as in the author's code.
    """
    checks.parameter("lam", lam, -100, 100)
    for name, tensor in (("margin", margin), ("draws", draws)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, but is {type(tensor).__name__}")
        if tensor.dim() != 1 or not tensor.is_floating_point() or tensor.shape != margin.shape:
            raise ValueError(
                f"{name} must be floating point of shape (N,), as long as margin, but is {tensor.dtype} of shape "
                f"{tuple(tensor.shape)}"
            )
        checks.finite(name, tensor)
    z, e = margin.detach(), draws.detach().to(margin.dtype)
    lam = torch.as_tensor(lam, dtype=z.dtype, device=z.device)
    # Where the base is 0, log1p gives -inf, and the power is 0 for lam > 0 and inf for lam < 0; the clip takes both.
    power = torch.exp(torch.log1p((lam * e).clamp(min=-1)) / lam)
    r = torch.where(lam.abs() < 1e-6, e.exp(), power)
    rank = z.argsort(stable=True).argsort()
    g = (-r.clamp(max=1)).sort().values.gather(0, rank)
    return torch.where(z > 1, g / z, g) - 1e-6


def ensloss(
    scores: Tensor,
    target: Tensor,
    *,
    lam: float | Tensor = 0.0,
    generator: torch.Generator | None = None,
    draws: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """EnsLoss: one step of gradient descent on a random calibrated loss, another one at every call.

        loss = g_i z_i,    z = (2t - 1) s,    g = ensloss_derivative(z, e),    e ~ N(0, 1)

    g is detached. Only the gradient means something: g_i (2 t_i - 1) in the score s_i. The value is no loss: watch the
    training by a fixed one. A row's part depends on the others by its rank. Adam rescales gradients, and with
    them the slopes that were drawn: the author trains on images and tables with SGD.

    Args:
        lam: as in `ensloss_derivative`.
        generator: of the draws, on the device of the scores; None: torch's own. `torch.func.vmap` takes none, and
            draws anew for each of its rows with randomness="different".
        draws: `(N,)`, used in place of fresh ones.

    Source: Dai 2025 (arXiv 2409.00908).
    """
    z = margins(scores, target, reduction)
    if draws is None:
        draws = torch.randn(z.shape, generator=generator, dtype=z.dtype, device=z.device)
    g = ensloss_derivative(z, draws, lam=lam)
    return reduced(g * z, scores, reduction)


class EnsLoss(nn.Module):
    """`ensloss` whose lam is drawn anew, from U(-1, 1), every `period` epochs.

    It starts in epoch 1, with lam = 0 until the first draw; call `next_epoch()` after each epoch, as `train.fit` does
    with `callback=lambda epoch, model: loss.next_epoch()`. Epochs that are multiples of period begin with a draw, from
    torch's own generator. `lam` and `epoch` are buffers, so that a checkpoint holds them.

    Args:
        period: epochs between two draws, at least 1; or -1, the setting of the paper's tables: lam stays 0.

    Shapes: scores (N,), target (N,) -> scalar, the mean.

    Source: Dai 2025 (arXiv 2409.00908), with the schedule of the author's training loop.
    """

    lam: Tensor
    epoch: Tensor

    def __init__(self, period: int = -1) -> None:
        super().__init__()
        if period != -1:
            checks.whole("period", period, 1)
        self.period = period
        self.register_buffer("lam", torch.tensor(0.0))
        self.register_buffer("epoch", torch.tensor(0))
        self.next_epoch()

    def next_epoch(self) -> None:
        """Count the epoch that begins; draw lam if it is due."""
        self.epoch += 1
        if self.period > 0 and int(self.epoch) % self.period == 0:
            self.lam.uniform_(-1, 1)

    def forward(self, scores: Tensor, target: Tensor) -> Tensor:
        return ensloss(scores, target, lam=self.lam)

    def extra_repr(self) -> str:
        return f"period={self.period}"

"""`SelfTargets`: what the network said of each training row when it last saw it; `SelfDistillation` learns from it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lossbook import checks
from lossbook.losses import _arguments, cross_entropy
from lossbook.losses.distillation import pskd


class SelfTargets(nn.Module):
    """The memory of PS-KD: a probability vector for each of n training rows, and targets that mix it with the label.

    A module, so that a loss that holds one moves it to its device and `train.fit` keeps it in its checkpoints. A loss
    with a parameter `index` is given the rows' places. Memory: n (4 num_classes + 1) bytes.

    Args:
        n: rows of the training split, at least 1.
        num_classes: at least 2.

    Attributes:
        probs: `(n, num_classes)` float32, the last probabilities of each row; 0 before the first.
        seen: `(n,)` bool, whether the row has any.

    Source: Kim, Ji, Yoon, Hwang 2021 (arXiv 2006.12000).
    """

    probs: Tensor
    seen: Tensor

    def __init__(self, n: int, num_classes: int) -> None:
        super().__init__()
        n, num_classes = checks.whole("n", n, 1), checks.whole("num_classes", num_classes, 2)
        self.register_buffer("probs", torch.zeros(n, num_classes))
        self.register_buffer("seen", torch.zeros(n, dtype=torch.bool))

    def targets(self, index: Tensor, y: Tensor, alpha: float) -> Tensor:
        """q = (1 - alpha) e_y + alpha P_past for these rows; e_y where there is no past yet.

        alpha = 1 gives P_past itself, as `losses.distillation.pskd` takes it.

        Args:
            index: `(B,)` integers in [0, n).
            y: `(B,)` integer labels in [0, num_classes).
            alpha: in [0, 1].

        Returns:
            `(B, num_classes)` float32 probabilities, a copy without gradient.

        Raises:
            TypeError, ValueError: an argument is refused; the sentence names it.
        """
        checks.parameter("alpha", alpha, 0, 1)
        _check_whole("index", index, None, len(self.probs))
        _check_whole("y", y, len(index), self.probs.shape[1])
        label = torch.nn.functional.one_hot(y.long(), self.probs.shape[1]).to(self.probs.dtype)
        past = torch.where(self.seen[index.long(), None], self.probs[index.long()], label)
        return (1 - alpha) * label + alpha * past

    def update(self, index: Tensor, probs: Tensor) -> None:
        """Remember these probabilities, detached.

        Args:
            index: `(B,)` integers in [0, n), no place twice.
            probs: `(B, num_classes)` probabilities.

        Raises:
            TypeError, ValueError: an argument is refused; the sentence names it.
        """
        _check_whole("index", index, None, len(self.probs))
        _arguments.probabilities("probs", probs, (len(index), self.probs.shape[1]))
        self.probs[index.long()] = probs.detach().to(self.probs.dtype)
        self.seen[index.long()] = True

    def extra_repr(self) -> str:
        return f"n={len(self.probs)}, num_classes={self.probs.shape[1]}"


class SelfDistillation(nn.Module):
    """PS-KD as a loss of `train.fit`: the network learns from the label and from its own prediction of an epoch ago.

        loss = pskd(logits, target, P_past, alpha=alpha_t),    alpha_t = alpha_T t / T    in epoch t = 1 ... T

    P_past is the softmax of the row's logits in training mode when it was last seen, detached; e_y in the first epoch.
    In evaluation the loss is cross-entropy. Give each training an instance of its own, and `fit` the same epochs.

    Args:
        n: rows of the training split, at least 1.
        num_classes: at least 2.
        epochs: T, at least 1. From then on alpha stays at alpha_T.
        alpha_T: in [0, 1].

    Attributes:
        store: the `SelfTargets`.
        visits: 0-d int64, rows that were learned from so far; the epoch is counted by them, not by steps.

    Raises:
        TypeError, ValueError: an argument is refused; the sentence names it.

    Source: Kim, Ji, Yoon, Hwang 2021 (arXiv 2006.12000), sections 3.1 and 3.2; alpha_T = 0.8 as in the authors' code.
    """

    visits: Tensor

    def __init__(self, n: int, num_classes: int, *, epochs: int, alpha_T: float = 0.8) -> None:
        super().__init__()
        checks.parameter("alpha_T", alpha_T, 0, 1)
        self.epochs, self.alpha_T = checks.whole("epochs", epochs, 1), alpha_T
        self.store = SelfTargets(n, num_classes)
        self.register_buffer("visits", torch.zeros((), dtype=torch.long))

    @property
    def alpha(self) -> Tensor:
        """alpha_t of the next row, 0-d."""
        epoch = self.visits // len(self.store.probs) + 1
        return self.alpha_T * (epoch / self.epochs).clamp_max(1)

    def forward(self, logits: Tensor, target: Tensor, index: Tensor | None = None) -> Tensor:
        if index is None or not self.training:
            return cross_entropy(logits, target)
        loss = pskd(logits, target, self.store.targets(index, target, 1.0), alpha=self.alpha)
        self.store.update(index, logits.detach().softmax(dim=1))
        self.visits += len(index)
        return loss

    def extra_repr(self) -> str:
        return f"epochs={self.epochs}, alpha_T={self.alpha_T:g}"


def _check_whole(name: str, value: Tensor, length: int | None, high: int) -> None:
    """Refuse what is not a 1-d integer tensor of this length, all of it in [0, high)."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, but is {type(value).__name__}")
    integer = not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)
    if value.dim() != 1 or not integer or len(value) != (len(value) if length is None else length):
        raise ValueError(
            f"{name} must be integers of shape ({'B' if length is None else length},), "
            f"but is {value.dtype} of shape {tuple(value.shape)}"
        )
    if checks.can_read(value) and len(value) and not 0 <= int(value.min()) <= int(value.max()) < high:
        raise ValueError(f"{name} must lie in [0, {high}), but holds {int(value.min())} to {int(value.max())}")

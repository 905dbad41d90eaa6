"""Two networks that learn together, each from the labels and from what the other says.

`Pair` makes them one module, so that `train.fit` and `train.sweep` train them; `mutual_loss` is what both minimise.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lossbook.losses import cross_entropy

# divergence(own_logits, other_logits) -> scalar; the other's logits are constants.
Divergence = Callable[[Tensor, Tensor], Tensor]


class Pair(nn.Module):
    """A student and a teacher as one module: the features are the logits of both, the head keeps the student's.

    Accuracies of a history or a table are therefore the student's. `SweepResult.features(x)` holds both.

    Args:
        student, teacher: map x (N, ...) to logits (N, C). A teacher whose parameters do not require gradients stays as
            it is: distillation from a finished teacher.

    Shapes: features(x) (N, 2 C), the student's logits first; pair(x) (N, C).
    """

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher

    def features(self, x: Tensor) -> Tensor:
        """Logits of the student and, after them, of the teacher."""
        student, teacher = self.student(x), self.teacher(x)
        if student.shape != teacher.shape:
            raise ValueError(
                f"student and teacher must have logits of one shape, but have {tuple(student.shape)} and "
                f"{tuple(teacher.shape)}"
            )
        return torch.cat((student, teacher), dim=1)

    def head(self, features: Tensor) -> Tensor:
        """The student's logits."""
        return features.chunk(2, dim=1)[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def mutual_loss(
    logits: Tensor,
    target: Tensor,
    *,
    features: Tensor,
    student: Divergence | None = None,
    teacher: Divergence | None = None,
) -> Tensor:
    """What the two networks of a `Pair` minimise together, each its own part of the sum.

        loss = CE(z^s, y) + student(z^s, z^t)  +  CE(z^t, y) + teacher(z^t, z^s)

    The second argument of each divergence is detached, so no gradient reaches a network through the other's part: one
    backward pass trains both as two would. Deep mutual learning is `forward_kl` both ways. BD-KD is
    `balanced_divergence` for the student and `reverse_kl` for the teacher. No divergences: two networks side by side.

    Args:
        logits: not used; `features` holds them.
        target: `(N,)` integers.
        features: `(N, 2 C)` of the pair, given by `fit` and `sweep`.
        student, teacher: a divergence of `losses.distillation`, with its parameters bound by functools.partial; None
            leaves it out.

    Source: Zhang, Xiang, Hospedales, Lu 2018 (arXiv 1706.00384), which updates the two in turn; Amara et al. 2022
        (arXiv 2212.12965).
    """
    own, other = features.chunk(2, dim=1)
    loss = cross_entropy(own, target) + cross_entropy(other, target)
    if student is not None:
        loss = loss + student(own, other.detach())
    if teacher is not None:
        loss = loss + teacher(other, own.detach())
    return loss

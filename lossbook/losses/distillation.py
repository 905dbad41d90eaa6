"""Learning from probabilities: another network's, or one's own of an epoch ago.

The arguments that all losses share are described in `lossbook.losses.surrogate`. The divergences take logits `(N, C)`
of the network that learns first; those of the other network are constants, and no gradient reaches it.
"""

from __future__ import annotations

from torch import Tensor

from lossbook import checks
from lossbook.losses import _arguments
from lossbook.losses._contract import at_label, prepare, reduce


def pskd(
    logits: Tensor,
    target: Tensor,
    past_probs: Tensor,
    *,
    alpha: float | Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """PS-KD: cross-entropy to a mixture of the label and the network's own earlier prediction.

        loss = -sum_k q_k log p_k,    q = (1 - alpha) e_y + alpha P_past

    q is constant. Gradient in f: p - q = (1 - alpha) (p - e_y) + alpha (p - P_past). There is no temperature. In epoch
    t of T, alpha = alpha_T t / T, with alpha_T = 0.8; P_past is what the network said when it last saw the row, and
    e_y in the first epoch. `train.SelfTargets` remembers it. In nats, range [0, inf).

    Args:
        past_probs: P_past `(N, C)`, probabilities.
        alpha: in [0, 1]; 0 is cross-entropy.

    Source: Kim, Ji, Yoon, Hwang 2021 (arXiv 2006.12000).
    """
    checks.parameter("alpha", alpha, 0, 1)
    f, y = prepare(logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)
    _arguments.probabilities("past_probs", past_probs, logits.shape)
    log_p = f.log_softmax(dim=1)
    to_past = (past_probs.detach().to(f.dtype) * log_p).sum(dim=1)
    loss = -(1 - alpha) * at_label(log_p, y) - alpha * to_past
    return reduce(loss, logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)


def forward_kl(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float | Tensor = 1.0, reduction: str = "mean"
) -> Tensor:
    """Forward KL, teacher first: the student covers all that the teacher finds possible.

        loss = tau^2 sum_k p^t_k log(p^t_k / p^s_k),    p = softmax(logits / tau)

    tau^2 keeps the size of the gradient: in the student's logits it is tau (p^s - p^t). Range [0, inf).

    Args:
        student_logits: `(N, C)`, of the network that learns.
        teacher_logits: `(N, C)`, constant.
        temperature: tau > 0.
        reduction: "none", "mean" or "sum" over the rows.

    Raises:
        TypeError, ValueError: an argument is refused; the sentence names it.

    Source: Hinton, Vinyals, Dean 2015 (arXiv 1503.02531).
    """
    log_s, log_t = _log_probs(student_logits, teacher_logits, temperature, reduction)
    loss = _arguments.reduced(temperature**2 * _kl(log_t, log_s), reduction)
    return loss.to(student_logits.dtype)


def reverse_kl(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float | Tensor = 1.0, reduction: str = "mean"
) -> Tensor:
    """Reverse KL, student first: the student stays where the teacher is, and may leave some of it out.

        loss = tau^2 sum_k p^s_k log(p^s_k / p^t_k),    p = softmax(logits / tau)

    Range [0, inf). BD-KD's teacher learns by it too: reverse_kl(teacher_logits, student_logits) is KL(p^t, p^s), with
    the student constant.

    Args, Raises: as `forward_kl`.

    Source: Amara et al. 2022 (arXiv 2212.12965).
    """
    log_s, log_t = _log_probs(student_logits, teacher_logits, temperature, reduction)
    loss = _arguments.reduced(temperature**2 * _kl(log_s, log_t), reduction)
    return loss.to(student_logits.dtype)


def balanced_divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    nu: float | Tensor = 2.0,
    temperature: float | Tensor = 4.0,
    rule: str = "forward",
    reduction: str = "mean",
) -> Tensor:
    """BD-KD's divergences for the student: forward and reverse KL, one of them counted nu times, row by row.

        loss = tau^2 (w^F KL(p^t, p^s) + w^R KL(p^s, p^t)),    p = softmax(logits / tau)
        rule="forward":  w^F = nu, w^R = 1 where H(p^s) < H(p^t) at tau = 1, else w^F = 1, w^R = nu

    Where the student is the more confident one, the forward KL makes it cover what it left out; elsewhere the reverse
    one makes it sharper. The weights are constants. nu = 1 is the Jeffreys divergence. Range [0, inf). The student's
    loss is cross-entropy plus this; the teacher's is cross-entropy plus `reverse_kl(teacher_logits, student_logits)`.

    Args:
        student_logits: `(N, C)`, of the network that learns.
        teacher_logits: `(N, C)`, constant.
        nu: > 0.
        temperature: tau > 0 of the divergences; the entropies are those at 1.
        rule: which divergence counts nu times where the student is the more confident one: "forward" or "reverse".
        reduction: "none", "mean" or "sum" over the rows.

    Raises:
        TypeError, ValueError: an argument is refused; the sentence names it.

    Source: Amara et al. 2022 (arXiv 2212.12965): both divergences, weighted by row through the entropies. No code is
        public; rule, nu and temperature are this book's reading.
    """
    checks.parameter("nu", nu, 0, open_low=True)
    if rule not in ("forward", "reverse"):
        raise ValueError(f"rule must be 'forward' or 'reverse', but is {rule!r}")
    log_s, log_t = _log_probs(student_logits, teacher_logits, temperature, reduction)
    confident = _entropy(student_logits) < _entropy(teacher_logits)
    more_forward = (confident if rule == "forward" else ~confident).to(log_s.dtype)
    forward, reverse = _kl(log_t, log_s), _kl(log_s, log_t)
    rows = forward + reverse + (nu - 1) * (more_forward * forward + (1 - more_forward) * reverse)
    return _arguments.reduced(temperature**2 * rows, reduction).to(student_logits.dtype)


def _log_probs(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float | Tensor, reduction: str
) -> tuple[Tensor, Tensor]:
    """log p^s, and log p^t detached, both in the student's dtype but at least float32."""
    checks.reduction(reduction)
    checks.parameter("temperature", temperature, 0, open_low=True)
    student = _arguments.logits("student_logits", student_logits)
    teacher = _arguments.logits("teacher_logits", teacher_logits, tuple(student.shape)).to(student.dtype).detach()
    return (student / temperature).log_softmax(dim=1), (teacher / temperature).log_softmax(dim=1)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)


def _entropy(logits: Tensor) -> Tensor:
    log_p = logits.detach().float().log_softmax(dim=1) if logits.itemsize < 4 else logits.detach().log_softmax(dim=1)
    return -(log_p.exp() * log_p).sum(dim=1)

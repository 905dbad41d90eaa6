"""Learning from another network's probabilities, logits or features, or from one's own of an epoch ago.

The arguments that all losses share are described in `lossbook.losses.surrogate`. The divergences take logits `(N, C)`
of the network that learns first; those of the other network are constants, and no gradient reaches it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize

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


def binary_kl(
    logits: Tensor, teacher_logits: Tensor, *, temperature: float | Tensor = 2.0, reduction: str = "mean"
) -> Tensor:
    """BinaryKL: each class a coin of its own, the teacher's against the student's. It sees the level of the logits.

        loss = T^2 sum_k KL(sigmoid(t_k / T), sigmoid(z_k / T)),    KL(p, q) of two coins

    Softmax forgets a number added to all logits, the sigmoid does not. Gradient in z: T (sigmoid(z/T) - sigmoid(t/T)).
    In nats, range [0, inf), 0 where z = t. It is a sum over the classes: with twice the classes it weighs twice as
    much.

    Args:
        logits: z `(N, C)`, of the head that learns.
        teacher_logits: t `(N, C)`, constant.
        temperature: T > 0.
        reduction: "none", "mean" or "sum" over the rows.

    Raises:
        TypeError, ValueError: an argument is refused; the sentence names it.

    Source: Yang, Zong, Huang, Feng, An 2024 (arXiv 2411.08937) and its code. There the sigmoids are cut off at 1e-8,
        where gradients end; here they are not.
    """
    z, t = _scaled("logits", logits, teacher_logits, temperature, reduction)
    heads = t.sigmoid() * (logsigmoid(t) - logsigmoid(z))
    tails = (-t).sigmoid() * (logsigmoid(-t) - logsigmoid(-z))
    return _arguments.reduced(temperature**2 * (heads + tails).sum(dim=1), reduction).to(logits.dtype)


def binary_kl_norm(
    logits: Tensor, teacher_logits: Tensor, *, temperature: float | Tensor = 2.0, reduction: str = "mean"
) -> Tensor:
    """BinaryKL-Norm, the loss of DHKD's auxiliary head: a fair coin against the one that z - t weighs.

        loss = T^2 sum_k KL(1/2, sigmoid(u_k)) = T^2 sum_k log cosh(u_k / 2),    u = (z - t) / T

    Quadratic near z = t, linear far from it: |z - t|^2 / 8 for T to infinity, T |z - t|_1 / 2 for T to 0. Gradient in
    z: (T / 2) tanh(u / 2), never more than T / 2 a logit. In nats, range [0, inf), 0 where z = t. DHKD minimises
    cross-entropy of the main head plus alpha = 1 times this one of the auxiliary head: see `layers.DualHead`.

    Args, Raises, Source: as `binary_kl`.
    """
    z, t = _scaled("logits", logits, teacher_logits, temperature, reduction)
    loss = temperature**2 * _log_cosh((z - t) / 2).sum(dim=1)
    return _arguments.reduced(loss, reduction).to(logits.dtype)


def norm_direction(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    centers: Tensor,
    *,
    weight: float | Tensor = 1.0,
    reduction: str = "mean",
) -> Tensor:
    """ND: features along the class mean of the teacher, and at least as long as the teacher's.

        loss_i = weight (1 - <s_i, e_{y_i}> / max(|s_i|, |t_i|)),    e_k = c_k / |c_k|

    Where |s| >= |t| it is 1 - cos(s, e) and reads no length; elsewhere it is 1 - <s, e> / |t|, and falls with the
    length of s along e. The gradient passes through |s| where that is the larger one. Range [0, 2 weight], 0 exactly
    where s points along e and |s| >= |t|. Dimensions that differ need a linear layer behind the student's features,
    without ReLU. KD++ is cross-entropy plus `forward_kl` at temperature 4 plus this.

    Args:
        student: s `(N, d)`, features of the network that learns.
        teacher: t `(N, d)`, constant.
        target: y `(N,)`, integer labels in [0, K).
        centers: c `(K, d)`, the teacher's class means over the training set, not centred, its features taken in
            evaluation mode: `metrics.collapse.class_means`. Constant, not zero.
        weight: >= 0.
        reduction: "none", "mean" or "sum" over the rows.

    Raises:
        TypeError, ValueError: an argument is refused; the sentence names it.

    Source: Wang et al. 2023 (arXiv 2305.17007) and its code.
    """
    checks.reduction(reduction)
    checks.parameter("weight", weight, 0)
    checks.matrix("student", student)
    checks.matrix("teacher", teacher, columns=student.shape[1], rows=len(student))
    checks.matrix("centers", centers, "(K, d)", columns=student.shape[1])
    label = checks.labels("target", target, len(student), len(centers))
    s = student.float() if student.itemsize < 4 else student
    t, c = teacher.detach().to(s.dtype), centers.detach().to(s.dtype)
    if checks.can_read(c) and (zero := ~c.any(dim=1)).any():
        raise ValueError(f"centers[{int(zero.nonzero()[0, 0])}] is zero and has no direction")
    along = (s * normalize(c, dim=1)[label]).sum(dim=1)
    # Where both are zero there is no direction, and the loss is 1.
    length = torch.maximum(s.norm(dim=1), t.norm(dim=1)).clamp(min=torch.finfo(s.dtype).tiny)
    return _arguments.reduced(weight * (1 - along / length), reduction).to(student.dtype)


def _log_cosh(v: Tensor) -> Tensor:
    """log cosh v, exact to rounding near 0 and far from it."""
    near = v.abs() < 1
    # Each branch gets arguments it can bear, since gradients flow through both.
    small, large = torch.where(near, v, 0.0), torch.where(near, 1.0, v.abs())
    return torch.where(near, small.sinh().square().log1p() / 2, large + (-2 * large).exp().log1p() - math.log(2))


def _scaled(
    name: str, logits: Tensor, teacher_logits: Tensor, temperature: float | Tensor, reduction: str
) -> tuple[Tensor, Tensor]:
    """z / T, and t / T detached, both in the dtype of z but at least float32."""
    checks.reduction(reduction)
    checks.parameter("temperature", temperature, 0, open_low=True)
    student = _arguments.logits(name, logits)
    teacher = _arguments.logits("teacher_logits", teacher_logits, tuple(student.shape)).to(student.dtype).detach()
    return student / temperature, teacher / temperature


def _log_probs(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float | Tensor, reduction: str
) -> tuple[Tensor, Tensor]:
    """log p^s, and log p^t detached, both in the student's dtype but at least float32."""
    student, teacher = _scaled("student_logits", student_logits, teacher_logits, temperature, reduction)
    return student.log_softmax(dim=1), teacher.log_softmax(dim=1)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)


def _entropy(logits: Tensor) -> Tensor:
    log_p = logits.detach().float().log_softmax(dim=1) if logits.itemsize < 4 else logits.detach().log_softmax(dim=1)
    return -(log_p.exp() * log_p).sum(dim=1)

"""PS-KD and the divergences: torch and golden peers, gradients, what is constant, the rule, bad input."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad, vmap

from lossbook.losses import balanced_divergence, cross_entropy, forward_kl, pskd, reverse_kl

GOLDEN = Path(os.environ.get("LOSSBOOK_GOLDEN", Path(__file__).parents[1] / "golden"))
DIVERGENCES = [forward_kl, reverse_kl, balanced_divergence]
every_divergence = pytest.mark.parametrize("divergence", DIVERGENCES)


def pair(n: int = 7, c: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draws = 2 * torch.randn(2, n, c, dtype=torch.float64, generator=generator)
    return draws[0], draws[1]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), alpha=st.floats(0, 1))
def test_pskd_is_cross_entropy_to_the_mixture(seed: int, alpha: float) -> None:
    """Value of torch's cross-entropy, and the two forms of the gradient."""
    logits, past = pair(seed=seed)
    past, target = past.softmax(1), torch.arange(7) % 4
    label = F.one_hot(target, 4).double()
    q = (1 - alpha) * label + alpha * past
    rows = pskd(logits, target, past, alpha=alpha, reduction="none")
    torch.testing.assert_close(rows, F.cross_entropy(logits, q, reduction="none"))
    gradient = grad(lambda f: pskd(f, target, past, alpha=alpha, reduction="sum"))(logits)
    p = logits.softmax(1)
    torch.testing.assert_close(gradient, p - q)
    torch.testing.assert_close(gradient, (1 - alpha) * (p - label) + alpha * (p - past))


def test_pskd_limits() -> None:
    logits, _ = pair()
    target = torch.arange(7) % 4
    own = logits.softmax(1)
    torch.testing.assert_close(pskd(logits, target, own, alpha=0.0), cross_entropy(logits, target))
    own.requires_grad_(True)
    value = pskd(logits.requires_grad_(True), target, own, alpha=1.0)
    gradient, from_past = torch.autograd.grad(value, (logits, own), allow_unused=True)
    assert gradient.abs().max() < 1e-15 and from_past is None
    label = F.one_hot(target, 4).double()
    torch.testing.assert_close(pskd(logits, target, label, alpha=0.7), cross_entropy(logits, target))


@pytest.mark.parametrize(
    ("past", "sentence"),
    [
        (torch.full((7, 3), 1 / 3), r"past_probs must be floating point of shape \(7, 4\)"),
        (torch.ones(7, 4, dtype=torch.long), "past_probs must be floating point"),
        (torch.ones(7, 4), r"past_probs\[0\] is not a probability vector"),
        (torch.tensor([[1.5, -0.5, 0, 0]]).expand(7, 4), r"past_probs\[0\] is not"),
        (torch.full((7, 4), float("nan")), r"past_probs\[0\] is not"),
    ],
)
def test_pskd_bad_past(past: Tensor, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        pskd(pair()[0], torch.zeros(7, dtype=torch.long), past, alpha=0.5)


def test_forward_kl_is_the_golden_distillation_loss() -> None:
    """mdistiller's numbers of Hinton's loss, value and gradient."""
    for case in json.loads((GOLDEN / "hinton-kd.json").read_text())["cases"]:
        student, teacher = (torch.tensor(case["args"][name], dtype=torch.float64) for name in case["args"])
        student.requires_grad_(True)
        value = forward_kl(student, teacher, **case["kwargs"])
        assert value.item() == pytest.approx(case["expected"]["value"], abs=1e-6)
        (gradient,) = torch.autograd.grad(value, student)
        want = torch.tensor(case["expected"]["grad"]["student_logits"], dtype=torch.float64)
        torch.testing.assert_close(gradient, want, rtol=1e-6, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), tau=st.floats(0.3, 10))
def test_divergences_of_torch(seed: int, tau: float) -> None:
    student, teacher = pair(seed=seed)
    s, t = (student / tau).log_softmax(1), (teacher / tau).log_softmax(1)
    forward = tau**2 * F.kl_div(s, t, log_target=True, reduction="batchmean")
    reverse = tau**2 * F.kl_div(t, s, log_target=True, reduction="batchmean")
    torch.testing.assert_close(forward_kl(student, teacher, temperature=tau), forward)
    torch.testing.assert_close(reverse_kl(student, teacher, temperature=tau), reverse)
    jeffreys = balanced_divergence(student, teacher, nu=1.0, temperature=tau)
    torch.testing.assert_close(jeffreys, forward + reverse)
    # The gradient of the forward one has a closed form.
    gradient = grad(lambda f: forward_kl(f, teacher, temperature=tau, reduction="sum"))(student)
    torch.testing.assert_close(gradient, tau * (s.exp() - t.exp()))


@every_divergence
def test_zero_where_equal_and_positive_elsewhere(divergence) -> None:
    student, teacher = pair()
    assert divergence(student, student + 5, temperature=2.0).item() == pytest.approx(0, abs=1e-12)
    assert (divergence(student, teacher, reduction="none") > 0).all()


@every_divergence
def test_the_teacher_is_constant(divergence) -> None:
    student, teacher = (x.requires_grad_(True) for x in pair())
    _, from_teacher = torch.autograd.grad(divergence(student, teacher), (student, teacher), allow_unused=True)
    assert from_teacher is None
    assert torch.autograd.gradcheck(lambda f: divergence(f, teacher.detach()), student)


@pytest.mark.parametrize("rule", ["forward", "reverse"])
def test_the_rule_goes_by_the_entropies_at_temperature_one(rule: str) -> None:
    """Row 0: a sharp student, row 1: a flat one. Row 2: at temperature 4 the entropies compare the other way."""
    student = torch.tensor([[5.0, 0, 0], [0.1, 0, 0], [3.0, 3.0, 0]], dtype=torch.float64)
    teacher = torch.tensor([[1.0, 0, 0], [4.0, 0, 0], [2.2, 0, 0]], dtype=torch.float64)

    def entropy(f: Tensor) -> Tensor:
        return torch.distributions.Categorical(logits=f).entropy()

    confident = entropy(student) < entropy(teacher)
    assert confident.tolist() == [True, False, False]
    assert (entropy(student / 4) < entropy(teacher / 4)).tolist() == [True, False, True]
    arguments = {"temperature": 4.0, "reduction": "none"}
    forward, reverse = (d(student, teacher, **arguments) for d in (forward_kl, reverse_kl))
    more_forward = confident if rule == "forward" else ~confident
    want = torch.where(more_forward, 3 * forward + reverse, forward + 3 * reverse)
    torch.testing.assert_close(balanced_divergence(student, teacher, nu=3.0, rule=rule, **arguments), want)


def test_forward_covers_and_reverse_seeks() -> None:
    """A teacher with two bumps, students with one: the best place and width of all on a grid."""
    x = torch.linspace(-6, 6, 121, dtype=torch.float64)
    teacher = torch.logaddexp(-((x + 2.5) ** 2) / 0.5, -((x - 2.5) ** 2) / 0.5)
    grid = torch.cartesian_prod(
        torch.linspace(-4, 4, 33, dtype=torch.float64), torch.linspace(0.25, 4, 16, dtype=torch.float64)
    )
    students = -(((x - grid[:, :1]) / grid[:, 1:]) ** 2) / 2
    teachers = teacher.expand_as(students)
    place, width = grid[forward_kl(students, teachers, reduction="none").argmin()].tolist()
    assert place == 0.0 and width == pytest.approx((2.5**2 + 0.25) ** 0.5, abs=0.26)
    place, width = grid[reverse_kl(students, teachers, reduction="none").argmin()].tolist()
    assert abs(place) == 2.5 and width == 0.5


@every_divergence
def test_dtype_reduction_vmap_and_extremes(divergence) -> None:
    student, teacher = pair()
    narrow = divergence(student.bfloat16(), teacher.bfloat16())
    wide = divergence(student.bfloat16().double(), teacher.bfloat16().double())
    assert narrow.dtype == torch.bfloat16
    torch.testing.assert_close(narrow.double(), wide, rtol=0.01, atol=0.01)
    rows = divergence(student, teacher, reduction="none")
    torch.testing.assert_close(divergence(student, teacher, reduction="sum"), rows.sum())
    torch.testing.assert_close(divergence(student, teacher), rows.mean())
    stacked = torch.stack([student, 2 * student])
    got = vmap(grad(lambda f: divergence(f, teacher)))(stacked)
    torch.testing.assert_close(got, torch.stack([grad(lambda f: divergence(f, teacher))(f) for f in stacked]))
    temperatures = torch.tensor([1.0, 3.0], dtype=torch.float64)
    got = vmap(lambda tau: divergence(student, teacher, temperature=tau))(temperatures)
    torch.testing.assert_close(
        got, torch.stack([divergence(student, teacher, temperature=float(t)) for t in temperatures])
    )
    huge = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]], requires_grad=True)
    value = divergence(huge, huge.detach().flip(0))
    assert value.isfinite() and torch.autograd.grad(value, huge)[0].isfinite().all()


@every_divergence
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"student_logits": torch.ones(3)}, r"student_logits must have shape \(N, C\), but have shape \(3,\)"),
        ({"student_logits": torch.ones(0, 3)}, r"student_logits are empty: shape \(0, 3\)"),
        ({"student_logits": torch.ones(7, 4) * float("inf")}, r"student_logits\[0, 0\] is inf"),
        ({"teacher_logits": torch.ones(7, 3)}, r"teacher_logits must have shape \(7, 4\), but have shape \(7, 3\)"),
        ({"teacher_logits": torch.ones(7, 4).long()}, "teacher_logits must be floating point"),
        ({"teacher_logits": torch.ones(7, 4) * float("nan")}, r"teacher_logits\[0, 0\] is nan"),
        ({"temperature": 0.0}, "temperature must lie in"),
        ({"reduction": "batchmean"}, "reduction must be 'none', 'mean' or 'sum', but is 'batchmean'"),
    ],
)
def test_bad_input(divergence, change: dict, sentence: str) -> None:
    student, teacher = pair()
    with pytest.raises(ValueError, match=sentence):
        divergence(**{"student_logits": student, "teacher_logits": teacher, **change})


def test_bad_rule_nu_and_type() -> None:
    student, teacher = pair()
    with pytest.raises(ValueError, match="rule must be 'forward' or 'reverse', but is 'entropy'"):
        balanced_divergence(student, teacher, rule="entropy")
    with pytest.raises(ValueError, match=r"nu must lie in \(0"):
        balanced_divergence(student, teacher, nu=0.0)
    with pytest.raises(TypeError, match=r"teacher_logits must be a torch\.Tensor, but is list"):
        forward_kl(student, teacher.tolist())

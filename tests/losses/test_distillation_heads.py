"""BinaryKL, BinaryKL-Norm and ND: closed forms, gradients, limits, what is constant, bad input. Golden: test_golden."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad, vmap
from torch.nn.functional import binary_cross_entropy_with_logits, cosine_similarity

from lossbook.losses import binary_kl, binary_kl_norm, norm_direction
from lossbook.losses.distillation import _log_cosh

BINARY = pytest.mark.parametrize("loss", [binary_kl, binary_kl_norm])


def pair(n: int = 6, c: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    draws = 2 * torch.randn(2, n, c, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return draws[0], draws[1]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), t=st.floats(0.2, 20))
def test_binary_divergences_of_torch(seed: int, t: float) -> None:
    """Against torch's binary cross-entropy minus the target's entropy, and the closed gradients."""
    z, teacher = pair(seed=seed)

    def divergence(target: Tensor, logits: Tensor) -> Tensor:
        own = torch.logit(target)
        bce = [binary_cross_entropy_with_logits(x, target, reduction="none") for x in (logits, own)]
        return t**2 * (bce[0] - bce[1]).sum(dim=1)

    plain = divergence((teacher / t).sigmoid(), z / t)
    torch.testing.assert_close(binary_kl(z, teacher, temperature=t, reduction="none"), plain, rtol=1e-6, atol=1e-9)
    norm = divergence(torch.full_like(z, 0.5), (z - teacher) / t)
    torch.testing.assert_close(binary_kl_norm(z, teacher, temperature=t, reduction="none"), norm, rtol=1e-6, atol=1e-9)
    slope = grad(lambda f: binary_kl(f, teacher, temperature=t, reduction="sum"))(z)
    torch.testing.assert_close(slope, t * ((z / t).sigmoid() - (teacher / t).sigmoid()))
    slope = grad(lambda f: binary_kl_norm(f, teacher, temperature=t))(z)
    torch.testing.assert_close(slope, t / (2 * len(z)) * ((z - teacher) / (2 * t)).tanh())


@BINARY
def test_binary_losses_are_zero_only_at_the_teacher(loss) -> None:
    z, teacher = pair()
    assert loss(teacher, teacher).item() == pytest.approx(0, abs=1e-15)
    assert (loss(z, teacher, reduction="none") > 0).all()
    assert loss(teacher + 1, teacher).item() > 0.1, "unlike softmax it sees a number added to all"


@BINARY
def test_binary_losses_differentiate_twice_and_hold_the_teacher(loss) -> None:
    z, teacher = (x.requires_grad_(True) for x in pair(3, 3))
    _, from_teacher = torch.autograd.grad(loss(z, teacher), (z, teacher), allow_unused=True)
    assert from_teacher is None
    assert torch.autograd.gradcheck(lambda f: loss(f, teacher), z)
    assert torch.autograd.gradgradcheck(lambda f: loss(f, teacher), z)
    at_teacher = teacher.detach().clone().requires_grad_(True)
    assert torch.autograd.gradgradcheck(lambda f: loss(f, teacher), at_teacher)


def test_norm_form_in_both_limits() -> None:
    """|z - t|^2 / 8 for a large temperature, in float32 too, where log cosh would drown in rounding."""
    z, teacher = pair()
    squared = (z - teacher).square().sum(dim=1).mean() / 8
    torch.testing.assert_close(binary_kl_norm(z, teacher, temperature=1e4), squared, rtol=1e-6, atol=0)
    narrow = binary_kl_norm(z.float(), teacher.float(), temperature=1e3)
    torch.testing.assert_close(narrow, squared.float(), rtol=1e-5, atol=0)
    linear = (z - teacher).abs().sum(dim=1).mean() / 2
    torch.testing.assert_close(binary_kl_norm(z, teacher, temperature=1e-5) / 1e-5, linear, rtol=1e-3, atol=0)


def test_log_cosh_everywhere() -> None:
    v = torch.tensor([-1e4, -30.0, -1.0, -1e-9, 0.0, 1e-3, 0.999, 1.0, 1.001, 700.0], dtype=torch.float64)
    exact = [abs(x) - math.log(2) if abs(x) > 20 else math.log1p(math.sinh(x) ** 2) / 2 for x in v.tolist()]
    torch.testing.assert_close(_log_cosh(v), torch.tensor(exact, dtype=torch.float64), rtol=1e-14, atol=0)
    torch.testing.assert_close(vmap(grad(_log_cosh))(v), v.tanh())


@BINARY
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_binary_losses_of_extreme_logits_have_a_gradient(loss, dtype: torch.dtype) -> None:
    """The source cuts its sigmoid off at 1e-8 and loses the gradient beyond |u| = 18."""
    z = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], dtype=dtype, requires_grad=True)
    value = loss(z, torch.zeros_like(z), reduction="none")
    (slope,) = torch.autograd.grad(value.sum(), z)
    assert value.dtype == dtype and value.isfinite().all()
    assert torch.equal(slope, torch.sign(z.detach()))
    assert torch.autograd.grad(loss(z, -z.detach()), z)[0].isfinite().all()


@BINARY
def test_binary_reductions_vmap_and_compile(loss) -> None:
    z, teacher = pair()
    rows = loss(z, teacher, reduction="none")
    assert rows.shape == (6,)
    torch.testing.assert_close(loss(z, teacher), rows.mean())
    torch.testing.assert_close(loss(z, teacher, reduction="sum"), rows.sum())
    temperatures = torch.tensor([1.0, 4.0], dtype=torch.float64)
    stacked = vmap(lambda t: loss(z, teacher, temperature=t))(temperatures)
    torch.testing.assert_close(stacked, torch.stack([loss(z, teacher, temperature=t) for t in (1.0, 4.0)]))
    torch._dynamo.reset()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(z, teacher), loss(z, teacher))


@BINARY
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"logits": torch.ones(3)}, r"logits must have shape \(N, C\)"),
        ({"logits": torch.ones(6, 4).long()}, "logits must be floating point"),
        ({"teacher_logits": torch.ones(6, 3)}, r"teacher_logits must have shape \(6, 4\), but have shape \(6, 3\)"),
        ({"teacher_logits": torch.full((6, 4), float("nan"))}, r"teacher_logits\[0, 0\] is nan"),
        ({"temperature": 0.0}, "temperature must lie in"),
        ({"reduction": "batchmean"}, "reduction must be"),
    ],
)
def test_binary_losses_refuse(loss, change: dict, sentence: str) -> None:
    logits, teacher_logits = pair()
    with pytest.raises(ValueError, match=sentence):
        loss(**{"logits": logits, "teacher_logits": teacher_logits, **change})


def features(n: int = 8, d: int = 3, k: int = 3, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draw = {"student": (n, d), "teacher": (n, d), "centers": (k, d)}
    found = {name: torch.randn(*size, dtype=torch.float64, generator=generator) for name, size in draw.items()}
    return {**found, "target": torch.arange(n) % k}


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), weight=st.floats(0, 5))
def test_norm_direction_row_by_row(seed: int, weight: float) -> None:
    given_ = features(seed=seed)
    s, t, e = given_["student"], given_["teacher"], given_["centers"][given_["target"]]
    rows = norm_direction(**given_, weight=weight, reduction="none")
    longer = s.norm(dim=1) >= t.norm(dim=1)
    cosine = cosine_similarity(s, e)
    expected = weight * torch.where(longer, 1 - cosine, 1 - cosine * s.norm(dim=1) / t.norm(dim=1))
    torch.testing.assert_close(rows, expected)
    assert ((rows >= -1e-12) & (rows <= 2 * weight + 1e-12)).all()
    torch.testing.assert_close(norm_direction(**given_, weight=weight), rows.mean())
    torch.testing.assert_close(norm_direction(**given_, weight=weight, reduction="sum"), rows.sum())


def test_norm_direction_rewards_length_up_to_the_teachers() -> None:
    """Along the right direction: 1 - |s|/|t| until |s| = |t|, then 0; so the gradient ends there."""
    center, teacher = torch.tensor([[0.0, 5.0]]), torch.tensor([[3.0, 0.0]])
    for length, value in ((0.0, 1.0), (1.5, 0.5), (3.0, 0.0), (9.0, 0.0)):
        student = torch.tensor([[0.0, length]], requires_grad=True)
        loss = norm_direction(student, teacher, torch.tensor([0]), center)
        assert loss.item() == pytest.approx(value, abs=1e-6)
        (slope,) = torch.autograd.grad(loss, student)
        if length != 3.0:
            torch.testing.assert_close(slope, torch.tensor([[0.0, -1 / 3 if length < 3 else 0.0]]))


def test_norm_direction_holds_teacher_and_centers() -> None:
    given_ = {name: x.requires_grad_(True) if name != "target" else x for name, x in features().items()}
    wanted = [given_[name] for name in ("student", "teacher", "centers")]
    found = torch.autograd.grad(norm_direction(**given_), wanted, allow_unused=True)
    assert found[0] is not None and found[1] is None and found[2] is None
    constant = {name: x.detach() for name, x in given_.items() if name != "student"}
    assert torch.autograd.gradcheck(lambda s: norm_direction(s, **constant), given_["student"])


def test_norm_direction_of_nothing() -> None:
    """Student and teacher of length zero: no direction, loss 1, finite gradient. Half precision as well."""
    for dtype in (torch.float64, torch.float16):
        zero = torch.zeros(2, 3, dtype=dtype, requires_grad=True)
        value = norm_direction(zero, zero.detach(), torch.tensor([0, 1]), torch.eye(3))
        assert value.item() == 1 and value.dtype == dtype
    student = torch.zeros(2, 3, requires_grad=True)
    value = norm_direction(student, torch.ones(2, 3), torch.tensor([0, 1]), torch.eye(3))
    assert torch.autograd.grad(value, student)[0].isfinite().all()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"student": torch.ones(8)}, r"student must be floating point of shape \(N, d\)"),
        ({"student": torch.full((8, 3), float("nan"))}, r"student\[0, 0\] is nan"),
        ({"teacher": torch.ones(8, 4)}, r"teacher must be floating point of shape \(8, 3\).*\(8, 4\)"),
        ({"teacher": torch.ones(7, 3)}, r"teacher must be floating point of shape \(8, 3\).*\(7, 3\)"),
        ({"centers": torch.ones(3, 2)}, r"centers must be floating point of shape \(K, 3\)"),
        ({"centers": torch.tensor([[1.0, 0, 0], [0, 0, 0], [0, 1, 0]])}, r"centers\[1\] is zero and has no direction"),
        ({"target": torch.full((8,), 3)}, "target has label 3, but there are 3 classes"),
        ({"target": torch.zeros(8)}, "target must hold one integer label"),
        ({"weight": -1.0}, "weight must lie in"),
        ({"reduction": "batchmean"}, "reduction must be"),
    ],
)
def test_norm_direction_refuses(change: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        norm_direction(**{**features(), **change})


def test_what_is_no_tensor_is_refused() -> None:
    with pytest.raises(TypeError, match=r"student must be a torch\.Tensor, but is list"):
        norm_direction(**{**features(), "student": [[0.0]]})
    with pytest.raises(TypeError, match=r"target must be a torch\.Tensor, but is list"):
        norm_direction(**{**features(), "target": [0]})

"""Losses of two classes: values by hand, peers, slopes, bad input."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad, vmap

from lossbook.losses.surrogate import cross_entropy, exponential, hinge, logistic

LOSSES = {"logistic": logistic, "hinge": hinge, "exponential": exponential}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)

GOOD_SCORES, GOOD_TARGET = torch.tensor([0.5, -2.0, 1.5]), torch.tensor([1, 0, 0])


def batch(seed: int = 0, n: int = 9) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(n, dtype=torch.float64, generator=generator), torch.randint(2, (n,), generator=generator)


@pytest.mark.parametrize(
    ("loss", "values"),
    [
        (logistic, [math.log(1 + math.exp(-0.5)), math.log(1 + math.exp(-2.0)), math.log(1 + math.exp(1.5))]),
        (hinge, [0.5, 0.0, 2.5]),
        (exponential, [math.exp(-0.5), math.exp(-2.0), math.exp(1.5)]),
    ],
)
def test_values_by_hand(loss, values: list[float]) -> None:
    """Margins 0.5, 2 and -1.5: the second row is of class 0 and has a negative score."""
    scores = GOOD_SCORES.double()
    found = loss(scores, GOOD_TARGET, reduction="none")
    torch.testing.assert_close(found, torch.tensor(values, dtype=torch.float64))
    torch.testing.assert_close(loss(scores, GOOD_TARGET), found.sum() / 3)
    torch.testing.assert_close(loss(scores, GOOD_TARGET, reduction="sum"), found.sum())


def test_peers() -> None:
    from sklearn.metrics import hinge_loss

    scores, target = batch()
    torch.testing.assert_close(
        logistic(scores, target, reduction="none"),
        F.binary_cross_entropy_with_logits(scores, target.double(), reduction="none"),
    )
    assert hinge(scores, target).item() == pytest.approx(hinge_loss(target.numpy(), scores.numpy()))
    two = torch.stack([torch.zeros_like(scores), scores], dim=1)
    torch.testing.assert_close(logistic(scores, target), cross_entropy(two, target))


@every_loss
def test_target_of_any_dtype(loss) -> None:
    scores, target = batch()
    for dtype in (torch.bool, torch.uint8, torch.int64, torch.float32, torch.float64):
        torch.testing.assert_close(loss(scores, target.to(dtype)), loss(scores, target))


@every_loss
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_symmetric_calibrated_and_convex(loss, seed: int) -> None:
    """Swapping the classes and the sign changes nothing; the slope at margin 0 is negative; the loss is convex."""
    a, target = batch(seed)
    b, _ = batch(seed + 1)
    torch.testing.assert_close(loss(-a, 1 - target), loss(a, target))
    slope = grad(loss)(torch.zeros(1), torch.ones(1))
    assert slope < 0

    def value(s: Tensor) -> Tensor:
        return loss(s, target, reduction="none")

    assert (value((a + b) / 2) <= (value(a) + value(b)) / 2 + 1e-12).all()


@every_loss
def test_gradcheck(loss) -> None:
    scores, target = batch()
    for reduction in ("none", "mean", "sum"):
        assert torch.autograd.gradcheck(
            lambda s, r=reduction: loss(s, target, reduction=r), scores.clone().requires_grad_(True)
        )


@every_loss
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtype_is_kept(loss, dtype: torch.dtype) -> None:
    scores, target = batch()
    narrow = scores.to(dtype)
    value = loss(narrow, target, reduction="none")
    assert value.dtype == dtype
    tolerance = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(
        value.double(), loss(narrow.double(), target, reduction="none"), rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("loss", [logistic, hinge])
def test_finite_at_extreme_scores(loss) -> None:
    scores = torch.tensor([1e4, -1e4, 1e4, -1e4], requires_grad=True)
    value = loss(scores, torch.tensor([0, 0, 1, 1]), reduction="none")
    (gradient,) = torch.autograd.grad(value.sum(), scores)
    assert value.isfinite().all() and gradient.isfinite().all()


def test_exponential_overflows_as_it_says() -> None:
    value = exponential(torch.tensor([88.0, 89.0]), torch.tensor([0, 0]), reduction="none")
    assert value.isfinite().tolist() == [True, False]


@every_loss
def test_vmap_and_compile(loss) -> None:
    scores, target = batch()
    stacked = torch.stack([scores, 2 * scores])
    got = vmap(grad(loss), in_dims=(0, None))(stacked, target)
    torch.testing.assert_close(got, torch.stack([grad(loss)(s, target) for s in stacked]))
    torch._dynamo.reset()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(scores, target), loss(scores, target))


@every_loss
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"scores": GOOD_SCORES[:, None]}, r"scores must have shape \(N,\), but have shape \(3, 1\)"),
        ({"scores": torch.tensor([1, 2, 3])}, "scores must be floating point"),
        ({"scores": GOOD_SCORES[:0], "target": GOOD_TARGET[:0]}, "scores are empty"),
        ({"scores": torch.tensor([0.0, float("nan"), 1.0])}, r"scores\[1\] is nan"),
        ({"target": torch.tensor([1, 0, 2])}, r"target must hold 0 and 1, but target\[2\] is 2"),
        ({"target": torch.tensor([1, -1, 1])}, r"target must hold 0 and 1, but target\[1\] is -1"),
        ({"target": torch.tensor([0.5, 0.0, 1.0])}, r"target\[0\] is 0.5"),
        ({"target": GOOD_TARGET[:2]}, "one 0 or 1 for each of the 3 scores"),
        ({"reduction": "average"}, "reduction must be 'none', 'mean' or 'sum'"),
    ],
)
def test_bad_input_is_refused_by_name(loss, change: dict, sentence: str) -> None:
    arguments = {"scores": GOOD_SCORES, "target": GOOD_TARGET, **change}
    with pytest.raises(ValueError, match=sentence):
        loss(**arguments)


@every_loss
def test_not_a_tensor_is_refused(loss) -> None:
    with pytest.raises(TypeError, match=r"scores must be a torch\.Tensor, but is list"):
        loss([0.0], torch.tensor([1]))

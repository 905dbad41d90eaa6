"""EnsLoss: the conditions on every sampled derivative, its limits, its randomness, bad input."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad, vmap

from lossbook.losses.surrogate import EnsLoss, ensloss, ensloss_derivative, hinge

LAMS = st.floats(-100, 100) | st.sampled_from([0.0, 1e-7, -1.0, 1.0])


def normal(n: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def labels(n: int, seed: int = 0) -> Tensor:
    return torch.randint(2, (n,), generator=torch.Generator().manual_seed(seed))


@settings(max_examples=200, deadline=None)
@given(n=st.integers(1, 40), seed=st.integers(0, 10_000), scale=st.floats(0.01, 50), lam=LAMS)
def test_every_draw_is_the_derivative_of_a_calibrated_convex_loss(n: int, seed: int, scale: float, lam: float) -> None:
    z = normal(n, seed, scale)
    g = ensloss_derivative(z, normal(n, seed + 1), lam=lam)
    assert (g[z.argsort()].diff() >= 0).all(), "convex: the slope never falls"
    assert (g < 0).all(), "calibrated: the slope is negative, at 0 too"
    assert (g >= -1 - 1e-6).all()
    assert (g >= -1 / z.clamp(min=1) - 1e-6).all(), "the slope fades at least like 1/z"


def test_by_hand() -> None:
    """Box-Cox, clip, order by margin (not by draw), division above 1: four rows in one's head."""
    margin = torch.tensor([2.0, -1.0, 0.5, 4.0], dtype=torch.float64)
    draws = torch.tensor([-2.0, 0.3, -1.0, -3.0], dtype=torch.float64)
    by_rank = [-1.0, -math.exp(-1), -math.exp(-2) / 2, -math.exp(-3) / 4]  # margins -1, 0.5, 2, 4
    expected = torch.tensor([by_rank[2], by_rank[0], by_rank[1], by_rank[3]], dtype=torch.float64) - 1e-6
    torch.testing.assert_close(ensloss_derivative(margin, draws), expected)
    # lam = 0.5: (1 - 1)^2 = 0, 1.15^2 clipped, (1 - 0.5)^2 = 0.25, and a negative base counts as 0
    by_rank = [-1.0, -0.25, 0.0, 0.0]
    expected = torch.tensor([by_rank[2], by_rank[0], by_rank[1], by_rank[3]], dtype=torch.float64) - 1e-6
    torch.testing.assert_close(ensloss_derivative(margin, draws, lam=0.5), expected)
    # lam = -1: 1 / (1 - e) = 1/3, 1/0.7 clipped, 1/2, 1/4
    expected = torch.tensor([-1 / 3 / 2, -1.0, -0.5, -0.25 / 4], dtype=torch.float64) - 1e-6
    torch.testing.assert_close(ensloss_derivative(margin, draws, lam=-1.0), expected)


def test_lam_is_continuous_at_zero_and_may_be_a_tensor() -> None:
    z, e = normal(30, 0), normal(30, 1)
    at_zero = ensloss_derivative(z, e)
    for lam in (1e-5, -1e-5, 1e-7):
        torch.testing.assert_close(ensloss_derivative(z, e, lam=lam), at_zero, rtol=0, atol=1e-4)
    torch.testing.assert_close(
        ensloss_derivative(z, e, lam=torch.tensor(0.7)), ensloss_derivative(z, e, lam=0.7), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("lam", [-1.0, 0.0, 1.0])
def test_constant_draws_are_the_hinge_loss_up_to_margin_one(lam: float) -> None:
    scores, target = normal(20, 3, 0.4), labels(20)
    constant = torch.full((20,), 0.2, dtype=torch.float64)
    got = grad(lambda s: ensloss(s, target, lam=lam, draws=constant, reduction="sum"))(scores)
    want = grad(lambda s: hinge(s, target, reduction="sum"))(scores)
    assert ((2 * target - 1) * scores < 1).all()
    torch.testing.assert_close(got, want, rtol=0, atol=2e-6)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 12))
def test_gradient_is_the_derivative_times_the_sign(seed: int, n: int) -> None:
    """No gradient flows through g: a finite difference of the value would see the ranks and the 1/z."""
    scores, target, draws = normal(n, seed, 3), labels(n, seed), normal(n, seed + 1)
    sign = 2 * target - 1
    g = ensloss_derivative(sign * scores, draws, lam=0.3)
    got = grad(lambda s: ensloss(s, target, lam=0.3, draws=draws))(scores)
    torch.testing.assert_close(got, g * sign / n)
    rows = ensloss(scores, target, lam=0.3, draws=draws, reduction="none")
    torch.testing.assert_close(rows, g * sign * scores)
    torch.testing.assert_close(ensloss(scores, target, lam=0.3, draws=draws, reduction="sum"), rows.sum())


def test_half_of_the_slopes_are_clipped() -> None:
    """r >= 1 exactly where the draw is >= 0, whatever lam: about half a large batch has slope -1 below margin 1."""
    z, e = normal(4000, 0, 0.1), normal(4000, 1)
    for lam in (-1.0, 0.0, 1.0):
        share = (ensloss_derivative(z, e, lam=lam) <= -1).double().mean()
        assert share.item() == (e >= 0).double().mean().item()


def test_draws_are_reproducible_and_fresh() -> None:
    scores, target = normal(8, 0), labels(8)
    first = ensloss(scores, target, generator=torch.Generator().manual_seed(5))
    assert first == ensloss(scores, target, generator=torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    assert ensloss(scores, target, generator=generator) != ensloss(scores, target, generator=generator)
    torch.manual_seed(3)
    from_global = ensloss(scores, target)
    torch.manual_seed(3)
    assert from_global == ensloss(scores, target, draws=torch.randn(8, dtype=torch.float64))


def test_vmap_draws_for_each_model() -> None:
    scores, target = normal(8, 0).expand(3, -1), labels(8)
    different = vmap(grad(ensloss), in_dims=(0, None), randomness="different")(scores, target)
    assert not torch.equal(different[0], different[1])
    draws = torch.stack([normal(8, s) for s in range(3)])
    lam = torch.tensor([-0.5, 0.0, 0.5], dtype=torch.float64)

    def gradient(e: Tensor, a: Tensor) -> Tensor:
        return grad(lambda s: ensloss(s, target, draws=e, lam=a))(scores[0])

    want = torch.stack([gradient(e, float(a)) for e, a in zip(draws, lam, strict=True)])
    torch.testing.assert_close(vmap(gradient)(draws, lam), want)


def test_compiles_without_graph_breaks() -> None:
    torch._dynamo.reset()
    scores, target, draws = normal(8, 0), labels(8), normal(8, 1)
    compiled = torch.compile(ensloss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(scores, target, draws=draws), ensloss(scores, target, draws=draws))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtype_is_kept_and_extremes_are_finite(dtype: torch.dtype) -> None:
    scores = torch.tensor([1e4, -1e4, 0.0, 0.0], dtype=dtype, requires_grad=True)
    for lam in (-100.0, -1.0, 0.0, 1.0, 100.0):
        value = ensloss(scores, torch.tensor([0, 0, 1, 1]), lam=lam, draws=torch.tensor([9.0, -9.0, 1.0, -1.0]))
        (gradient,) = torch.autograd.grad(value, scores)
        assert value.dtype == dtype and value.isfinite() and gradient.isfinite().all()


def test_a_batch_of_one() -> None:
    score = torch.tensor([0.0], requires_grad=True)
    ensloss(score, torch.tensor([1]), draws=torch.tensor([5.0])).backward()
    assert score.grad is not None and score.grad.item() == pytest.approx(-1, abs=1e-5)


def test_module_without_period_keeps_lam_zero() -> None:
    loss = EnsLoss()
    for _ in range(5):
        loss.next_epoch()
    assert loss.lam == 0 and loss.epoch == 6
    torch.manual_seed(1)
    value = loss(torch.ones(4), torch.tensor([0, 1, 0, 1]))
    torch.manual_seed(1)
    assert value == ensloss(torch.ones(4), torch.tensor([0, 1, 0, 1]))


def test_module_redraws_lam_at_multiples_of_the_period() -> None:
    torch.manual_seed(0)
    loss = EnsLoss(period=3)
    seen = [loss.lam.item()]
    for _ in range(8):
        loss.next_epoch()
        seen.append(loss.lam.item())
    assert seen[:2] == [0, 0] and seen[2] != 0  # epochs 1 and 2, then 3
    assert seen[2] == seen[3] == seen[4] != seen[5] == seen[6] == seen[7] != seen[8]
    assert all(-1 <= lam <= 1 for lam in seen)
    assert EnsLoss(period=1).lam != 0
    copy = EnsLoss(period=3)
    copy.load_state_dict(loss.state_dict())
    assert copy.lam == loss.lam and copy.epoch == 9


GOOD = {"scores": torch.zeros(3), "target": torch.tensor([0, 1, 1])}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"target": torch.tensor([0, 1, 2])}, r"target must hold 0 and 1, but target\[2\] is 2"),
        ({"scores": torch.zeros(3, 1)}, r"scores must have shape \(N,\)"),
        ({"lam": 101.0}, r"lam must lie in \[-100, 100\], but is 101"),
        ({"lam": float("nan")}, "lam must lie in"),
        ({"lam": "1"}, "lam must be a number or a 0-d tensor"),
        ({"draws": torch.zeros(2)}, r"draws must be floating point of shape \(N,\), as long as margin"),
        ({"draws": torch.zeros(3, dtype=torch.int64)}, "draws must be floating point"),
        ({"draws": torch.tensor([0.0, float("inf"), 0.0])}, r"draws\[1\] is inf"),
        ({"reduction": "average"}, "reduction must be"),
    ],
)
def test_bad_input_is_refused_by_name(change: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ensloss(**{**GOOD, **change})


def test_bad_arguments_of_the_rest() -> None:
    with pytest.raises(TypeError, match="draws must be a torch.Tensor, but is list"):
        ensloss_derivative(torch.zeros(1), [0.0])
    with pytest.raises(ValueError, match="margin must be floating point"):
        ensloss_derivative(torch.zeros(2, 2), torch.zeros(2, 2))
    for period in (0, -2, 1.5, True):
        with pytest.raises(ValueError, match="period must be"):
            EnsLoss(period=period)

"""Closed forms, limits and peers of the losses in lossbook.losses.surrogate."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lossbook import losses

TWO_TO_ONE = torch.tensor([[math.log(2.0), 0.0]], dtype=torch.float64)  # p = (2/3, 1/3)
FIRST, SECOND = torch.tensor([0]), torch.tensor([1])


def batch(seed: int = 0, n: int = 7, c: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(n, c, dtype=torch.float64, generator=generator), torch.randint(c, (n,), generator=generator)


@pytest.mark.parametrize(
    ("loss", "parameters", "at_first", "at_second"),
    [
        (losses.cross_entropy, {}, math.log(1.5), math.log(3)),
        # eps = 0.3: t = (0.85, 0.15)
        (losses.cross_entropy, {"label_smoothing": 0.3}, 0.85 * math.log(1.5) + 0.15 * math.log(3),
         0.15 * math.log(1.5) + 0.85 * math.log(3)),
        (losses.comp_sum, {"tau": 0.0}, 0.5, 2.0),
        (losses.comp_sum, {"tau": 0.5}, 2 * (math.sqrt(1.5) - 1), 2 * (math.sqrt(3) - 1)),
        (losses.comp_sum, {"tau": 2.0}, 1 / 3, 2 / 3),
        (losses.comp_sum, {"tau": 3.0}, (1 - 4 / 9) / 2, (1 - 1 / 9) / 2),
        (losses.generalized_cross_entropy, {"q": 0.5}, 2 * (1 - math.sqrt(2 / 3)), 2 * (1 - math.sqrt(1 / 3))),
        (losses.mae, {}, 2 / 3, 4 / 3),
        (losses.crammer_singer, {}, 1 - math.log(2), 1 + math.log(2)),
        (losses.crammer_singer, {"margin": 0.5}, 0.0, 0.5 + math.log(2)),
    ],
)  # fmt: skip
def test_values_by_hand(loss, parameters: dict, at_first: float, at_second: float) -> None:
    assert loss(TWO_TO_ONE, FIRST, **parameters).item() == pytest.approx(at_first, rel=1e-12, abs=1e-15)
    assert loss(TWO_TO_ONE, SECOND, **parameters).item() == pytest.approx(at_second, rel=1e-12)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_equals_torch(reduction: str, smoothing: float, weighted: bool) -> None:
    logits, target = batch()
    target[2] = -100
    weight = torch.tensor([0.5, 1.0, 2.0, 0.0], dtype=torch.float64) if weighted else None
    arguments = {"weight": weight, "reduction": reduction, "label_smoothing": smoothing}
    torch.testing.assert_close(
        losses.cross_entropy(logits, target, **arguments), F.cross_entropy(logits, target, **arguments)
    )
    soft = logits.flip(0).softmax(dim=1)
    torch.testing.assert_close(
        losses.cross_entropy(logits, soft, **arguments), F.cross_entropy(logits, soft, **arguments)
    )


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), tau=st.floats(0, 3))
def test_comp_sum_gradient_is_the_papers(seed: int, tau: float) -> None:
    """d loss / d f_k = p_y^{tau - 1} (p_k - 1[k = y])."""
    logits, target = batch(seed)
    logits.requires_grad_(True)
    (gradient,) = torch.autograd.grad(losses.comp_sum(logits, target, tau=tau, reduction="sum"), logits)
    p = logits.softmax(dim=1)
    p_y = p.gather(1, target[:, None])
    torch.testing.assert_close(gradient, p_y ** (tau - 1) * (p - F.one_hot(target, 4)), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("offset", [-1e-3, -1e-5, -1e-7, 1e-7, 1e-5, 1e-3])
def test_comp_sum_is_continuous_at_cross_entropy(offset: float) -> None:
    logits, target = batch()
    near, ce = losses.comp_sum(logits, target, tau=1 + offset), losses.cross_entropy(logits, target)
    assert abs(near - ce) < 100 * abs(offset)
    # The tensor form takes another branch; it must give the same number.
    torch.testing.assert_close(near, losses.comp_sum(logits, target, tau=torch.tensor(1 + offset, dtype=torch.float64)))


def test_comp_sum_keeps_its_digits_next_to_cross_entropy() -> None:
    """In float32, 1 - p_y^a loses four digits at a = 1e-4; expm1 keeps them."""
    logits, target = batch()
    for tau in (1 - 1e-4, 1 + 1e-4):
        value = losses.comp_sum(logits.float(), target, tau=tau, reduction="none").double()
        torch.testing.assert_close(
            value, losses.comp_sum(logits, target, tau=tau, reduction="none"), rtol=2e-5, atol=1e-6
        )


def test_family_relations() -> None:
    logits, target = batch()
    for q in (0.1, 0.7, 1.0):
        torch.testing.assert_close(
            losses.generalized_cross_entropy(logits, target, q=q), losses.comp_sum(logits, target, tau=1 + q)
        )
    torch.testing.assert_close(losses.mae(logits, target), 2 * losses.comp_sum(logits, target, tau=2.0))
    torch.testing.assert_close(losses.mae(logits, target), 2 * losses.generalized_cross_entropy(logits, target, q=1.0))


def test_mae_is_symmetric() -> None:
    """The loss summed over all labels is 2 (C - 1) whatever the logits say."""
    logits, _ = batch()
    total = sum(losses.mae(logits, torch.full((7,), k), reduction="none") for k in range(4))
    torch.testing.assert_close(total, torch.full((7,), 6.0, dtype=torch.float64))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), tau=st.floats(0, 1))
def test_comp_sum_is_convex_up_to_tau_one(seed: int, tau: float) -> None:
    a, target = batch(seed)
    b, _ = batch(seed + 1)

    def loss(f: Tensor) -> Tensor:
        return losses.comp_sum(f, target, tau=tau, reduction="none")

    middle = loss((a + b) / 2)
    assert (middle <= (loss(a) + loss(b)) / 2 * (1 + 1e-9) + 1e-9).all()


def test_crammer_singer_gradient_touches_two_classes() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(losses.crammer_singer(logits, FIRST), logits)
    assert gradient.tolist() == [[-1.0, 1.0, 0.0]]
    (gradient,) = torch.autograd.grad(losses.crammer_singer(logits, SECOND, margin=0.5), logits)
    assert gradient.tolist() == [[0.0, 0.0, 0.0]]


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 1.5])
def test_comp_sum_minimiser_is_the_tempered_posterior(tau: float) -> None:
    """The risk under class probabilities pi is least at softmax proportional to pi^{1 / (2 - tau)}."""
    pi = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    scores = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([scores], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def risk() -> Tensor:
        optimiser.zero_grad()
        rows = losses.comp_sum(scores.expand(3, 3), torch.arange(3), tau=tau, reduction="none")
        value = (pi * rows).sum()
        value.backward()
        return value

    optimiser.step(risk)
    expected = pi ** (1 / (2 - tau))
    torch.testing.assert_close(scores.detach().softmax(0), expected / expected.sum(), rtol=1e-5, atol=1e-6)

"""Closed forms and properties of the losses in lossbook.losses.calibration.probability."""

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


def batch(n: int = 7, c: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return 3 * torch.randn(n, c, dtype=torch.float64, generator=generator), torch.randint(c, (n,), generator=generator)


def test_values_by_hand() -> None:
    first, second = torch.tensor([0]), torch.tensor([1])
    assert losses.brier(TWO_TO_ONE, first).item() == pytest.approx(2 / 9)
    assert losses.brier(TWO_TO_ONE, second).item() == pytest.approx(8 / 9)
    assert losses.focal(TWO_TO_ONE, first, gamma=2.0).item() == pytest.approx(math.log(1.5) / 9)
    assert losses.focal(TWO_TO_ONE, second, gamma=1.0).item() == pytest.approx(math.log(3) * 2 / 3)


def test_brier_is_the_squared_distance() -> None:
    logits, target = batch()
    distance = (logits.softmax(1) - F.one_hot(target, 4)).square().sum(1)
    torch.testing.assert_close(losses.brier(logits, target, reduction="none"), distance)


def test_focal_without_focus_is_cross_entropy() -> None:
    logits, target = batch()
    torch.testing.assert_close(losses.focal(logits, target, gamma=0.0), F.cross_entropy(logits, target))


@pytest.mark.parametrize("gamma", [0.5, 2.0, 5.0])
def test_focal_equals_the_formula(gamma: float) -> None:
    logits, target = batch()
    log_p = logits.log_softmax(1).gather(1, target[:, None])[:, 0]
    torch.testing.assert_close(
        losses.focal(logits, target, gamma=gamma, reduction="none"), -((1 - log_p.exp()) ** gamma) * log_p
    )


def test_one_class_costs_nothing() -> None:
    alone = torch.randn(3, 1, requires_grad=True)
    for loss in (losses.focal, losses.brier, losses.cross_entropy, losses.mae, losses.crammer_singer):
        value = loss(alone, torch.zeros(3, dtype=torch.long))
        (gradient,) = torch.autograd.grad(value, alone)
        assert value.item() == 0.0
        assert gradient.abs().max().item() == 0.0


def test_focal_adaptive_by_hand() -> None:
    """p_y = 0.1 is below the threshold, 0.2 and 0.6 are not; the row's gradient is that of its own gamma."""
    p_y = torch.tensor([0.1, 0.2 + 1e-9, 0.6], dtype=torch.float64)
    logits = torch.stack([p_y.log(), (1 - p_y).log()], dim=1).requires_grad_(True)
    target = torch.zeros(3, dtype=torch.long)
    rows = losses.focal_adaptive(logits, target, reduction="none")
    want = torch.cat([losses.focal(logits[:1], target[:1], gamma=5.0, reduction="none"),
                      losses.focal(logits[1:], target[1:], gamma=3.0, reduction="none")])  # fmt: skip
    torch.testing.assert_close(rows, want)
    gradients = [torch.autograd.grad(value.sum(), logits, retain_graph=True)[0] for value in (rows, want)]
    torch.testing.assert_close(*gradients)
    assert rows[0].item() == pytest.approx(-(0.9**5) * math.log(0.1))
    all_hard = losses.focal_adaptive(logits, target, threshold=1.0, reduction="none")
    torch.testing.assert_close(all_hard, losses.focal(logits, target, gamma=5.0, reduction="none"))
    none_hard = losses.focal_adaptive(logits, target, threshold=0.0, gamma=0.1, reduction="none")
    torch.testing.assert_close(none_hard, losses.focal(logits, target, gamma=0.1, reduction="none"), rtol=1e-12, atol=0)


@pytest.mark.parametrize(("gamma", "low", "high"), [(5.0, 0.19, 0.2), (3.0, 0.24, 0.26)])
def test_focal_gradient_meets_the_log_loss_at_a_point(gamma: float, low: float, high: float) -> None:
    """Why FLSD-53 changes gamma at 0.2: below the point the gradient is larger than that of the log-loss."""

    def ratio(p: float) -> float:
        logits = torch.tensor([[math.log(p), math.log(1 - p)]], dtype=torch.float64, requires_grad=True)
        target = torch.zeros(1, dtype=torch.long)
        (focal,) = torch.autograd.grad(losses.focal(logits, target, gamma=gamma), logits)
        (log,) = torch.autograd.grad(losses.cross_entropy(logits, target), logits)
        return float(focal[0, 0] / log[0, 0])

    assert ratio(low) > 1 > ratio(high)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), beta=st.floats(0, 2))
def test_confidence_penalty_is_a_divergence_from_uniform(seed: int, beta: float) -> None:
    """Cross-entropy plus beta KL(p, uniform), less beta log C; and at least -beta log C."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(7, 4, dtype=torch.float64, generator=generator)
    target = torch.randint(4, (7,), generator=generator)
    value = losses.confidence_penalty(logits, target, beta=beta, reduction="none")
    to_uniform = F.kl_div(torch.full_like(logits, 0.25).log(), logits.softmax(1), reduction="none").sum(1)
    want = F.cross_entropy(logits, target, reduction="none") + beta * (to_uniform - math.log(4))
    torch.testing.assert_close(value, want)
    assert (value >= -beta * math.log(4) - 1e-12).all()


def test_confidence_penalty_gradient() -> None:
    logits, target = batch()
    logits.requires_grad_(True)
    (gradient,) = torch.autograd.grad(losses.confidence_penalty(logits, target, beta=0.3, reduction="sum"), logits)
    p = logits.softmax(1)
    entropy = -(p * p.log()).sum(1, keepdim=True)
    torch.testing.assert_close(gradient, p - F.one_hot(target, 4) + 0.3 * p * (p.log() + entropy))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"gamma_hard": -1.0}, "gamma_hard must lie in"),
        ({"threshold": 1.5}, r"threshold must lie in \[0, 1\], but is 1.5"),
        ({"threshold": torch.tensor(-0.5)}, "threshold must lie in"),
    ],
)
def test_bad_parameters_of_focal_adaptive(change: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        losses.focal_adaptive(*batch(), **change)


PROPER = [losses.brier, losses.cross_entropy]
LESS_CONFIDENT = [losses.focal, losses.focal_adaptive, losses.confidence_penalty]


@pytest.mark.parametrize("loss", [*PROPER, *LESS_CONFIDENT])
def test_properness(loss) -> None:
    """The expected score is least at the truth for proper losses; the others' minimiser is less confident."""
    truth = 0.8
    p = torch.linspace(0.01, 0.99, 981, dtype=torch.float64)
    logits = torch.stack([p.log(), (1 - p).log()], dim=1)
    zeros, ones = torch.zeros(981, dtype=torch.long), torch.ones(981, dtype=torch.long)
    risk = truth * loss(logits, zeros, reduction="none") + (1 - truth) * loss(logits, ones, reduction="none")
    best = p[risk.argmin()].item()
    if loss in LESS_CONFIDENT:
        assert 0.5 < best < truth - 0.02
    else:
        assert abs(best - truth) < 2e-3

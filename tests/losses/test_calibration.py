"""Closed forms and properties of the losses in lossbook.losses.calibration."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
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


@pytest.mark.parametrize("loss", [losses.brier, losses.cross_entropy, losses.focal])
def test_properness(loss) -> None:
    """The expected score is least at the truth for proper losses; focal's minimiser is less confident."""
    truth = 0.8
    p = torch.linspace(0.01, 0.99, 981, dtype=torch.float64)
    logits = torch.stack([p.log(), (1 - p).log()], dim=1)
    zeros, ones = torch.zeros(981, dtype=torch.long), torch.ones(981, dtype=torch.long)
    risk = truth * loss(logits, zeros, reduction="none") + (1 - truth) * loss(logits, ones, reduction="none")
    best = p[risk.argmin()].item()
    if loss is losses.focal:
        assert 0.5 < best < truth - 0.02
    else:
        assert abs(best - truth) < 2e-3

"""MMCE as a loss: the double sum, the metric, what carries gradient, weights, and what it does to a confident fit."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lossbook import losses
from lossbook.metrics.calibration import mmce


def batch(n: int = 9, c: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(n, c, dtype=torch.float64, generator=generator), torch.randint(c, (n,), generator=generator)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), beta=st.floats(0, 5), width=st.floats(0.02, 3), n=st.integers(1, 12))
def test_is_cross_entropy_plus_the_metric(seed: int, beta: float, width: float, n: int) -> None:
    logits, target = batch(n=n, seed=seed)
    measured = mmce(logits.softmax(1), target, width=width, squared=True)
    value = losses.mmce_penalty(logits, target, beta=beta, width=width)
    assert value.item() == pytest.approx(F.cross_entropy(logits, target).item() + beta * measured, rel=1e-9)


def test_gradient_is_that_of_the_double_sum() -> None:
    """The formula with loops; correctness is a constant, the confidence in the kernel is not."""
    logits, target = batch(n=6)
    logits.requires_grad_(True)
    p = logits.softmax(1)
    c = [row.max() for row in p]
    a = [float(row.argmax() == label) for row, label in zip(p, target, strict=True)]
    n = len(c)
    square = sum(
        (a[i] - c[i]) * (a[j] - c[j]) * torch.exp(-(c[i] - c[j]).abs() / 0.4) for i in range(n) for j in range(n)
    )
    want = F.cross_entropy(logits, target) + 2 * square / n**2
    value = losses.mmce_penalty(logits, target, beta=2.0)
    torch.testing.assert_close(value, want)
    torch.testing.assert_close(*(torch.autograd.grad(v, logits)[0] for v in (value, want)))


def test_confidences_that_tie() -> None:
    """Value and gradient of the sum over pairs where some rows are equal, in float32, at the narrowest kernel."""
    logits, target = batch(n=40)
    logits = logits.repeat(3, 1)[torch.randperm(120, generator=torch.Generator().manual_seed(1))].requires_grad_(True)
    target = target.repeat(3)
    c, predicted = logits.softmax(1).max(1)
    residual = (predicted == target).double() - c
    for width in (0.01, 0.4):
        kernel = torch.exp(-(c[:, None] - c[None, :]).abs() / width)
        want = F.cross_entropy(logits, target) + residual @ kernel @ residual / len(c) ** 2
        value = losses.mmce_penalty(logits, target, width=width)
        torch.testing.assert_close(value, want)
        torch.testing.assert_close(*(torch.autograd.grad(v, logits, retain_graph=True)[0] for v in (value, want)))
        narrow = losses.mmce_penalty(logits.float(), target, width=width)
        torch.testing.assert_close(narrow, want.float(), rtol=1e-4, atol=1e-6)


def test_a_whole_weight_repeats_the_row() -> None:
    logits, target = batch(c=3)
    weight = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    times = weight[target].long()
    repeated = losses.mmce_penalty(logits.repeat_interleave(times, 0), target.repeat_interleave(times))
    torch.testing.assert_close(losses.mmce_penalty(logits, target, weight=weight), repeated)


def test_no_gradient_of_the_penalty_at_equal_logits() -> None:
    """All confidences tie; the kernel's slope at 0 is taken as 0, so that no order of the rows is preferred."""
    logits = torch.zeros(6, 3, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0, 1, 2, 0, 1, 2])
    rows = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad(losses.mmce_penalty(logits, target, beta=5.0), logits)
    (moved,) = torch.autograd.grad(losses.mmce_penalty(logits, target[rows], beta=5.0), logits)
    torch.testing.assert_close(moved, gradient[rows])


def test_is_least_where_confidence_is_accuracy() -> None:
    """One confidence for all rows, 7 of 10 right: the penalty is (0.7 - c)^2, least at c = 0.7."""
    target = torch.tensor([0] * 7 + [1] * 3)
    c = torch.linspace(0.55, 0.95, 41, dtype=torch.float64)
    values = []
    for confidence in c:
        logits = torch.stack([confidence.log(), (1 - confidence).log()]).expand(10, 2)
        values.append(losses.mmce_penalty(logits, target) - F.cross_entropy(logits, target))
    torch.testing.assert_close(torch.stack(values), (0.7 - c) ** 2)


@pytest.mark.parametrize("width", [0.0, 0.009, -0.4, float("nan")])
def test_bad_width(width: float) -> None:
    with pytest.raises(ValueError, match=r"width must lie in \[0.01"):
        losses.mmce_penalty(*batch(), width=width)

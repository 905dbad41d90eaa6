"""Correctness-aware loss: by hand, what it asks of a confidence, its balance, its temperatures."""

from __future__ import annotations

import pytest
import torch
from torch.func import grad

from lossbook import losses
from lossbook.metrics import expected_calibration_error


def batch(n=64, c=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, c, dtype=torch.float64, generator=generator)
    return logits, torch.multinomial(logits.softmax(dim=1), 1, generator=generator).squeeze(1)


def test_reachable_in_both_places():
    assert losses.correctness_aware is losses.calibration.correctness_aware


def test_by_hand():
    p = torch.tensor([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1], [0.25, 0.25, 0.5]], dtype=torch.float64)
    target = torch.tensor([0, 1, 2])
    rows = losses.correctness_aware(p.log(), target, reduction="none")
    torch.testing.assert_close(rows, torch.tensor([0.09, 0.49, 0.25], dtype=torch.float64))
    # r = 2/3: right rows weigh 1/3, the wrong one 2/3.
    value = losses.correctness_aware(p.log(), target, balanced=True)
    assert value.item() == pytest.approx((0.09 / 3 + 0.49 * 2 / 3 + 0.25 / 3) / (4 / 3))


def test_lowers_wrong_confidences_and_raises_right_ones():
    logits, target = batch()
    right = logits.argmax(dim=1) == target

    def confidence(z):
        return z.softmax(dim=1).amax(dim=1)

    moved = logits - 0.01 * grad(lambda z: losses.correctness_aware(z, target, reduction="sum"))(logits)
    change = confidence(moved) - confidence(logits)
    assert right.any() and (~right).any()
    assert (change[right] > 0).all() and (change[~right] < 0).all()


def test_temperature_falls_for_right_rows_and_rises_for_wrong_ones():
    logits, target = batch()
    right = logits.argmax(dim=1) == target
    temperature = torch.full((len(target),), 1.5, dtype=torch.float64)
    slope = grad(lambda t: losses.correctness_aware(logits, target, temperature=t, reduction="sum"))(temperature)
    assert (slope[right] > 0).all() and (slope[~right] < 0).all()


def test_cross_entropy_may_raise_a_wrong_confidence():
    """The label is a close second: a lower temperature is better for log p_y, and raises the wrong confidence."""
    logits, target = torch.tensor([[2.0, 1.9, -3.0]], dtype=torch.float64), torch.tensor([1])
    hot, cold = logits / 5, logits
    assert losses.cross_entropy(cold, target) < losses.cross_entropy(hot, target)
    assert cold.softmax(dim=1).max() > hot.softmax(dim=1).max()
    assert losses.correctness_aware(cold, target) > losses.correctness_aware(hot, target)
    # With two classes it never does.
    logits = torch.tensor([[0.1, 0.0]], dtype=torch.float64)
    assert losses.cross_entropy(logits / 5, target) < losses.cross_entropy(logits, target)


@pytest.mark.parametrize("balanced", [False, True])
def test_the_best_constant_confidence(balanced):
    """The accuracy; 1/2 where right and wrong rows are balanced."""
    target = torch.tensor([0] * 7 + [1] * 3)
    grid = torch.linspace(0.51, 0.99, 49, dtype=torch.float64)
    values = []
    for c in grid:
        logits = torch.stack([c, 1 - c]).log().expand(10, 2)
        values.append(losses.correctness_aware(logits, target, balanced=balanced))
    assert grid[torch.stack(values).argmin()].item() == pytest.approx(0.51 if balanced else 0.7)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n_bins", [1, 15])
def test_squared_calibration_error_is_a_lower_bound(seed, n_bins):
    logits, target = batch(seed=seed)
    error = expected_calibration_error(logits.softmax(dim=1), target, norm=2, n_bins=n_bins)
    assert error**2 <= losses.correctness_aware(logits, target).item()


def test_balanced_reductions_agree():
    logits, target = batch()
    target[::5] = -100
    weight = torch.linspace(0.5, 2, 5, dtype=torch.float64)
    rows = losses.correctness_aware(logits, target, balanced=True, weight=weight, reduction="none")
    kept = target != -100
    torch.testing.assert_close(
        losses.correctness_aware(logits, target, balanced=True, weight=weight),
        rows.sum() / weight[target[kept]].sum(),
    )
    torch.testing.assert_close(
        losses.correctness_aware(logits, target, balanced=True),
        losses.correctness_aware(logits[kept], target[kept], balanced=True),
    )
    # Each kind has half of the weight.
    plain = losses.correctness_aware(logits[kept], target[kept], reduction="none")
    right = logits[kept].argmax(dim=1) == target[kept]
    expected = (plain[right].mean() + plain[~right].mean()) / 2
    torch.testing.assert_close(losses.correctness_aware(logits, target, balanced=True), expected)


def test_balance_without_both_kinds_changes_nothing():
    logits, _ = batch()
    for target in (logits.argmax(dim=1), logits.argmin(dim=1)):
        torch.testing.assert_close(
            losses.correctness_aware(logits, target, balanced=True), losses.correctness_aware(logits, target)
        )


def test_row_temperatures():
    logits, target = batch()
    temperature = torch.linspace(0.2, 5, len(target), dtype=torch.float64)
    torch.testing.assert_close(
        losses.correctness_aware(logits, target, temperature=temperature),
        losses.correctness_aware(logits / temperature[:, None], target),
    )
    assert torch.autograd.gradcheck(
        lambda z, t: losses.correctness_aware(z, target, temperature=t, balanced=True),
        (logits.clone().requires_grad_(), temperature.clone().requires_grad_()),
    )


@pytest.mark.parametrize(
    ("temperature", "message"),
    [
        (torch.ones(3), r"temperature must be a number or a 0-d tensor, or have shape \(64,\), but has shape \(3,\)"),
        (torch.zeros(64), r"temperature must be positive, but temperature\[0\] is 0"),
        (torch.full((64,), float("nan")), r"temperature\[0\] is nan"),
        (-1.0, "temperature must lie in"),
    ],
)
def test_bad_temperature_is_refused(temperature, message):
    logits, target = batch()
    with pytest.raises(ValueError, match=message):
        losses.correctness_aware(logits, target, temperature=temperature)


@pytest.mark.parametrize("seed", range(3))
def test_expectation_is_distance_to_the_chance_of_being_right_plus_noise(seed):
    """E (c - a)² = E (c - q)² + E q (1 - q): both outcomes of each row, weighed by their chances."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(40, 3, dtype=torch.float64, generator=generator)
    q = torch.rand(40, dtype=torch.float64, generator=generator)
    top = logits.argmax(dim=1)
    right, wrong = (losses.correctness_aware(logits, target, reduction="none") for target in (top, (top + 1) % 3))
    c = logits.softmax(dim=1).amax(dim=1)
    expected = (c - q).square().mean() + (q * (1 - q)).mean()
    torch.testing.assert_close((q * right + (1 - q) * wrong).mean(), expected)

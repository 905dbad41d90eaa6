"""Closed forms, invariances and the two forms of the losses in lossbook.losses.surrogate.spherical."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lossbook.losses.surrogate import spherical

PAIRS = {
    "z_loss": (spherical.z_loss, spherical.z_loss_from_stats),
    "spherical_mse": (spherical.spherical_mse, spherical.spherical_mse_from_stats),
    "log_taylor_softmax": (spherical.log_taylor_softmax, spherical.log_taylor_softmax_from_stats),
    "log_spherical_softmax": (spherical.log_spherical_softmax, spherical.log_spherical_softmax_from_stats),
}
each_pair = pytest.mark.parametrize("name", PAIRS)


def batch(n: int = 7, c: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(n, c, dtype=torch.float64, generator=generator), torch.randint(c, (n,), generator=generator)


def stats(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return logits.gather(1, target[:, None])[:, 0], logits.square().sum(dim=1), logits.sum(dim=1)


@each_pair
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), c=st.integers(3, 9), level=st.floats(-5, 5))
def test_statistics_are_enough(name: str, seed: int, c: int, level: float) -> None:
    """Both forms have the same value, and the chain rule through the three statistics gives the dense gradient."""
    dense, from_stats = PAIRS[name]
    logits, target = batch(c=c, seed=seed)
    logits = (logits + level).requires_grad_()
    for reduction in ("none", "sum", "mean"):
        left = dense(logits, target, reduction=reduction)
        right = from_stats(*stats(logits, target), c, reduction=reduction)
        torch.testing.assert_close(left, right)
        gradients = [torch.autograd.grad(value.sum(), logits, retain_graph=True)[0] for value in (left, right)]
        torch.testing.assert_close(*gradients)


def test_values_by_hand() -> None:
    """Outputs (3, 0, 0): mean 1, standard deviation sqrt 2, z-scores sqrt 2 and -1/sqrt 2 twice."""
    o, y = torch.tensor([[3.0, 0.0, 0.0]], dtype=torch.float64), torch.tensor([0])
    root = math.sqrt(2)
    assert spherical.z_loss(o, y).item() == pytest.approx(math.log(1 + math.exp(-root)))
    assert spherical.z_loss(o, y + 1, a=2.0, b=1.0).item() == pytest.approx(
        math.log(1 + math.exp(2 * (1 + 1 / root))) / 2
    )
    assert spherical.spherical_mse(o, y).item() == pytest.approx(4.0)
    assert spherical.spherical_mse(o, y + 1).item() == pytest.approx(10.0)
    assert spherical.log_taylor_softmax(o, y).item() == pytest.approx(-math.log(8.5 / 10.5))
    assert spherical.log_taylor_softmax(o, y + 1).item() == pytest.approx(math.log(10.5))
    assert spherical.log_spherical_softmax(o, y, eps=0.5).item() == pytest.approx(-math.log(9.5 / 10.5))


@settings(max_examples=25, deadline=None)
@given(scale=st.floats(1e-2, 1e2), shift=st.floats(-100, 100), seed=st.integers(0, 10_000))
def test_z_loss_reads_neither_scale_nor_shift(scale: float, shift: float, seed: int) -> None:
    logits, target = batch(seed=seed)
    moved = spherical.z_loss(scale * logits + shift, target, a=3.0, b=1.0, reduction="none")
    torch.testing.assert_close(
        moved, spherical.z_loss(logits, target, a=3.0, b=1.0, reduction="none"), rtol=1e-8, atol=0
    )


def test_z_loss_gradient_is_the_formula() -> None:
    logits, target = batch()
    a, b, c = 2.0, 0.5, logits.shape[1]
    z = (logits - logits.mean(1, keepdim=True)) / logits.std(1, correction=0, keepdim=True)
    z_y = z.gather(1, target[:, None])
    expected = (
        -(a * (b - z_y)).sigmoid()
        * (F.one_hot(target, c) - 1 / c - z_y * z / c)
        / logits.std(1, correction=0, keepdim=True)
    )
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(spherical.z_loss(logits, target, a=a, b=b, reduction="sum"), logits)
    torch.testing.assert_close(gradient, expected)
    # It moves the outputs neither along the shift nor along the scale, which the loss does not read.
    torch.testing.assert_close(gradient.sum(dim=1), torch.zeros(len(logits), dtype=torch.float64))
    torch.testing.assert_close((gradient * logits).sum(dim=1), torch.zeros(len(logits), dtype=torch.float64))


@pytest.mark.parametrize("c", [3, 10, 1000])
def test_z_score_is_largest_at_a_one_hot_row(c: int) -> None:
    bound = F.softplus(torch.tensor(-math.sqrt(c - 1), dtype=torch.float64))
    y = torch.tensor([1])
    assert spherical.z_loss(F.one_hot(y, c).double(), y).item() == pytest.approx(bound.item(), rel=1e-9)
    logits = torch.randn(200, c, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits[:, 1] += 5
    assert (spherical.z_loss(logits, y.expand(200), reduction="none") > bound).all()


@pytest.mark.parametrize("level", [0.0, -3.0, 7e5])
def test_a_row_of_equal_outputs_has_no_z_score(level: float) -> None:
    """There the loss is that of z = 0, with no pull in any direction, and its neighbours in the batch are unharmed."""
    logits, target = batch(n=3)
    logits[1] = level
    logits.requires_grad_()
    rows = spherical.z_loss(logits, target, b=1.0, reduction="none")
    (gradient,) = torch.autograd.grad(rows.sum(), logits)
    assert rows[1].item() == pytest.approx(math.log(1 + math.e))
    assert gradient[1].abs().max() == 0 and gradient.isfinite().all() and gradient[0].abs().min() > 0
    o_y, q, s = (statistic.detach().requires_grad_() for statistic in stats(logits, target))
    spherical.z_loss_from_stats(o_y, q, s, 5).backward()
    assert all(statistic.grad.isfinite().all() for statistic in (o_y, q, s))


def test_a_variance_that_rounding_made_negative_counts_as_none() -> None:
    o_y, s = torch.tensor([1.0]), torch.tensor([3.0])
    below = torch.tensor([3.0]).nextafter(torch.tensor([0.0]))
    assert spherical.z_loss_from_stats(o_y, below, s, 3).item() == pytest.approx(math.log(2))


def test_two_classes_are_too_few_for_z_scores() -> None:
    with pytest.raises(ValueError, match="the Z-loss needs at least 3 classes, but there are 2"):
        spherical.z_loss(torch.randn(4, 2), torch.tensor([0, 1, 0, 1]))
    with pytest.raises(ValueError, match="at least 3 classes"):
        spherical.z_loss_from_stats(torch.ones(1), torch.ones(1), torch.ones(1), 2)


def test_a_sharp_hinge_is_a_hinge() -> None:
    logits, target = batch(n=50)
    o_y, q, s = stats(logits, target)
    z_y = (o_y - s / 5) / (q / 5 - (s / 5).square()).sqrt()
    found = spherical.z_loss(logits, target, a=1e4, b=1.2, reduction="none")
    torch.testing.assert_close(found, (1.2 - z_y).clamp(min=0), rtol=0, atol=1e-4)


@pytest.mark.parametrize("loss", [spherical.log_taylor_softmax, spherical.log_spherical_softmax])
def test_likelihoods_sum_to_one(loss) -> None:
    logits, _ = batch()
    each = [loss(logits, torch.full((7,), k), reduction="none") for k in range(5)]
    total = torch.stack([(-value).exp() for value in each]).sum(dim=0)
    torch.testing.assert_close(total, torch.ones(7, dtype=torch.float64))
    assert min(value.min().item() for value in each) > 0


def test_taylor_softmax_is_the_softmax_of_small_outputs() -> None:
    logits, target = batch()
    for size in (1e-1, 1e-2):
        gap = spherical.log_taylor_softmax(size * logits, target) - F.cross_entropy(size * logits, target)
        assert gap.abs().item() < 5 * size**3


@each_pair
@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"o_y": [1.0]}, TypeError, "o_y must be a torch.Tensor, but is list"),
        (
            {"q": torch.ones(4, 1)},
            ValueError,
            r"q must be floating point of shape \(N,\), but is torch.float32 of shape",
        ),
        ({"s": torch.ones(4).long()}, ValueError, r"s must be floating point of shape \(N,\), but is torch.int64"),
        ({"s": torch.ones(3)}, ValueError, "one entry for each of N >= 1 rows, but have 4, 4 and 3"),
        ({"q": torch.tensor([1.0, 2.0, float("nan"), 1.0])}, ValueError, r"q\[2\] is nan"),
        ({"num_classes": 0}, ValueError, "num_classes must be .*at least 1, but is 0"),
        ({"num_classes": 5.0}, ValueError, "num_classes must be a whole number.*, but is 5.0"),
        ({"reduction": "average"}, ValueError, "reduction must be 'none', 'mean' or 'sum'"),
    ],
)
def test_bad_statistics_are_refused_by_name(name: str, change: dict, error: type, sentence: str) -> None:
    arguments = {"o_y": torch.ones(4), "q": 9 * torch.ones(4), "s": torch.ones(4), "num_classes": 5, **change}
    with pytest.raises(error, match=sentence):
        PAIRS[name][1](**arguments)


@pytest.mark.parametrize("form", [0, 1])
def test_illegal_parameters_are_refused(form: int) -> None:
    logits, target = batch()
    arguments = (logits, target) if form == 0 else (*stats(logits, target), 5)
    for change, sentence in (
        ({"a": 0.0}, r"a must lie in \(0, inf\), but is 0"),
        ({"b": float("nan")}, "b must lie in"),
        ({"eps": -1.0}, r"eps must lie in \[0, inf\)"),
    ):
        with pytest.raises(ValueError, match=sentence):
            PAIRS["z_loss"][form](*arguments, **change)
    with pytest.raises(ValueError, match=r"eps must lie in \(0, inf\), but is 0"):
        PAIRS["log_spherical_softmax"][form](*arguments, eps=0.0)

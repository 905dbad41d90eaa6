"""Mixup: convexity, the law of the weights, partners, reproducibility, bad input; fit_mixup: what its loss is given."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, kstest
from torch import Tensor

from lossbook.train import fit, fit_mixup, mixup


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shares(n: int, **arguments) -> Tensor:
    """(N, N): how much of example j is in mixture i."""
    eye = torch.eye(n, dtype=torch.float64)
    return mixup(eye, eye, generator=seeded(), **arguments)[0]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), points=st.integers(2, 5), alpha=st.floats(1e-3, 100), n=st.integers(1, 8))
def test_x_and_y_are_mixed_alike_with_weights_of_a_simplex(seed: int, points: int, alpha: float, n: int) -> None:
    eye = torch.eye(n, dtype=torch.float64)
    x, y = mixup(eye.view(n, 1, n), eye, alpha=alpha, points=points, generator=seeded(seed))
    assert torch.equal(x[:, 0], y)
    assert (y >= 0).all() and ((y > 0).sum(1) <= points).all()
    torch.testing.assert_close(y.sum(1), torch.ones(n, dtype=torch.float64))
    # Each example takes part as often as any other: once as itself and once in each permutation.
    assert ((y > 0).sum(0) <= points).all()


@pytest.mark.parametrize("alpha", [0.3, 1.0, 4.0])
def test_two_points_are_beta(alpha: float) -> None:
    own = shares(1500, alpha=alpha).diagonal()
    own = own[own < 1]  # A partner may be oneself.
    assert kstest(own.numpy(), beta(alpha, alpha).cdf).pvalue > 1e-3
    assert kstest(own.numpy(), beta(alpha + 1, alpha).cdf).pvalue < 1e-6


def test_three_points_have_beta_margins() -> None:
    """A coordinate of the Dirichlet is Beta(alpha, 2 alpha)."""
    mixed = shares(1500, alpha=2.0, points=3)
    own = mixed.diagonal()[(mixed > 0).sum(1) == 3]
    assert kstest(own.numpy(), beta(2, 4).cdf).pvalue > 1e-3


def test_limits_of_alpha() -> None:
    single = shares(50, alpha=1e-3)
    assert (single.amax(1) > 1 - 1e-9).double().mean() > 0.9
    half = shares(50, alpha=1e6)
    assert ((half.diagonal() - 0.5).abs()[half.diagonal() < 1] < 0.01).all()


def test_shapes_dtypes_and_input_untouched() -> None:
    x, y = torch.rand(6, 2, 3, 3), F.one_hot(torch.arange(6) % 3, 3).double()
    kept = x.clone()
    mixed_x, mixed_y = mixup(x, y, generator=seeded())
    assert mixed_x.shape == x.shape and mixed_x.dtype == torch.float32
    assert mixed_y.shape == y.shape and mixed_y.dtype == torch.float64
    assert torch.equal(x, kept) and not torch.equal(mixed_x, x)


def test_the_generator_decides_and_moves_on() -> None:
    x, y = torch.rand(9, 2), torch.eye(9)
    generator = seeded(3)
    first, second = (mixup(x, y, generator=generator)[1] for _ in range(2))
    torch.manual_seed(0)
    state = torch.get_rng_state()
    assert torch.equal(mixup(x, y, generator=seeded(3))[1], first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first, second)


GOOD = {"x": torch.rand(4, 2), "y": torch.eye(4), "generator": seeded()}


@pytest.mark.parametrize(
    ("error", "change", "sentence"),
    [
        (ValueError, {"x": torch.ones(4, 2).long()}, r"x must be floating point of shape \(N, ...\)"),
        (ValueError, {"x": torch.ones(0, 2), "y": torch.ones(0, 4)}, "x must be floating point of shape"),
        (ValueError, {"y": torch.arange(4)}, r"y must be floating point of shape \(4, K\), one-hot"),
        (ValueError, {"y": torch.eye(4)[:3]}, r"y must be floating point of shape \(4, K\)"),
        (ValueError, {"alpha": 0.0}, "alpha must lie in"),
        (ValueError, {"points": 1}, "points must be a whole number of at least 2"),
        (TypeError, {"generator": 0}, r"generator must be a torch\.Generator, but is int"),
        (TypeError, {"x": [[1.0]]}, r"x must be a torch\.Tensor, but is list"),
    ],
)
def test_bad_input(error: type[Exception], change: dict, sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        mixup(**{**GOOD, **change})


class Blobs:
    """Three classes on three axes; every training row different, so that a row is known by its values."""

    y = torch.arange(30) % 3
    x = torch.eye(3)[y] + torch.arange(30.0)[:, None] / 1000
    train = val = (x, y)


SETTINGS = {"epochs": 2, "batch_size": 8, "lr": 0.01, "device": "cpu", "seed": 4}


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Linear(3, 3)


def test_fit_mixup_hands_over_examples_and_their_mixtures() -> None:
    model, calls = network(), []

    def loss(logits: Tensor, mixup_logits: Tensor, target: Tensor, mixup_target: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            calls.append((logits, mixup_logits, target, mixup_target))
        return F.cross_entropy(mixup_logits, mixup_target)

    fit_mixup(model, Blobs, loss, mixtures=2, **SETTINGS)
    assert [len(call[2]) for call in calls] == [8, 8, 8, 6] * 2
    for logits, mixup_logits, target, mixup_target in calls:
        assert mixup_logits.shape == mixup_target.shape == (2 * len(logits), 3)
        torch.testing.assert_close(mixup_target.sum(1), torch.ones(2 * len(logits)))
        # Row j B + i is a mixture of example i: its label has a part.
        assert (mixup_target.view(2, -1, 3).gather(2, target.expand(2, -1)[..., None]) > 0).all()
    first, second = calls[0][3].split(8)
    assert not torch.equal(first, second)


def test_fit_mixup_mixes_x_as_it_mixes_labels() -> None:
    """A linear network's logits of a mixture are the mixture of the logits, with the shares that the target names."""
    model = torch.nn.Linear(3, 3, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.eye(3))

    class Corners:
        y = torch.arange(30) % 3
        train = val = (torch.eye(3)[y], y)

    def loss(logits: Tensor, mixup_logits: Tensor, target: Tensor, mixup_target: Tensor) -> Tensor:
        torch.testing.assert_close(mixup_logits, mixup_target)
        assert torch.equal(logits.argmax(1), target)
        return 0 * mixup_logits.sum()

    fit_mixup(model, Corners, loss, **SETTINGS)


def test_fit_mixup_without_mixtures_in_its_loss_is_fit() -> None:
    one, two = network(), network()
    history = fit_mixup(one, Blobs, lambda logits, _, target, __: F.cross_entropy(logits, target), **SETTINGS)
    want = fit(two, Blobs, F.cross_entropy, **SETTINGS)
    torch.testing.assert_close(one.weight, two.weight)
    torch.testing.assert_close(torch.tensor(history["val_loss"]), torch.tensor(want["val_loss"]))


def test_fit_mixup_is_decided_by_its_seed_and_learns() -> None:
    def mixed(_: Tensor, mixup_logits: Tensor, __: Tensor, mixup_target: Tensor) -> Tensor:
        return F.cross_entropy(mixup_logits, mixup_target)

    models = [network() for _ in range(3)]
    for model, seed in zip(models, (4, 4, 5), strict=True):
        history = fit_mixup(model, Blobs, mixed, **{**SETTINGS, "seed": seed, "epochs": 30, "lr": 0.1})
        assert history["train_accuracy"].iloc[-1] == 1
    assert torch.equal(models[0].weight, models[1].weight) and not torch.equal(models[0].weight, models[2].weight)


@pytest.mark.parametrize(
    ("error", "change", "sentence"),
    [
        (TypeError, {"loss": 3}, "loss must be a function, but is int"),
        (ValueError, {"alpha": 0.0}, "alpha must lie in"),
        (ValueError, {"mixtures": 0}, "mixtures must be a whole number of at least 1"),
        (ValueError, {"lr": -1.0}, "lr must lie in"),
    ],
)
def test_bad_fit_mixup(error: type[Exception], change: dict, sentence: str) -> None:
    arguments = {"loss": lambda logits, *_: logits.sum(), **SETTINGS, **change}
    with pytest.raises(error, match=sentence):
        fit_mixup(network(), Blobs, **arguments)

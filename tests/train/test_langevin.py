"""SGLD: the stationary distribution of a Gaussian posterior in closed form, batches, seeds, bad input."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lossbook.losses import cross_entropy
from lossbook.train import sgld


def squared(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood of y ~ N(output, 1), up to a constant."""
    return ((outputs.squeeze(-1) - y) ** 2).mean() / 2


@pytest.fixture
def line():
    """y = w x + noise with one weight: the posterior of w is Gaussian."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 1, generator=generator, dtype=torch.float64)
    y = 1.5 * x[:, 0] + torch.randn(20, generator=generator, dtype=torch.float64)
    model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    nn.init.zeros_(model.weight)
    precision = float(x.square().sum()) + 1 / 2.0**2
    return model, (x, y), float((x[:, 0] * y).sum()) / precision, precision


@pytest.mark.parametrize("share", [0.1, 1.0])
def test_stationary_distribution_is_the_one_of_the_docstring(line, share):
    model, data, mean, precision = line
    lr = share / precision
    samples = sgld(
        model, squared, data, lr=lr, steps=100, burn_in=99 if share == 0.1 else 40, prior_std=2.0, chains=4000, seed=3
    )
    weights = samples.parameters["weight"][:, -1].flatten()
    expected = 1 / (precision * (1 - share / 4))
    assert float(weights.mean()) == pytest.approx(mean, abs=5 * math.sqrt(expected / 4000) + 0.01 * mean)
    assert float(weights.var()) == pytest.approx(expected, rel=5 * math.sqrt(2 / 4000))


def test_kept_samples_and_outputs(line):
    model, data, _, _ = line
    samples = sgld(model, squared, data, lr=0.01, steps=20, burn_in=5, thin=4, chains=3)
    assert samples.parameters["weight"].shape == (3, 4, 1, 1), "steps 8, 12, 16 and 20"
    out = samples.outputs(data[0])
    assert out.shape == (3, 4, 20, 1)
    torch.testing.assert_close(out[1, 2], data[0] @ samples.parameters["weight"][1, 2].T)
    longer = sgld(model, squared, data, lr=0.01, steps=20, burn_in=0, chains=3)
    torch.testing.assert_close(longer.parameters["weight"][:, 19], samples.parameters["weight"][:, -1])
    assert repr(samples) == "PosteriorSamples(3 chains of 4 samples)"


def test_without_noise_one_step_is_half_a_gradient_step(line):
    model, (x, y), _, _ = line
    with torch.no_grad():
        model.weight.fill_(0.7)
    lr = 1e-10
    moved = sgld(model, squared, (x, y), lr=lr, steps=1, burn_in=0, prior_std=0.5, chains=1, seed=1)
    noise = torch.randn(1, 1, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    slope = (x[:, 0] * (0.7 * x[:, 0] - y)).sum() + 0.7 / 0.5**2
    expected = 0.7 - lr / 2 * slope + math.sqrt(lr) * noise
    torch.testing.assert_close(moved.parameters["weight"][0], expected, rtol=0, atol=1e-15)


def test_batches_are_unbiased(line):
    model, data, mean, _ = line
    samples = sgld(
        model, squared, data, lr=0.002, steps=800, burn_in=400, thin=10, prior_std=2.0, batch_size=5, chains=400, seed=2
    )
    assert float(samples.parameters["weight"].mean()) == pytest.approx(mean, abs=0.05)


def test_seed_and_global_state(line):
    model, data, _, _ = line
    before, state = model.weight.clone(), torch.get_rng_state()
    one, same, other = (
        sgld(model, squared, data, lr=0.01, steps=5, burn_in=0, batch_size=4, chains=2, seed=s).parameters["weight"]
        for s in (1, 1, 2)
    )
    torch.testing.assert_close(one, same, rtol=0, atol=0)
    assert not torch.equal(one, other)
    assert torch.equal(model.weight, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_step_too_large_is_said(line):
    model, data, _, precision = line
    with pytest.raises(FloatingPointError, match="try a smaller lr"):
        sgld(model, squared, data, lr=400 / precision, steps=400, burn_in=399)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"lr": 0.0}, ValueError, "lr must lie in"),
        ({"prior_std": -1.0}, ValueError, "prior_std must lie in"),
        ({"burn_in": 10}, ValueError, "burn_in must be a whole number of at least 0 and at most 9"),
        ({"thin": 11}, ValueError, "thin must be a whole number of at least 1 and at most 10"),
        ({"chains": 0}, ValueError, "chains must be a whole number of at least 1"),
        ({"batch_size": 21}, ValueError, "batch_size must be a whole number of at least 1 and at most 20"),
        ({"data": (torch.zeros(2, 1), torch.zeros(3))}, ValueError, "data must begin with two tensors"),
        ({"data": (torch.full((2, 1), math.nan), torch.zeros(2))}, ValueError, "x must be finite"),
        ({"loss": lambda f, y: f.sum(dim=1)}, ValueError, r"loss must return a scalar tensor .* shape \(20,\)"),
        ({"model": 3}, TypeError, "model must be a torch.nn.Module"),
        ({"loss": 3}, TypeError, "loss must be a function"),
    ],
)
def test_bad_input(line, change, error, message):
    model, data, _, _ = line
    arguments = {"model": model, "loss": squared, "data": data, "lr": 0.01, "steps": 10, "burn_in": 0} | change
    with pytest.raises(error, match=message):
        sgld(**arguments)


def test_a_label_that_the_model_lacks_is_refused_by_the_loss():
    data = torch.zeros(4, 2), torch.tensor([0, 1, 2, 3])
    with pytest.raises(ValueError, match="target has label 3, but logits have 3 classes"):
        sgld(nn.Linear(2, 3), cross_entropy, data, lr=0.01, steps=2, burn_in=0)

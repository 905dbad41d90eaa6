from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import normalize

from lossbook.theory import halfspaces


def sample(n=3000, d=4, repeats=5, seed=0, noise=0.1):
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(repeats, n, d, generator=generator, dtype=torch.float64)
    w = normalize(torch.randn(repeats, d, generator=generator, dtype=torch.float64), dim=-1)
    y = torch.sign((X @ w[..., None])[..., 0])
    flipped = torch.rand(repeats, n, generator=generator) < noise
    return X, torch.where(flipped, -y, y), w


def test_gaussian_samples_are_accepted_and_learned():
    X, y, w = sample()
    accepted, found, report = halfspaces.tester_learner(X, y)
    assert accepted.shape == (5,)
    assert accepted.all()
    assert report.keys() == {"moments", "band_mass", "band_covariance"}
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(5, dtype=torch.float64))
    assert ((found * w).sum(dim=-1) > 0.995).all()


def test_a_sample_alone_is_a_sample_among_others():
    X, y, _ = sample()
    _, together, report = halfspaces.tester_learner(X, y, steps=50)
    accepted, alone, single = halfspaces.tester_learner(X[2], y[2], steps=50)
    assert accepted.shape == ()
    torch.testing.assert_close(alone, together[2])
    for name, value in single.items():
        torch.testing.assert_close(value, report[name][2])


def test_moments_against_their_definition():
    """x_i, x_i x_j, x_i² x_j, x_i⁴ and x_i² x_j² of a small sample, each in standard errors by hand."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(50, 2, generator=generator, dtype=torch.float64)
    a, b = X.unbind(dim=1)
    normal = {0: 1, 1: 0, 2: 1, 3: 0, 4: 3, 6: 15, 8: 105}
    largest = 0.0
    for i in range(5):
        for j in range(5 - i):
            if i + j > 0:
                mean = normal[i] * normal[j]
                std = math.sqrt(normal[2 * i] * normal[2 * j] - mean**2)
                largest = max(largest, abs(float((a**i * b**j).mean()) - mean) / std * math.sqrt(50))
    assert float(halfspaces._moments(X)) == pytest.approx(largest)


@pytest.mark.parametrize("n", [300, 3000, 30_000])
def test_standard_errors_do_not_grow_with_the_sample(n):
    X, y, _ = sample(n, d=3)
    _, _, report = halfspaces.tester_learner(X, y, steps=100)
    assert report["moments"].median() < 5
    assert report["band_mass"].median() < 2.5
    assert report["band_covariance"].median() < 2.5


def test_heavy_tails_are_refused_with_a_finite_reason():
    """A t distribution with three degrees of freedom and variance 1 has no fourth moment."""
    X, y, _ = sample()
    generator = torch.Generator().manual_seed(1)
    X = X / torch.randn(*X.shape, 3, generator=generator, dtype=torch.float64).norm(dim=-1)
    accepted, _, report = halfspaces.tester_learner(X, y)
    assert not accepted.any()
    assert (report["moments"] > 20).all()
    assert report["moments"].isfinite().all()


def test_only_the_band_betrays_a_distribution_with_gaussian_moments():
    """0 with probability 2/3, ±√3 with 1/6 each, has the moments 0, 1, 0, 3, 0 of a Gaussian."""
    X, _, _ = sample(repeats=3)
    generator = torch.Generator().manual_seed(1)
    u = torch.rand(X.shape[:-1], generator=generator, dtype=torch.float64)
    first = math.sqrt(3) * ((u < 1 / 6).double() - (u > 5 / 6).double())
    X[..., 0] = math.sqrt(0.99) * first + 0.1 * X[..., 0]
    accepted, _, report = halfspaces.tester_learner(X, torch.sign(X[..., 0]))
    assert not accepted.any()
    assert (report["moments"] < 6).all()
    assert (report["band_mass"] > 20).all()


def test_the_band_covariance_sees_what_the_mass_does_not():
    """Gaussian along w; across it squeezed, but only inside the band."""
    X, _, _ = sample(repeats=3)
    X[..., 1:] = torch.where(X[..., :1].abs() < 0.2, 0.5 * X[..., 1:], X[..., 1:])
    _, _, report = halfspaces.tester_learner(X, torch.sign(X[..., 0]))
    assert (report["band_mass"] < 6).all()
    assert (report["band_covariance"] > 6).all()


def test_an_empty_band_is_refused():
    X, _, _ = sample(repeats=1)
    X[..., 0] += torch.sign(X[..., 0])
    accepted, _, report = halfspaces.tester_learner(X[0], torch.sign(X[0, :, 0]), width=0.05)
    assert not accepted
    assert report["band_covariance"] == math.inf


def test_the_seed_decides():
    X, y, _ = sample(repeats=1)
    runs = [halfspaces.tester_learner(X, y, steps=20, seed=seed)[1] for seed in (0, 0, 1)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


GOOD_X, GOOD_Y = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)), torch.ones(20)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"X": GOOD_X[:, :1]}, ValueError, r"X must be .* with d >= 2"),
        ({"X": GOOD_X[0]}, ValueError, r"X must be .* of shape \(..., n, d\)"),
        ({"X": GOOD_X[:0], "y": GOOD_Y[:0]}, ValueError, "X must be"),
        ({"X": GOOD_X.half()}, ValueError, "X must be float32 or float64"),
        ({"X": GOOD_X / 0}, ValueError, "X must be finite"),
        ({"X": GOOD_X.numpy()}, TypeError, "X must be a torch.Tensor"),
        ({"y": GOOD_Y[:5]}, ValueError, r"y must have shape \(20,\)"),
        ({"y": 0 * GOOD_Y}, ValueError, "y must hold -1 and 1, but holds 0"),
        ({"width": 0.0}, ValueError, "width must lie in"),
        ({"tolerance": -1.0}, ValueError, "tolerance must lie in"),
        ({"lr": 0.0}, ValueError, "lr must lie in"),
        ({"steps": 0}, ValueError, "steps must be a whole number"),
        ({"batch_size": 0}, ValueError, "batch_size must be a whole number"),
        ({"seed": -1}, ValueError, "seed must be a whole number"),
    ],
)
def test_bad_input_is_refused_by_name(change, error, message):
    arguments = {"X": GOOD_X, "y": GOOD_Y, **change}
    with pytest.raises(error, match=message):
        halfspaces.tester_learner(arguments.pop("X"), arguments.pop("y"), **arguments)

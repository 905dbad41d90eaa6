from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import multivariate_normal, norm

from lossbook.data import synthetic

GENERATORS = {
    "gaussian_mixture": lambda n, seed=0: synthetic.gaussian_mixture(n, seed=seed),
    "noisy mixture": lambda n, seed=0: synthetic.gaussian_mixture(n, label_noise=0.4, num_classes=3, seed=seed),
    "unequal mixture": lambda n, seed=0: synthetic.gaussian_mixture(
        n, num_classes=3, dim=4, priors=[0.7, 0.2, 0.1], separation=1.0, seed=seed
    ),
    "two_moons": lambda n, seed=0: synthetic.two_moons(n, seed=seed),
    "overlapping_classes": lambda n, seed=0: synthetic.overlapping_classes(n, overlap=0.3, seed=seed),
    "anisotropic_gaussians": lambda n, seed=0: synthetic.anisotropic_gaussians(n, dim=3, num_classes=3, seed=seed),
}


@pytest.mark.parametrize("make", GENERATORS.values(), ids=GENERATORS)
def test_types_seeds_and_rows(make):
    split = make(500)
    assert (split.x.dtype, split.y.dtype, split.posterior.dtype) == (torch.float32, torch.int64, torch.float64)
    assert len(split.x) == len(split.y) == len(split.posterior) == 500
    torch.testing.assert_close(split.posterior.sum(dim=1), torch.ones(500, dtype=torch.float64))
    again, other = make(500), make(500, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(split, again, strict=True))
    assert not torch.equal(split.x, other.x)
    assert make(1).posterior.shape == (1, split.posterior.shape[1])


@pytest.mark.parametrize("make", GENERATORS.values(), ids=GENERATORS)
def test_labels_follow_the_posterior(make):
    """In ten bins of the posterior of a class, the share of that class is the mean posterior: within 4.5 sigma."""
    split = make(60_000)
    for k in range(split.posterior.shape[1]):
        p, hit = split.posterior[:, k], (split.y == k).double()
        for group in p.argsort().chunk(10):
            sigma = float((p[group] * (1 - p[group])).sum().sqrt())
            assert abs(float((hit[group] - p[group]).sum())) < 4.5 * sigma + 1


@pytest.mark.parametrize(("separation", "error"), [(1, 0.54), (1.5, 0.40), (2, 0.27), (3, 0.11), (5, 0.007)])
def test_bayes_error_of_the_mixture(separation, error):
    """The values that the calibration notebooks are designed around: five classes, ten dimensions, seed 0."""
    split = synthetic.gaussian_mixture(40_000, separation=separation)
    assert float(1 - split.posterior.max(dim=1).values.mean()) == pytest.approx(error, rel=0.05)
    wrong = (split.posterior.argmax(dim=1) != split.y).double().mean()
    assert float(wrong) == pytest.approx(error, rel=0.05, abs=0.002)


def test_mixture_posterior_is_bayes_rule():
    priors = [0.5, 0.3, 0.2]
    split = synthetic.gaussian_mixture(50, num_classes=3, dim=4, priors=priors, label_noise=0.1, seed=3)
    means = synthetic.gaussian_mixture_means(3, 4, seed=3).numpy()
    x = split.x.double().numpy()
    joint = np.stack([p * multivariate_normal(m).pdf(x) for p, m in zip(priors, means, strict=True)], axis=1)
    expected = 0.9 * joint / joint.sum(axis=1, keepdims=True) + 0.1 / 3
    np.testing.assert_allclose(split.posterior.numpy(), expected, atol=1e-10)


def test_means_do_not_depend_on_n_and_have_the_length_asked_for():
    means = synthetic.gaussian_mixture_means(5, 10, separation=3.0, seed=7)
    torch.testing.assert_close(means.norm(dim=1), torch.full((5,), 3.0, dtype=torch.float64))
    for n in (20_000, 40_000):
        split = synthetic.gaussian_mixture(n, separation=3.0, seed=7)
        for k in range(5):
            centre = split.x[split.y == k].double().mean(dim=0)
            torch.testing.assert_close(centre, means[k], atol=5 / math.sqrt(n / 5), rtol=0)


@pytest.mark.parametrize("noise", [0.01, 0.05, 0.3, 2.0, 10.0])
def test_moons_posterior_agrees_with_adaptive_quadrature(noise):
    generator = torch.Generator().manual_seed(0)
    # Points of the set, between the arcs, beyond their ends and far away.
    spread = 4 * torch.rand(12, 2, generator=generator) - torch.tensor([1.5, 1.75])
    x = torch.cat([synthetic.two_moons(8, noise=noise).x, spread, torch.tensor([[0.5, 0.25], [0.5, 0.2501]])])
    arcs = (lambda t: (math.cos(t), math.sin(t)), lambda t: (1 - math.cos(t), 0.5 - math.sin(t)))

    def scaled(a, b, arc, least):
        def squared(t):
            u, v = arc(t)
            return (a - u) ** 2 + (b - v) ** 2

        grid = np.linspace(0, math.pi, 4001)
        near = grid[np.argmin([squared(t) for t in grid])]
        cuts = [t for t in (near - 5 * noise, near, near + 5 * noise) if 0 < t < math.pi]
        f = lambda t: math.exp(-(squared(t) - least) / (2 * noise**2))  # noqa: E731
        return quad(f, 0, math.pi, points=cuts or None, limit=400, epsabs=1e-13, epsrel=1e-11)[0]

    expected = []
    for a, b in x.double().tolist():
        least = min(
            (a - u) ** 2 + (b - v) ** 2 for arc in arcs for u, v in map(arc, np.linspace(0, math.pi, 4001).tolist())
        )
        masses = [scaled(a, b, arc, least) for arc in arcs]
        expected.append([mass / sum(masses) for mass in masses])
    found = synthetic.two_moons_posterior(x, noise=noise)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def test_moons_are_mirror_images():
    """Turning the plane by 180° about (½, ¼) swaps the classes."""
    x = synthetic.two_moons(200).x.double()
    turned = torch.tensor([1.0, 0.5]) - x
    found, swapped = synthetic.two_moons_posterior(x), synthetic.two_moons_posterior(turned).flip(1)
    torch.testing.assert_close(found, swapped, atol=1e-12, rtol=0)


@pytest.mark.parametrize("num_classes", [2, 3, 10])
@pytest.mark.parametrize("overlap", [0.0, 0.3, 1.0])
def test_overlap_is_the_share_of_mass_that_no_one_can_tell_apart(overlap, num_classes):
    split = synthetic.overlapping_classes(40_000, overlap=overlap, num_classes=num_classes, dim=3)
    top = split.posterior.max(dim=1).values
    bayes = overlap * (1 - 1 / num_classes)
    spread = math.sqrt(overlap * (1 - overlap) / 40_000) + 1e-5
    assert float(1 - top.mean()) == pytest.approx(bayes, abs=4 * spread + 2e-4)
    unsure = (top < 1 / num_classes + 0.01).double().mean()
    assert float(unsure) == pytest.approx(overlap, abs=4 * spread + 2e-4)


def test_overlap_posterior_is_bayes_rule():
    """Between the regions, where it is neither one-hot nor uniform."""
    split = synthetic.overlapping_classes(20_000, overlap=0.3)
    gradual = (split.posterior.max(dim=1).values - 2 / 3).abs() < 0.3
    x = split.x[gradual].double().numpy()
    angle = 2 * np.pi * np.arange(3) / 3
    own = [multivariate_normal(8 * np.array([np.cos(a), np.sin(a)])).pdf(x) for a in angle]
    joint = 0.7 * np.stack(own, axis=1) + 0.3 * multivariate_normal(np.zeros(2)).pdf(x)[:, None]
    assert len(x) > 0
    np.testing.assert_allclose(split.posterior[gradual].numpy(), joint / joint.sum(1, keepdims=True), atol=1e-10)


@pytest.mark.parametrize("dim", [2, 3, 8])
def test_anisotropic_gaussians_have_the_moments_and_the_posterior_of_the_formula(dim):
    split = synthetic.anisotropic_gaussians(60_000, dim=dim, num_classes=3, seed=1)
    variance = np.array([dim] * (dim // 2) + [1] * (dim - dim // 2))
    joint = []
    for k, mean in enumerate([-1, 1, 2]):
        x = split.x[split.y == k].double().numpy()
        np.testing.assert_allclose(x.mean(axis=0), mean, atol=5 * math.sqrt(dim / 20_000))
        np.testing.assert_allclose(x.var(axis=0), variance, rtol=0.06)
        joint.append(multivariate_normal(np.full(dim, mean), np.diag(variance)).pdf(split.x[:100].double().numpy()))
    expected = np.stack(joint, axis=1)
    np.testing.assert_allclose(split.posterior[:100].numpy(), expected / expected.sum(1, keepdims=True), atol=1e-9)


def test_anisotropic_gaussians_have_the_bayes_error_of_the_docstring():
    split = synthetic.anisotropic_gaussians(200_000, dim=4)
    exact = norm.cdf(-math.sqrt(2 + 2 * 4) / 2)
    assert float(1 - split.posterior.amax(dim=1).mean()) == pytest.approx(exact, rel=0.03)


def test_risks_of_scores_are_those_of_the_paper():
    """Written out at a few scores; each lies in [0, 1] everywhere, also for float32 and any shape."""
    z = torch.tensor([0.0, 0.1, 0.29, 0.5, 1.0])
    want = {
        "linear": [0.0, 0.1, 0.29, 0.5, 1.0],
        "sigmoid": [1 - 1 / (1 + math.exp(-25 * (v - 0.29))) for v in (0.0, 0.1, 0.29, 0.5, 1.0)],
        "centred": [0.35, 0.35 + 0.1 / 3, 0.35 + 0.29 / 3, 0.35 + 0.5 / 3, 0.35 + 1 / 3],
        "skewed": [0.0, 0.04, 0.116, 0.2, 0.4],
        "discrete": [0.1, 0.1, 0.3, 0.5, 0.9],
    }
    for scenario, values in want.items():
        found = synthetic.risk_from_score(z, scenario)
        torch.testing.assert_close(found, torch.tensor(values, dtype=torch.float64), atol=1e-7, rtol=0)
        grid = synthetic.risk_from_score(torch.linspace(0, 1, 300).view(3, 100), scenario)
        assert grid.shape == (3, 100) and grid.min() >= 0 and grid.max() <= 1
    fifths = torch.tensor([0.2, 0.4, 0.6, 0.8])
    assert synthetic.risk_from_score(fifths, "discrete").tolist() == [0.3, 0.5, 0.7, 0.9]
    double = z.double()
    assert synthetic.risk_from_score(double, "linear").data_ptr() != double.data_ptr(), "a copy, not the scores"


def test_a_score_is_a_tensor():
    with pytest.raises(TypeError, match="z must be a torch.Tensor, but is float"):
        synthetic.risk_from_score(0.5, "linear")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: synthetic.risk_from_score(torch.tensor([0.5, 1.5]), "linear"),
            r"z must lie in \[0, 1\], but holds 1.5",
        ),
        (lambda: synthetic.risk_from_score(torch.tensor([math.nan]), "linear"), "z must .* but holds nan"),
        (lambda: synthetic.risk_from_score(torch.zeros(3), "uniform"), "scenario must be .* but is 'uniform'"),
        (lambda: synthetic.gaussian_mixture(0), "n must be a whole number of at least 1, but is 0"),
        (lambda: synthetic.gaussian_mixture(2.5), "n must be a whole number"),
        (lambda: synthetic.gaussian_mixture(True), "n must be a whole number"),
        (lambda: synthetic.gaussian_mixture(5, num_classes=1), "num_classes must"),
        (lambda: synthetic.gaussian_mixture(5, dim=0), "dim must"),
        (lambda: synthetic.gaussian_mixture(5, separation=-1), r"separation must .* but is -1"),
        (lambda: synthetic.gaussian_mixture(5, separation=math.nan), "separation must .* but is nan"),
        (lambda: synthetic.gaussian_mixture(5, label_noise=1.1), "label_noise must .* but is 1.1"),
        (lambda: synthetic.gaussian_mixture(5, priors=[0.5, 0.5]), "priors must be 5 positive numbers"),
        (lambda: synthetic.gaussian_mixture(5, num_classes=2, priors=[0.5, 0.6]), "priors must be 2 positive"),
        (lambda: synthetic.gaussian_mixture(5, num_classes=2, priors=[1.0, 0.0]), "priors must be 2 positive"),
        (lambda: synthetic.gaussian_mixture(5, seed=-1), "seed must"),
        (lambda: synthetic.gaussian_mixture(5, seed=2**63), "seed must be below"),
        (lambda: synthetic.two_moons(5, noise=0), "noise must .* but is 0"),
        (lambda: synthetic.two_moons(5, noise="big"), "noise must .* but is 'big'"),
        (lambda: synthetic.two_moons_posterior(torch.zeros(3)), r"x must have shape \(N, 2\)"),
        (lambda: synthetic.overlapping_classes(5, overlap=1.5), "overlap must .* but is 1.5"),
        (lambda: synthetic.overlapping_classes(5, overlap=0.5, dim=1), "dim must"),
        (lambda: synthetic.overlapping_classes(5, overlap=0.5, num_classes=1), "num_classes must"),
        (lambda: synthetic.anisotropic_gaussians(5, dim=1), "dim must"),
        (lambda: synthetic.anisotropic_gaussians(5, num_classes=31), "num_classes must be .* at most 30"),
    ],
)
def test_bad_arguments_are_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()

"""Generators whose posterior P(y | x) is known exactly, so that a probability can be held against the truth.

Every generator draws from its seed alone: the same arguments give the same numbers. To get splits of one distribution,
draw once and slice. The posterior is float64 and belongs to x as it is returned, rounded to float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lossbook import checks
from lossbook.data import _checks
from lossbook.data.contexts import contextual_digits as contextual_digits
from lossbook.data.dataset import Split
from lossbook.data.detections import toy_detections as toy_detections
from lossbook.theory.posterior import gaussian_mixture_posterior


def gaussian_mixture_means(num_classes: int = 5, dim: int = 10, *, separation: float = 2.0, seed: int = 0) -> Tensor:
    """Means μ_k = separation · u_k with random unit vectors u_k: `(K, dim)` float64.

    These are the means that `gaussian_mixture` uses with the same arguments.
    """
    return _means(num_classes, dim, separation, _generator(seed))


def gaussian_mixture(
    n: int,
    *,
    num_classes: int = 5,
    dim: int = 10,
    separation: float = 2.0,
    priors: Sequence[float] | Tensor | None = None,
    label_noise: float = 0.0,
    seed: int = 0,
) -> Split:
    """Gaussian classes: y ~ π, x ~ N(μ_y, I), with the means of `gaussian_mixture_means`.

    Posterior without noise: p_k(x) = softmax_k(log π_k + x·μ_k − |μ_k|²/2). With label noise r a label is redrawn
    uniformly over all K classes with probability r, and the posterior of the label returned is (1 − r) p + r/K.

    Args:
        n: number of samples, at least 1.
        num_classes, dim: K at least 2, dim at least 1.
        separation: length of every mean, in standard deviations; at least 0.
        priors: π, K positive numbers that sum to 1; uniform when None.
        label_noise: r in [0, 1].
        seed: of the means and of the samples. The means do not depend on n.

    Returns:
        Split with x `(n, dim)`, y `(n,)`, posterior `(n, K)`.

    Raises:
        ValueError: an argument is out of its range.
    """
    n = checks.whole("n", n, 1)
    noise = _checks.number("label_noise", label_noise, 0, 1)
    generator = _generator(seed)
    means = _means(num_classes, dim, separation, generator)
    weights = _priors(priors, num_classes)
    y = torch.multinomial(weights, n, replacement=True, generator=generator)
    x = (means[y] + torch.randn(n, dim, generator=generator, dtype=torch.float64)).float()
    posterior = gaussian_mixture_posterior(x.double(), means, priors=weights)
    if noise:
        redrawn = torch.rand(n, generator=generator) < noise
        y = torch.where(redrawn, torch.randint(num_classes, (n,), generator=generator), y)
        posterior = (1 - noise) * posterior + noise / num_classes
    return Split(x, y, posterior)


def two_moons(n: int, *, noise: float = 0.3, seed: int = 0) -> Split:
    """Two interleaved half circles with Gaussian noise: x = a_y(t) + noise · ε, t ~ U[0, π], ε ~ N(0, I).

    a_0(t) = (cos t, sin t) and a_1(t) = (1 − cos t, ½ − sin t), as in scikit-learn's make_moons; both classes are
    equally likely. Posterior: p_k(x) ∝ ∫_0^π exp(−|x − a_k(t)|² / (2 noise²)) dt, by Gauss-Legendre quadrature, whose
    error is below 1e-6 for every noise admitted.

    Args:
        n: number of samples, at least 1.
        noise: standard deviation of the noise, in [0.01, 10].
        seed: of the samples.

    Returns:
        Split with x `(n, 2)`, y `(n,)`, posterior `(n, 2)`.

    Raises:
        ValueError: an argument is out of its range.
    """
    n = checks.whole("n", n, 1)
    noise = _checks.number("noise", noise, 0.01, 10)
    generator = _generator(seed)
    y = torch.randint(2, (n,), generator=generator)
    t = math.pi * torch.rand(n, generator=generator, dtype=torch.float64)
    points = torch.where(y[:, None] == 0, _arc(t, 0), _arc(t, 1))
    x = (points + noise * torch.randn(n, 2, generator=generator, dtype=torch.float64)).float()
    return Split(x, y, two_moons_posterior(x, noise=noise))


def two_moons_posterior(x: Tensor, *, noise: float = 0.3) -> Tensor:
    """P(y | x) `(N, 2)` float64 of `two_moons` at any points x `(N, 2)`: for the background of a decision plot."""
    noise = _checks.number("noise", noise, 0.01, 10)
    if x.dim() != 2 or x.shape[1] != 2:
        raise ValueError(f"x must have shape (N, 2), but has shape {tuple(x.shape)}")
    # The integrand is a bump about `noise` wide on an interval of length π: nodes must be closer than that.
    nodes, weights = np.polynomial.legendre.leggauss(32 + math.ceil(10 / noise))
    t = torch.as_tensor(math.pi / 2 * (nodes + 1), device=x.device)
    log_weights = torch.as_tensor(np.log(weights), device=x.device)
    rows = max(1, 2**21 // len(t))  # keeps the (rows, nodes) matrix at 16 MB
    likelihood = [
        torch.stack([_log_integral(part, _arc(t, k), log_weights, noise) for k in (0, 1)], dim=1)
        for part in x.double().split(rows)
    ]
    return torch.softmax(torch.cat(likelihood), dim=1)


def overlapping_classes(n: int, *, overlap: float, num_classes: int = 3, dim: int = 2, seed: int = 0) -> Split:
    """Classes that are far apart except for a share of their mass, which all of them have in one place.

    A sample of class k comes from the shared region N(0, I) with probability q = overlap, else from the class's own
    N(μ_k, I). The means μ_k lie on a circle around the shared region, at least 8 standard deviations from it and from
    each other. With w = (q, (1 − q)/K, …, (1 − q)/K) and r_j(x) the posterior of the K + 1 Gaussians under the weights
    w, the posterior of the label is p_k(x) = r_k(x) + r_0(x)/K: nearly one-hot at μ_k and uniform in the shared region.
    The Bayes error is q (1 − 1/K) up to what eight standard deviations leave (below 1e-4).

    Args:
        n: number of samples, at least 1.
        overlap: q in [0, 1].
        num_classes, dim: K at least 2, dim at least 2; all dimensions after the second are noise.
        seed: of the samples; the means are fixed.

    Returns:
        Split with x `(n, dim)`, y `(n,)`, posterior `(n, K)`.

    Raises:
        ValueError: an argument is out of its range.
    """
    n = checks.whole("n", n, 1)
    k = checks.whole("num_classes", num_classes, 2)
    dim = checks.whole("dim", dim, 2)
    q = _checks.number("overlap", overlap, 0, 1)
    generator = _generator(seed)
    centres = torch.zeros(k + 1, dim, dtype=torch.float64)
    angle = 2 * math.pi * torch.arange(k, dtype=torch.float64) / k
    centres[1:, :2] = 8 * max(1.0, 0.5 / math.sin(math.pi / k)) * torch.stack([angle.cos(), angle.sin()], dim=1)
    y = torch.randint(k, (n,), generator=generator)
    shared = torch.rand(n, generator=generator, dtype=torch.float64) < q
    x = (centres[torch.where(shared, 0, y + 1)] + torch.randn(n, dim, generator=generator, dtype=torch.float64)).float()
    return Split(x, y, _shared_posterior(x.double(), centres, q))


def anisotropic_gaussians(n: int, *, dim: int = 20, num_classes: int = 2, seed: int = 0) -> Split:
    """Gaussian classes of which half the features are clear and half drown in noise: x ~ N(μ_y, diag v).

    All classes are equally likely. Every entry of μ_0 is -1, every entry of μ_k is 2^(k-1) for k ≥ 1. The first
    ⌊dim/2⌋ features have variance v_j = dim, the others 1. With two classes and an even dim the squared distance of
    the means in standard deviations is Δ² = Σ_j 4/v_j = 2 + 2 dim, and the Bayes error Φ(-Δ/2): more features are more
    signal.

    Args:
        n: number of samples, at least 1.
        dim: number of features, at least 2.
        num_classes: K in [2, 30]; the means double from class to class.
        seed: of the samples.

    Returns:
        Split with x `(n, dim)`, y `(n,)`, posterior `(n, K)`.

    Raises:
        ValueError: an argument is out of its range.

    Source: Zheng et al. 2023, Revisiting Discriminative vs. Generative Classifiers, and its code: the "easy" mixture.
    """
    n = checks.whole("n", n, 1)
    dim = checks.whole("dim", dim, 2)
    k = checks.whole("num_classes", num_classes, 2, 30)
    generator = _generator(seed)
    centre = torch.cat([-torch.ones(1, dtype=torch.float64), 2.0 ** torch.arange(k - 1, dtype=torch.float64)])
    std = torch.ones(dim, dtype=torch.float64)
    std[: dim // 2] = math.sqrt(dim)
    y = torch.randint(k, (n,), generator=generator)
    x = (centre[y, None] + std * torch.randn(n, dim, generator=generator, dtype=torch.float64)).float()
    return Split(x, y, gaussian_mixture_posterior(x.double() / std, centre[:, None] / std))


def risk_from_score(z: Tensor, scenario: str) -> Tensor:
    """The chance p(z) of an outcome, for experiments where y ~ Bernoulli(p) is all that a model sees.

        linear    p = z
        sigmoid   p = 1 / (1 + exp(25 (z - 0.29)))                 nearly certain at both ends, falling in z
        centred   p = z/3 + 0.35                                   never far from 1/2
        skewed    p = z/2.5                                        mostly rare
        discrete  p = 0.1, 0.3, 0.5, 0.7, 0.9 by fifths of z       a fifth holds its lower end

    Args:
        z: scores in [0, 1], of any shape; in the paper the age in a portrait, in units of 100 years.
        scenario: one of the names above.

    Returns:
        float64 p in [0, 1], of the shape of z.

    Raises:
        TypeError: z is no tensor.
        ValueError: a score is NaN or outside [0, 1], or there is no such scenario.

    Source: Liu, Kaku, Zhu et al. 2022, Deep Probability Estimation (arXiv 2111.10734), and its code.
    """
    if not isinstance(z, Tensor):
        raise TypeError(f"z must be a torch.Tensor, but is {type(z).__name__}")
    z = z.double()
    if (bad := ~((z >= 0) & (z <= 1))).any():
        raise ValueError(f"z must lie in [0, 1], but holds {z[bad][0]:g}")
    if scenario == "linear":
        return z.clone()
    if scenario == "sigmoid":
        return torch.sigmoid(-25 * (z - 0.29))
    if scenario == "centred":
        return z / 3 + 0.35
    if scenario == "skewed":
        return z / 2.5
    if scenario == "discrete":
        fifth = torch.bucketize(z, z.new_tensor([0.2, 0.4, 0.6, 0.8]), right=True)
        return (2 * fifth + 1).double() / 10
    raise ValueError(f"scenario must be linear, sigmoid, centred, skewed or discrete, but is {scenario!r}")


def _shared_posterior(x: Tensor, centres: Tensor, q: float) -> Tensor:
    k = len(centres) - 1
    if q == 1:
        return torch.full((len(x), k), 1 / k, dtype=torch.float64)
    if q == 0:
        return gaussian_mixture_posterior(x, centres[1:])
    weights = torch.full((k + 1,), (1 - q) / k, dtype=torch.float64)
    weights[0] = q
    component = gaussian_mixture_posterior(x, centres, priors=weights)
    return component[:, 1:] + component[:, :1] / k


def _arc(t: Tensor, k: int) -> Tensor:
    if k == 0:
        return torch.stack([t.cos(), t.sin()], dim=1)
    return torch.stack([1 - t.cos(), 0.5 - t.sin()], dim=1)


def _log_integral(x: Tensor, arc: Tensor, log_weights: Tensor, noise: float) -> Tensor:
    # In logarithms, because far from the arc every node's density underflows.
    squared = (x[:, :1] - arc[:, 0]).square_().add_((x[:, 1:] - arc[:, 1]).square_())
    return torch.logsumexp(squared.mul_(-0.5 / noise**2).add_(log_weights), dim=1)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(_checks.seed(seed))


def _means(num_classes: int, dim: int, separation: float, generator: torch.Generator) -> Tensor:
    num_classes = checks.whole("num_classes", num_classes, 2)
    dim = checks.whole("dim", dim, 1)
    separation = _checks.number("separation", separation, 0, 1e4)
    return separation * torch.nn.functional.normalize(torch.randn(num_classes, dim, generator=generator).double())


def _priors(priors: Sequence[float] | Tensor | None, num_classes: int) -> Tensor:
    if priors is None:
        return torch.full((num_classes,), 1 / num_classes, dtype=torch.float64)
    weights = torch.as_tensor(priors, dtype=torch.float64)
    if weights.shape != (num_classes,) or not bool((weights > 0).all()) or abs(float(weights.sum()) - 1) > 1e-6:
        raise ValueError(f"priors must be {num_classes} positive numbers that sum to 1, but are {weights.tolist()}")
    return weights

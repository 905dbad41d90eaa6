"""How much a task asks to be known beforehand: minus the log probability that a hypothesis which fits the training
data also generalises.

    I(e) = -log P_{h ~ p(h | train)}(test error(h) <= e)    nats

The event is far too rare to be sampled. The distribution of the test error is known or fitted, and its tail read off.
Source: Boopathy, Yue, Hwang, Iyer, Fiete 2024 (arXiv 2406.15941).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lossbook import checks

Array = NDArray[np.float64]


def from_errors(errors: Any, target_error: float) -> float:
    """Inductive bias from the test errors of sampled hypotheses: the tail of a scaled noncentral chi-square fitted to
    them, `from_ncx2(target_error, *fit_ncx2(errors))`.

    Args:
        errors: (N,) mean squared test errors, above 0, not all equal.
        target_error: e.

    Returns:
        I(e) in nats. Below the smallest sampled error it is an extrapolation by the fitted family.
    """
    df, nc, scale = fit_ncx2(errors)
    return from_ncx2(target_error, df, nc, 0.0, scale)


def from_ncx2(target_error: float, df: float, nc: float, loc: float = 0.0, scale: float = 1.0) -> float:
    """-log P(loc + scale X <= target_error) for X noncentral chi-square with df degrees of freedom.

    With x = (target_error - loc)/scale and P the regularised lower incomplete gamma function,

        P(X <= x) = Σ_j Poisson(j; nc/2) P(df/2 + j, x/2)

    scipy's logcdf takes the logarithm of a number that underflows near 1e-308, at 700 nats. From 600 nats on the sum is
    taken in logarithms, where it is exact; no approximation is needed (compare `sankaran`).

    Args:
        target_error: e.
        df: above 0.
        nc: noncentrality, at least 0.
        loc, scale: shift and scale of the error, scale above 0.

    Returns:
        nats; infinite for target_error <= loc.
    """
    x = _standardised(target_error, df, nc, loc, scale)
    if x <= 0:
        return math.inf
    from scipy.stats import chi2, ncx2

    log_cdf = float(ncx2.logcdf(x, df, nc) if nc > 0 else chi2.logcdf(x, df))
    return -log_cdf if log_cdf > -600 else -_log_cdf_series(x, df, nc)


def _log_cdf_series(x: float, df: float, nc: float) -> float:
    from scipy.special import gammaln, hyp1f1, logsumexp, xlogy

    a, y, rate = df / 2, x / 2, nc / 2
    # Term j is about (rate y)^j / (j! Γ(a + j)); it is largest where j (a + j) = rate y.
    peak = (math.sqrt(a * a + 4 * rate * y) - a) / 2
    reach = 12 * math.sqrt(peak + 1) + 40
    j = np.arange(max(0.0, math.floor(peak - reach)), peak + reach + 1)
    # P(b, y) = y^b e^-y / Γ(b + 1) · 1F1(1; b + 1; y)
    log_gamma_p = (a + j) * math.log(y) - y - gammaln(a + j + 1) + np.log(hyp1f1(1, a + j + 1, y))
    return float(logsumexp(xlogy(j, rate) - rate - gammaln(j + 1) + log_gamma_p))


def sankaran(target_error: float, df: float, nc: float, loc: float = 0.0, scale: float = 1.0) -> float:
    """z²/2 of Sankaran's normal approximation: what the paper's code puts in place of I(e) where the cdf underflows.

    With x = (target_error - loc)/scale, h = 1 - (2/3)(df + nc)(df + 3 nc)/(df + 2 nc)², p = (df + 2 nc)/(df + nc)²,
    m = (h - 1)(1 - 3h):

        z = [(x/(df + nc))^h - (1 + h p (h - 1 - (2 - h) m p / 2))] / (h √(2p) (1 + m p / 2))

    Two things are lost: -log Φ(z) is z²/2 + log|z| + log √(2π) for z far below 0, and above the mean, where z > 0, it
    is near 0 while z²/2 grows. Here to be compared with `from_ncx2`, which does not need it.
    """
    x = _standardised(target_error, df, nc, loc, scale)
    h = 1 - (2 / 3) * (df + nc) * (df + 3 * nc) / (df + 2 * nc) ** 2
    p = (df + 2 * nc) / (df + nc) ** 2
    m = (h - 1) * (1 - 3 * h)
    centre = 1 + h * p * (h - 1 - (2 - h) * m * p / 2)
    z = ((max(x, 0.0) / (df + nc)) ** h - centre) / (h * math.sqrt(2 * p) * (1 + m * p / 2))
    return z * z / 2


def fit_ncx2(errors: Any) -> tuple[float, float, float]:
    """Maximum likelihood of a noncentral chi-square with a free scale: (df, nc, scale), loc fixed at 0.

    Starts where the first three cumulants agree, κ1 = s(df + nc), κ2 = 2s²(df + 2nc), κ3 = 8s³(df + 3nc), and takes a
    simplex search from there. df, nc and scale hardly show apart in errors that look Gaussian; the tail that they give
    together is what the data fix.

    Args:
        errors: (N,) numbers above 0, not all equal.

    Raises:
        ValueError: fewer than 10 errors, an error that is not above 0, errors that are all equal.
    """
    from scipy.optimize import minimize
    from scipy.special import expit, logit

    sample = np.asarray(errors, dtype=np.float64).ravel()
    if len(sample) < 10:
        raise ValueError(f"errors must be at least 10, but are {len(sample)}")
    bad = ~(np.isfinite(sample) & (sample > 0))
    if bad.any():
        raise ValueError(f"errors must be finite and above 0, but errors[{bad.argmax()}] is {sample[bad.argmax()]:g}")
    mean = sample.mean()
    u = sample / mean
    if not u.var() > 1e-20:
        raise ValueError("errors are all equal: there is no distribution to fit")

    # Searched in mean, scale and the share nc/(df + nc): the mean is well determined, the share is not.
    def parameters(theta: Array) -> tuple[float, float, float]:
        scale, share = math.exp(theta[1]), expit(theta[2])
        size = math.exp(theta[0]) / scale
        return (1 - share) * size, share * size, scale

    def negative_log_likelihood(theta: Array) -> float:
        df, nc, scale = parameters(theta)
        value = math.log(scale) - _log_density(u / scale, df, nc).mean()
        return value if math.isfinite(value) else 1e10

    half_variance, skew = u.var() / 2, ((u - 1) ** 3).mean() / 8
    scale = half_variance - math.sqrt(max(half_variance**2 - skew, 0.0))
    scale = min(max(scale, 0.51 * half_variance), half_variance)
    share = min(max(half_variance / scale - 1, 0.02), 0.98)
    start = np.array([0.0, math.log(scale), logit(share)])
    # At either end of the share the likelihood is flat; without bounds the simplex would walk there for ever.
    bounds = [(None, None), (None, None), (-6, 6)]
    tolerances = {"xatol": 1e-2, "fatol": 1e-6, "maxiter": 200}
    best = minimize(negative_log_likelihood, start, method="Nelder-Mead", bounds=bounds, options=tolerances)
    df, nc, scale = parameters(best.x)
    return df, nc, scale * float(mean)


def _log_density(x: Array, df: float, nc: float) -> Array:
    """log of e^{-nc/2} χ²_df(x) 0F1(; df/2; nc x/4): unlike a Bessel function, 0F1 does not underflow for large df."""
    from scipy.special import gammaln, hyp0f1, ive

    v, z = df / 2, nc * x / 4
    with np.errstate(over="ignore", divide="ignore"):
        log_0f1 = np.log(hyp0f1(v, z))
        large = ~np.isfinite(log_0f1)
        root = 2 * np.sqrt(z[large])
        log_0f1[large] = gammaln(v) + (v - 1) * np.log(2 / root) + np.log(ive(v - 1, root)) + root
    return -(x + nc) / 2 + (v - 1) * np.log(x / 2) - math.log(2) - gammaln(v) + log_0f1


def gp_error_terms(
    X_train: Any, y_train: Any, X_test: Any, y_test: Any, *, lengthscale: float = 1.0, jitter: float = 1e-6
) -> tuple[Array, Array]:
    """The test error of a Gaussian-process hypothesis as a sum of squares: Σ_k (offset_k + sd_k z_k)², z_k ~ N(0, 1).

    The hypotheses are f | train for a process with kernel k(x, x') = exp(-|x - x'|²/(2 s²)): Gaussian at the test
    inputs with mean K_* (K + jitter I)⁻¹ y and covariance Σ = K_** - K_* (K + jitter I)⁻¹ K_*ᵀ. With Σ = U Λ Uᵀ the
    mean squared error over the M test points has offset = Uᵀ(mean - y_test)/√M and sd = √(Λ/M).

    Args:
        X_train, X_test: (N, d) and (M, d).
        y_train, y_test: (N,) and (M,), or (N, C) and (M, C) for C independent outputs, over which the error averages.
        lengthscale: s, above 0.
        jitter: added to the diagonal of K, above 0: the variance of the noise that the training labels may have.

    Returns:
        offset, sd: (M C,) each.
    """
    from scipy.linalg import cho_factor, cho_solve

    inputs = [_matrix(name, value) for name, value in (("X_train", X_train), ("X_test", X_test))]
    labels = [_matrix(name, value) for name, value in (("y_train", y_train), ("y_test", y_test))]
    (train, test), (y, y_star) = inputs, labels
    if train.shape[1] != test.shape[1]:
        raise ValueError(f"X_train has {train.shape[1]} columns, but X_test has {test.shape[1]}")
    if len(y) != len(train) or len(y_star) != len(test) or y.shape[1] != y_star.shape[1]:
        raise ValueError(
            f"y_train and y_test must have a row for each of {len(train)} and {len(test)} inputs and equally many "
            f"columns, but have shapes {y.shape} and {y_star.shape}"
        )
    checks.parameter("lengthscale", lengthscale, 0, open_low=True)
    checks.parameter("jitter", jitter, 0, open_low=True)
    factor = cho_factor(_rbf(train, train, lengthscale) + jitter * np.eye(len(train)))
    cross = _rbf(test, train, lengthscale)
    covariance = _rbf(test, test, lengthscale) - cross @ cho_solve(factor, cross.T)
    variance, basis = np.linalg.eigh(covariance)
    offset = basis.T @ (cross @ cho_solve(factor, y) - y_star) / math.sqrt(y_star.size)
    # What rounding leaves of the directions that the training data fix may be below zero.
    sd = np.sqrt(np.maximum(variance, 0) / y_star.size)
    return offset.ravel(), np.repeat(sd, y.shape[1])


def gp_hypothesis_errors(
    X_train: Any,
    y_train: Any,
    X_test: Any,
    y_test: Any,
    *,
    lengthscale: float = 1.0,
    samples: int = 10_000,
    jitter: float = 1e-6,
    seed: int = 0,
) -> Array:
    """Mean squared test errors of hypotheses drawn from a Gaussian process given its training data.

    The arguments are those of `gp_error_terms`, whose sum of squares is sampled.

    Returns:
        (samples,) errors.
    """
    checks.whole("samples", samples, 1)
    checks.whole("seed", seed, 0)
    offset, sd = gp_error_terms(X_train, y_train, X_test, y_test, lengthscale=lengthscale, jitter=jitter)
    rng = np.random.default_rng(seed)
    errors = np.empty(samples)
    for rows in np.array_split(np.arange(samples), math.ceil(samples * len(sd) / 2**22)):
        errors[rows] = ((offset + sd * rng.standard_normal((len(rows), len(sd)))) ** 2).sum(axis=1)
    return errors


def from_terms(target_error: float, offset: Any, sd: Any) -> float:
    """-log P(Σ_k (offset_k + sd_k z_k)² <= target_error), z_k ~ N(0, 1), by a saddlepoint approximation.

    With K(s) = Σ_k [s offset_k²/(1 - 2 s sd_k²) - log(1 - 2 s sd_k²)/2], K'(s) = e, u = s √K''(s) and
    r = sign(s) √(2(s e - K(s))): P ≈ Φ(r + log(u/r)/r) (Barndorff-Nielsen 1986). Nothing is fitted and nothing
    sampled. Against exact noncentral chi-squares it is off by at most 3% of I(e) with one term, by 0.3% with ten.

    Args:
        target_error: e.
        offset, sd: (K,) each, as `gp_error_terms` gives them; sd at least 0.

    Returns:
        nats; infinite where no hypothesis is that good.
    """
    from scipy.optimize import brentq
    from scipy.special import log_ndtr

    b2, w = (np.asarray(value, dtype=np.float64) ** 2 for value in (offset, sd))
    if b2.ndim != 1 or b2.shape != w.shape or not np.isfinite(b2 + w).all() or not w.max(initial=0) > 0:
        raise ValueError("offset and sd must be two finite vectors of the same length, with an sd above 0")
    if not math.isfinite(target_error):
        raise ValueError(f"target_error must be finite, but is {target_error!r}")
    if not target_error > b2[w == 0].sum():
        return math.inf

    def slope(s: float) -> float:
        return float((w / (1 - 2 * s * w) + b2 / (1 - 2 * s * w) ** 2).sum())

    mean = float((w + b2).sum())
    # At the mean r and u are both 0 and the formula is 0/0; the value there is smooth.
    e = target_error if abs(target_error / mean - 1) > 1e-4 else mean * (1 - 1e-4)
    # K' rises from the least possible error at s = -inf through the mean at 0 to infinity at the pole 1/(2 w_max).
    unit = 1 / (2 * w.max())
    if e < mean:
        s = -unit * math.exp(brentq(lambda v: slope(-unit * math.exp(v)) - e, -40, 300, xtol=1e-13))
    else:
        s = unit * brentq(lambda t: slope(unit * t) - e, 0, 1 - 1e-12, xtol=1e-13)
    shrink = 1 - 2 * s * w
    cumulant = float((s * b2 / shrink - np.log(shrink) / 2).sum())
    curvature = float((2 * w**2 / shrink**2 + 4 * w * b2 / shrink**3).sum())
    r = math.copysign(math.sqrt(2 * (s * e - cumulant)), s)
    return -float(log_ndtr(r + math.log(s * math.sqrt(curvature) / r) / r))


def _rbf(a: Array, b: Array, lengthscale: float) -> Array:
    from scipy.spatial.distance import cdist

    return np.asarray(np.exp(-cdist(a, b, "sqeuclidean") / (2 * lengthscale**2)))


def _matrix(name: str, value: Any) -> Array:
    matrix = np.asarray(value, dtype=np.float64)
    if matrix.ndim == 1:
        matrix = matrix[:, None]
    if matrix.ndim != 2 or matrix.size == 0 or not np.isfinite(matrix).all():
        raise ValueError(f"{name} must be a non-empty matrix of finite numbers, but has shape {matrix.shape}")
    return matrix


def _standardised(target_error: float, df: float, nc: float, loc: float, scale: float) -> float:
    checks.parameter("df", df, 0, open_low=True)
    checks.parameter("nc", nc, 0)
    checks.parameter("scale", scale, 0, open_low=True)
    if not (math.isfinite(target_error) and math.isfinite(loc)):
        raise ValueError(f"target_error and loc must be finite, but are {target_error!r} and {loc!r}")
    return (target_error - loc) / scale

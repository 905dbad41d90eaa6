"""Calibration errors without bins: a kernel, or the sorted confidences themselves, takes the place of the bin.

Notation and inputs as in `lossbook.metrics.calibration`. The kernel is the Gaussian reflected at 0 and 1,

    K_σ(t, c) = Σ_m [φ_σ(t - c + 2m) + φ_σ(t + c + 2m)] = 1 + 2 Σ_{k≥1} exp(-(πkσ)²/2) cos(πkt) cos(πkc),

whose mass on [0, 1] is one for every c. So a sum of kernels is a filtered cosine series, which a Fourier transform
evaluates on a grid: N samples cost O(N), a grid of n cells O(n log n), and the two do not multiply.

The grid's error has a bound. A sample counts at the two nodes beside it, as much as it is close to each; its kernel
is then interpolated linearly over a cell of width h = 1/n, and so is the integral over t. Either changes ∫|Σ_i w_i
K_σ(t, c_i)| dt by at most h²/8 ∫|φ_σ''| Σ_i |w_i| ≤ 0.122 (h/σ)² Σ_i |w_i|. With h ≤ σ/128, both together stay below
1.5e-5 Σ_i |w_i|.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from lossbook import checks
from lossbook.metrics import _bins
from lossbook.metrics._inputs import all_events

_NARROWEST = 2.0**-13  # the smallest bandwidth
_CELLS = 128  # cells of the grid per bandwidth


def kde_calibration_error(
    probs: Any, target: Any, *, bandwidth: float | None = None, norm: Literal[1, 2] = 1, n_grid: int = 512
) -> float:
    """∫ |r(t) - t| f(t) dt over [0, 1], or for norm 2 the root of ∫ (r(t) - t)² f(t) dt.

    f is the density of the confidences and r the accuracy at confidence t, both smoothed: f(t) = (1/N) Σ_i K_h(t, c_i),
    r(t) = Σ_i K_h(t, c_i) a_i / Σ_i K_h(t, c_i). A wide kernel flattens r, and a calibrated model then
    shows an error: take the bandwidth small beside the spread of the confidences.

    Args:
        probs: (N, K) probabilities, of which the top label counts, or (N,) confidences.
        target: (N,) labels in [0, K), or outcomes in [0, 1].
        bandwidth: h, at least 2⁻¹³; if None 1.06 std(c) N^(-1/5), or 2⁻¹³ if that is less.
        norm: 1 or 2.
        n_grid: cells of the grid over [0, 1]; they are made 128 times smaller than the bandwidth at least.

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: bad input, by name and row.

    Source: Zhang, Kailkhura, Han 2020, Mix-n-Match (the estimator); reflection: Schuster 1985.
    """
    _bins.check_choice("norm", norm, (1, 2))
    checks.whole("n_grid", n_grid, 1, 2**24)
    confidence, outcome = events(probs, target)
    if bandwidth is None:
        bandwidth = usual_bandwidth(float(confidence.std(correction=0)), len(confidence))
    checks.parameter("bandwidth", bandwidth, _NARROWEST)
    weight = torch.stack((torch.ones_like(outcome), outcome)) / len(outcome)
    return kde_of(confidence, weight, bandwidth, norm, n_grid)


def smooth_calibration_error(probs: Any, target: Any, *, bandwidth: float | None = None) -> float:
    """smECE: smECE_σ = ∫ |(1/N) Σ_i (a_i - c_i) K_σ(t, c_i)| dt over [0, 1], at the bandwidth that equals it.

    smECE_σ never grows with σ, so smECE_σ = σ has one solution. There are no bins, and
    the value is continuous in the predictions. With d the mean distance to the nearest calibrated predictor, d/2 ≤
    smECE ≤ 2√d.

    Args:
        probs: (N, K) probabilities, of which the top label counts, or (N,) confidences.
        target: (N,) labels in [0, K), or outcomes in [0, 1].
        bandwidth: σ, at least 2⁻¹³; if None the fixed point.

    Returns:
        A number between |mean(a - c)| and mean |a - c|, exact to 1.5e-5 mean |a - c| + 1e-7. A fixed point below 2⁻¹³ =
        1.2e-4 comes out as at most that.

    Raises:
        ValueError: bad input, by name and row.

    Source: Błasiok, Nakkiran 2023, Smooth ECE (arXiv 2309.12236).
    """
    confidence, outcome = events(probs, target)
    residual = (outcome - confidence) / len(outcome)
    if bandwidth is not None:
        checks.parameter("bandwidth", bandwidth, _NARROWEST)
        return _smooth_error(_spectrum(on_grid(confidence, residual, _cells(bandwidth))), bandwidth)
    return smooth_of(confidence, residual, (2**12, 2**16, 2**20))  # most are found on the first two


def ks_calibration_error(probs: Any, target: Any) -> float:
    """The largest difference of two cumulative sums: max_t |(1/N) Σ_{i: c_i ≤ t} (c_i - a_i)|.

    The Kolmogorov-Smirnov statistic of calibration. Equal confidences enter together, so that the order of the
    samples does not matter.

    Args:
        probs: (N, K) probabilities, of which the top label counts, or (N,) confidences.
        target: (N,) labels in [0, K), or outcomes in [0, 1].

    Returns:
        A number in [0, 1], at least |mean(a - c)|.

    Raises:
        ValueError: bad input, by name and row.

    Source: Gupta et al. 2021, Calibration of Neural Networks using Splines (arXiv 2006.12800).
    """
    confidence, outcome = events(probs, target)
    confidence, order = confidence.sort()
    running = (confidence - outcome[order]).cumsum(dim=0) / len(order)
    last = torch.ones_like(confidence, dtype=torch.bool)
    last[:-1] = confidence[1:] > confidence[:-1]
    return float(running[last].abs().max())


# What the functions above, `streaming.SmoothCalibrationError` and the audit of a stream have in common.


def events(probs: Any, target: Any) -> tuple[Tensor, Tensor]:
    """(N,) float64 confidences in [0, 1] and (N,) outcomes."""
    confidence, outcome = all_events(probs, target)
    return confidence.to(torch.float64).clamp(0, 1), outcome


def usual_bandwidth(spread: float, n: float) -> float:
    """1.06 std(c) N^(-1/5), or 2⁻¹³ if that is less."""
    return max(1.06 * spread * n**-0.2, _NARROWEST)


def kde_of(confidence: Tensor, weight: Tensor, bandwidth: float, norm: int = 1, n_grid: int = 512) -> float:
    """The kernel's calibration error of (N,) samples with (2, N) weights: shares of samples, and of outcomes."""
    cells = max(n_grid, _cells(bandwidth))
    density, successes = _smoothed(_spectrum(on_grid(confidence, weight, cells)), bandwidth, cells)
    gap = successes - density * torch.linspace(0, 1, cells + 1, dtype=torch.float64, device=density.device)
    if norm == 1:
        return float(_trapezoid(gap.abs()))
    # Where next to nobody is, the quotient is rounding noise: |r - t| ≤ 1, so leaving it out costs at most 1e-9.
    square = torch.where(density > 1e-9, gap.square() / density, 0.0)
    return float(_trapezoid(square)) ** 0.5


def smooth_of(confidence: Tensor, residual: Tensor, grids: tuple[int, ...]) -> float:
    """The smooth calibration error of (N,) samples with (N,) residuals, on the first grid that is fine enough."""
    for cells in grids:
        value = fixed_point(on_grid(confidence, residual, cells))
        if value > _CELLS / cells:
            break
    return value


def _cells(bandwidth: float) -> int:
    return 1 << math.ceil(math.log2(max(_CELLS / bandwidth, _CELLS)))


def on_grid(confidence: Tensor, weight: Tensor, cells: int) -> Tensor:
    """(…, n + 1) the weights (…, N), each shared by the two nodes beside it: sum and mean position are kept."""
    place = confidence * cells
    left = place.floor().clamp_max(cells - 1)
    share = place - left
    node = left.to(torch.int64)
    mass = torch.zeros(*weight.shape[:-1], cells + 1, dtype=torch.float64, device=confidence.device)
    return mass.index_add_(-1, node, weight * (1 - share)).index_add_(-1, node + 1, weight * share)


def _spectrum(mass: Tensor) -> Tensor:
    """(…, n + 1) Σ_j m_j cos(πkj/n) over the nodes and their mirror images, period 2."""
    mass = mass.clone()
    mass[..., [0, -1]] *= 2  # an end and its image are one place
    return torch.fft.hfft(mass, n=2 * mass.shape[-1] - 2)[..., : mass.shape[-1]]


def _smoothed(spectrum: Tensor, bandwidth: float, cells: int) -> Tensor:
    """(…, cells + 1) the sum of kernels at the nodes of a grid, the spectrum's own or a coarser one."""
    # At the frequencies that a coarser grid leaves out, the kernel is zero: exp(-(128 π)²/2).
    k = torch.arange(cells + 1, dtype=torch.float64, device=spectrum.device)
    decay = torch.exp(-(torch.pi * k * bandwidth).square() / 2)
    return torch.fft.hfft(spectrum[..., : cells + 1] * decay, n=2 * cells)[..., : cells + 1] / 2


def _smooth_error(spectrum: Tensor, bandwidth: float) -> float:
    """∫ |g| of the line through the values at the nodes; where it crosses zero, over two triangles."""
    cells = min(_cells(bandwidth), len(spectrum) - 1)
    g = _smoothed(spectrum, bandwidth, cells)
    size = g.abs()
    both = size[:-1] + size[1:]
    area = torch.where(g[:-1] * g[1:] < 0, (size[:-1].square() + size[1:].square()) / both, both)
    return float(area.sum()) / (2 * cells)


def fixed_point(mass: Tensor) -> float:
    """σ with smECE_σ = σ, within the bounds that hold for every σ: |Σ m| ≤ smECE_σ ≤ Σ |m|.

    mass: (n + 1,) residuals on the grid. At least 128/n, the narrowest kernel of the grid, unless Σ |m| is less.
    """
    from scipy.optimize import brentq

    high = float(mass.abs().sum())
    if high == 0:
        return 0.0
    low = min(high, max(abs(float(mass.sum())), _CELLS / (len(mass) - 1)))
    spectrum = _spectrum(mass)

    def excess(bandwidth: float) -> float:
        return _smooth_error(spectrum, bandwidth) - bandwidth

    if excess(low) <= 0:
        return low
    if excess(high) >= 0:  # rounding, or a grid too coarse
        return high
    return brentq(excess, low, high, xtol=1e-7)


def _trapezoid(values: Tensor) -> Tensor:
    return (values.sum() - (values[0] + values[-1]) / 2) / (len(values) - 1)

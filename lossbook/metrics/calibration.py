"""Calibration: how far a predicted probability is from the frequency it promises.

Notation: N samples, K classes, probabilities P (N, K), labels y; prediction ŷ_i = argmax_k P_ik, confidence
c_i = max_k P_ik, outcome a_i = 1[ŷ_i = y_i]. Bin b holds n_b samples with mean confidence conf_b and mean outcome
acc_b. Bins of equal width ("uniform") are (lo, hi], the first closed on the left. Bins of equal mass ("quantile")
are the sorted confidences cut into groups whose sizes differ by at most one.

Every function takes torch tensors or arrays, computes in float64 and returns a Python float. Probabilities must lie in
[0, 1] (up to 1e-4) and rows must sum to one within 1e-4. Where `probs` may be one-dimensional, it holds the
confidence c_i of N events, and `target` whether each happened. Bad input raises ValueError with the row and the
value. What needs no bins, splits the Brier score, or asks which predictions to trust is in the sibling modules
`binfree`, `decomposition` and `selective`, and can be reached from here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lossbook import checks
from lossbook.metrics import _bins, classification
from lossbook.metrics._inputs import (
    all_events,
    as_labels,
    as_matrix,
    as_unit_interval,
    finite_chunks,
    matrix_predictions,
    predictions,
    probability_chunks,
    top_label,
    top_label_events,
)
from lossbook.metrics.binfree import kde_calibration_error, ks_calibration_error, smooth_calibration_error

# Calibration is where one looks for these too.
from lossbook.metrics.decomposition import BrierTerms, brier_decomposition  # noqa: F401
from lossbook.metrics.selective import RiskCoverage, aurc, eaurc, risk_coverage  # noqa: F401

Strategy = Literal["uniform", "quantile"]
RowLoss = Callable[[Tensor, Tensor], Tensor]
_STRATEGIES = ("uniform", "quantile")
_Z95 = 1.959963984540054  # the 97.5 % quantile of the standard normal distribution


@dataclass(frozen=True)
class ReliabilityBins:
    """What a reliability diagram draws, a bin an entry; an empty bin holds NaN."""

    edges: np.ndarray  #: (B + 1,) bin edges
    count: np.ndarray  #: (B,) samples in the bin
    mean_confidence: np.ndarray  #: (B,) mean confidence
    accuracy: np.ndarray  #: (B,) mean outcome
    lower: np.ndarray  #: (B,) lower end of the 95 % Wilson interval of the accuracy
    upper: np.ndarray  #: (B,) upper end


class ConsistencyBand(NamedTuple):
    """The range of bin accuracies that a perfectly calibrated model shows; NaN for an empty bin."""

    lower: np.ndarray  #: (B,) 2.5 % quantile
    upper: np.ndarray  #: (B,) 97.5 % quantile


class CalibrationRefinement(NamedTuple):
    """The two parts of the negative log-likelihood, in nats."""

    calibration: float  #: what recalibration takes away
    refinement: float  #: what is left


def reliability_bins(
    confidence: Any,
    correct: Any,
    *,
    n_bins: int = 15,
    strategy: Strategy = "uniform",
    range: tuple[float, float] = (0.0, 1.0),
) -> ReliabilityBins:
    """Counts, mean confidence and accuracy with its 95 % Wilson interval, for each bin.

    The interval of k successes among n has centre (k + z²/2)/(n + z²) and half-width z √(k(n-k)/n + z²/4)/(n + z²),
    z = 1.96 (Wilson 1927); it stays in [0, 1] and has a width even where every outcome is the same.

    Args:
        confidence: (N,) numbers within `range`.
        correct: (N,) outcomes: booleans, or numbers in [0, 1].
        n_bins: number of bins B.
        strategy: "uniform" for equal width, "quantile" for equal mass; then an inner edge is midway between neighbours.
        range: the interval that the bins cover.

    Returns:
        ReliabilityBins of NumPy arrays.

    Raises:
        ValueError: a confidence outside `range` or not a number, an outcome outside [0, 1], unequal lengths, no
            samples.
    """
    confidence, correct, low, high = _events(confidence, correct, n_bins, strategy, range)
    if strategy == "uniform":
        sums = _bins.uniform_sums(confidence, correct, n_bins, low, high)
        edges = _bins.uniform_edges(n_bins, low, high)
    else:
        sums = _bins.equal_mass_sums(confidence, correct, n_bins)
        edges = _equal_mass_edges(confidence, sums[0], low, high)
    return reliability_of(sums, edges)


def consistency_band(
    confidence: Any,
    *,
    n_bins: int = 15,
    n_resamples: int = 200,
    strategy: Strategy = "uniform",
    seed: int = 0,
) -> ConsistencyBand:
    """The bin accuracies to expect of a perfectly calibrated model: outcomes are drawn as Bernoulli(c_i), many times.

    An accuracy outside its band speaks against calibration (Bröcker and Smith 2007, with the confidences kept).

    Args:
        confidence: (N,) numbers in [0, 1].
        n_bins, strategy: as in `reliability_bins`.
        n_resamples: number of draws, at least 2.
        seed: seed of the draws.

    Returns:
        The 2.5 % and 97.5 % quantile of each bin's accuracy.

    Raises:
        ValueError: as `reliability_bins`.
    """
    confidence, _, _, _ = _events(confidence, None, n_bins, strategy, (0.0, 1.0))
    if n_resamples < 2:
        raise ValueError(f"n_resamples must be at least 2, but is {n_resamples}")
    order = np.argsort(confidence.cpu().numpy(), kind="stable")
    values = confidence.cpu().numpy()[order]
    if strategy == "uniform":
        counts = np.bincount(_bins.uniform_index(torch.from_numpy(values), n_bins).numpy(), minlength=n_bins)
    else:
        counts = np.array([len(group) for group in np.array_split(values, n_bins)])
    occupied = counts > 0
    # Sorted, every bin is a run: one sum per run and draw.
    starts = (np.cumsum(counts) - counts)[occupied]
    generator = np.random.default_rng(seed)
    successes = np.stack(
        [np.add.reduceat(generator.random(len(values)) < values, starts, dtype=np.int64) for _ in range(n_resamples)]
    )
    band = np.full((2, n_bins), np.nan)
    band[:, occupied] = np.quantile(successes / counts[occupied], [0.025, 0.975], axis=0)
    return ConsistencyBand(band[0], band[1])


def expected_calibration_error(
    probs: Any,
    target: Any,
    *,
    n_bins: int = 15,
    norm: Literal[1, 2] = 1,
    strategy: Strategy = "uniform",
    debias: bool = False,
) -> float:
    """ECE of the top label: Σ_b (n_b/N) |acc_b - conf_b|, or for norm 2 the root of Σ_b (n_b/N) (acc_b - conf_b)².

    The estimate is biased upwards: of a perfectly calibrated model it is about Σ_b (n_b/N) √(2 acc_b (1-acc_b)/(π
    n_b)). `debias` subtracts the bias that noise of the observed size adds: for norm 1 the excess of E|acc_b + ε_b -
    conf_b| with ε_b ~ N(0, acc_b (1-acc_b)/n_b), which may leave a negative number; for norm 2 as in
    `squared_calibration_error`, negative values cut to 0.

    Args:
        probs: (N, K) probabilities, or (N,) confidences. Uniform bins need constant memory; quantile bins sort N
            confidences.
        target: (N,) labels in [0, K), or outcomes in [0, 1].
        n_bins: number of bins B.
        norm: 1 or 2.
        strategy: "uniform" or "quantile" (the adaptive ECE).
        debias: subtract the estimated bias.

    Returns:
        A number in [0, 1] (norm 1 with `debias`: at most 1).

    Raises:
        ValueError: bad input, by name and row.

    Source: Naeini, Cooper, Hauskrecht 2015; Guo et al. 2017. Debiasing: Kumar, Liang, Ma 2019, who draw the ε_b of
    norm 1 at random; here their expectation is taken in closed form.
    """
    _bins.check_choice("norm", norm, (1, 2))
    return float(_bins.calibration_error(_top_label_sums(probs, target, n_bins, strategy), norm, debias))


def squared_calibration_error(
    probs: Any, target: Any, *, n_bins: int = 15, strategy: Strategy = "uniform", debias: bool = False
) -> float:
    """The squared ECE of norm 2, with its sign: Σ_b (n_b/N) [(acc_b - conf_b)² - acc_b (1-acc_b)/(n_b - 1)].

    The second term is there with `debias`; bins with a single sample are then skipped. Its expectation is 0 for a
    calibrated model, so it is negative about half of the time.

    Args, Raises: as `expected_calibration_error`.

    Source: Kumar, Liang, Ma 2019, Verified Uncertainty Calibration.
    """
    return float(_bins.squared_error(_top_label_sums(probs, target, n_bins, strategy), debias))


def maximum_calibration_error(
    probs: Any, target: Any, *, n_bins: int = 15, strategy: Strategy = "uniform", min_count: int = 1
) -> float:
    """MCE: max_b |acc_b - conf_b| over the bins with at least `min_count` samples.

    Args, Raises: as `expected_calibration_error`; also ValueError if no bin holds `min_count` samples.
    """
    return float(_bins.maximum_error(_top_label_sums(probs, target, n_bins, strategy), min_count))


def average_calibration_error(
    probs: Any, target: Any, *, n_bins: int = 15, weighting: Literal["bins", "adaptive"] = "bins"
) -> float:
    """ACE, a name with two meanings.

    "bins": the mean of |acc_b - conf_b| over the uniform bins of the top label that are not empty (Neumann et al.
    2018). "adaptive": (1/KR) Σ_k Σ_r |acc(r, k) - conf(r, k)| over R = min(n_bins, N) equal-mass bins of each
    class's probability (Nixon et al. 2019); needs (N, K) probabilities.

    Args, Raises: as `expected_calibration_error`.
    """
    _bins.check_choice("weighting", weighting, ("bins", "adaptive"))
    if weighting == "bins":
        _, _, gap = _bins.gaps(_top_label_sums(probs, target, n_bins, "uniform"))
        return float(gap.abs().mean())
    return _equal_mass_means(probs, target, [n_bins], weighted=False)[0]


def classwise_calibration_error(probs: Any, target: Any, *, n_bins: int = 15, strategy: Strategy = "uniform") -> float:
    """Static calibration error: (1/K) Σ_k Σ_b (n_bk/N) |mean_b 1[y = k] - mean_b P_k|, every probability of a row
    counted.

    Args:
        probs: (N, K) probabilities.
        target, n_bins, strategy: as `expected_calibration_error`. Quantile bins put most of their edges near 0
            if K is large.

    Raises:
        ValueError: bad input, by name and row.

    Source: Nixon et al. 2019, Measuring Calibration in Deep Learning.
    """
    check_options(n_bins, strategy)
    if strategy == "quantile":
        return _equal_mass_means(probs, target, [n_bins], weighted=True)[0]
    probs, target = matrix_predictions(probs, target)
    return float(classwise_gaps(probs, target, n_bins).abs().sum()) / probs.numel()


def top_label_calibration_error(probs: Any, target: Any, *, n_bins: int = 15) -> float:
    """Σ_l (n_l/N) ECE_l, with ECE_l over the n_l samples that are predicted as class l.

    Never below the ECE with the same bins, in which errors of opposite sign of two classes cancel.

    Args:
        probs: (N, K) probabilities.
        target, n_bins: as `expected_calibration_error`.

    Raises:
        ValueError: bad input, by name and row.

    Source: Gupta, Ramdas 2022, Top-label calibration and multiclass-to-binary reductions.
    """
    check_options(n_bins, "uniform")
    return float(_bins.calibration_error(top_label_sums(*matrix_predictions(probs, target), n_bins), norm=1))


def mmce(probs: Any, target: Any, *, width: float = 0.4, squared: bool = False) -> float:
    """Maximum mean calibration error: the root of (1/N²) Σ_ij (a_i-c_i) (a_j-c_j) exp(-|c_i-c_j|/width).

    Takes O(N log N): the exponential of a difference of sorted confidences is a product, so the inner sum is a
    running one.

    Args:
        probs, target: as `expected_calibration_error`.
        width: width of the Laplace kernel, at least 0.01.
        squared: leave out the root.

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: bad input, by name and row.

    Source: Kumar, Sarawagi, Jain 2018.
    """
    checks.parameter("width", width, 0.01)
    confidence, correct = all_events(probs, target)
    confidence, order = confidence.to(torch.float64).sort()
    residual = correct[order] - confidence
    # exp(±c/width) is at most e^100: no overflow, and a running sum of it loses nothing that counts.
    before = (residual * torch.exp(confidence / width)).cumsum(dim=0) * torch.exp(-confidence / width) - residual
    square = float((residual.square() + 2 * residual * before).sum()) / len(residual) ** 2
    square = max(square, 0.0)
    return square if squared else square**0.5


def brier_score(probs: Any, target: Any) -> float:
    """(1/N) Σ_i Σ_k (P_ik - 1[y_i = k])², in [0, 2]; of (N,) confidences (1/N) Σ_i (c_i - a_i)², in [0, 1].

    A binary problem scores twice as much with two columns as with one.

    Args, Raises: as `expected_calibration_error`.

    Source: Brier 1950.
    """
    return _mean_over_rows(probs, target, squared_distance, _binary_squared_distance)


def negative_log_likelihood(probs: Any, target: Any, *, from_logits: bool = False) -> float:
    """-(1/N) Σ_i log P_{i, y_i} in nats; of (N,) confidences -(1/N) Σ_i [a_i log c_i + (1-a_i) log(1-c_i)].

    Infinite where the label has probability 0: nothing is clipped. From logits, the log-softmax is taken first, and a
    logit of any size stays finite.

    Args:
        probs: (N, K) probabilities, (N,) confidences, or with `from_logits` (N, K) logits.
        target: as `expected_calibration_error`.
        from_logits: `probs` holds logits.

    Raises:
        ValueError: bad input, by name and row.
    """
    if not from_logits:
        return _mean_over_rows(probs, target, log_loss, _binary_log_loss)
    logits = as_matrix("logits", probs)
    target = as_labels("target", target, logits, logits.shape[1], "logits")
    return float(logit_loss_sum(logits, target)) / len(logits)


def true_top_label_ece(probs: Any, posterior: Any, *, n_bins: int = 15, strategy: Strategy = "uniform") -> float:
    """ECE against a known posterior π: Σ_b (n_b/N) |mean_b π_{i, ŷ_i} - conf_b|, free of label noise.

    Without the noise of sampled labels there is almost no upward bias left: this is what the ECE estimates.

    Args:
        probs, posterior: (N, K) predicted and true probabilities.
        n_bins, strategy: as `expected_calibration_error`.

    Raises:
        ValueError: bad input, by name and row; shapes that differ.
    """
    check_options(n_bins, strategy)
    pairs = []
    for predicted, true in _with_posterior(probs, posterior):
        confidence, label = top_label(predicted)
        pairs.append((confidence, true.gather(1, label[:, None])[:, 0]))
    confidence, expected = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    return float(_bins.calibration_error(_sums(confidence, expected, n_bins, strategy), norm=1))


def posterior_kl(probs: Any, posterior: Any) -> float:
    """The distance from the truth, (1/N) Σ_i Σ_k π_ik log(π_ik/P_ik) in nats; infinite where P_ik = 0 < π_ik.

    Stricter than calibration: the class frequencies, predicted for everyone, are calibrated and far from the posterior.

    Args, Raises: as `true_top_label_ece`.
    """
    total = 0.0
    for predicted, true in _with_posterior(probs, posterior):
        p, q = (part.to(torch.float64).clamp_min(0) for part in (predicted, true))
        total += float((torch.xlogy(q, q) - torch.xlogy(q, p)).sum())
    return max(total / len(probs), 0.0)


def posterior_mse(probs: Any, posterior: Any) -> float:
    """The squared distance from the truth, (1/N) Σ_i Σ_k (P_ik - π_ik)², in [0, 2].

    The part of the Brier score that a better model could save: in expectation over labels drawn from π, Brier =
    posterior_mse + (1/N) Σ_i (1 - Σ_k π_ik²), and no model changes the second term.

    Args, Raises: as `true_top_label_ece`.
    """
    total = 0.0
    for predicted, true in _with_posterior(probs, posterior):
        total += float((predicted.to(torch.float64) - true.to(torch.float64)).square().sum())
    return total / len(probs)


def calibration_refinement(probs: Any, target: Any, calibrator: Any) -> CalibrationRefinement:
    """Splits the negative log-likelihood: calibration loss = NLL - NLL after recalibration, refinement loss = the rest.

    The calibrator stands for the best recalibration there is, and is fitted on the same rows: the calibration loss
    is what it can find at most, too large where it overfits and too small where the error is none that it knows. For
    an estimate of what calibration would gain on new data, fit and judge on different rows.

    Args:
        probs: (N, K) probabilities.
        target: (N,) labels in [0, K).
        calibrator: an estimator of `lossbook.calibrators`, or any with `fit(logits, y)` and `predict_proba(logits)`;
            it gets log P, with P cut at 1e-12 from below. A copy is fitted, not the object itself.

    Raises:
        ValueError: bad input, by name and row, or by the calibrator.

    Source: Murphy 1973 (the two parts, for the Brier score); Bröcker 2009 (for every proper score).
    """
    before = negative_log_likelihood(probs, target)
    probs, target = matrix_predictions(probs, target)
    logits = probs.to(torch.float64).clamp_min(1e-12).log().cpu().numpy()
    labels = target.cpu().numpy()
    after = negative_log_likelihood(copy.deepcopy(calibrator).fit(logits, labels).predict_proba(logits), labels)
    return CalibrationRefinement(before - after, after)


def measure_grid(
    probs: Any, target: Any, *, n_bins: Iterable[int] = (5, 10, 15, 20, 25, 50, 100, 200, 500)
) -> dict[str, float]:
    """Every measure of one set of predictions, the binned ones for each number of bins.

    "ece_B", "ece_equal_mass_B", "mce_B" (uniform bins), "classwise_ece_B" and "classwise_ece_equal_mass_B" for each B
    of `n_bins`, and "accuracy", "nll", "brier", "ks", "mmce", "kde", "smooth_ece". Sorts once, not once for each B.

    Args:
        probs: (N, K) probabilities.
        target: (N,) labels in [0, K).
        n_bins: numbers of bins.

    Raises:
        ValueError: bad input, by name and row.

    Source: the measures and bins of Tao, Zhu, Guo, Dong, Xu 2024, A Benchmark Study on Calibration (arXiv 2308.11838).
    """
    sizes = list(n_bins)
    for size in sizes:
        _bins.check_bins(size)
    probs, target = matrix_predictions(probs, target)
    confidence, outcome = all_events(probs, target)
    measures = {
        "accuracy": classification.accuracy(probs, target),
        "nll": negative_log_likelihood(probs, target),
        "brier": brier_score(probs, target),
        "ks": ks_calibration_error(confidence, outcome),
        "mmce": mmce(confidence, outcome),
        "kde": kde_calibration_error(confidence, outcome),
        "smooth_ece": smooth_calibration_error(confidence, outcome),
    }
    ordered = _bins.sorted_events(confidence, outcome)
    classwise = _equal_mass_means(probs, target, sizes, weighted=True)
    for size, by_mass in zip(sizes, classwise, strict=True):
        sums = _bins.uniform_sums(confidence, outcome, size)
        measures[f"ece_{size}"] = float(_bins.calibration_error(sums, norm=1))
        measures[f"ece_equal_mass_{size}"] = float(_bins.calibration_error(_bins.split_equally(ordered, size), norm=1))
        measures[f"mce_{size}"] = float(_bins.maximum_error(sums))
        measures[f"classwise_ece_{size}"] = float(classwise_gaps(probs, target, size).abs().sum()) / probs.numel()
        measures[f"classwise_ece_equal_mass_{size}"] = by_mass
    return measures


# What the functions above and the classes in `streaming` have in common.


def reliability_of(sums: Tensor, edges: Tensor) -> ReliabilityBins:
    """The reliability of bins with these (3, B) sums."""
    count, total_confidence, successes = sums.cpu().numpy()
    with np.errstate(invalid="ignore", divide="ignore"):
        centre = (successes + _Z95**2 / 2) / (count + _Z95**2)
        spread = np.sqrt(successes * (count - successes) / count + _Z95**2 / 4)
        half = np.where(count > 0, _Z95 * spread / (count + _Z95**2), np.nan)
        mean_confidence, accuracy = total_confidence / count, successes / count
    lower, upper = np.maximum(centre - half, 0.0), np.minimum(centre + half, 1.0)
    return ReliabilityBins(edges.cpu().numpy(), count.astype(np.int64), mean_confidence, accuracy, lower, upper)


def uniform_sums(probs: Tensor, target: Tensor, n_bins: int) -> Tensor:
    """(3, B) sums of the top label over bins of equal width, in constant memory."""
    sums = torch.zeros(3, n_bins, dtype=torch.float64, device=probs.device)
    for confidence, outcome in top_label_events(probs, target):
        sums += _bins.uniform_sums(confidence, outcome, n_bins)
    return sums


def top_label_sums(probs: Tensor, target: Tensor, n_bins: int) -> Tensor:
    """(3, K B) sums of the top label over bins of equal width, those of each predicted class apart."""
    cells = probs.shape[1] * n_bins
    sums = torch.zeros(3, cells, dtype=torch.float64, device=probs.device)
    for rows, chunk in probability_chunks("probs", probs):
        confidence, predicted = top_label(chunk)
        cell = predicted * n_bins + _bins.uniform_index(confidence, n_bins)
        sums += _bins.sums_by_index(cell, confidence, predicted == target[rows], cells)
    return sums


def classwise_gaps(probs: Tensor, target: Tensor, n_bins: int) -> Tensor:
    """(K B,) sums over each class's bins of 1[y = k] - P_k, which is all that the classwise error needs."""
    num_classes = probs.shape[1]
    gap = torch.zeros(num_classes * n_bins, dtype=torch.float64, device=probs.device)
    first = torch.arange(num_classes, device=probs.device) * n_bins
    for rows, chunk in probability_chunks("probs", probs):
        cell = first + _bins.uniform_index(chunk, n_bins)
        gap.index_add_(0, cell.flatten(), -chunk.to(torch.float64).flatten())
        label = cell.gather(1, target[rows][:, None])[:, 0]
        gap.index_add_(0, label, torch.ones_like(label, dtype=torch.float64))
    return gap


def squared_distance(probs: Tensor, target: Tensor) -> Tensor:
    """(n,) Σ_k (P_k - 1[y = k])² of float64 rows."""
    own = probs.gather(1, target[:, None])[:, 0]
    return probs.square().sum(dim=1) - own.square() + (1 - own).square()


def log_loss(probs: Tensor, target: Tensor) -> Tensor:
    """(n,) -log P_y of float64 rows."""
    return -probs.gather(1, target[:, None])[:, 0].clamp_min(0).log()


def logit_loss_sum(logits: Tensor, target: Tensor) -> Tensor:
    """0-d Σ_i -log softmax(z_i)_{y_i} in float64."""
    total = torch.zeros((), dtype=torch.float64, device=logits.device)
    for rows, chunk in finite_chunks("logits", logits):
        z = chunk.to(torch.float64)
        total += (z.logsumexp(dim=1) - z.gather(1, target[rows][:, None])[:, 0]).sum()
    return total


def row_loss_sum(probs: Tensor, target: Tensor, loss: RowLoss) -> Tensor:
    """0-d sum of a loss over checked (N, K) rows in float64."""
    total = torch.zeros((), dtype=torch.float64, device=probs.device)
    for rows, chunk in probability_chunks("probs", probs):
        total += loss(chunk.to(torch.float64), target[rows]).sum()
    return total


def _events(
    confidence: Any, correct: Any, n_bins: int, strategy: Strategy, interval: tuple[float, float]
) -> tuple[Tensor, Tensor, float, float]:
    check_options(n_bins, strategy)
    low, high = interval
    if not low < high:
        raise ValueError(f"range must be an interval (low, high), but is {interval}")
    confidence = as_unit_interval("confidence", confidence, interval=interval)
    if correct is not None:
        correct = as_unit_interval("correct", correct, like=confidence)
    return confidence, correct, low, high


def check_options(n_bins: int, strategy: Strategy) -> None:
    _bins.check_bins(n_bins)
    _bins.check_choice("strategy", strategy, _STRATEGIES)


def _sums(confidence: Tensor, outcome: Tensor, n_bins: int, strategy: Strategy) -> Tensor:
    binned = _bins.uniform_sums if strategy == "uniform" else _bins.equal_mass_sums
    return binned(confidence, outcome, n_bins)


def _top_label_sums(probs: Any, target: Any, n_bins: int, strategy: Strategy) -> Tensor:
    check_options(n_bins, strategy)
    if strategy == "quantile":
        return _bins.equal_mass_sums(*all_events(probs, target), n_bins)
    return uniform_sums(*predictions(probs, target), n_bins)


def _equal_mass_edges(confidence: Tensor, count: Tensor, low: float, high: float) -> Tensor:
    """Edges midway between the last sample of a bin and the first of the next; bins beyond the last sample are empty
    at `high`.
    """
    ordered = confidence.to(torch.float64).sort().values
    cut = count.cumsum(dim=0)[:-1].to(torch.int64)
    inner = (ordered[cut - 1] + ordered[cut.clamp_max(len(ordered) - 1)]) / 2
    inner[cut >= len(ordered)] = high
    ends = ordered.new_tensor([low, high])
    return torch.cat((ends[:1], inner, ends[1:]))


def _equal_mass_means(probs: Any, target: Any, sizes: list[int], *, weighted: bool) -> list[float]:
    """For each number of bins, the mean over classes of the equal-mass gaps, weighted by counts or each the same."""
    for size in sizes:
        _bins.check_bins(size)
    probs, target = matrix_predictions(probs, target)
    for _ in probability_chunks("probs", probs):
        pass
    totals = [0.0] * len(sizes)
    for k in range(probs.shape[1]):
        ordered = _bins.sorted_events(probs[:, k], target == k)
        for i, size in enumerate(sizes):
            count, _, gap = _bins.gaps(_bins.split_equally(ordered, size))
            weight = count / count.sum() if weighted else torch.full_like(count, 1 / len(count))
            totals[i] += float((weight * gap.abs()).sum())
    return [total / probs.shape[1] for total in totals]


def _mean_over_rows(probs: Any, target: Any, loss: RowLoss, binary_loss: RowLoss) -> float:
    probs, target = predictions(probs, target)
    if probs.dim() == 1:
        return float(binary_loss(probs.to(torch.float64), target.to(torch.float64)).mean())
    return float(row_loss_sum(probs, target, loss)) / len(probs)


def _binary_squared_distance(confidence: Tensor, outcome: Tensor) -> Tensor:
    return (confidence - outcome).square()


def _binary_log_loss(confidence: Tensor, outcome: Tensor) -> Tensor:
    confidence = confidence.clamp(0, 1)
    return -torch.xlogy(outcome, confidence) - torch.xlogy(1 - outcome, 1 - confidence)


def _with_posterior(probs: Any, posterior: Any) -> Iterator[tuple[Tensor, Tensor]]:
    probs, posterior = as_matrix("probs", probs), as_matrix("posterior", posterior)
    if probs.shape != posterior.shape:
        raise ValueError(
            f"posterior must have the shape of probs, {tuple(probs.shape)}, but has shape {tuple(posterior.shape)}"
        )
    posterior = posterior.to(probs.device)
    chunks = zip(probability_chunks("probs", probs), probability_chunks("posterior", posterior), strict=True)
    for (_, predicted), (_, true) in chunks:
        yield predicted, true


from lossbook.metrics.quantiles import weighted_interval_score as weighted_interval_score  # noqa: E402

"""The metrics as `torchmetrics.Metric`: fed batch by batch, from one process or many.

The state is bins or sums in float64, never samples, so memory does not grow, and the state of two halves merges into
that of the whole (`merge_state`, or torch.distributed by itself). Each class computes with the functions of its
sibling modules; an input may lie on another device than the metric. A value is a float64 tensor, NaN before the
first batch.

On a Dask cluster a task makes the metric of its part of the data and returns it, a few kilobytes:

    def seen(part):
        metric = CalibrationError()
        for probs, target in part:
            metric.update(probs, target)
        return metric

    whole = CalibrationError()
    for _, metric in as_completed(client.map(seen, parts), with_results=True):
        whole.merge_state(metric)

A part that is done again because its worker was lost still counts once: a task has one result. Tasks on a GPU return
`metric.cpu()`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from lossbook import checks
from lossbook.metrics import _bins, binfree, calibration, classification, collapse, decomposition
from lossbook.metrics._inputs import as_labels, as_matrix, matrix_predictions, predictions

# For bins of equal mass: the histogram from which they are cut.
_FINE_BINS = 2**12
# For the smooth calibration error, which on this grid is exact down to 128 cells.
_SMOOTH_CELLS = 2**18


class _Streaming(Metric):
    """State that is added up, and merged without being counted twice, forgotten or broadcast."""

    full_state_update = False
    is_differentiable = False

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add what another metric of the same class and options has seen, or its `metric_state`; any device.

        Raises:
            ValueError: another class, other options, or a state that lacks a part.
        """
        state = incoming_state
        if isinstance(incoming_state, type(self)):
            for name in ("num_classes", "n_bins"):
                ours, theirs = getattr(self, name, None), getattr(incoming_state, name, None)
                if ours != theirs:
                    raise ValueError(f"cannot merge a metric with {name} {theirs} into one with {name} {ours}")
            state = incoming_state.metric_state
        if isinstance(state, dict):
            state = {name: value.to(self.device) for name, value in state.items()}
            for name in self._defaults:
                if name not in state:
                    raise ValueError(f"cannot merge a state without {name}: it has {', '.join(state) or 'nothing'}")
                ours, theirs = tuple(getattr(self, name).shape), tuple(state[name].shape)
                if ours != theirs:
                    raise ValueError(f"cannot merge {name} of shape {theirs} into {name} of shape {ours}")
        super().merge_state(state)
        # torchmetrics would go on giving the value computed before, and warn of a metric that was only merged into.
        self._computed = None
        self._update_count += 1

    @contextmanager
    def sync_context(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """torchmetrics' own: inside it the state is that of all processes, afterwards this one's, also on an error."""
        try:
            with super().sync_context(*args, **kwargs):
                yield
        except BaseException:
            # torchmetrics would leave everyone's state here, and count it once more for each process.
            if self._is_synced:
                self.unsync()
            raise

    @contextmanager
    def _of_all(self) -> Iterator[None]:
        """The state of all processes, as `compute` has it by itself; nothing more inside of that."""
        asked = self._to_sync and not self._is_synced
        with self.sync_context(dist_sync_fn=self.dist_sync_fn, should_sync=asked, should_unsync=asked):
            yield


class _Mean(_Streaming):
    """A sum over samples, divided by their number."""

    total: Tensor
    samples: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("samples", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def _add(self, total: Tensor, samples: int) -> None:
        self.total += total.to(self.total.device, torch.float64)
        self.samples += samples

    def compute(self) -> Tensor:
        """The mean over all samples so far."""
        return self.total / self.samples


class Accuracy(_Mean):
    """Streaming `accuracy`: the fraction of rows whose largest score is at the label."""

    higher_is_better = True

    def update(self, scores: Any, target: Any) -> None:
        """Add a batch: scores (n, K), labels (n,)."""
        scores = as_matrix("scores", scores)
        target = as_labels("target", target, scores, scores.shape[1], "scores")
        self._add(classification.correct_count(scores, target), len(scores))


class BrierScore(_Mean):
    """Streaming `brier_score` of (n, K) probabilities."""

    higher_is_better = False

    def update(self, probs: Any, target: Any) -> None:
        """Add a batch: probabilities (n, K), labels (n,)."""
        probs, target = matrix_predictions(probs, target)
        self._add(calibration.row_loss_sum(probs, target, calibration.squared_distance), len(probs))


class NegativeLogLikelihood(_Mean):
    """Streaming `negative_log_likelihood` of (n, K) probabilities, or of logits with `from_logits`."""

    higher_is_better = False

    def __init__(self, *, from_logits: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.from_logits = from_logits

    def update(self, probs: Any, target: Any) -> None:
        """Add a batch: probabilities or logits (n, K), labels (n,)."""
        if self.from_logits:
            logits = as_matrix("logits", probs)
            target = as_labels("target", target, logits, logits.shape[1], "logits")
            self._add(calibration.logit_loss_sum(logits, target), len(logits))
        else:
            probs, target = matrix_predictions(probs, target)
            self._add(calibration.row_loss_sum(probs, target, calibration.log_loss), len(probs))


class _TopLabelBins(_Streaming):
    """Sums over bins of the top label, or of an event."""

    higher_is_better = False
    sums: Tensor

    def __init__(self, kept: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("sums", torch.zeros(3, kept, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, probs: Any, target: Any) -> None:
        """Add a batch: probabilities (n, K) with labels (n,), or confidences (n,) with outcomes (n,)."""
        probs, target = predictions(probs, target)
        self.sums += calibration.uniform_sums(probs, target, self.sums.shape[1]).to(self.sums.device)

    def compute(self) -> Tensor:
        """The calibration error of all samples so far."""
        return self._error(self.sums) if self.sums[0].any() else self.sums.new_tensor(float("nan"))

    @abstractmethod
    def _error(self, sums: Tensor) -> Tensor:
        """The calibration error that the sums of the bins give."""


class CalibrationError(_TopLabelBins):
    """Streaming `expected_calibration_error`.

    Uniform bins give the function's value. Quantile bins are cut from a histogram of 4096 fine bins, where a fine
    bin that crosses a boundary is shared out in proportion: the value is the function's as long as no fine bin
    (1/4096 wide) does.

    Args:
        n_bins, norm, strategy, debias: as the function.
    """

    def __init__(
        self,
        n_bins: int = 15,
        norm: Literal[1, 2] = 1,
        strategy: calibration.Strategy = "uniform",
        *,
        debias: bool = False,
        **kwargs: Any,
    ) -> None:
        calibration.check_options(n_bins, strategy)
        _bins.check_choice("norm", norm, (1, 2))
        super().__init__(n_bins if strategy == "uniform" else _FINE_BINS, **kwargs)
        self.n_bins, self.norm, self.strategy, self.debias = n_bins, norm, strategy, debias

    def _error(self, sums: Tensor) -> Tensor:
        if self.strategy == "quantile":
            sums = _bins.equal_mass_from_fine(sums, self.n_bins)
        return _bins.calibration_error(sums, self.norm, self.debias)

    def reliability(self) -> calibration.ReliabilityBins:
        """`reliability_bins` of all samples so far; the bins must be uniform."""
        if self.strategy != "uniform":
            raise ValueError(f"reliability needs strategy 'uniform', but it is {self.strategy!r}")
        with self._of_all():
            return calibration.reliability_of(self.sums, _bins.uniform_edges(self.n_bins))


class MaximumCalibrationError(_TopLabelBins):
    """Streaming `maximum_calibration_error` with uniform bins.

    Args:
        n_bins, min_count: as the function.
    """

    def __init__(self, n_bins: int = 15, *, min_count: int = 1, **kwargs: Any) -> None:
        _bins.check_bins(n_bins)
        super().__init__(n_bins, **kwargs)
        self.min_count = min_count

    def _error(self, sums: Tensor) -> Tensor:
        return _bins.maximum_error(sums, self.min_count)


class AverageCalibrationError(_TopLabelBins):
    """Streaming `average_calibration_error` with weighting "bins".

    Args:
        n_bins: as the function.
    """

    def __init__(self, n_bins: int = 15, **kwargs: Any) -> None:
        _bins.check_bins(n_bins)
        super().__init__(n_bins, **kwargs)

    def _error(self, sums: Tensor) -> Tensor:
        return _bins.gaps(sums)[2].abs().mean()


class TopLabelCalibrationError(_TopLabelBins):
    """Streaming `top_label_calibration_error`.

    Args:
        num_classes: K.
        n_bins: as the function.
    """

    def __init__(self, num_classes: int, n_bins: int = 15, **kwargs: Any) -> None:
        _bins.check_bins(n_bins)
        checks.whole("num_classes", num_classes, 1)
        super().__init__(num_classes * n_bins, **kwargs)
        self.num_classes, self.n_bins = num_classes, n_bins

    def update(self, probs: Any, target: Any) -> None:
        """Add a batch: probabilities (n, K), labels (n,)."""
        probs, target = matrix_predictions(probs, target)
        _check_columns(probs, self.num_classes)
        self.sums += calibration.top_label_sums(probs, target, self.n_bins).to(self.sums.device)

    def _error(self, sums: Tensor) -> Tensor:
        return _bins.calibration_error(sums, norm=1)


class SmoothCalibrationError(_Streaming):
    """Streaming `smooth_calibration_error`: the residuals on a grid of 2¹⁸ cells, 2 MB.

    The value is the function's, up to the error of a grid; but one below 2⁻¹¹ = 5e-4 comes out as at most that.
    """

    higher_is_better = False
    mass: Tensor
    samples: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("mass", torch.zeros(_SMOOTH_CELLS + 1, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("samples", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, probs: Any, target: Any) -> None:
        """Add a batch: probabilities (n, K) with labels (n,), or confidences (n,) with outcomes (n,)."""
        confidence, outcome = binfree.events(probs, target)
        self.mass += binfree.on_grid(confidence, outcome - confidence, _SMOOTH_CELLS).to(self.mass.device)
        self.samples += len(confidence)

    def compute(self) -> Tensor:
        """The smooth calibration error of all samples so far."""
        value = binfree.fixed_point(self.mass / self.samples) if self.samples else float("nan")
        return self.mass.new_tensor(value)


class BrierDecomposition(_Streaming):
    """Streaming `brier_decomposition` of the (n,) probabilities of an event.

    Args:
        n_bins: as the function.
    """

    sums: Tensor

    def __init__(self, n_bins: int = 15, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        _bins.check_bins(n_bins)
        self.n_bins = n_bins
        self.add_state("sums", torch.zeros(6, n_bins, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, confidence: Any, correct: Any) -> None:
        """Add a batch: probabilities (n,) of an event, and whether it happened (n,)."""
        sums = decomposition.brier_sums(*decomposition.events(confidence, correct), self.n_bins)
        self.sums += sums.to(self.sums.device)

    def compute(self) -> dict[str, Tensor]:
        """The five terms of all samples so far, with the names of `BrierTerms`."""
        terms = decomposition.brier_terms(self.sums)
        return dict(zip(decomposition.BrierTerms._fields, terms, strict=True))


class ClasswiseCalibrationError(_Streaming):
    """Streaming `classwise_calibration_error` with uniform bins.

    Args:
        num_classes: K.
        n_bins: as the function.
    """

    higher_is_better = False
    gap: Tensor
    samples: Tensor

    def __init__(self, num_classes: int, n_bins: int = 15, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        _bins.check_bins(n_bins)
        checks.whole("num_classes", num_classes, 1)
        self.num_classes, self.n_bins = num_classes, n_bins
        self.add_state("gap", torch.zeros(num_classes * n_bins, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("samples", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, probs: Any, target: Any) -> None:
        """Add a batch: probabilities (n, K), labels (n,)."""
        probs, target = matrix_predictions(probs, target)
        _check_columns(probs, self.num_classes)
        self.gap += calibration.classwise_gaps(probs, target, self.n_bins).to(self.gap.device)
        self.samples += len(probs)

    def compute(self) -> Tensor:
        """The classwise calibration error of all samples so far."""
        return self.gap.abs().sum() / (self.samples * self.num_classes)


class NeuralCollapse(_Streaming):
    """Streaming `collapse_report`: class counts, class means and the within-class scatter matrix, accumulated about
    the means.

    `compute()` gives the measures that the features decide alone, `report(weight, bias)` also those that compare
    them with a classifier. NC4 compares every sample with the means of all, so it takes a second pass:

        for h, y in batches: geometry.update(h, y)
        report = geometry.report(head.weight, head.bias)
        nc4 = NearestMeanDisagreement(geometry.means, head.weight, head.bias)
        for h, y in batches: nc4.update(h)

    Args:
        num_classes: K, at least 2.
        dim: d, the number of features.
    """

    moments: Tensor

    def __init__(self, num_classes: int, dim: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        checks.whole("num_classes", num_classes, 2)
        checks.whole("dim", dim, 1)
        self.num_classes, self.dim = num_classes, dim
        # One state, not three: counts, means and scatter can only be merged together.
        self.add_state(
            "moments", torch.zeros(num_classes + dim, 1 + dim, dtype=torch.float64), dist_reduce_fx=_merge_packed
        )

    def update(self, features: Any, target: Any) -> None:
        """Add a batch: features (n, d), labels (n,)."""
        features = as_matrix("features", features, "(N, d)")
        if features.shape[1] != self.dim:
            raise ValueError(f"features must have shape (N, {self.dim}), but have shape {tuple(features.shape)}")
        target = as_labels("target", target, features, self.num_classes, "the metric")
        batch = _pack(collapse.moments_of(features, target, self.num_classes))
        self.moments = _merge_packed(torch.stack((self.moments, batch.to(self.moments.device))))

    @property
    def means(self) -> Tensor:
        """(K, d) class means so far, of all processes as in `compute`; ValueError if a class has no samples yet."""
        return self._checked().mean

    @property
    def singular_values(self) -> Tensor:
        """(min(N, d),) of all features so far, not centred: what `representation.rankme_of` and its relatives take."""
        with self._of_all():
            return collapse.singular_values_of(_unpack(self.moments))

    def compute(self) -> dict[str, float]:
        """NC1 and NC2 of all samples so far, with the names of `collapse_report`; ValueError if a class has no
        samples.
        """
        return collapse.report_of(self._checked())

    def report(self, weight: Any, bias: Any = None) -> dict[str, float]:
        """`collapse_report` but for NC4. weight (K, d), bias (K,) or None for 0."""
        moments = self._checked()
        weight, bias = collapse.check_head(weight, bias, self.num_classes, self.dim, moments.mean)
        return collapse.report_of(moments) | collapse.head_report_of(moments, weight, bias)

    def _checked(self) -> collapse.Moments:
        with self._of_all():
            moments = _unpack(self.moments)
        collapse.check_classes(moments.count)
        return moments


class NearestMeanDisagreement(_Mean):
    """Streaming `nc4` for known class means: how often the classifier and the nearest class mean disagree.

    Args:
        means: (K, d) class means, as `NeuralCollapse.means` or `class_means` give them.
        weight: (K, d) classifier.
        bias: (K,) or None for 0.
    """

    higher_is_better = False

    def __init__(self, means: Any, weight: Any, bias: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._means = as_matrix("means", means, "(K, d)").to(torch.float64)
        num_classes, dim = self._means.shape
        self._weight, self._bias = collapse.check_head(weight, bias, num_classes, dim, self._means)

    def update(self, features: Any) -> None:
        """Add a batch of features (n, d)."""
        features = as_matrix("features", features, "(N, d)")
        if features.shape[1] != self._means.shape[1]:
            raise ValueError(
                f"features must have shape (N, {self._means.shape[1]}), but have shape {tuple(features.shape)}"
            )
        known = (x.to(features.device) for x in (self._means, self._weight, self._bias))
        self._add(collapse.disagreements(features, *known), len(features))


def _check_columns(probs: Tensor, num_classes: int) -> None:
    if probs.shape[1] != num_classes:
        raise ValueError(f"probs must have {num_classes} columns, but have shape {tuple(probs.shape)}")


def _pack(moments: collapse.Moments) -> Tensor:
    """(K + d, 1 + d): counts and means above, the scatter below, a column of zeros beside it."""
    above = torch.cat((moments.count[:, None], moments.mean), dim=1)
    below = torch.nn.functional.pad(moments.scatter, (1, 0))
    return torch.cat((above, below))


def _unpack(packed: Tensor) -> collapse.Moments:
    num_classes = packed.shape[0] - packed.shape[1] + 1
    return collapse.Moments(packed[:num_classes, 0], packed[:num_classes, 1:], packed[num_classes:, 1:])


def _merge_packed(stacked: Tensor) -> Tensor:
    """The packed moments of all parts (P, K + d, 1 + d) together."""
    total = _unpack(stacked[0])
    for part in stacked[1:]:
        total = collapse.merge(total, _unpack(part))
    return _pack(total)

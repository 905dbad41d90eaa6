"""What the calibration audit keeps of a stream of predictions, and the measures that follow from it.

The rows are dealt at random to G groups, and each group keeps sums: over bins, over a fine histogram of the confidence,
over classes. Sums add up, so the measures of all rows need one pass, memory does not grow with the rows, and the sums
of two files are those of both.

The groups carry the uncertainty too. A resample draws G groups with replacement and adds up their sums; the spread of a
measure over resamples estimates its spread over data sets, as the ordinary bootstrap's does, whose rows are groups of
one here when there are at most G rows. A binned error is too large on few rows, and on a resample by as much again. Its
interval is therefore the reflected ("basic") one, [2v - q₉₇.₅, 2v - q₂.₅] for the value v and the quantiles q of the
resamples, which corrects that to first order; for a plain mean it is the usual percentile interval but for skewness.

Source: Efron, Tibshirani 1993, An Introduction to the Bootstrap, chapters 6 and 13 (the basic interval is Hall's).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lossbook import checks
from lossbook.metrics import _bins, binfree
from lossbook.metrics._inputs import as_labels, as_matrix, probability_chunks, top_label
from lossbook.metrics.calibration import ReliabilityBins, reliability_of
from lossbook.metrics.decomposition import BrierTerms, brier_terms

Sums = Mapping[str, Tensor]

FLOOR = 1e-12  # a probability below counts as this in the log-loss: an infinite mean tells nothing about the other rows
_GROUPS = 200
_BYTES = 2**26  # for the sums over classes
_FINE = 2**12
_SHADOWS, _SHADOW_CELLS = 20, 20_000_000
_MIN_COUNT = 30  # rows that a bin needs for the maximum calibration error: a row alone is always off by a lot


class Tally:
    """The sums of a stream of predictions.

    Args:
        num_classes: K.
        rows: how many will come; up to G rows are groups of their own.
        n_bins: bins of equal width, B.
        groups: G at most; less where the classes are many.
        seed: which row goes to which group.
    """

    def __init__(self, num_classes: int, rows: int, *, n_bins: int = 15, groups: int = _GROUPS, seed: int = 0) -> None:
        self.num_classes = checks.whole("num_classes", num_classes, 2)
        self.n_bins = checks.whole("n_bins", n_bins, 1)
        self.rows = 0
        self.floored = 0
        self.groups = min(checks.whole("rows", rows, 1), groups, max(20, _affordable_groups(num_classes, n_bins)))
        self._own = rows == self.groups
        self._seed = seed
        zeros = lambda *shape: torch.zeros(self.groups, *shape, dtype=torch.float64)  # noqa: E731
        self.sums = {
            "losses": zeros(3),  # rows, log-loss, squared distance
            "bins": zeros(6, n_bins),  # 1, c, a, c², a², c a of the top label
            "fine": zeros(3, _FINE),  # 1, c, a
            "predicted": zeros(3, num_classes * n_bins),  # 1, c, a, of each predicted class apart
            "gap": zeros(num_classes * n_bins),  # 1[y = k] - P_k of each class
            "support": zeros(num_classes),  # labels
        }

    def add(self, probs: Any, target: Any) -> None:
        """Add (n, K) probabilities and (n,) labels.

        Raises:
            ValueError: bad input, by name and row.
        """
        probs = as_matrix("probs", probs)
        _check_width(probs, self.num_classes)
        target = as_labels("target", target, probs, self.num_classes)
        for rows, chunk in probability_chunks("probs", probs):
            self._add(chunk.to(torch.float64).clamp(0, 1), target[rows])

    def _add(self, p: Tensor, y: Tensor) -> None:
        group = self._group(len(p))
        confidence, label = top_label(p)
        correct = (label == y).to(torch.float64)
        own = p.gather(1, y[:, None])[:, 0]
        one = torch.ones_like(own)
        distance = p.square().sum(dim=1) - own.square() + (1 - own).square()
        self._sum("losses", group, None, torch.stack((one, -own.clamp_min(FLOOR).log(), distance)))
        place, fine = (_bins.uniform_index(confidence, n) for n in (self.n_bins, _FINE))
        three = torch.stack((one, confidence, correct))
        squares = torch.stack((confidence.square(), correct, confidence * correct))
        self._sum("bins", group, place, torch.cat((three, squares)))
        self._sum("fine", group, fine, three)
        self._sum("predicted", group, label * self.n_bins + place, three)
        cell = torch.arange(self.num_classes) * self.n_bins + _bins.uniform_index(p, self.n_bins)
        missing = -p.scatter_add(1, y[:, None], -one[:, None])  # 1[y = k] - P_k
        first = group[:, None] * self.sums["gap"].shape[1]
        self.sums["gap"].view(-1).index_add_(0, (first + cell).flatten(), missing.flatten())
        self.sums["support"].view(-1).index_add_(0, group * self.num_classes + y, one)
        self.floored += int((own < FLOOR).sum())
        self.rows += len(p)

    def _sum(self, name: str, group: Tensor, place: Tensor | None, values: Tensor) -> None:
        """Add (s, n) values to the sums (G, s, B), or (G, s) if there is no place."""
        sums = self.sums[name]
        width = 1 if place is None else sums.shape[2]
        for i, row in enumerate(values):
            index = (group * len(values) + i) * width
            sums.view(-1).index_add_(0, index if place is None else index + place, row)

    def _group(self, n: int) -> Tensor:
        """The groups of the next n rows: a hash of the row's number, so that the size of the chunks plays no part."""
        number = np.arange(self.rows, self.rows + n, dtype=np.uint64)
        if self._own:
            return torch.from_numpy(number.astype(np.int64) % self.groups)
        # splitmix64 (Steele, Lea, Flood 2014); unsigned integers wrap around.
        x = (number + np.uint64(self._seed + 1)) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return torch.from_numpy(((x ^ (x >> np.uint64(31))) % np.uint64(self.groups)).astype(np.int64))

    def total(self) -> Sums:
        """The sums over all groups."""
        if not self.rows:
            raise ValueError("there are no rows yet")
        return {name: value.sum(dim=0) for name, value in self.sums.items()}

    def resamples(self, n: int, seed: int = 0) -> Iterator[Sums]:
        """The sums of n resamples of the groups."""
        drawn = np.random.default_rng(seed).multinomial(self.groups, np.full(self.groups, 1 / self.groups), size=n)
        for weights in torch.from_numpy(drawn).to(torch.float64):
            yield _Resample(self.sums, weights)

    def reliability(self) -> ReliabilityBins:
        """What a reliability diagram draws."""
        return reliability_of(self.total()["bins"][:3], _bins.uniform_edges(self.n_bins))

    def brier_terms(self) -> BrierTerms:
        """The parts of the squared error of the confidence, (1/N) Σ (c_i - a_i)²."""
        return BrierTerms(*(float(term) for term in brier_terms(self.total()["bins"])))


class _Resample(Mapping[str, Tensor]):
    """Weighted sums over groups, each computed when it is asked for."""

    def __init__(self, sums: Sums, weights: Tensor) -> None:
        self._sums, self._weights = sums, weights
        self._known: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._known:
            value = self._sums[name]
            self._known[name] = (self._weights @ value.flatten(1)).view(value.shape[1:])
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sums)

    def __len__(self) -> int:
        return len(self._sums)


def _affordable_groups(num_classes: int, n_bins: int) -> int:
    return _BYTES // (8 * (4 * n_bins + 1) * num_classes)


def _check_width(probs: Tensor, num_classes: int) -> None:
    if probs.shape[1] != num_classes:
        raise ValueError(f"probs has {probs.shape[1]} columns, but there are {num_classes} classes")


@dataclass(frozen=True)
class Measure:
    """A number of the report."""

    name: str
    value: Callable[[Sums], float]
    meaning: str
    low: float = 0.0  # the ends of its range: an interval is cut there
    high: float = 1.0
    is_error: bool = True  # whether it is 0 for a calibrated model, but for noise


def _rows(s: Sums) -> float:
    return float(s["losses"][0])


def _accuracy(s: Sums) -> float:
    return float(s["bins"][2].sum()) / _rows(s)


def _confidence(s: Sums) -> float:
    return float(s["bins"][1].sum()) / _rows(s)


def _maximum(s: Sums) -> float:
    fullest = int(s["bins"][0].max())
    return float(_bins.maximum_error(s["bins"][:3], min(_MIN_COUNT, fullest)))


def _equal_mass(s: Sums) -> float:
    return float(_bins.calibration_error(_bins.equal_mass_from_fine(s["fine"], s["bins"].shape[1]), norm=1))


def _ks(s: Sums) -> float:
    return float((s["fine"][1] - s["fine"][2]).cumsum(dim=0).abs().max()) / _rows(s)


def _points(s: Sums) -> tuple[Tensor, Tensor]:
    """The fine bins that hold rows, as weighted samples: where they lie, and (3, F') their shares of 1, c, a."""
    held = s["fine"][:, s["fine"][0] > 0]
    return (held[1] / held[0]).clamp(0, 1), held / held[0].sum()


def _smooth(s: Sums) -> float:
    place, share = _points(s)
    return binfree.smooth_of(place, share[2] - share[1], (2**12, 2**14, 2**16))


def _kde(s: Sums) -> float:
    place, share = _points(s)
    spread = float((share[0] * (place - (share[0] * place).sum()).square()).sum()) ** 0.5
    return binfree.kde_of(place, share[[0, 2]], max(binfree.usual_bandwidth(spread, _rows(s)), 4 / _FINE))


def _top_label(s: Sums) -> float:
    return float(_bins.calibration_error(s["predicted"], norm=1))


def _classwise(s: Sums) -> float:
    return float(s["gap"].abs().sum()) / (_rows(s) * len(s["support"]))


MEASURES = (
    Measure("accuracy", _accuracy, "share of rows whose largest score is at the label", is_error=False),
    Measure("mean confidence", _confidence, "mean of the largest probability", is_error=False),
    Measure("overconfidence", lambda s: _confidence(s) - _accuracy(s), "mean confidence - accuracy",
            low=-1.0, is_error=False),
    Measure("log-loss", lambda s: float(s["losses"][1]) / _rows(s), "mean of -log P(label), nats",
            high=math.inf, is_error=False),
    Measure("Brier score", lambda s: float(s["losses"][2]) / _rows(s), "mean squared distance to the label",
            high=2.0, is_error=False),
    Measure("ECE", lambda s: float(_bins.calibration_error(s["bins"][:3], 1)), "mean gap, bins of equal width"),
    Measure("ECE, debiased", lambda s: float(_bins.calibration_error(s["bins"][:3], 1, True)),
            "the same less its estimated bias", low=-1.0),
    Measure("ECE, equal mass", _equal_mass, "mean gap, bins of equal mass"),
    Measure("RMS calibration error", lambda s: float(_bins.calibration_error(s["bins"][:3], 2)),
            "root of the mean squared gap"),
    Measure("RMS, debiased", lambda s: float(_bins.calibration_error(s["bins"][:3], 2, True)),
            "the same less its estimated bias"),
    Measure("MCE", _maximum, f"largest gap of a bin with {_MIN_COUNT} rows or more"),
    Measure("ACE", lambda s: float(_bins.gaps(s["bins"][:3])[2].abs().mean()), "mean gap, each bin counting the same"),
    Measure("classwise ECE", _classwise, "mean over classes of the gap of P(class)"),
    Measure("top-label ECE", _top_label, "mean gap, for each predicted class apart"),
    Measure("smooth ECE", _smooth, "no bins: a kernel as wide as the error it finds"),
    Measure("KDE error", _kde, "no bins: a kernel regression"),
    Measure("KS error", _ks, "largest difference of cumulative confidence and accuracy"),
)  # fmt: skip


def measure(
    tally: Tally, *, names: Iterable[str] | None = None, n_resamples: int = 200, seed: int = 0
) -> dict[str, tuple[float, float, float]]:
    """Measures by name (all if None): (value, lower end, upper end) of the reflected 95 % bootstrap interval.

    The value of a binned error may lie above its interval: the interval is about the error of the model, which is
    smaller than what few rows show.

    Raises:
        ValueError: no rows, or n_resamples below 20.
    """
    checks.whole("n_resamples", n_resamples, 20)
    chosen = [m for m in MEASURES if names is None or m.name in names]
    drawn: dict[str, list[float]] = {m.name: [] for m in chosen}
    for sums in tally.resamples(n_resamples, seed):
        for m in chosen:
            drawn[m.name].append(m.value(sums))
    whole = tally.total()
    return {m.name: (v := m.value(whole), *reflected(v, drawn[m.name], m.low, m.high)) for m in chosen}


def reflected(value: float, drawn: Any, low: float = -math.inf, high: float = math.inf) -> tuple[float, float]:
    """The reflected 95 % interval of a value from its resamples, cut to [low, high]."""
    q_low, q_high = np.quantile(np.asarray(drawn, dtype=np.float64), [0.025, 0.975])
    return tuple(float(np.clip(2 * value - q, low, high)) for q in (q_high, q_low))  # type: ignore[return-value]


class Shadows:
    """What a calibrated model would show: the same predictions with labels drawn from them, some times over.

    Whatever error these draws have is noise. So is an error of the model that is no larger.
    """

    def __init__(self, num_classes: int, rows: int, *, n_bins: int = 15, seed: int = 0) -> None:
        # One draw costs as much time as the predictions themselves. Of many rows fewer are drawn, and the rest made of
        # those: noise is as likely as its opposite, in each group of rows apart.
        n = max(1, min(_SHADOWS, _SHADOW_CELLS // (rows * num_classes)))
        groups = 1 if n == _SHADOWS else max(2, min(_GROUPS, _affordable_groups(num_classes, n_bins)) // n)
        self.tallies = [Tally(num_classes, rows, n_bins=n_bins, groups=groups, seed=seed) for _ in range(n)]
        self._generators = [np.random.default_rng([seed, i]) for i in range(n)]
        self._signs = np.random.default_rng([seed, n])

    def add(self, probs: NDArray[np.floating]) -> None:
        """Add (n, K) probabilities."""
        share = probs.cumsum(axis=1, dtype=np.float64)
        share /= share[:, -1:]
        for tally, generator in zip(self.tallies, self._generators, strict=True):
            tally.add(probs, (share <= generator.random((len(probs), 1))).sum(axis=1))

    def floor(self) -> dict[str, tuple[float, float]]:
        """Each error of `MEASURES`: its mean and its largest value over the draws."""
        totals: list[Sums] = [tally.total() for tally in self.tallies]
        for i in range(len(totals), _SHADOWS):
            tally = self.tallies[i % len(self.tallies)]
            totals.append(_mirrored(tally.sums, torch.from_numpy(self._signs.choice([-1.0, 1.0], tally.groups))))
        drawn = {m.name: [m.value(total) for total in totals] for m in MEASURES if m.is_error}
        return {name: (float(np.mean(values)), max(values)) for name, values in drawn.items()}


def _mirrored(sums: Sums, signs: Tensor) -> Sums:
    """The sums that errors are made of, with the noise a - c of each group times its sign."""
    found = {"losses": sums["losses"].sum(dim=0), "support": sums["support"].sum(dim=0)}
    found["gap"] = signs @ sums["gap"]
    for name in ("bins", "fine", "predicted"):
        n, c, a = sums[name][:, :3].unbind(dim=1)
        found[name] = torch.stack((n.sum(dim=0), c.sum(dim=0), c.sum(dim=0) + signs @ (a - c)))
    return found

"""What each calibrator would gain on rows that it has not seen, and the one to keep."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lossbook import calibrators, checks
from lossbook.book.audit.tally import FLOOR, MEASURES, Tally, measure
from lossbook.calibrators._base import Calibrator

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

NONE = "as it is"
_MATRIX_CLASSES = 30  # K² + K numbers to fit: beyond, they take minutes and learn noise
_VECTOR_ROWS = 10  # rows a class; where the classes are many and the rows fewer, so do the 2K numbers of vector scaling
_ONE_VS_REST_CLASSES = 200
_COMPARED = ("accuracy", "Brier score", "smooth ECE", "classwise ECE")
_FORMAT, _VERSION = "lossbook-calibrator", 1


def candidates(num_classes: int) -> tuple[dict[str, Calibrator], dict[str, str]]:
    """The calibrators worth a try for K classes, simplest first, and why the others are left out."""
    tried: dict[str, Calibrator] = {
        "temperature": calibrators.TemperatureScaling(),
        "vector": calibrators.VectorScaling(),
        "matrix": calibrators.MatrixScaling(),
        "beta": calibrators.BetaCalibration(),
        "isotonic": calibrators.IsotonicCalibration(),
        "histogram": calibrators.HistogramBinning(),
        "isotonic, top label": calibrators.IsotonicCalibration(mode="top_label"),
    }
    left_out = {}
    if num_classes > _MATRIX_CLASSES:
        left_out["matrix"] = f"it would fit {num_classes * (num_classes + 1):,} numbers"
    if num_classes > _ONE_VS_REST_CLASSES:
        left_out |= dict.fromkeys(("beta", "isotonic", "histogram"), f"it would fit {num_classes:,} curves")
    return {name: c for name, c in tried.items() if name not in left_out}, left_out


@dataclass(frozen=True)
class Comparison:
    """Calibrators judged on rows that they were not fitted on."""

    table: pd.DataFrame  #: a row a calibrator: its errors, what it gains in log-loss, how many decisions it changes
    tallies: dict[str, Tally]  #: the sums of its predictions of unseen rows
    left_out: dict[str, str]  #: calibrator -> why it was not tried, or could not be fitted
    rows: int  #: rows that took part
    best: str  #: the one to keep


def log_probabilities(probs: NDArray[np.floating]) -> NDArray[np.float64]:
    """What calibrators of the audit are fitted on: log P, with P cut at 1e-12.

    A softmax of logits and the logits themselves differ by a constant in each row, so a file of either kind gives the
    same.
    """
    return np.log(np.maximum(probs, FLOOR, dtype=np.float64))


def compare(
    probs: NDArray[np.floating], target: NDArray[np.integer], *, n_bins: int = 15, folds: int = 5, seed: int = 0
) -> Comparison:
    """Fit each calibrator on all folds but one, predict that one, and so all rows; hold it against doing nothing.

    The best is the simplest (the first of `candidates`) whose mean log-loss on unseen rows is within one standard error
    of the lowest, differences taken row by row.

    Args:
        probs: (n, K) probabilities.
        target: (n,) labels in [0, K).
        n_bins: bins of the calibration errors.
        folds: at least 2, and at most n.
        seed: of the folds.

    Raises:
        ValueError: other lengths, too few rows for the folds, labels of one class only, no prediction that is wrong.
    """
    import pandas as pd
    from sklearn.model_selection import KFold

    n, num_classes = probs.shape
    checks.whole("folds", folds, 2)
    if target.shape != (n,):
        raise ValueError(f"target must have shape ({n},), a label a row of probs, but has shape {target.shape}")
    if n < 2 * folds:
        raise ValueError(f"{n} rows are too few for {folds} folds")
    if len(np.unique(target)) < 2:
        raise ValueError(f"all labels are {target[0]}: a calibrator needs at least two classes")
    if (probs.argmax(axis=1) == target).all():
        raise ValueError("every prediction is right, and without a mistake any calibrator that is surer seems better")
    z = log_probabilities(probs)
    split = list(KFold(folds, shuffle=True, random_state=seed).split(z))
    tried, left_out = candidates(num_classes)
    if num_classes > _MATRIX_CLASSES and n < _VECTOR_ROWS * num_classes and tried.pop("vector", None):
        left_out["vector"] = f"it would fit {2 * num_classes:,} numbers to {n:,} rows"
    before = _Judged(np.asarray(probs, dtype=np.float64), target, n_bins, seed)
    judged = {NONE: before}
    for name, calibrator in tried.items():
        predicted = np.empty_like(z)
        try:
            with warnings.catch_warnings():
                # A fold that a temperature separates perfectly is no news here: the log-loss says what comes of it.
                warnings.simplefilter("ignore")
                for fit, rest in split:
                    predicted[rest] = calibrator.fit(z[fit], target[fit]).predict_proba(z[rest])
        except ValueError as error:
            left_out[name] = str(error)
            continue
        judged[name] = _Judged(predicted, target, n_bins, seed)
    if len(judged) == 1:
        raise ValueError("no calibrator could be fitted: " + "; ".join(f"{k}: {v}" for k, v in left_out.items()))
    table = pd.DataFrame({name: one.row(before) for name, one in judged.items()}).T
    return Comparison(table, {k: one.tally for k, one in judged.items()}, left_out, n, _simplest_good(judged))


class _Judged:
    """What is kept of a calibrator's predictions of unseen rows: their sums, log-losses and decisions."""

    def __init__(self, probs: NDArray[np.float64], target: NDArray[np.integer], n_bins: int, seed: int) -> None:
        self.tally = Tally(probs.shape[1], len(probs), n_bins=n_bins, seed=seed)
        self.tally.add(probs, target)
        self.loss = -np.log(np.maximum(probs[np.arange(len(probs)), target], FLOOR))
        self.decision = probs.argmax(axis=1)

    def row(self, before: _Judged) -> dict[str, float]:
        ece, low, high = measure(self.tally, names=["ECE"])["ECE"]
        total = self.tally.total()
        gain = before.loss - self.loss
        return {
            "ECE": ece,
            "ECE low": low,
            "ECE high": high,
            **{m.name: m.value(total) for m in MEASURES if m.name in _COMPARED},
            "log-loss": float(self.loss.mean()),
            "gain": float(gain.mean()),
            "gain ±": 1.96 * _standard_error(gain),
            "decisions changed": float((self.decision != before.decision).mean()),
        }


def _standard_error(values: NDArray[np.float64]) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values)))


def _simplest_good(judged: Mapping[str, _Judged]) -> str:
    names = [name for name in judged if name != NONE]
    lowest = min(names, key=lambda name: judged[name].loss.mean())
    for name in names:
        behind = judged[name].loss - judged[lowest].loss
        if behind.mean() <= _standard_error(behind):
            break
    return name


def fitted(name: str, probs: NDArray[np.floating], target: NDArray[np.integer]) -> Calibrator:
    """The named calibrator, fitted on all these rows."""
    calibrator = candidates(probs.shape[1])[0][name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return calibrator.fit(log_probabilities(probs), target)


def to_json(calibrator: Calibrator, class_names: tuple[str, ...]) -> str:
    """The text of a calibrator's file: JSON, nothing that is executed."""
    content = {
        "format": _FORMAT,
        "version": _VERSION,
        "input": "log-probabilities",
        "classes": list(class_names),
        "calibrator": calibrator.to_dict(),
    }
    return json.dumps(content, indent=1) + "\n"


def from_json(text: str) -> tuple[Calibrator, tuple[str, ...]]:
    """The calibrator, and the names of its classes.

    Raises:
        ValueError: no JSON, another format or version, a field missing or out of its range.
    """
    try:
        content: Any = json.loads(text, parse_constant=_refuse)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"it is not JSON: {error}") from None
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ValueError(f"it is not a saved calibrator: it has no field 'format' with the value {_FORMAT!r}")
    if content.get("version") != _VERSION:
        raise ValueError(f"its version is {content.get('version')!r}, and this program reads version {_VERSION}")
    calibrator = calibrators.from_dict(content.get("calibrator"))
    names = content.get("classes")
    k = len(calibrator.classes_)
    if not isinstance(names, list) or len(names) != k or not all(isinstance(name, str) for name in names):
        raise ValueError(f"its field 'classes' must list the names of {k} classes, but is {names!r}")
    return calibrator, tuple(names)


def _refuse(constant: str) -> float:
    raise ValueError(f"it holds {constant}, which is no number")


__all__ = ["NONE", "Comparison", "candidates", "compare", "fitted", "from_json", "log_probabilities", "to_json"]

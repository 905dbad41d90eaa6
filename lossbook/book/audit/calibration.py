"""The calibration audit: what a file of predictions says about the model that made them.

`audit` reads the file twice, in chunks: once for the sums of all rows, once for a random sample of rows that is small
enough to fit calibrators on. The functions below turn its result into tables and sentences.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lossbook.book.audit.compare import NONE, Comparison, compare, fitted, to_json
from lossbook.book.audit.tally import FLOOR, MEASURES, Shadows, Sums, Tally, measure, reflected

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray
    from torch import Tensor

    from lossbook.data import Predictions

# A mean confidence this near to the accuracy is right for most purposes, however sure one is that it differs.
_SLIGHT = 0.005
_SAMPLE_NUMBERS = 5_000_000  # of the sample that calibrators are fitted on


@dataclass(frozen=True)
class Audit:
    """The result of `audit`."""

    predictions: Predictions
    tally: Tally  #: sums over all rows
    measures: pd.DataFrame  #: value, low, high, floor (noise alone, mean), floor_high, meaning; a row a measure
    probs: NDArray[np.floating]  #: (n, K) the sample
    target: NDArray[np.int64]  #: (n,) its labels
    comparison: Comparison | None  #: calibrators, judged on the sample; None if there are too few rows
    why_not: str  #: why there is no comparison

    @property
    def rows(self) -> int:
        return self.tally.rows


def audit(
    predictions: Predictions, *, n_bins: int = 15, sample_rows: int = 20_000, folds: int = 5, seed: int = 0
) -> Audit:
    """Measure the calibration of predictions, with intervals, and what calibrators would gain.

    Args:
        predictions: a file, by `lossbook.data.read_predictions`.
        n_bins: bins of equal width.
        sample_rows: rows to fit calibrators on, at most; fewer where the classes are many (5 million numbers in all).
        folds: of the cross-fitting.
        seed: of the groups, the sample, the folds and the draws.

    Raises:
        ValueError: a bad row, by file and number; a bad argument.
    """
    from threadpoolctl import threadpool_limits

    # Thousands of small operations: on a busy machine several threads spend their time waiting for each other.
    with threadpool_limits(1):
        return _audit(predictions, n_bins, sample_rows, folds, seed)


def _audit(predictions: Predictions, n_bins: int, sample_rows: int, folds: int, seed: int) -> Audit:
    import pandas as pd

    n, k = predictions.rows, predictions.num_classes
    tally = Tally(k, n, n_bins=n_bins, seed=seed)
    shadows = Shadows(k, n, n_bins=n_bins, seed=seed)
    for scores, target in predictions.chunks():
        probs = to_probabilities(scores, predictions.kind)
        tally.add(probs, target)
        shadows.add(probs)
    floor = shadows.floor()
    measured = measure(tally, seed=seed)
    table = pd.DataFrame.from_dict(measured, orient="index", columns=["value", "low", "high"])
    table[["floor", "floor_high"]] = pd.DataFrame.from_dict(floor, orient="index")
    table["meaning"] = [m.meaning for m in MEASURES]
    # Near an error of 0 the bootstrap corrects for less than half of the bias, and its interval would leave 0 out.
    noise = table.value <= table.floor_high
    table.loc[noise, "low"] = table.low[noise].clip(upper=0)
    # Resamples of rows that are all right (or all wrong) never differ in it.
    ends = _as_wide_as_noise(table.loc["overconfidence", ["value", "low", "high"]], tally.total()["bins"][:3])
    table.loc["overconfidence", ["low", "high"]] = ends
    wanted = max(1, min(sample_rows, _SAMPLE_NUMBERS // k))
    scores, target, _ = predictions.sample(wanted, seed)
    probs = to_probabilities(scores, predictions.kind)
    try:
        comparison, why_not = compare(probs, target, n_bins=n_bins, folds=folds, seed=seed), ""
    except ValueError as error:
        comparison, why_not = None, str(error)
    return Audit(predictions, tally, table, probs, target, comparison, why_not)


def to_probabilities(scores: NDArray[np.floating], kind: str) -> NDArray[np.floating]:
    """Softmax of logits; probabilities as they are."""
    from scipy.special import softmax

    return softmax(scores, axis=1) if kind == "logits" else scores


def _as_wide_as_noise(interval: Iterable[float], sums: Tensor) -> tuple[float, float]:
    """The ends of (confidence - share right, low, high); where noise explains the value, as far from it as noise goes.

    Args:
        interval: the value and its bootstrap interval.
        sums: (3, B) of 1, c and a over bins. A calibrated model's Σ (c - a) has the variance Σ c (1 - c), which the
            means of the bins bound from above.
    """
    value, low, high = interval
    n, c, _ = sums[:, sums[0] > 0]
    reach = 1.96 * float((c * (1 - c / n)).clamp_min(0).sum()) ** 0.5 / float(n.sum())
    if abs(value) > reach:
        return low, high
    return min(low, max(value - reach, -1)), max(high, min(value + reach, 1))


def direction(audit: Audit) -> str:
    """Whether the mean confidence is off, by half a point or more and by more than its interval.

    Returns:
        "overconfident", "underconfident" or "neither".
    """
    value, low, high = audit.measures.loc["overconfidence", ["value", "low", "high"]]
    if abs(value) < _SLIGHT or low <= 0 <= high:
        return "neither"
    return "overconfident" if value > 0 else "underconfident"


def verdict(audit: Audit) -> list[str]:
    """The findings as Markdown sentences, the most important first."""
    m = audit.measures
    gap, low, high = m.loc["overconfidence", ["value", "low", "high"]]
    told = (
        f"It is right in {m.value['accuracy']:.1%} of {audit.rows:,} rows and says {m.value['mean confidence']:.1%} "
        f"on average: {100 * gap:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]."
    )
    headline = {
        "overconfident": "**The model is overconfident.**",
        "underconfident": "**The model is underconfident.**",
        "neither": "**On average, the model is neither over- nor underconfident.**"
        if abs(gap) < _SLIGHT
        else "**These rows do not show whether the model is over- or underconfident.**",
    }[direction(audit)]
    sentences = [f"{headline} {told}"]
    ece, floor, most = m.loc["ECE", ["value", "floor", "floor_high"]]
    if ece <= most:
        found = "no more than noise: the rows show no miscalibration that bins can see"
    elif ece < 3 * floor or floor == 0:  # 0: every confidence is 1
        found = "more than noise explains"
    else:
        found = f"{min(ece / floor, 1000):,.0f} times what noise explains" + " or more" * (ece > 1000 * floor)
    sentences.append(
        f"The calibration error (ECE) is {ece:.4f}. A calibrated model with these confidences would show {floor:.4f} "
        f"on as many rows, so this is {found}."
    )
    sentences.append(_advice(audit))
    return [*sentences, *_warnings(audit)]


def _advice(audit: Audit) -> str:
    if audit.comparison is None:
        return f"No calibrator was tried: {audit.why_not}."
    table, best = audit.comparison.table, audit.comparison.best
    row, before = table.loc[best], table.loc[NONE]
    gain, error = row["gain"], row["gain ±"]
    text = f"log-loss {before['log-loss']:.4f} to {row['log-loss']:.4f}, ECE {before['ECE']:.4f} to {row['ECE']:.4f}"
    if gain <= error:
        better = [f"*{name}*" for name, other in table.iterrows() if other["gain"] > other["gain ±"]]
        if better:
            found = f"{', '.join(better)} gains more than chance, but not clearly more than *{best}*, which is simpler"
            return f"{found} and is saved: on rows that it was not fitted on, {text}. This may be chance."
        return (
            f"No calibrator gains more than chance. The simplest of the best, *{best}*, is saved all the same: on rows "
            f"that it was not fitted on, {text}."
        )
    changed = row["decisions changed"]
    decisions = "No decision changes" if changed == 0 else f"{changed:.1%} of the decisions change"
    return (
        f"The calibrator to use is *{best}*: on rows that it was not fitted on, {text} (gain {gain:.4f} ± "
        f"{error:.4f}). {decisions}."
    )


def _warnings(audit: Audit) -> list[str]:
    found = []
    if audit.rows < 200:
        found.append(f"With {audit.rows} rows every number here is rough: read the intervals.")
    if audit.tally.floored:
        found.append(
            f"Labels with a predicted probability below {FLOOR:g}: {audit.tally.floored:,}. Each counts as that much "
            "in the log-loss, which it would make infinite or nearly so."
        )
    total = audit.tally.total()
    absent = [name for name, n in zip(audit.predictions.class_names, total["support"], strict=True) if n == 0]
    if absent:
        shown = ", ".join(map(literal, absent[:5])) + (" …" if len(absent) > 5 else "")
        found.append(f"{len(absent)} of {len(total['support'])} classes have no row with their label: {shown}.")
    if audit.comparison:
        found += [f"*{name}* was not tried: {why}." for name, why in audit.comparison.left_out.items()]
    return found


def literal(text: str) -> str:
    """A name from a file for a Markdown sentence, in which none of its signs means anything."""
    return re.sub(r"[^\w .,:-]|_", lambda sign: f"&#{ord(sign[0])};", text)


def class_table(audit: Audit, *, n_resamples: int = 200, seed: int = 0) -> pd.DataFrame:
    """A row a class, those whose predictions are off by most rows first.

    rows: with this label; recall: how many of them are predicted; predicted: rows with this prediction; right: how many
    of them have the label; confidence: the mean stated for them; gap: confidence - right, with its bootstrap interval;
    error: the class's part of the classwise ECE.
    """
    import pandas as pd

    k = audit.tally.num_classes

    def gap(sums: Sums) -> NDArray[np.float64]:
        n, confidence, right = sums["predicted"].view(3, k, -1).sum(dim=2).numpy()
        with np.errstate(invalid="ignore", divide="ignore"):
            return (confidence - right) / n

    total = audit.tally.total()
    predicted = total["predicted"].view(3, k, -1)
    n, confidence, right = predicted.sum(dim=2).numpy()
    support = total["support"].numpy()
    drawn = np.array([gap(sums) for sums in audit.tally.resamples(n_resamples, seed)])
    value = gap(total)
    seen = ~np.isnan(drawn).any(axis=0)  # too few rows for an interval where a resample has none
    ends = np.full((k, 2), np.nan)
    for i in np.flatnonzero(seen):
        ends[i] = _as_wide_as_noise((value[i], *reflected(value[i], drawn[:, i], -1, 1)), predicted[:, i])
    with np.errstate(invalid="ignore", divide="ignore"):
        table = pd.DataFrame(
            {
                "class": audit.predictions.class_names,
                "rows": support.astype(np.int64),
                "recall": right / support,
                "predicted": n.astype(np.int64),
                "right": right / n,
                "confidence": confidence / n,
                "gap": value,
                "gap low": ends[:, 0],
                "gap high": ends[:, 1],
                "error": total["gap"].view(k, -1).abs().sum(dim=1).numpy() / audit.rows,
            }
        )
    order = np.argsort(-np.nan_to_num(np.abs(confidence - right)), kind="stable")
    return table.iloc[order].reset_index(drop=True)


def selective_accuracy(audit: Audit) -> pd.DataFrame:
    """What is left above each threshold on the confidence: the share of rows, their accuracy, their mean confidence."""
    import pandas as pd

    fine = audit.tally.total()["fine"].flip(1).cumsum(dim=1).flip(1).numpy()
    held = fine[:, fine[0] > 0]
    edges = np.arange(fine.shape[1]) / fine.shape[1]
    return pd.DataFrame(
        {
            "threshold": edges[: held.shape[1]],
            "coverage": held[0] / audit.rows,
            "accuracy": held[2] / held[0],
            "confidence": held[1] / held[0],
        }
    )


def save(audit: Audit, folder: str | Path) -> None:
    """Write `numbers.json`, `classes.csv` and, if one was fitted, `calibrator.json` into a folder that exists."""
    folder = Path(folder)
    found = {
        "file": audit.predictions.path.name,
        "rows": audit.rows,
        "classes": audit.predictions.num_classes,
        "kind": audit.predictions.kind,
        "direction": direction(audit),
        "verdict": verdict(audit),
        "measures": _plain(audit.measures.drop(columns="meaning")),
        "calibrators": _plain(audit.comparison.table) if audit.comparison else {},
        "best": audit.comparison.best if audit.comparison else None,
    }
    (folder / "numbers.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    class_table(audit).to_csv(folder / "classes.csv", index=False)
    if audit.comparison:
        calibrator = fitted(audit.comparison.best, audit.probs, audit.target)
        (folder / "calibrator.json").write_text(to_json(calibrator, audit.predictions.class_names), encoding="utf-8")


def _plain(table: pd.DataFrame) -> dict[str, dict[str, float | None]]:
    """{row: {column: number}}; JSON has no NaN."""
    return {
        str(name): {str(c): float(v) if np.isfinite(v) else None for c, v in row.items()}
        for name, row in table.iterrows()
    }

"""What a comparison supports: paired differences with corrected intervals, in a table, in sentences and in files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lossbook.book.audit.calibration import literal
from lossbook.book.compare.experiment import MEASURES, METRICS, Comparison
from lossbook.book.compare.parts import TEST_SHARE

if TYPE_CHECKING:
    from pandas import DataFrame

# Two names of one loss end with log-losses (nats) that differ by rounding.
_ROUNDING = 1e-4
_RISE = 0.01  # of validation accuracy over the last quarter of the training
_LEVEL = 0.95


def interval(
    values: Any, *, test_share: float = TEST_SHARE, level: float = _LEVEL, floor: float = 0.0
) -> tuple[float, float, float]:
    """Mean of a measure over random splits of the same rows, and its confidence interval.

        m ± t s √(1/J + q/(1 - q)),  s² the variance of the J values, q the share of the rows in the test part,
        t the quantile of Student's distribution with J - 1 degrees of freedom

    The plain interval of J values has √(1/J). It takes them for independent, which they are not, as the splits share
    rows, and is too narrow. The validation part, from which the settings are learned, counts as training rows.

    Args:
        values: (J,) one a split, J >= 2.
        test_share: q in [0, 1); 0 gives the plain interval.
        level: in (0, 1).
        floor: s is at least this: values that agree by the coarseness of a measure do not make it exact.

    Returns:
        mean, lower end, upper end.

    Raises:
        ValueError: fewer than two values, or one that is not finite.

    Source: Nadeau, Bengio 2003, Inference for the generalization error, Machine Learning 52, 239-281.
    """
    from scipy.stats import t

    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or len(x) < 2 or not np.isfinite(x).all():
        raise ValueError(f"values must be two or more finite numbers, but are {values!r}")
    spread = max(float(x.std(ddof=1)), floor) * math.sqrt(1 / len(x) + test_share / (1 - test_share))
    half = float(t.ppf((1 + level) / 2, len(x) - 1)) * spread
    mean = float(x.mean())
    return mean, mean - half, mean + half


def summary(comparison: Comparison) -> DataFrame:
    """A row a loss: each measure's mean over seeds with its 95 % interval, and the difference to the first loss.

    Columns: the measures, each also with " low" and " high"; difference, "difference low", "difference high" (of the
    metric compared by, loss minus baseline); tried (settings), chosen (the most frequent), times (how often), seconds
    (mean over the seeds that were not cut short). The intervals of the differences hold together with 95 %: of k
    differences each has the level 1 - 0.05/k (Bonferroni). NaN where a loss diverged in a seed at every rate.
    """
    import pandas as pd

    metric, n_test = comparison.settings["metric"], TEST_SHARE * len(comparison.rows)
    floor = 1 / n_test if "accuracy" in metric else _ROUNDING
    by_seed, first = comparison.results.set_index(["loss", "seed"]), comparison.labels[0]
    others = max(1, len(comparison.labels) - 1)
    table = []
    for label in comparison.labels:
        one = by_seed.loc[label]
        row: dict[str, Any] = {"loss": label}
        for name in MEASURES:
            row |= _ends(name, one[name], floor=1 / n_test if "accuracy" in name else 0.0)
        difference = math.nan if label == first else one[metric] - by_seed.loc[first][metric]
        row |= _ends("difference", difference, floor=floor, level=1 - (1 - _LEVEL) / others)
        chosen = "lr=" + one.lr.map("{:g}".format) + one.setting.map(lambda text: text and f", {text}")
        chosen = chosen.where(one.lr.notna(), "none").value_counts()
        row |= {"tried": int(one.settings.iloc[0]), "chosen": chosen.index[0], "times": int(chosen.iloc[0])}
        row["seconds"] = float(one.seconds.mean())
        table.append(row)
    return pd.DataFrame(table).set_index("loss")


def _ends(name: str, values: Any, **how: float) -> dict[str, float]:
    columns = (name, f"{name} low", f"{name} high")
    if not np.isfinite(values).all():
        return dict.fromkeys(columns, math.nan)
    ends = interval(values, **how)
    if name == "difference":
        return dict(zip(columns, ends, strict=True))
    # An accuracy and a calibration error end at 1; below 0 only a debiased error goes.
    low = -math.inf if name == "ece_debiased" else 0.0
    high = math.inf if name == "log_loss" else 1.0
    return dict(zip(columns, (ends[0], *np.clip(ends[1:], low, high).tolist()), strict=True))


def verdict(comparison: Comparison) -> list[str]:
    """What the data support, as Markdown sentences, the most important first."""
    table, metric = summary(comparison), comparison.settings["metric"]
    name, more = METRICS[metric]
    first, *others = comparison.labels
    j = len(comparison.seeds)
    sentences, unseen = [], []
    for label in others:
        mean, low, high = table.loc[label, ["difference", "difference low", "difference high"]]
        if math.isnan(mean):
            continue
        if low <= 0 <= high:
            ends = f"{_number(low, metric)} to {_number(high, metric)} {_unit(metric)}"
            unseen.append((literal(label), ends))
            continue
        ahead = "ahead of" if (mean > 0) == more else "behind"
        sentences.append(
            f"**{literal(label)} is {ahead} {literal(first)}**: {name} {_number(mean, metric)} {_unit(metric)} "
            f"[{_number(low, metric)}, {_number(high, metric)}] with {j} seeds."
        )
    if unseen:
        sentences.append(
            f"**No difference in {name} to {literal(first)} can be seen with {j} seeds for "
            f"{_and([label for label, _ in unseen])}.** That does not say that there is none: the interval goes from "
            f"{_and([f'{ends} ({label})' for label, ends in unseen])}."
        )
    if not others:
        sentences.append(f"{literal(first)} is the only loss: name a second one to see a difference.")
    if len(others) > 1 and table.difference.notna().any():
        sentences.append(
            f"{len(others)} losses are held against {literal(first)}. Each interval of a difference has the level "
            f"{100 - 100 * (1 - _LEVEL) / len(others):.1f} %, so that all of them hold together with 95 % (Bonferroni)."
        )
    return [*sentences, *_warnings(comparison, table)]


def _warnings(comparison: Comparison, table: DataFrame) -> list[str]:
    rows, results = comparison.rows, comparison.results
    rates, found = comparison.settings["rates"], []
    edges: dict[str, list[str]] = {"smallest": [], "largest": []}
    for label in comparison.labels:
        one = results[results.loss == label]
        gone = one.seed[one.accuracy.isna()].tolist()
        if gone:
            so = "nothing can be held against it" if label == comparison.labels[0] else "it is left out"
            found.append(
                f"{literal(label)} diverged at every learning rate with seed {_and(list(map(str, gone)))}, so {so}: "
                "give smaller ones by --lr."
            )
            continue
        for end, rate in zip(edges, (rates[0], rates[-1]), strict=True):
            if len(rates) > 1 and (one.lr == rate).mean() > 0.5:
                edges[end].append(literal(label))
        curve = comparison.curves[comparison.curves.loss == label].groupby("epoch").val_accuracy.mean()
        if len(curve) > 4 and curve.iloc[-1] - curve.iloc[-1 - len(curve) // 4] > _RISE:
            found.append(f"The validation accuracy of {literal(label)} still rises at the end: give more --epochs.")
    for end, labels in edges.items():
        if labels:
            found.append(
                f"The {end} learning rate was the best with most seeds for {_and(labels)}: "
                f"{'smaller' if end == 'smallest' else 'larger'} ones may gain (--lr)."
            )
    if table.tried.nunique() > 1:
        counts = ", ".join(f"{literal(label)} {n}" for label, n in table.tried.items())
        found.append(f"The losses had different numbers of settings to choose from ({counts}): more is an advantage.")
    largest = rows.counts.max() / len(rows)
    if largest > 2 / len(rows.classes) or largest > 0.75:
        name = rows.classes[int(rows.counts.argmax())]
        found.append(
            f"Class {literal(repr(name))} has {largest:.1%} of the rows: so much accuracy is had by naming it always. "
            "Look at the macro accuracy, the mean over classes (--metric macro_accuracy)."
        )
    few = int(np.ceil(TEST_SHARE * rows.counts.min()))
    if few < 30:
        name = rows.classes[int(rows.counts.argmin())]
        found.append(f"Class {literal(repr(name))} has about {few} test rows a seed: its accuracy is rough.")
    if len(rows) < rows.total:
        found.append(f"A random sample of {len(rows):,} of {rows.total:,} rows was used (--rows).")
    return found + [literal(note) for note in rows.notes]


def _number(value: float, metric: str) -> str:
    return f"{100 * value:+.1f}" if "accuracy" in metric else f"{value:+.4f}"


def _unit(metric: str) -> str:
    return "points" if "accuracy" in metric else "nats"


def _and(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def class_accuracy(comparison: Comparison) -> DataFrame:
    """A row a class, a column a loss: the share of its test rows that are right, over all seeds together."""
    total = comparison.classes.groupby(["class", "loss"], sort=False)[["right", "rows"]].sum()
    return (total.right / total.rows).unstack("loss")[comparison.labels].loc[list(comparison.rows.classes)]


def save(comparison: Comparison, folder: str | Path) -> None:
    """Write `results.csv`, `classes.csv` and `results.json` into a folder that exists."""
    folder = Path(folder)
    comparison.results.to_csv(folder / "results.csv", index=False)
    comparison.classes[["loss", "seed", "class", "rows", "right"]].to_csv(folder / "classes.csv", index=False)
    rows = comparison.rows
    counts = dict(zip(rows.classes, rows.counts.tolist(), strict=True))
    table = summary(comparison)
    plain = {
        label: {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        for label, row in table.to_dict("index").items()
    }
    found = {
        "file": rows.name,
        "rows": len(rows),
        "of": rows.total,
        "classes": counts,
        "settings": comparison.settings,
        "baseline": comparison.labels[0],
        "verdict": verdict(comparison),
        "losses": plain,
    }
    text = json.dumps(found, indent=1, ensure_ascii=False, default=lambda number: number.item())
    (folder / "results.json").write_text(text + "\n", encoding="utf-8")

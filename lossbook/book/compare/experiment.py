"""Compare losses on a user's own rows: the same tuning for each, several seeds, intervals that say what is chance.

For each seed the rows are split anew. Each loss is trained at every learning rate and in each of its settings, all at
once by `lossbook.train.sweep`; the validation part chooses one of them, and the test part judges it. Differences are
taken seed by seed, because two losses with the same seed share the split, the initial weights and the batches.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lossbook import _files, checks, metrics, models
from lossbook.book.audit.calibration import literal
from lossbook.book.compare.data import TEST_SHARE, Parts, Rows, split
from lossbook.book.compare.losses import Candidate, check_losses
from lossbook.data import DataError
from lossbook.metrics._bins import uniform_edges
from lossbook.metrics.calibration import ReliabilityBins, reliability_of, uniform_sums
from lossbook.train.checkpoint import digest

if TYPE_CHECKING:
    from pandas import DataFrame

MIN_SEEDS = 3
RATES = (0.0003, 0.001, 0.003, 0.01, 0.03)
MODELS = ("auto", "mlp", "linear", "cnn")
#: What can be compared by: how it is called, and whether more of it is better.
METRICS = {"accuracy": ("accuracy", True), "macro_accuracy": ("macro accuracy", True), "log_loss": ("log-loss", False)}
#: What is measured on the test part, and what it means.
MEASURES = {
    "accuracy": "share of rows whose label is predicted",
    "macro_accuracy": "mean over classes of the share of their rows that is predicted",
    "log_loss": "mean of -log P(label), nats",
    "ece": "calibration error of the predicted label, 15 bins of equal width",
    "ece_debiased": "the same less its estimated bias",
}
_BINS = 15
# Steps that the networks here need to settle, and how many epochs that may take.
_STEPS, _EPOCHS = 600, (10, 150)
_EVALUATIONS = 10
_RISE = 0.01  # of validation accuracy over the last quarter of the training
_LEVEL = 0.95


@dataclass(frozen=True)
class Comparison:
    """The result of `compare`."""

    rows: Rows
    candidates: list[Candidate]
    settings: dict[str, Any]  #: metric, model, epochs, batch_size, rates, seeds
    results: DataFrame  #: a row per loss and seed: loss, seed, lr, setting, val, the measures on the test part, seconds
    curves: DataFrame  #: of the chosen network, a row per loss, seed and evaluated epoch
    classes: DataFrame  #: a row per loss, seed and class: rows of the test part, and how many are right
    bins: dict[str, Tensor]  #: loss -> (3, 15) sums over the bins of the confidence, all seeds together

    @property
    def labels(self) -> list[str]:
        """The losses in the order given; the first is the one that the others are held against."""
        return [candidate.label for candidate in self.candidates]

    @property
    def seeds(self) -> list[int]:
        return list(self.settings["seeds"])

    def reliability(self, loss: str) -> ReliabilityBins:
        """What a reliability diagram draws of a loss, over the test rows of all seeds."""
        return reliability_of(self.bins[loss], uniform_edges(_BINS))


def interval(
    values: Any, *, test_share: float = TEST_SHARE, level: float = _LEVEL, floor: float = 0.0
) -> tuple[float, float, float]:
    """Mean of a measure over random splits of the same rows, and its confidence interval.

        m ± t s √(1/J + q/(1 - q)),  s² the variance of the J values, q the share of the rows in the test part,
        t the quantile of Student's distribution with J - 1 degrees of freedom

    The plain interval of J values has √(1/J). It takes them for independent, which they are not, as the splits share
    rows, and is too narrow.

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


def compare(
    rows: Rows,
    candidates: Sequence[Candidate],
    *,
    seeds: Sequence[int] = range(5),
    rates: Sequence[float] = RATES,
    epochs: int | None = None,
    batch_size: int = 64,
    model: str = "auto",
    metric: str = "accuracy",
    device: str = "auto",
    folder: str | os.PathLike[str] | None = None,
) -> Comparison:
    """Train every loss at every rate and setting for every seed, and judge what validation chose.

    Args:
        rows: by `lossbook.book.compare.data.read`.
        candidates: by `lossbook.book.compare.losses.parse_losses`; the first is the baseline.
        seeds: at least 3; each makes its own split, weights and batches, the same for all losses.
        rates: learning rates of Adam to choose among, the same for all losses; each falls to 0 as a cosine.
        epochs: None takes as many as make 600 steps, between 10 and 150.
        batch_size: rows a step.
        model: "mlp" (two hidden layers of 64), "linear" or, for images, "cnn"; "auto" takes mlp for a table.
        metric: "accuracy", "macro_accuracy" (the mean over classes) or "log_loss": what validation chooses by, and the
            losses are compared by. Ties go to the lower log-loss on the validation part.
        device: as for `sweep`.
        folder: where trained networks are kept, so that a comparison cut short goes on there; None: nowhere.

    Raises:
        ValueError: a bad argument; a DataError where data and losses do not fit.
    """
    import pandas as pd

    seeds, candidates = [checks.whole("seeds", seed, 0) for seed in seeds], list(candidates)
    if len(set(seeds)) < max(MIN_SEEDS, len(seeds)):
        raise ValueError(f"seeds must be {MIN_SEEDS} or more different ones, but are {seeds}")
    if not candidates:
        raise ValueError("candidates is empty: there is no loss to compare")
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, but is {metric!r}")
    rates = sorted(set(rates))
    kind = _kind(rows, model)
    if kind == "linear" and (reading := next((c.label for c in candidates if c.reads_features), None)):
        raise DataError(f"{reading} reads the features of a network, and a linear one has none: choose another --model")
    try:
        check_losses(candidates, len(rows.classes))
    except ValueError as error:
        raise DataError(f"{rows.name} has {len(rows.classes)} classes: {error}") from None
    steps = math.ceil((1 - 2 * TEST_SHARE) * len(rows) / batch_size)
    epochs = epochs or int(np.clip(math.ceil(_STEPS / steps), *_EPOCHS))
    how = {"epochs": epochs, "batch_size": batch_size, "device": device}
    found: list[_Judged] = []
    for seed in seeds:
        parts = split(rows, seed)
        for candidate in candidates:
            found.append(_train(rows, parts, candidate, seed, kind, rates, metric, how, folder))
    settings = {"metric": metric, "model": kind, "epochs": epochs, "batch_size": batch_size}
    settings |= {"rates": rates, "seeds": seeds}
    bins = {c.label: sum(j.bins for j in found if j.row["loss"] == c.label) for c in candidates}
    return Comparison(
        rows,
        candidates,
        settings,
        pd.DataFrame([judged.row for judged in found]),
        pd.concat([judged.curve for judged in found], ignore_index=True),
        pd.concat([judged.classes for judged in found], ignore_index=True),
        {label: torch.as_tensor(value) for label, value in bins.items()},
    )


def _kind(rows: Rows, model: str) -> str:
    if model not in MODELS:
        raise ValueError(f"model must be one of {', '.join(MODELS)}, but is {model!r}")
    if model == "auto":
        return "mlp" if rows.images is None else "cnn"
    if model == "cnn" and rows.images is None:
        raise DataError(f"{rows.name} holds a table, and a cnn wants images: choose mlp or linear")
    return model


def _maker(kind: str, x: Tensor, num_classes: int) -> Callable[[], nn.Module]:
    width = x[0].numel()
    if kind == "mlp":
        return lambda: models.MLP(width, (64, 64), num_classes)
    if kind == "cnn":
        return lambda: models.SmallCNN(x.shape[1], num_classes, image_size=x.shape[2])
    return lambda: nn.Sequential(nn.Flatten(), nn.Linear(width, num_classes))


@dataclass(frozen=True)
class _Judged:
    """A loss with one seed: its row of the results, and what the figures need."""

    row: dict[str, Any]
    curve: DataFrame
    classes: DataFrame
    bins: Tensor


def _train(
    rows: Rows,
    parts: Parts,
    candidate: Candidate,
    seed: int,
    kind: str,
    rates: Sequence[float],
    metric: str,
    how: dict[str, Any],
    folder: str | os.PathLike[str] | None,
) -> _Judged:
    """Train a loss in all its settings, choose by the validation part, judge by the test part."""
    import pandas as pd

    from lossbook.train import sweep

    grid = [{**setting, "lr": lr} for setting in candidate.settings for lr in rates]
    data = _TrainVal(parts.train, parts.val)
    kept = None if folder is None else Path(folder) / _key(parts, candidate, seed, kind, how)
    began = kept is not None and any(kept.glob("*.part"))
    result = sweep(
        _maker(kind, parts.train.x, len(rows.classes)), data, grid, loss=candidate.loss, seed=seed, schedule="cosine",
        eval_every=math.ceil(how["epochs"] / _EVALUATIONS), checkpoint=kept, progress=False, **how,
    )  # fmt: skip
    seconds = _seconds(kept, repr(grid), result.seconds, began)
    val = [measures(logits, parts.val.y) for logits in result.logits(parts.val.x)]
    sign = -1 if METRICS[metric][1] else 1
    alive = [i for i in range(len(grid)) if math.isfinite(val[i]["log_loss"])]
    row: dict[str, Any] = {"loss": candidate.label, "seed": seed, "lr": math.nan, "setting": ""}
    row |= {"settings": len(grid), "diverged": len(grid) - len(alive), "val": math.nan}
    row |= dict.fromkeys(MEASURES, math.nan)
    best = min(alive, key=lambda i: (sign * val[i][metric], val[i]["log_loss"]), default=None)
    history = result.history[result.history.configuration == (-1 if best is None else best)]
    curve = history[["epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy"]]
    right, bins = np.zeros(len(rows.classes)), torch.zeros(3, _BINS, dtype=torch.float64)
    if best is not None:
        with torch.no_grad():
            logits = torch.cat([result.model(best)(x) for x in parts.test.x.split(2048)])
        row |= {"lr": grid[best]["lr"], "setting": _choice(candidate, grid[best])}
        row |= {"val": val[best][metric], **measures(logits, parts.test.y)}
        right = _right(logits, parts.test.y)
        bins = uniform_sums(logits.double().softmax(dim=1), parts.test.y, _BINS)
    classes = pd.DataFrame({"class": rows.classes, "rows": _support(parts.test.y, len(rows.classes)), "right": right})
    labelled = {"loss": candidate.label, "seed": seed}
    return _Judged(
        {**row, "seconds": seconds}, curve.assign(**labelled), classes.assign(**labelled).astype({"right": int}), bins
    )


def _choice(candidate: Candidate, chosen: dict[str, Any]) -> str:
    """The parameters that were to be chosen, with what was chosen."""
    open_ = [key for key in candidate.settings[0] if len({setting[key] for setting in candidate.settings}) > 1]
    return ", ".join(f"{key}={chosen[key]}" for key in open_)


@dataclass(frozen=True)
class _TrainVal:
    """What a sweep may see: no test part."""

    train: Any
    val: Any


def measures(logits: Tensor, target: Tensor) -> dict[str, float]:
    """`MEASURES` of logits (N, K) and labels (N,); probabilities are their softmax. NaN where a logit is not finite."""
    if not torch.isfinite(logits).all():
        return dict.fromkeys(MEASURES, math.nan)
    probs = logits.double().softmax(dim=1)
    support = _support(target, logits.shape[1])
    held = support > 0
    return {
        "accuracy": metrics.accuracy(logits, target),
        "macro_accuracy": float((_right(logits, target)[held] / support[held]).mean()),
        "log_loss": metrics.negative_log_likelihood(logits.double(), target, from_logits=True),
        "ece": metrics.expected_calibration_error(probs, target, n_bins=_BINS),
        "ece_debiased": metrics.expected_calibration_error(probs, target, n_bins=_BINS, debias=True),
    }


def _support(target: Tensor, k: int) -> NDArray[np.int64]:
    return torch.bincount(target, minlength=k).numpy()


def _right(logits: Tensor, target: Tensor) -> NDArray[np.float64]:
    """(K,) rows of each class that are predicted."""
    correct = target[logits.argmax(dim=1) == target]
    return torch.bincount(correct, minlength=logits.shape[1]).double().numpy()


def _key(parts: Parts, candidate: Candidate, seed: int, kind: str, how: dict[str, Any]) -> str:
    """The name of the folder for a loss with a seed; which of its networks still stand is the sweep's to say."""
    tensors = {
        f"{i}{name}": value for i, part in enumerate(parts[:2]) for name, value in zip("xy", part[:2], strict=True)
    }
    tensors["how"] = torch.tensor(list(f"{candidate.loss.__name__} {seed} {kind} {sorted(how.items())}".encode()))
    return digest(tensors)[:24]


def _seconds(kept: Path | None, grid: str, seconds: float, began: bool) -> float:
    """What the training of this grid took; NaN where it was cut short and went on, or other settings were there."""
    if kept is None:
        return seconds
    file = kept / "seconds.json"
    if not began:
        with contextlib.suppress(OSError):
            _files.write_atomically(file, json.dumps({"grid": grid, "seconds": seconds}))
        return seconds
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
        return float(known["seconds"]) if known["grid"] == grid else math.nan
    except (OSError, ValueError, TypeError, KeyError):
        return math.nan


def summary(comparison: Comparison) -> DataFrame:
    """A row a loss: each measure's mean over seeds with its 95 % interval, and the difference to the first loss.

    Columns: the measures, each also with " low" and " high"; difference, "difference low", "difference high" (of the
    metric compared by, loss minus baseline); tried (settings), chosen (the most frequent), times (how often), seconds
    (mean over the seeds that were not cut short). The intervals of the differences hold together with 95 %: of k
    differences each has the level 1 - 0.05/k (Bonferroni). NaN where a loss diverged in a seed at every rate.
    """
    import pandas as pd

    metric, n_test = comparison.settings["metric"], TEST_SHARE * len(comparison.rows)
    by_seed = comparison.results.set_index(["loss", "seed"])
    others = max(1, len(comparison.labels) - 1)
    table = []
    for label in comparison.labels:
        one = by_seed.loc[label]
        row: dict[str, Any] = {"loss": label}
        for name in MEASURES:
            floor = 1 / n_test if "accuracy" in name else 0.0
            row |= _ends(name, one[name], floor=floor)
        if label != comparison.labels[0]:
            difference = one[metric] - by_seed.loc[comparison.labels[0]][metric]
            floor = 1 / n_test if "accuracy" in metric else 0.0
            row |= _ends("difference", difference, floor=floor, level=1 - (1 - _LEVEL) / others)
        chosen = ("lr=" + one.lr.map("{:g}".format) + one.setting.map(lambda text: text and f", {text}")).value_counts()
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
            unseen.append((label, (high - low) / 2))
            continue
        ahead = "ahead of" if (mean > 0) == more else "behind"
        sentences.append(
            f"**{literal(label)} is {ahead} {literal(first)}**: {name} {_number(mean, metric)} {_unit(metric)} "
            f"[{_number(low, metric)}, {_number(high, metric)}] with {j} seeds."
        )
    if unseen:
        seen = ", ".join(
            f"{_number(half, metric).lstrip('+')} {_unit(metric)} ({literal(label)})" for label, half in unseen
        )
        sentences.append(
            f"**No difference in {name} to {literal(first)} can be seen with {j} seeds for "
            f"{_and([literal(label) for label, _ in unseen])}.** This large a difference would have been seen: {seen}. "
            "That none is seen does not say that there is none."
        )
    if len(others) > 1:
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
        gone = one.seed[one.lr.isna()].tolist()
        if gone:
            found.append(
                f"{literal(label)} diverged at every learning rate with seed {_and(list(map(str, gone)))}, and is left "
                "out of the comparison: give smaller ones by --lr."
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

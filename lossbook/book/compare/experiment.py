"""Train losses on the same rows, each with the same tuning, over several seeds.

For each seed the rows are split anew. Each loss is trained at every learning rate and in each of its settings, all at
once by `lossbook.train.sweep`; the validation part chooses one of them, and the test part judges it. Two losses
with the same seed share the split, the initial weights and the batches.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lossbook import _files, checks, metrics, models
from lossbook.book.compare.data import Rows
from lossbook.book.compare.losses import Candidate, check_losses
from lossbook.book.compare.parts import TEST_SHARE, Parts, split
from lossbook.data import DataError
from lossbook.metrics._bins import uniform_edges
from lossbook.metrics.calibration import ReliabilityBins, reliability_of, uniform_sums
from lossbook.train.checkpoint import digest
from lossbook.train.settings import one_of

if TYPE_CHECKING:
    from pandas import DataFrame

    from lossbook.train import SweepResult

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


@dataclass(frozen=True)
class Comparison:
    """The result of `compare`."""

    rows: Rows
    candidates: list[Candidate]
    settings: dict[str, Any]  #: metric, model, epochs, batch_size, rates, seeds
    results: DataFrame  #: a row per loss and seed: loss, seed, lr, setting, val, the measures on the test part, seconds
    curves: DataFrame  #: of the chosen network, a row per loss, seed and evaluated epoch
    classes: DataFrame  #: a row per loss, seed and class: rows of the test part (0 if it diverged), how many are right
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
    one_of("metric", metric, tuple(METRICS))
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
    plan = _Plan(kind, rates, metric, how, None if folder is None else Path(folder))
    found: list[_Judged] = []
    for seed in seeds:
        parts = split(rows, seed)
        found += [_train(plan, rows.classes, parts, candidate, seed) for candidate in candidates]
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
    one_of("model", model, MODELS)
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
class _Plan:
    """What is the same for all losses and seeds."""

    kind: str
    rates: list[float]
    metric: str
    how: dict[str, Any]  #: epochs, batch_size, device: for the sweep
    folder: Path | None


@dataclass(frozen=True)
class _Judged:
    """A loss with one seed: its row of the results, and what the figures need."""

    row: dict[str, Any]
    curve: DataFrame
    classes: DataFrame
    bins: Tensor


def _train(plan: _Plan, classes: tuple[str, ...], parts: Parts, candidate: Candidate, seed: int) -> _Judged:
    """Train a loss in all its settings, choose by the validation part, judge by the test part."""
    import pandas as pd

    grid = [{**setting, "lr": lr} for setting in candidate.settings for lr in plan.rates]
    result, seconds = _sweep(plan, len(classes), parts, candidate, seed, grid)
    val = [measures(logits, parts.val.y) for logits in result.logits(parts.val.x)]
    alive = [i for i in range(len(grid)) if math.isfinite(val[i]["log_loss"])]
    sign = -1 if METRICS[plan.metric][1] else 1
    best = min(alive, key=lambda i: (sign * val[i][plan.metric], val[i]["log_loss"]), default=None)
    labelled = {"loss": candidate.label, "seed": seed}
    row = {**labelled, "lr": math.nan, "setting": "", "settings": len(grid), "diverged": len(grid) - len(alive)}
    row |= {"val": math.nan, **dict.fromkeys(MEASURES, math.nan), "seconds": seconds}
    bins, support, right = torch.zeros(3, _BINS, dtype=torch.float64), *np.zeros((2, len(classes)), np.int64)
    if best is not None:
        with torch.no_grad():
            logits = torch.cat([result.model(best)(x) for x in parts.test.x.split(2048)])
        row |= {"lr": grid[best]["lr"], "setting": _choice(candidate, grid[best]), "val": val[best][plan.metric]}
        row |= measures(logits, parts.test.y)
        bins = uniform_sums(logits.double().softmax(dim=1), parts.test.y, _BINS)
        support, right = _support_and_right(logits, parts.test.y)
    history = result.history[result.history.configuration == (-1 if best is None else best)]
    curve = history[["epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy"]]
    by_class = pd.DataFrame({"class": classes, "rows": support, "right": right})
    return _Judged(row, curve.assign(**labelled), by_class.assign(**labelled), bins)


def _sweep(
    plan: _Plan, num_classes: int, parts: Parts, candidate: Candidate, seed: int, grid: list[dict[str, Any]]
) -> tuple[SweepResult, float]:
    """(the trained networks, the seconds of their training or NaN); the test part is kept from it."""
    from lossbook.train import sweep

    kept = None if plan.folder is None else plan.folder / _key(plan, parts, candidate, seed)
    began = kept is not None and any(kept.glob("*.part"))
    result = sweep(
        _maker(plan.kind, parts.train.x, num_classes),
        SimpleNamespace(train=parts.train, val=parts.val),
        grid,
        loss=candidate.loss,
        seed=seed,
        schedule="cosine",
        eval_every=math.ceil(plan.how["epochs"] / _EVALUATIONS),
        checkpoint=kept,
        progress=False,
        **plan.how,
    )
    return result, _seconds(kept, repr(grid), result.seconds, began)


def _choice(candidate: Candidate, chosen: dict[str, Any]) -> str:
    """The parameters that were to be chosen, with what was chosen."""
    open_ = [key for key in candidate.settings[0] if len({setting[key] for setting in candidate.settings}) > 1]
    return ", ".join(f"{key}={chosen[key]}" for key in open_)


def measures(logits: Tensor, target: Tensor) -> dict[str, float]:
    """`MEASURES` of logits (N, K) and labels (N,); probabilities are their softmax. NaN where a logit is not finite."""
    if not torch.isfinite(logits).all():
        return dict.fromkeys(MEASURES, math.nan)
    probs = logits.double().softmax(dim=1)
    support, right = _support_and_right(logits, target)
    held = support > 0
    return {
        "accuracy": metrics.accuracy(logits, target),
        "macro_accuracy": float((right[held] / support[held]).mean()),
        "log_loss": metrics.negative_log_likelihood(logits.double(), target, from_logits=True),
        "ece": metrics.expected_calibration_error(probs, target, n_bins=_BINS),
        "ece_debiased": metrics.expected_calibration_error(probs, target, n_bins=_BINS, debias=True),
    }


def _support_and_right(logits: Tensor, target: Tensor) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(K,) rows of each class, and (K,) those of them that are predicted."""
    k, right = logits.shape[1], target[logits.argmax(dim=1) == target]
    return torch.bincount(target, minlength=k).numpy(), torch.bincount(right, minlength=k).numpy()


def _key(plan: _Plan, parts: Parts, candidate: Candidate, seed: int) -> str:
    """The name of the folder for a loss with a seed; which of its networks still stand is the sweep's to say."""
    tensors = {
        f"{i}{name}": value for i, part in enumerate(parts[:2]) for name, value in zip("xy", part[:2], strict=True)
    }
    how = f"{candidate.loss.__name__} {seed} {plan.kind} {sorted(plan.how.items())}"
    tensors["how"] = torch.tensor(list(how.encode()))
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

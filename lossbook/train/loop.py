"""`fit`: train one network with plain PyTorch."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lossbook import checks
from lossbook.train import checkpoint as checkpoints
from lossbook.train.settings import (
    EVALUATION_ROWS,
    Examples,
    Loss,
    Outputs,
    Penalty,
    Settings,
    asks_for,
    batch_order,
    check_labels,
    examples,
    function,
    module_of,
    own_randomness,
    pick_device,
    probe,
    progress_bar,
)

if TYPE_CHECKING:
    from pandas import DataFrame


class Diverged(FloatingPointError):
    """The objective became NaN or infinite. `epoch` and `step` (from 1) say when, `history` holds the rows before."""

    def __init__(self, epoch: int, step: int, history: DataFrame) -> None:
        super().__init__(f"the loss is not finite at epoch {epoch}, step {step}: try a smaller lr")
        self.epoch, self.step, self.history = epoch, step, history


def fit(
    model: nn.Module,
    data: Any,
    loss: Loss,
    *,
    epochs: int = 20,
    batch_size: int | None = 128,
    lr: float = 1e-3,
    weight_decay: float = 0.0,
    optimizer: str = "adam",
    momentum: float = 0.9,
    schedule: str = "constant",
    seed: int = 0,
    penalty: Penalty | None = None,
    device: str | torch.device = "auto",
    eval_every: int = 1,
    callback: Callable[[int, nn.Module], None] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> DataFrame:
    """Train model in place and return its history. The model stays on the device, in evaluation mode.

    Each step minimises loss(logits, target) + penalty(model, features) over a batch. The seed fixes the order of the
    batches and what dropout draws; the initial weights are the caller's. torch's global generator stays as it was.

    Args:
        model: maps x (N, ...) to logits (N, C).
        data: a `lossbook.data.Dataset`, or anything whose `.train` and `.val` unpack to x (N, ...), y (N,) int64.
        loss: `loss(logits, target)` -> scalar, the mean over the batch. One that has a parameter `features` is given
            model.features(x) by that name. One that has a parameter `index` is given, while training, the rows' places
            in the training split. A module is trained in place: it is switched between training and evaluation mode
            with the model.
        epochs: passes over the training split.
        batch_size: examples a step, the last batch of an epoch may be smaller; None: the whole split, in its order.
        lr: learning rate > 0.
        weight_decay: L2 decay as torch's optimisers understand it: weight_decay * w is added to the gradient.
        optimizer: "adam" (betas 0.9 and 0.999) or "sgd" (with momentum).
        momentum: of SGD, in [0, 1); Adam ignores it.
        schedule: "constant", or "cosine": lr * (1 + cos(pi t / T)) / 2 at step t of T.
        seed: of the batch order and of dropout.
        penalty: `penalty(model, features)` -> scalar, added to the loss of each batch; features = model.features(x).
        device: "auto" takes CUDA where there is one.
        eval_every: evaluate after every so many epochs, and after the last.
        callback: called as callback(epoch, model) after each epoch, the model in evaluation mode.
        checkpoint: file written after each epoch; a run that finds one of its own goes on from there and ends with the
            weights of an uninterrupted run, bit for bit. A damaged one is put aside with a warning. Beside it stands an
            empty lock file, by which a second run with the same checkpoint is refused.
        progress: show a bar; None shows it in a terminal or a live notebook.

    Returns:
        DataFrame, a row per evaluated epoch: epoch (from 1), train_loss, train_accuracy, val_loss, val_accuracy (the
        loss without penalty, in evaluation mode, after the epoch's last step; accuracies in [0, 1]), seconds (since
        the start, evaluation included).

    Raises:
        ValueError, TypeError: an argument is refused; the checkpoint is of another run, in use by another process, or
            in a folder that cannot be written to.
        Diverged: the objective is NaN or infinite; a FloatingPointError that carries the history so far.
    """
    settings = Settings(epochs, batch_size, lr, weight_decay, optimizer, momentum, schedule, seed, eval_every)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, but is {type(model).__name__}")
    function("loss", loss)
    place = pick_device(device)
    train, val = examples(data, "train", place), examples(data, "val", place)
    outputs = Outputs(model, penalty, with_features=asks_for(loss, "features")).to(place)
    if module := module_of(loss):
        module.to(place)
    with own_randomness(seed, place), checks.values(False):
        *start, num_classes = probe(outputs, loss, train)
        check_labels("val.y", val.y, num_classes)
        run = _Run(outputs, loss, settings, train, val)
        with ExitStack() as stack:
            path = None
            if checkpoint is not None:
                path = stack.enter_context(checkpoints.held(checkpoint))
                identity = run.identity(*start)
                run.restore(checkpoints.read(path, identity))
            bar = stack.enter_context(progress_bar(epochs, "fit", progress))
            bar.update(run.epoch)
            while run.epoch < epochs:
                run.next_epoch()
                if callback is not None:
                    callback(run.epoch, model)
                if path is not None:
                    checkpoints.write(path, {"run": identity, **run.state()})
                bar.update()
    return run.frame()


class _Run:
    """The state of a training that a checkpoint holds, and the step from one epoch to the next."""

    def __init__(self, outputs: Outputs, loss: Loss, settings: Settings, train: Examples, val: Examples) -> None:
        self.outputs, self.loss, self.settings, self.train, self.val = outputs, loss, settings, train, val
        self.model = outputs.model
        self.modules = [outputs, *filter(None, [module_of(loss)])]
        self.reads_features, self.indexed = asks_for(loss, "features"), asks_for(loss, "index")
        self.optimizer = make_optimizer(self.model, settings)
        self.order = batch_order(settings.seed)
        self.epoch = 0
        self.seconds = 0.0
        self.history: list[dict[str, float]] = []

    def next_epoch(self) -> None:
        start = time.perf_counter()
        self.epoch += 1
        for module in self.modules:
            module.train()
        losses = torch.stack(self.steps())
        for module in self.modules:
            module.eval()
        # One look at the losses an epoch: a look a step would make a GPU wait for each.
        bad = (~torch.isfinite(losses)).nonzero()
        if len(bad):
            raise Diverged(self.epoch, int(bad[0]) + 1, self.frame())
        row: dict[str, float] = {"epoch": self.epoch}
        if self.settings.evaluates(self.epoch):
            for name, split in (("train", self.train), ("val", self.val)):
                row[f"{name}_loss"], row[f"{name}_accuracy"] = evaluate(self.outputs, self.loss, split)
            if not abs(row["train_loss"]) < float("inf"):
                raise Diverged(self.epoch, len(losses), self.frame())
        self.seconds += time.perf_counter() - start
        if self.settings.evaluates(self.epoch):
            self.history.append({**row, "seconds": self.seconds})

    def steps(self) -> list[Tensor]:
        """One epoch of gradient steps; the objective of each."""
        x, y = self.train
        n, rows = len(x), self.settings.rows(len(x))
        steps = self.settings.steps(n)
        step = (self.epoch - 1) * (steps // self.settings.epochs)
        full = rows == n
        batches = [None] if full else torch.randperm(n, generator=self.order).to(x.device).split(rows)
        values = []
        for batch in batches:
            for group in self.optimizer.param_groups:
                group["lr"] = self.settings.lr * self.settings.lr_factor(step, steps)
            logits, features, penalty = self.outputs(x if batch is None else x[batch])
            extra = {"features": features} if self.reads_features else {}
            if self.indexed:
                extra["index"] = torch.arange(n, device=x.device) if batch is None else batch
            value = self.loss(logits, y if batch is None else y[batch], **extra) + penalty
            self.optimizer.zero_grad()
            value.backward()
            self.optimizer.step()
            values.append(value.detach())
            step += 1
        return values

    def frame(self) -> DataFrame:
        import pandas as pd

        columns = ["epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "seconds"]
        return pd.DataFrame(self.history, columns=columns)

    def identity(self, loss: float, penalty: float) -> dict[str, Any]:
        """What makes this run this run. Loss and penalty at the start stand for what their code and the model's do."""
        tensors = {"train.x": self.train.x, "train.y": self.train.y, "val.x": self.val.x, "val.y": self.val.y}
        return {
            **vars(self.settings),
            "data": checkpoints.digest(tensors),
            "initial weights": checkpoints.digest(self.model.state_dict()),
            "model": checkpoints.structure(self.model),
            "loss": checkpoints.structure(module) if (module := module_of(self.loss)) else None,
            "loss at the start": loss,
            "penalty at the start": penalty,
        }

    def state(self) -> dict[str, Any]:
        cuda = self.train.x.is_cuda
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "loss": module.state_dict() if (module := module_of(self.loss)) else {},
            "order": self.order.get_state(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(self.train.x.device) if cuda else None,
            "epoch": self.epoch,
            "seconds": self.seconds,
            "history": self.history,
        }

    def restore(self, state: dict[str, Any] | None) -> None:
        if state is None:
            return
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if module := module_of(self.loss):
            module.load_state_dict(state["loss"])
        self.order.set_state(state["order"])
        torch.set_rng_state(state["random"])
        if state["random_cuda"] is not None and self.train.x.is_cuda:
            torch.cuda.set_rng_state(state["random_cuda"], self.train.x.device)
        self.epoch, self.seconds, self.history = state["epoch"], state["seconds"], state["history"]


def make_optimizer(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """torch's Adam or SGD over the parameters that train."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError(f"model has no parameter that trains: {type(model).__name__}")
    if settings.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=settings.lr, weight_decay=settings.weight_decay)
    return torch.optim.SGD(parameters, settings.lr, settings.momentum, weight_decay=settings.weight_decay)


@torch.no_grad()
def evaluate(outputs: Outputs, loss: Loss, split: Examples) -> tuple[float, float]:
    """Mean loss, without penalty, and accuracy on a split, in the model's present mode, without a graph."""
    total = torch.zeros((), dtype=torch.float64, device=split.x.device)
    correct = torch.zeros_like(total)
    for x, y in zip(split.x.split(EVALUATION_ROWS), split.y.split(EVALUATION_ROWS), strict=True):
        logits, features, _ = outputs(x)
        extra = {"features": features} if asks_for(loss, "features") else {}
        total += loss(logits, y, **extra) * len(y)
        correct += (logits.argmax(1) == y).sum()
    return float(total) / len(split.y), float(correct) / len(split.y)

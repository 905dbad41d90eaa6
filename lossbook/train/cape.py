"""`fit_cape`: go on from an early-stopped network, on labels and on observed frequencies in turn."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lossbook import checks
from lossbook.losses import cross_entropy
from lossbook.losses.calibration import cape_targets
from lossbook.train.loop import evaluate, fit
from lossbook.train.settings import EVALUATION_ROWS, Examples, Outputs, check_labels, examples, pick_device

if TYPE_CHECKING:
    from pandas import DataFrame


def fit_cape(
    model: nn.Module,
    data: Any,
    *,
    interval: int = 5,
    kind: str = "bin",
    n_bins: int = 10,
    sigma: float = 0.1,
    window: int = 500,
    epochs: int = 10,
    batch_size: int | None = 256,
    lr: float = 1e-3,
    weight_decay: float = 0.0,
    optimizer: str = "adam",
    momentum: float = 0.9,
    schedule: str = "constant",
    seed: int = 0,
    device: str | torch.device = "auto",
    callback: Callable[[int, nn.Module], None] | None = None,
    progress: bool | None = None,
) -> DataFrame:
    """Calibrated probability estimation: train an early-stopped network of an event further, in place.

    Epoch e = 0, 1, ... minimises the cross-entropy -mean[t log p + (1 - t) log(1 - p)], p the softmax of the event,

        e mod (interval + 1) = 0:  t = cape_targets(p, y), p of the whole training split at the start of the epoch
        otherwise:                 t = y

    Those p are taken in evaluation mode and without gradient; t does not change during the epoch. The model ends with
    the weights of the epoch whose validation cross-entropy (on the outcomes) is lowest, in evaluation mode. As in the
    authors' code the network before the first epoch is no candidate. Their halving of lr on a plateau is left out.

    Args:
        model: maps x (N, ...) to two logits (N, 2), of "no event" and of the event; already trained to its best
            validation loss.
        data: as for `fit`, with labels 0 and 1.
        interval: m >= 0 epochs on the outcomes between two on CaPE's targets.
        kind, n_bins, sigma, window: as for `losses.calibration.cape_targets`.
        epochs, batch_size, lr, weight_decay, optimizer, momentum, schedule, seed, device, callback, progress: as for
            `fit`. The optimiser starts anew.

    Returns:
        DataFrame as from `fit`, losses on the outcomes, and a column `targets`: "cape" or "outcomes".

    Raises:
        ValueError, TypeError: an argument is refused, by name.
        Diverged: as for `fit`.

    Source: Liu, Kaku, Zhu et al. 2022 (arXiv 2111.10734); schedule, what is kept, and the defaults of interval, kind,
        n_bins, sigma, window, epochs and batch_size as in the authors' code, calibration_tools/cape.py.
    """
    interval = checks.whole("interval", interval, 0)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, but is {type(model).__name__}")
    place = pick_device(device)
    train, val = examples(data, "train", place), examples(data, "val", place)
    model.to(place)

    def targets_for(epoch: int) -> Tensor | None:
        if epoch % (interval + 1):
            return None
        t = cape_targets(_event(model, train), train.y, kind=kind, n_bins=n_bins, sigma=sigma, window=window)
        return torch.stack((1 - t, t), dim=1)

    targets = targets_for(0)

    def loss(logits: Tensor, target: Tensor, *, index: Tensor | None = None) -> Tensor:
        # Without an index it is an evaluation, which is always on the outcomes.
        return cross_entropy(logits, target if targets is None or index is None else targets[index])

    best, kept = float("inf"), copy.deepcopy(model.state_dict())

    def after(epoch: int, model: nn.Module) -> None:
        nonlocal best, kept, targets
        value, _ = evaluate(Outputs(model, None), cross_entropy, val)
        if value < best:
            best, kept = value, copy.deepcopy(model.state_dict())
        if callback is not None:
            callback(epoch, model)
        if epoch < epochs:
            targets = targets_for(epoch)

    history = fit(
        model,
        data,
        loss,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        weight_decay=weight_decay,
        optimizer=optimizer,
        momentum=momentum,
        schedule=schedule,
        seed=seed,
        device=place,
        callback=after,
        progress=progress,
    )
    model.load_state_dict(kept)
    history["targets"] = ["outcomes" if (epoch - 1) % (interval + 1) else "cape" for epoch in history["epoch"]]
    return history


@torch.no_grad()
def _event(model: nn.Module, split: Examples) -> Tensor:
    """The probability of the event for every row, in evaluation mode."""
    model.eval()
    logits = torch.cat([model(x) for x in split.x.split(EVALUATION_ROWS)])
    if logits.dim() != 2 or logits.shape[1] != 2:
        raise ValueError(
            f"the model must return logits (N, 2), of no event and event, but returns {tuple(logits.shape)}"
        )
    check_labels("train.y", split.y, 2)
    return logits.softmax(dim=1)[:, 1]

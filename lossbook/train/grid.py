"""The configurations of a sweep: from a grid to checked settings, losses and their parameters."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import nn

from lossbook.train.settings import Loss, Settings, function, real

# Grid keys that belong to the training; every other key is an argument of the loss.
_OF_SETTINGS = ("seed", "lr", "weight_decay", "momentum")
_RESERVED = (*_OF_SETTINGS, "loss", "label_noise")
_OF_SWEEP = {field.name for field in fields(Settings)} - set(_OF_SETTINGS)


@dataclass(frozen=True)
class Configuration:
    """One row of a sweep: how it trains, with which loss and which arguments of the loss."""

    row: dict[str, Any]
    settings: Settings
    loss: Loss
    arguments: dict[str, Any]
    label_noise: float

    @property
    def bound_loss(self) -> Loss:
        """The loss as a function of logits and target alone."""
        return functools.partial(self.loss, **self.arguments) if self.arguments else self.loss

    def described(self, keys: Sequence[str]) -> dict[str, Any]:
        """The values under these grid keys, those that the row leaves to sweep's arguments included."""
        own = {**vars(self.settings), **self.arguments, "loss": loss_name(self.loss), "label_noise": self.label_noise}
        return {key: own[key] for key in keys if key in own}

    @property
    def identity(self) -> dict[str, Any]:
        """What distinguishes this configuration from others."""
        own = {"loss": self.loss, "arguments": self.arguments, "label_noise": self.label_noise}
        return {**vars(self.settings), **own}

    @property
    def batched(self) -> dict[str, float]:
        """The numeric arguments of the loss: under vmap they are one tensor over configurations."""
        return {k: float(v) for k, v in self.arguments.items() if _is_number(v)}

    @property
    def group(self) -> tuple[Any, ...]:
        """Configurations with equal groups differ in numbers only and share one call of the loss."""
        # Large tensors that differ may look the same in print.
        static = sorted(
            (k, v if isinstance(v, str | bool | None) else id(v))
            for k, v in self.arguments.items()
            if not _is_number(v)
        )
        return (id(self.loss), tuple(static), tuple(sorted(self.batched)))


def configurations(
    grid: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]], loss: Loss, settings: Settings
) -> list[Configuration]:
    """The grid's rows as configurations; ValueError names what is wrong with it."""
    return [_configuration(row, loss, settings) for row in _rows(grid)]


def loss_name(loss: Loss) -> str:
    """How a loss appears in tables: a function's name, a partial with its arguments, or the module's repr."""
    if isinstance(loss, functools.partial):
        return f"{loss_name(loss.func)}({', '.join(f'{k}={v}' for k, v in loss.keywords.items())})"
    return getattr(loss, "__name__", None) or repr(loss)


def _rows(grid: Any) -> list[dict[str, Any]]:
    if isinstance(grid, Mapping):
        # NumPy's arrays and numbers are taken for what they hold.
        grid = {key: values.tolist() if hasattr(values, "tolist") else values for key, values in grid.items()}
        for key, values in grid.items():
            if isinstance(values, str) or not isinstance(values, Sequence | range) or not len(values):
                raise ValueError(f"grid[{key!r}] must be a list of one or more values, but is {values!r}")
        return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    if isinstance(grid, Sequence) and grid and all(isinstance(row, Mapping) for row in grid):
        return [dict(row) for row in grid]
    raise ValueError(f"grid must be a dict of lists or a list of dicts, but is {grid!r}")


def _configuration(row: dict[str, Any], default: Loss, settings: Settings) -> Configuration:
    loss = row.get("loss", default)
    function("loss", loss)
    own = {key: row[key] for key in _OF_SETTINGS if key in row}
    if "momentum" in own and settings.optimizer != "sgd":
        raise ValueError(f"the grid has momentum, but optimizer is {settings.optimizer!r}, which has none")
    noise = row.get("label_noise", 0.0)
    real("label_noise", noise, below=1.0)
    arguments = {key: value for key, value in row.items() if key not in _RESERVED}
    _check_arguments(loss, arguments)
    return Configuration(row, replace(settings, **own), loss, arguments, noise)


def _check_arguments(loss: Loss, arguments: dict[str, Any]) -> None:
    for key in arguments:
        if key in _OF_SWEEP:
            raise ValueError(f"the grid cannot vary {key!r}: give it to sweep itself")
    parameters = inspect.signature(loss.forward if isinstance(loss, nn.Module) else loss).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    taken = [name for name, p in parameters.items() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)][2:]
    for key in arguments:
        if key not in taken:
            known = ", ".join(taken) or "no arguments"
            raise ValueError(f"the grid has {key!r}, but the loss {loss_name(loss)} takes {known}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

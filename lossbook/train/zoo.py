"""`model_zoo`: networks of many shapes, trained for different times, to compare measures on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lossbook.models import MLP
from lossbook.train.settings import check_labels, examples
from lossbook.train.stacked import SweepResult, sweep

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, repr=False)
class Zoo:
    """What `model_zoo` trained.

    Attributes:
        table: DataFrame, a row per network: width, depth, epochs, weight_decay, seed, and what `SweepResult.table` says
            of its accuracy and loss.
    """

    table: DataFrame
    _sweeps: list[SweepResult]

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        return f"Zoo({len(self)} networks)"

    def logits(self, x: Tensor) -> Tensor:
        """Logits of every network, (M, N, C) on the CPU, in the order of the table."""
        return torch.cat([part.logits(x) for part in self._sweeps])


def model_zoo(
    data: Any,
    *,
    widths: Sequence[int] = (16, 64, 256),
    depths: Sequence[int] = (1, 2),
    epochs: Sequence[int] = (10, 60),
    weight_decays: Sequence[float] = (0.0, 1e-3),
    seeds: Sequence[int] = (0,),
    num_classes: int | None = None,
    **settings: Any,
) -> Zoo:
    """Train `models.MLP` in every combination of width, depth, epochs, weight decay and seed.

    A shape and its number of epochs is one call of `sweep`, which trains its weight decays and seeds stacked.

    Args:
        data: as for `fit`: `.train` and `.val` of (x, y).
        widths: units of each hidden layer.
        depths: numbers of hidden layers.
        epochs: lengths of the training.
        weight_decays: L2 decays.
        seeds: of the initial weights and of the order of the batches.
        num_classes: outputs of a network; None takes one more than the largest label of the training split.
        settings: further arguments of `sweep`, such as lr, batch_size, loss or device.

    Returns:
        `Zoo` of all networks; width varies slowest and seed fastest.

    Raises:
        ValueError, TypeError: an argument is refused, here or by `MLP` and `sweep`.
    """
    lists = {"widths": widths, "depths": depths, "epochs": epochs, "weight_decays": weight_decays, "seeds": seeds}
    for name, values in lists.items():
        if isinstance(values, str) or not isinstance(values, Sequence) or not len(values):
            raise ValueError(f"{name} must be a list of one or more values, but is {values!r}")
    import pandas as pd

    x, y = examples(data, "train", torch.device("cpu"))
    classes = int(y.max()) + 1 if num_classes is None else num_classes
    check_labels("train.y", y, classes)
    tables, sweeps = [], []
    grid: dict[str, Sequence[Any]] = {"weight_decay": list(weight_decays), "seed": list(seeds)}
    for width, depth, length in product(widths, depths, epochs):

        def network(hidden: tuple[int, ...] = (width,) * depth) -> MLP:
            return MLP(x[0].numel(), hidden, classes)

        trained = sweep(network, data, grid, epochs=length, **{"eval_every": length, **settings})
        sweeps.append(trained)
        tables.append(trained.table.assign(width=width, depth=depth, epochs=length))
    table = pd.concat(tables, ignore_index=True)
    first = ["width", "depth", "epochs"]
    return Zoo(table[first + [name for name in table if name not in first]], sweeps)

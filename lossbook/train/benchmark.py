"""How much faster `sweep` is than one training after the other."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch

from lossbook.losses import cross_entropy
from lossbook.train.settings import whole
from lossbook.train.stacked import sweep


def bench_sweep(
    sizes: Sequence[int] = (1, 8, 64),
    *,
    repeats: int = 3,
    hidden: int = 64,
    batch_size: int = 32,
    epochs: int = 5,
    device: str | torch.device = "auto",
) -> list[dict[str, Any]]:
    """Time `sweep` against `fit` called for each configuration, on digits with an MLP 64-hidden-10 and Adam.

    Both evaluate after every epoch. The two take turns, so that a busy machine slows both.

    Returns:
        A dict per size: configurations, hidden, batch_size, loop_seconds and vmap_seconds (medians over the repeats),
        speedup (their ratio).
    """
    from lossbook.data import load
    from lossbook.models import MLP

    whole("repeats", repeats, 1)
    data = load("digits")
    features, classes = data.train.x[0].numel(), data.num_classes

    def seconds(size: int, method: str) -> float:
        result = sweep(
            lambda: MLP(features, (hidden,), classes),
            data,
            {"seed": range(size)},
            loss=cross_entropy,
            epochs=epochs,
            batch_size=batch_size,
            device=device,
            progress=False,
            method=method,
        )
        return result.seconds

    seconds(2, "vmap"), seconds(1, "loop")  # first calls load code
    rows = []
    for size in sizes:
        times = [(seconds(size, "loop"), seconds(size, "vmap")) for _ in range(repeats)]
        loop, stacked = (statistics.median(column) for column in zip(*times, strict=True))
        rows.append(
            {
                "configurations": size,
                "hidden": hidden,
                "batch_size": batch_size,
                "loop_seconds": loop,
                "vmap_seconds": stacked,
                "speedup": loop / stacked,
            }
        )
    return rows

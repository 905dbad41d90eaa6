"""Training many networks at once against one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from lossbook.book.bench.measure import Measurement, compare


def sweeps(repeats: int) -> Iterator[Measurement]:
    """`sweep` against `fit` called once a configuration, both evaluated after every epoch, with the same result."""
    from lossbook import losses
    from lossbook.data import load
    from lossbook.models import MLP
    from lossbook.train import sweep

    digits = load("digits")

    def train(size: int, method: str) -> Callable[[], Any]:
        return lambda: sweep(
            lambda: MLP(64, (64,), digits.num_classes),
            digits,
            {"seed": list(range(size))},
            loss=losses.cross_entropy,
            epochs=5,
            batch_size=64,
            device="cpu",
            progress=False,
            method=method,
        )

    for size in (1, 8, 64):
        yield compare(f"sweep of {size} networks", "loop over fit", train(size, "auto"), train(size, "loop"), repeats)

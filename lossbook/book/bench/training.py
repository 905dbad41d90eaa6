"""Training many networks at once against one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from lossbook.book.bench.measure import Measurement, compare

if TYPE_CHECKING:
    import torch

# Networks of a sweep -> epochs, and how many times as fast as the loop it is promised to be: of one it is the loop.
SIZES: dict[int, tuple[int, float | None]] = {1: (10, None), 8: (5, 1.5), 64: (2, 3.0), 256: (1, 3.0)}


def sweeps(repeats: int, device: torch.device) -> Iterator[Measurement]:
    """`sweep` of 1, 8, 64 and 256 networks against `fit` called once a configuration, with the same result.

    Perceptrons of 64-64-10 on the digits, batches of 64, evaluated after every epoch; fewer epochs of many networks,
    so that the loop ends. Promised: 8 networks at least 1.5 times as fast, 64 and 256 at least three times.
    """
    from lossbook import losses
    from lossbook.data import load
    from lossbook.models import MLP
    from lossbook.train import sweep

    digits = load("digits")

    def train(size: int, epochs: int, method: str) -> Callable[[], Any]:
        return lambda: sweep(
            lambda: MLP(64, (64,), digits.num_classes),
            digits,
            {"seed": list(range(size))},
            loss=losses.cross_entropy,
            epochs=epochs,
            batch_size=64,
            device=device,
            progress=False,
            method=method,
        )

    for size, (epochs, at_least) in SIZES.items():
        yield compare(
            f"sweep of {size} network{'s' if size > 1 else ''}",
            "loop over fit",
            train(size, epochs, "auto"),
            train(size, epochs, "loop"),
            repeats,
            device=device,
            at_least=at_least,
        )

"""What `lossbook.data.load` returns: three splits, the class names and a data card."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor


class DataError(ValueError):
    """A data file is missing, damaged or not what its name says; the message is one sentence naming the file.

    What the sentence quotes is the file's: control characters are escaped, and of 2,000 characters the middle is left
    out.
    """

    def __init__(self, sentence: str) -> None:
        if len(sentence) > 2000:
            sentence = f"{sentence[:1500]} … {sentence[-400:]}"
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in sentence))


class Split(NamedTuple):
    """Examples with their labels and, where the distribution is known, the exact posterior.

    x: `(N, C, H, W)` float32 in [0, 1] for images, `(N, F)` float32 for tables and generators.
    y: `(N,)` int64 labels in [0, K).
    posterior: `(N, K)` float64, P(y = k | x) of the distribution that x and y were drawn from, or None.
    """

    x: Tensor
    y: Tensor
    posterior: Tensor | None = None


@dataclass(frozen=True)
class Card:
    """A data card: what the set is, where it comes from, what is wrong with it, and what was loaded of it.

    In Jupyter it shows itself as Markdown.
    """

    text: str
    sizes: tuple[int, int, int]
    origin: str

    def __str__(self) -> str:
        train, val, test = self.sizes
        return (
            f"{self.text.rstrip()}\n\n**Loaded here:** {train:,} training, {val:,} validation and {test:,} test "
            f"examples, {self.origin}.\n"
        )

    def _repr_markdown_(self) -> str:
        return str(self)


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """A dataset in three splits. `classes[k]` is the name of label k."""

    name: str
    train: Split
    val: Split
    test: Split
    classes: tuple[str, ...]
    card: Card

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one example: `(C, H, W)` or `(F,)`."""
        return tuple(self.train.x.shape[1:])

    def to(self, device: torch.device | str) -> Dataset:
        """The same dataset with every tensor on `device`; tensors that are there already are not copied."""
        device = torch.device(device)
        train, val, test = (_move(split, device) for split in (self.train, self.val, self.test))
        return replace(self, train=train, val=val, test=test)

    def __repr__(self) -> str:
        sizes = " + ".join(f"{len(split.y):,}" for split in (self.train, self.val, self.test))
        return f"Dataset({self.name!r}, {sizes} examples of shape {self.input_shape}, {self.num_classes} classes)"


def _move(split: Split, device: torch.device) -> Split:
    posterior = split.posterior
    if posterior is not None:
        # Apple's GPU has no float64.
        posterior = posterior.to(device, torch.float32 if device.type == "mps" else posterior.dtype)
    return Split(split.x.to(device), split.y.to(device), posterior)

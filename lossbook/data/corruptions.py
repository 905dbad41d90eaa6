"""Wrong labels and unequal classes, made on purpose and with a record of what was changed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lossbook import checks
from lossbook.data import _checks
from lossbook.data.dataset import Split

KINDS = ("uniform", "other", "pair")


def flip_labels(y: Tensor, rate: float, num_classes: int, *, seed: int, kind: str = "uniform") -> tuple[Tensor, Tensor]:
    """Give some examples a wrong label. Each example is treated on its own, with probability `rate` = r.

    kind says what happens to a treated label of the K classes, and with it what becomes of a posterior p:

    - "uniform": redrawn over all K classes, so that it may stay; a share r (K − 1)/K changes; (1 − r) p_k + r/K.
    - "other": replaced by one of the K − 1 others; a share r changes; (1 − r) p_k + r (1 − p_k)/(K − 1).
    - "pair": k becomes k + 1, and K − 1 becomes 0; a share r changes; (1 − r) p_k + r p_{k−1}.

    Args:
        y: `(N,)` integer labels in [0, K).
        rate: r in [0, 1].
        num_classes: K, at least 2.
        seed: of the choice.
        kind: "uniform", "other" or "pair".

    Returns:
        The labels `(N,)` int64, and a mask `(N,)` that is True where a label differs from y. y itself is not changed.

    Raises:
        ValueError: an argument is out of its range.
    """
    rate = _checks.number("rate", rate, 0, 1)
    k = checks.whole("num_classes", num_classes, 2)
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, but is {kind!r}")
    y = _labels(y)
    if y.numel() and not 0 <= int(y.min()) <= int(y.max()) < k:
        raise ValueError(f"y must hold labels in [0, {k}), but holds {int(y.min())} to {int(y.max())}")
    generator = torch.Generator().manual_seed(_checks.seed(seed))
    treated = torch.rand(len(y), generator=generator, dtype=torch.float64) < rate
    if kind == "uniform":
        new = torch.randint(k, (len(y),), generator=generator).to(y.device)
    elif kind == "other":
        new = (y + torch.randint(1, k, (len(y),), generator=generator).to(y.device)) % k
    else:
        new = (y + 1) % k
    noisy = torch.where(treated.to(y.device), new, y)
    return noisy, noisy != y


def subsample(split: Split, n_or_counts: int | Sequence[int] | Tensor | np.ndarray, *, seed: int) -> Split:
    """A random part of a split with a given number of examples of each class, in random order.

    Taking equal or chosen numbers changes how frequent the classes are, so the posterior no longer holds and is None.

    Args:
        split: what to take from; not changed.
        n_or_counts: n examples of every class that occurs, or `counts[k]` examples of class k (0 leaves it out).
        seed: of the choice and the order.

    Raises:
        ValueError: a class has fewer examples than asked for, or counts do not cover the labels.
    """
    y = _labels(split.y).cpu()
    available = torch.bincount(y)
    if isinstance(n_or_counts, Tensor | np.ndarray):
        n_or_counts = n_or_counts.tolist()
    if isinstance(n_or_counts, Sequence):
        wanted = [checks.whole(f"n_or_counts[{k}]", n, 0) for k, n in enumerate(n_or_counts)]
    else:
        n = checks.whole("n_or_counts", n_or_counts, 1)
        wanted = [n if there else 0 for there in available.tolist()]
    if len(wanted) < len(available):
        raise ValueError(f"n_or_counts has {len(wanted)} entries, but split has labels up to {len(available) - 1}")
    generator = torch.Generator().manual_seed(_checks.seed(seed))
    chosen = [_choose(y, k, n, generator) for k, n in enumerate(wanted)]
    index = torch.cat(chosen) if chosen else torch.empty(0, dtype=torch.int64)
    if not len(index):
        raise ValueError(f"n_or_counts asks for no example at all: {n_or_counts!r}")
    index = index[torch.randperm(len(index), generator=generator)].to(split.x.device)
    return Split(split.x[index], split.y[index])


def _choose(y: Tensor, k: int, n: int, generator: torch.Generator) -> Tensor:
    members = (y == k).nonzero()[:, 0]
    if len(members) < n:
        raise ValueError(f"n_or_counts asks for {n} examples of class {k}, but split has {len(members)}")
    return members[torch.randperm(len(members), generator=generator)[:n]]


def _labels(y: Tensor) -> Tensor:
    if not isinstance(y, Tensor) or y.dim() != 1 or y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        kind = f"{y.dtype} of shape {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(f"y must be a tensor of integer labels of shape (N,), but is {kind}")
    return y.to(torch.int64)

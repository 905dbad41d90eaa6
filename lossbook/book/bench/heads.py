"""Cross-entropy of a linear head with its gradient, for many classes: in tiles, written out, and torch's chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from lossbook.book.bench.measure import Measurement, Work, compare, one_thread

if TYPE_CHECKING:
    import torch

CLASSES = (10_000, 100_000, 500_000)
WIDTH, BATCH = 64, 256


def linear_heads(repeats: int, device: torch.device) -> Iterator[Measurement]:
    """linear_cross_entropy against dense logits at each number of classes, and against torch's own at the smallest.

    On one thread. Promised: at most half again as slow as the dense logits, as the price of the memory that it does not
    take.
    """
    for num_classes in CLASSES:
        with one_thread():
            rows = list(_rows(num_classes, repeats, device))
        yield from rows


def _rows(num_classes: int, repeats: int, device: torch.device) -> Iterator[Measurement]:
    import torch
    from torch import Tensor
    from torch.nn import LinearCrossEntropyOptions
    from torch.nn.functional import cross_entropy
    from torch.nn.functional import linear_cross_entropy as chunked

    from lossbook.losses import linear_cross_entropy

    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(BATCH, WIDTH, generator=generator).to(device).requires_grad_()
    weight = torch.randn(num_classes, WIDTH, generator=generator).mul_(0.1).to(device).requires_grad_()
    target = torch.randint(num_classes, (BATCH,), generator=generator).to(device)

    def slopes(loss: Callable[[], Tensor]) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(loss(), (hidden, weight))

    ours = slopes(lambda: linear_cross_entropy(hidden, weight, target))
    dense = slopes(lambda: cross_entropy(hidden @ weight.T, target))
    options = LinearCrossEntropyOptions()
    library = slopes(lambda: chunked(hidden, weight, target, options=options))
    name = f"cross-entropy of a linear head, {num_classes:,} classes, with gradient"
    # Three products: the logits, and the gradients of both factors. The weight is read, and its gradient written.
    work = Work(bytes=2 * weight.nbytes, flops=6.0 * BATCH * WIDTH * num_classes)
    yield compare(name, "dense logits", ours, dense, repeats, device=device, at_least=2 / 3, memory=True, work=work)
    if num_classes == CLASSES[0]:
        yield compare(name, "torch, in chunks", ours, library, repeats, device=device, memory=True, work=work)

"""A training step of an output layer with many classes: the factored Z-loss against the dense log-softmax."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from lossbook.book.bench.measure import Measurement, one_thread, peak_mib, summarise

CLASSES = (10_000, 100_000, 500_000)
WIDTH, BATCH = 256, 128
STEPS = 100  # of the factored layer a measurement: as many as lie between two stabilisations


def output_layers(repeats: int) -> Iterator[Measurement]:
    """Loss, gradient for the layer below and update of the weight, at each number of classes, on one thread.

    A factored step is the average over 100, one stabilisation among them. That one looks for singular values of U to
    mend and finds none here; the note says what a step costs without it, and with it when all of them need mending.

    """
    for num_classes in CLASSES:
        with one_thread():
            row = _steps(num_classes, repeats)
        yield row


def _steps(num_classes: int, repeats: int) -> Measurement:
    import torch
    import torch.nn.functional as F

    from lossbook.layers import FactoredOutput
    from lossbook.losses.surrogate import z_loss_from_stats
    from lossbook.train import factored_step

    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(BATCH, WIDTH, generator=generator, requires_grad=True)
    target = torch.randint(num_classes, (BATCH,), generator=generator)
    layer = FactoredOutput(WIDTH, num_classes, stabilize_every=STEPS)
    weight = layer.weight().requires_grad_()

    def factored() -> None:
        factored_step(layer, hidden, target, z_loss_from_stats, lr=0.1)

    def dense() -> None:
        grad_weight, _ = torch.autograd.grad(F.cross_entropy(hidden @ weight.T, target), (weight, hidden))
        with torch.no_grad():
            weight.add_(grad_weight, alpha=-0.1)

    def mend() -> None:
        layer.U, layer.U_inv = 3 * layer.U, layer.U_inv / 3
        layer.stabilize()

    factored()
    dense()
    pairs = [(_average(factored, STEPS), _average(dense)) for _ in range(repeats)]
    row = summarise(f"output layer, {num_classes:,} classes (Z-loss, factored)", "log-softmax, dense", pairs)
    alone = min(_average(factored) for _ in range(20))
    worst = alone + _average(mend) / STEPS
    note = f"{1e3 * alone:.1f} ms without stabilisation, {1e3 * worst:.1f} ms at its worst"
    memory = [peak_mib(factored), peak_mib(dense)]
    if None not in memory:
        note += f"; extra memory {memory[0]:.0f} MiB against {memory[1]:.0f} MiB"
    return replace(row, note=note)


def _average(function: Callable[[], Any], times: int = 1) -> float:
    start = time.perf_counter()
    for _ in range(times):
        function()
    return (time.perf_counter() - start) / times

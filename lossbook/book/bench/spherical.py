"""A training step of an output layer with many classes: the factored Z-loss against the dense log-softmax."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from lossbook.book.bench.measure import Measurement, one_thread, peak_mib, seconds, summarise

if TYPE_CHECKING:
    import torch

# Classes -> how many times as fast as log-softmax a step is promised to be.
CLASSES: dict[int, float | None] = {10_000: None, 100_000: 8.0, 500_000: 40.0}
WIDTH, BATCH = 256, 128
STEPS = 100  # of the factored layer a measurement: as many as lie between two stabilisations


def output_layers(repeats: int, device: torch.device) -> Iterator[Measurement]:
    """Loss, gradient for the layer below and update of the weight, at each number of classes, on one thread.

    A factored step is the average over 100, one stabilisation among them. That one looks for singular values of U to
    mend and finds none here; the note says what a step costs without it, and with it when all of them need mending.
    Promised: at least 8 times as fast at 100,000 classes and 40 times at 500,000.
    """
    for num_classes, at_least in CLASSES.items():
        with one_thread():
            row = _steps(num_classes, at_least, repeats, device)
        yield row


def _steps(num_classes: int, at_least: float | None, repeats: int, device: torch.device) -> Measurement:
    import torch
    import torch.nn.functional as F

    from lossbook.layers import FactoredOutput
    from lossbook.losses.surrogate import z_loss_from_stats
    from lossbook.train import factored_step

    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(BATCH, WIDTH, generator=generator).to(device).requires_grad_()
    target = torch.randint(num_classes, (BATCH,), generator=generator).to(device)
    layer = FactoredOutput(WIDTH, num_classes, stabilize_every=STEPS).to(device)
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
    peaks = peak_mib(factored, device), peak_mib(dense, device)
    pairs = [(_average(factored, device, STEPS), _average(dense, device)) for _ in range(repeats)]
    alone = min(_average(factored, device) for _ in range(20))
    worst = alone + _average(mend, device) / STEPS
    return summarise(
        f"output layer, {num_classes:,} classes (Z-loss, factored)",
        "log-softmax, dense",
        pairs,
        f"{1e3 * alone:.1f} ms without stabilisation, {1e3 * worst:.1f} ms at its worst",
        device=device,
        at_least=at_least,
        memory=None if peaks[0] is None or peaks[1] is None else (peaks[0], peaks[1]),
    )


def _average(function: Callable[[], Any], device: torch.device, times: int = 1) -> float:
    def repeat() -> None:
        for _ in range(times):
            function()

    return seconds(repeat, device) / times

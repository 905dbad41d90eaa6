"""Calibration errors of many predictions against the libraries that compute them too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from lossbook.book.bench.measure import Measurement, compare, peak_mib


def calibration_error(repeats: int) -> Iterator[Measurement]:
    """The expected calibration error of a million predictions over 100 classes against torchmetrics and netcal."""
    import torch

    from lossbook.metrics import expected_calibration_error

    n, k = 1_000_000, 100
    generator = torch.Generator().manual_seed(0)
    probs = torch.empty(n, k)
    for part in probs.split(100_000):
        part.copy_(torch.randn(part.shape, generator=generator).mul_(2).softmax(dim=1))
    target = torch.randint(k, (n,), generator=generator)

    def ours() -> float:
        return expected_calibration_error(probs, target, n_bins=15)

    from torchmetrics.functional.classification import multiclass_calibration_error

    array, labels = probs.numpy(), target.numpy()
    peers: dict[str, Callable[[], Any]] = {
        "torchmetrics": lambda: multiclass_calibration_error(probs, target, num_classes=k, n_bins=15)
    }
    try:
        from netcal.metrics import ECE
    except ImportError:
        pass
    else:
        peers["netcal"] = lambda: ECE(15).measure(array, labels)
    for name, peer in peers.items():
        row = compare("ECE of 1,000,000 × 100", name, ours, peer, repeats)
        memory = [peak_mib(ours), peak_mib(peer)]
        if None not in memory:
            row = replace(row, note=f"extra memory {memory[0]:.0f} MiB against {memory[1]:.0f} MiB")
        yield row

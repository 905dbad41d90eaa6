"""Measurements of speed, each as a ratio to a named peer or floor that is timed in the same run.

Absolute times depend on the machine and on its neighbours; a ratio of two things timed in turn does so far less.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Measurement:
    """Two things timed in turn: median seconds of ours and the peer, and peer / ours over the pairs (above 1: faster).

    ratio is the median over the pairs, low and high the smallest and the largest.
    """

    name: str
    peer_name: str
    ours: float
    peer: float
    ratio: float
    low: float
    high: float
    note: str = ""


def compare(name: str, peer_name: str, ours: Callable[[], Any], peer: Callable[[], Any], repeats: int) -> Measurement:
    """Time two things in turn, ours then the peer, after one warm-up each."""
    ours()
    peer()
    pairs = [(_seconds(ours), _seconds(peer)) for _ in range(repeats)]
    return summarise(name, peer_name, pairs)


def summarise(name: str, peer_name: str, pairs: Sequence[tuple[float, float]], note: str = "") -> Measurement:
    ratios = [peer / ours for ours, peer in pairs]
    ours, peer = (statistics.median(column) for column in zip(*pairs, strict=True))
    return Measurement(name, peer_name, ours, peer, statistics.median(ratios), min(ratios), max(ratios), note)


def run_bench(names: Sequence[str] | None = None, *, repeats: int = 3) -> Iterator[Measurement]:
    """The measurements of the named groups (default: all of `GROUPS`), one after the other as they finish.

    Raises:
        ValueError: no such group, or repeats below one.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, but is {repeats}")
    for name in names or GROUPS:
        if name not in GROUPS:
            raise ValueError(f"no benchmark is called {name!r}; there are {', '.join(GROUPS)}")
    for name in names or GROUPS:
        yield from GROUPS[name](repeats)


def _seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _import(repeats: int) -> Iterator[Measurement]:
    """`import lossbook` with a loss used, in a fresh interpreter, against `import torch`."""

    def fresh(code: str) -> Callable[[], Any]:
        return lambda: subprocess.run([sys.executable, "-c", code], check=True)

    ours = fresh("import lossbook; lossbook.losses.comp_sum")
    yield compare("import lossbook", "import torch", ours, fresh("import torch"), repeats)


_FIRST_CELL = """
import torch, pandas, seaborn, matplotlib.pyplot
from lossbook import book, data, train, viz
w = torch.zeros(2, requires_grad=True)
w.sum().backward()
torch.optim.Adam([w]).step()
"""


def _overhead(repeats: int) -> Iterator[Measurement]:
    """What a notebook costs before its first cell: a pre-warmed fork against a kernel started in the ordinary way."""
    from lossbook.book.prewarm import Zygote

    with Zygote() as zygote:
        zygote.ready()

        def start(environment: dict[str, str]) -> Callable[[], Any]:
            return lambda: _start_kernel_and_import({**os.environ, **environment})

        yield compare(
            "notebook start-up (pre-warmed)",
            "ordinary kernel",
            start(zygote.environment),
            start({}),
            repeats,
        )


def _start_kernel_and_import(environment: dict[str, str]) -> None:
    """Start a kernel, run in it what a notebook runs first (imports, an optimiser's first step), stop it."""
    from jupyter_client.manager import KernelManager

    # The provisioner is chosen by this process's environment, not by the kernel's.
    before = dict(os.environ)
    os.environ.update(environment)
    with tempfile.TemporaryDirectory() as folder:
        manager = KernelManager(transport="ipc", ip=f"{folder}/kernel")
        try:
            manager.start_kernel(env=environment)
            client = manager.blocking_client()
            client.start_channels()
            client.wait_for_ready(timeout=120)
            client.execute_interactive(_FIRST_CELL, timeout=120, output_hook=lambda message: None)
            client.stop_channels()
        finally:
            manager.shutdown_kernel(now=True)
            os.environ.clear()
            os.environ.update(before)


def _sweep(repeats: int) -> Iterator[Measurement]:
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


def _calibration(repeats: int) -> Iterator[Measurement]:
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
        memory = [_peak_mib(ours), _peak_mib(peer)]
        if None not in memory:
            row = replace(row, note=f"extra memory {memory[0]:.0f} MiB against {memory[1]:.0f} MiB")
        yield row


def _peak_mib(function: Callable[[], Any]) -> float | None:
    """How far the process's memory rises above where it stood, in MiB; None where the system does not tell."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def high_water() -> float:
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024

    try:
        reset.write_text("5")
        before = high_water()
        function()
        return high_water() - before
    except (OSError, IndexError):
        return None


GROUPS: dict[str, Callable[[int], Iterator[Measurement]]] = {
    "import": _import,
    "overhead": _overhead,
    "sweep": _sweep,
    "calibration": _calibration,
}


def write_json(measurements: Sequence[Measurement], path: Path) -> None:
    """Write the measurements as JSON, whole or not at all."""
    from lossbook.book.runner import write_atomically

    write_atomically(path, json.dumps([asdict(m) for m in measurements], indent=1) + "\n")

"""Timing two things in turn, how much memory a call takes, and what the machine can do at most."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

MIB = 2**20


class NotHere(RuntimeError):
    """A group cannot be measured on this machine or in this folder; the message says why, and what would help."""


@dataclass(frozen=True)
class Work:
    """The least that a computation has to move and to compute, which is what a roofline counts.

    bytes: read and written; flops: operations in floating point, a multiplication and an addition being two.
    """

    bytes: float = 0.0
    flops: float = 0.0


@dataclass(frozen=True)
class Ceiling:
    """What a copy and a product of matrices in float32 reach at best: bytes (read and written) and flops a second."""

    bandwidth: float
    flops: float
    threads: int
    precision: str

    def fraction(self, work: Work, seconds: float) -> float:
        """The part of the ceiling that work done in so many seconds reaches: 1 is as fast as this machine gets."""
        return max(work.bytes / self.bandwidth, work.flops / self.flops) / seconds


def promised(at_least: float) -> str:
    """A promised ratio in words: "≥ 1.5", and below 1, where it says how much slower is allowed, "≥ 1/12"."""
    return f"≥ {Fraction(at_least).limit_denominator(12)}" if at_least < 1 else f"≥ {at_least:.3g}"


@dataclass(frozen=True)
class Measurement:
    """Two things timed in turn: median seconds of ours and the peer, and peer / ours over the pairs (above 1: faster).

    ratio is the median over the pairs, low and high the smallest and the largest.

    at_least: the ratio that README, site and docstrings promise; None where they promise nothing.
    memory: how far ours and the peer raise the peak of memory, in MiB; None where not asked for or not known.
    device: where both were computed.
    samples: the pairs of seconds.
    ceiling: the fraction of what the machine can do at most that ours reaches (`Ceiling`), where its work is known.
    group: the group of the bench that it belongs to.
    """

    name: str
    peer_name: str
    ours: float
    peer: float
    ratio: float
    low: float
    high: float
    note: str = ""
    at_least: float | None = None
    memory: tuple[float, float] | None = None
    device: str = "cpu"
    samples: tuple[tuple[float, float], ...] = ()
    ceiling: float | None = None
    group: str = ""

    @property
    def promise(self) -> str:
        """The promise as `promised` writes it; empty where nothing is promised."""
        return "" if self.at_least is None else promised(self.at_least)

    @property
    def kept(self) -> bool:
        """Whether the promise holds; true where nothing is promised."""
        return self.at_least is None or self.ratio >= self.at_least


def compare(
    name: str,
    peer_name: str,
    ours: Callable[[], Any],
    peer: Callable[[], Any],
    repeats: int,
    *,
    device: torch.device | str = "cpu",
    at_least: float | None = None,
    memory: bool = False,
    work: Work | None = None,
) -> Measurement:
    """Time two things in turn, ours then the peer, after one warm-up each.

    Args:
        repeats: pairs that are timed.
        device: where both compute; work queued on a GPU is waited for.
        at_least: the ratio that is promised somewhere.
        memory: also measure the peak of each, ours first: the process may keep what the peer took.
        work: what ours has to move and compute at least; gives the fraction of the ceiling.
    """
    peaks = []
    for function in (ours, peer):
        function()
        if memory:
            peaks.append(peak_mib(function, device))
    pairs = [(seconds(ours, device), seconds(peer, device)) for _ in range(repeats)]
    first, second = peaks if memory else (None, None)
    return summarise(
        name,
        peer_name,
        pairs,
        device=device,
        at_least=at_least,
        memory=None if first is None or second is None else (first, second),
        work=work,
    )


def summarise(
    name: str,
    peer_name: str,
    pairs: Sequence[tuple[float, float]],
    note: str = "",
    *,
    device: torch.device | str = "cpu",
    at_least: float | None = None,
    memory: tuple[float, float] | None = None,
    work: Work | None = None,
) -> Measurement:
    """A measurement from pairs of seconds, ours and the peer's; the other arguments are its fields or `compare`'s."""
    ratios = [peer / ours for ours, peer in pairs]
    ours, peer = (statistics.median(column) for column in zip(*pairs, strict=True))
    return Measurement(
        name,
        peer_name,
        ours,
        peer,
        statistics.median(ratios),
        min(ratios),
        max(ratios),
        note,
        at_least,
        memory,
        str(device),
        tuple(pairs),
        None if work is None else ceiling(device).fraction(work, ours),
    )


def seconds(function: Callable[[], Any], device: torch.device | str = "cpu") -> float:
    """The wall time of a call, with what it queued on a GPU."""
    _wait_for(device)
    start = time.perf_counter()
    function()
    _wait_for(device)
    return time.perf_counter() - start


def _on_gpu(device: torch.device | str) -> bool:
    return str(device).startswith("cuda")


def _wait_for(device: torch.device | str) -> None:
    if _on_gpu(device):
        import torch

        torch.cuda.synchronize(device)


def peak_mib(function: Callable[[], Any], device: torch.device | str = "cpu") -> float | None:
    """How far a call raises the memory of the process, or of the GPU, above where it stood.

    In MiB; None where the system does not tell. What the call returns is freed with it.
    """
    if _on_gpu(device):
        import torch

        _wait_for(device)
        torch.cuda.reset_peak_memory_stats(device)
        stood = torch.cuda.memory_allocated(device)
        function()
        _wait_for(device)
        return (torch.cuda.max_memory_allocated(device) - stood) / MIB

    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def high_water() -> float:
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024

    try:
        # What the allocator keeps for later would hide what the function takes.
        ctypes.CDLL(None).malloc_trim(0)
        reset.write_text("5")
        before = high_water()
        function()
        return max(high_water() - before, 0.0)
    except (OSError, IndexError, AttributeError):
        return None


# What `ceiling` found in this process, by device, threads and precision.
ceilings: dict[str, Ceiling] = {}


def ceiling(device: torch.device | str) -> Ceiling:
    """What this machine can do at most on a device, with torch's threads and precision in force; measured once."""
    import torch

    on_gpu = _on_gpu(device)
    precision = "TF32" if on_gpu and torch.backends.cuda.matmul.fp32_precision == "tf32" else "float32"
    threads = torch.get_num_threads()
    name = f"{device}, {precision}" if on_gpu else f"{device}, {threads} thread{'s' if threads > 1 else ''}"
    if name not in ceilings:
        ceilings[name] = Ceiling(_bandwidth(device, on_gpu), _matmul_flops(device, on_gpu), threads, precision)
    return ceilings[name]


def _bandwidth(device: torch.device | str, on_gpu: bool) -> float:
    import torch

    source = torch.ones((1024 if on_gpu else 256) * MIB, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _fastest(lambda: target.copy_(source), device)


def _matmul_flops(device: torch.device | str, on_gpu: bool) -> float:
    import torch

    n = 8192 if on_gpu else 2048
    a, b = torch.randn(2, n, n, device=device)
    c = torch.empty(n, n, device=device)
    return 2.0 * n * n * n / _fastest(lambda: torch.mm(a, b, out=c), device)


def _fastest(function: Callable[[], Any], device: torch.device | str) -> float:
    function()
    return min(seconds(function, device) for _ in range(5))


@contextmanager
def one_thread() -> Iterator[None]:
    """torch on one thread inside the block: short operations on several mostly measure how busy the other cores are."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)

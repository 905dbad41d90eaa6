"""Measurements of speed, each as a ratio to a named peer or floor that is timed in the same run.

Absolute times depend on the machine and on its neighbours; a ratio of two things timed in turn does so far less.
"""

from __future__ import annotations

import json
import platform
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lossbook.book.bench.auc import mann_whitney
from lossbook.book.bench.book import workers
from lossbook.book.bench.calibration import calibration_error
from lossbook.book.bench.contrastive import similarity_matrices
from lossbook.book.bench.heads import linear_heads
from lossbook.book.bench.measure import Measurement, NotHere, Work, ceilings, compare, summarise
from lossbook.book.bench.objectives import loss_gradients
from lossbook.book.bench.spherical import output_layers
from lossbook.book.bench.startup import import_time, overhead
from lossbook.book.bench.training import sweeps

__all__ = ["GROUPS", "Measurement", "NotHere", "Work", "compare", "run_bench", "summarise", "write_json"]

# group -> function of the number of repeats and the device; those that have no GPU side take no notice of the latter
GROUPS: dict[str, Callable[[int, torch.device], Iterator[Measurement]]] = {
    "import": import_time,
    "overhead": overhead,
    "sweep": sweeps,
    "losses": loss_gradients,
    "calibration": calibration_error,
    "auc": mann_whitney,
    "head": linear_heads,
    "z-loss": output_layers,
    "contrastive": similarity_matrices,
    "book": workers,
}


def run_bench(
    names: Sequence[str] | None = None,
    *,
    repeats: int = 3,
    device: str | torch.device = "auto",
    say: Callable[[str], object] = warnings.warn,
) -> Iterator[Measurement]:
    """The measurements of the named groups, one after the other as they finish.

    Args:
        names: keys of `GROUPS`; None means all.
        repeats: how often each pair is timed.
        device: "auto" (CUDA where there is one), "cpu", "cuda" …
        say: is told, in a sentence, of a group that is left out: what it needs is not here.

    Raises:
        ValueError: no such group or device, or repeats below one.
    """
    from lossbook.train.settings import pick_device

    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, but is {repeats}")
    for name in names or GROUPS:
        if name not in GROUPS:
            raise ValueError(f"no benchmark is called {name!r}; there are {', '.join(GROUPS)}")
    place = pick_device(device)
    if place.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be the CPU or a CUDA device, but is {str(device)!r}")
    return _run(names or list(GROUPS), repeats, place, say)


def _run(
    names: Iterable[str], repeats: int, device: torch.device, say: Callable[[str], object]
) -> Iterator[Measurement]:
    for name in names:
        try:
            for row in GROUPS[name](repeats, device):
                yield replace(row, group=name)
        except NotHere as reason:
            say(f"{name} is left out: {reason}")
        except ModuleNotFoundError as error:
            if error.name is None or error.name.split(".")[0] == "lossbook":
                raise
            say(f"{name} is left out: it needs {error.name}; `pip install lossbook[bench]` installs it")


def write_json(measurements: Iterable[Measurement], path: Path, device: str | torch.device = "cpu") -> None:
    """Write the machine, its ceilings as far as measured, and the measurements as JSON, whole or not at all."""
    from lossbook._files import write_atomically

    report = {
        "machine": machine(device),
        "ceilings": {name: asdict(ceiling) for name, ceiling in ceilings.items()},
        "measurements": [asdict(measurement) for measurement in measurements],
    }
    write_atomically(path, json.dumps(report, indent=1, ensure_ascii=False) + "\n")


def machine(device: str | torch.device = "cpu") -> dict[str, Any]:
    """What the measurements were made on and with; memory in GiB, threads as torch has them."""
    import joblib
    import psutil

    from lossbook.train.settings import pick_device

    place = pick_device(device)
    processor = _processor()
    return {
        "processor": processor,
        "cores": joblib.cpu_count(),
        "memory": round(psutil.virtual_memory().total / 2**30, 1),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lossbook": version("lossbook"),
        "device": torch.cuda.get_device_name(place) if place.type == "cuda" else processor,
    }


def _processor() -> str:
    try:
        return Path("/proc/cpuinfo").read_text().split("model name")[1].splitlines()[0].strip(": \t")
    except (OSError, IndexError):  # not Linux, or a processor that Linux does not name
        return platform.processor() or platform.machine()

"""What it costs before anything is trained: the import, and a notebook's kernel."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import torch

from lossbook.book.bench.measure import Measurement, compare


def import_time(repeats: int, device: torch.device) -> Iterator[Measurement]:
    """`import lossbook` with a loss used, in a fresh interpreter, against `import torch`."""

    def fresh(code: str) -> Callable[[], Any]:
        return lambda: subprocess.run([sys.executable, "-c", code], check=True)

    ours = fresh("import lossbook; lossbook.losses.comp_sum")
    yield compare("import lossbook", "import torch", ours, fresh("import torch"), repeats, at_least=0.8)


_FIRST_CELL = """
import torch, pandas, seaborn, matplotlib.pyplot
from lossbook import book, data, train, viz
w = torch.zeros(2, requires_grad=True)
w.sum().backward()
torch.optim.Adam([w]).step()
"""


def overhead(repeats: int, device: torch.device) -> Iterator[Measurement]:
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
            at_least=5,
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

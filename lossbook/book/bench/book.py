"""Two notebooks of the book, one after the other and both at once."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from lossbook.book.bench.measure import Measurement, NotHere, seconds, summarise

# Of about the same length, and with data that needs no download.
NOTEBOOKS = ("01-surrogates/01-cross-entropy-family.ipynb", "01-surrogates/02-consistency-bounds.ipynb")


def workers(repeats: int, device: torch.device) -> Iterator[Measurement]:
    """The wall time of two notebooks with two workers against one, on the CPU and into an empty folder each time.

    One worker computes with a thread per core, of two each with one. Two notebooks of a quarter of a minute stand for
    the book, so that three repeats take three minutes. From the folder that holds `notebooks`.
    """
    import joblib

    missing = [name for name in NOTEBOOKS if not Path("notebooks", name).is_file()]
    if missing:
        raise NotHere(f"there is no notebooks/{missing[0]} here: change to the book's folder")

    def run(count: int) -> Callable[[], None]:
        return lambda: _run(count)

    pairs = [(seconds(run(2)), seconds(run(1))) for _ in range(repeats)]
    yield summarise("two notebooks, two workers", "one worker", pairs, at_least=1.3 if joblib.cpu_count() > 1 else None)


def _run(count: int) -> None:
    from lossbook.book.runner import RunError, run_notebooks

    with tempfile.TemporaryDirectory() as folder:
        results = run_notebooks(NOTEBOOKS, device="cpu", workers=count, out=folder, progress=False)
    for result in results:
        if result.status != "ok":
            raise RunError(f"{result.notebook} failed: {result.error}")

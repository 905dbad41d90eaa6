"""Writers of small data files, a process that reads them, and no way out: LOSSBOOK_DATA is unset, proxies are off."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import resource
import select
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


@pytest.fixture(autouse=True)
def no_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOSSBOOK_DATA", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture(scope="session")
def idx_bytes() -> Callable[..., bytes]:
    def build(array: np.ndarray, *, packed: bool = False) -> bytes:
        code = CODES[array.dtype.str[1:]]
        header = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
        data = header + array.astype(array.dtype.newbyteorder(">")).tobytes()
        return gzip.compress(data, mtime=0) if packed else data

    return build


class Verdict(NamedTuple):
    """What came of a file: it was read, refused (a DataError), another exception was raised, or the process was lost.

    seconds: of processor time. peak: bytes of memory more than before. touched: what was written, started or connected.
    """

    outcome: str
    said: str
    peak: int = 0
    seconds: float = 0.0
    touched: Sequence[str] = ()


class Reading:
    """A process that reads files one by one. A file that ends it, holds it up or fills the memory is found out."""

    SECONDS = 60.0
    BYTES = 2**31

    def __init__(self, folder: Path, warm: Sequence[tuple[str, str]] = ()) -> None:
        self.folder, self.warm = folder, warm
        (folder / "cwd").mkdir(parents=True)
        (folder / "tmp").mkdir()
        self.process: subprocess.Popen[bytes] | None = None

    def read(self, reader: str, path: Path) -> Verdict:
        process = self.process or self._start()
        process.stdin.write(json.dumps([reader, str(path)]).encode() + b"\n")
        process.stdin.flush()
        end = time.monotonic() + self.SECONDS
        while not select.select([process.stdout], [], [], 0.05)[0]:
            with contextlib.suppress(OSError, IndexError):
                pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
                if pages * resource.getpagesize() > self.BYTES:
                    return self._lost(f"took more than {self.BYTES:,} bytes")
            if time.monotonic() > end:
                return self._lost(f"took more than {self.SECONDS:g} seconds")
        line = process.stdout.readline()
        return Verdict(**json.loads(line)) if line else self._lost("died")

    def written(self) -> list[str]:
        """What lies in the working directory and the temporary folder."""
        return [str(path) for name in ("cwd", "tmp") for path in (self.folder / name).iterdir()]

    def close(self) -> str:
        """End the process; how it ended."""
        process, self.process = self.process, None
        if process is None:
            return ""
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.kill()
        return f"exit status {process.wait()}"

    def _start(self) -> subprocess.Popen[bytes]:
        self.process = process = subprocess.Popen(
            [sys.executable, "-B", str(Path(__file__).with_name("reading.py")), json.dumps(self.warm)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=self.folder / "cwd",
            env={**os.environ, "TMPDIR": str(self.folder / "tmp"), "OMP_NUM_THREADS": "1"},
        )
        assert process.stdout.readline(), f"the process that reads did not start: {self.close()}"
        return process

    def _lost(self, why: str) -> Verdict:
        return Verdict("lost", f"{why} ({self.close()})")


@pytest.fixture(scope="session")
def start_reading() -> Iterator[Callable[..., Reading]]:
    """Start a process that reads; it ends with the tests."""
    started: list[Reading] = []

    def start(folder: Path, warm: Sequence[tuple[str, str]] = ()) -> Reading:
        started.append(Reading(folder, warm))
        return started[-1]

    yield start
    for reading in started:
        reading.close()

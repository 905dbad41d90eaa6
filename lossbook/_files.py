"""Files that are written whole or not at all, and locks by which two processes keep out of each other's way."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_TEMPORARY = ".lossbook-part"


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write to path so that a reader, or a crash, finds either the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_TEMPORARY}")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def clear_leftovers(folder: Path, name: str = "*") -> None:
    """Remove what processes that were killed while writing files of this name left in a folder and below it."""
    for leftover in folder.rglob(f".{name}.*{_TEMPORARY}"):
        leftover.unlink(missing_ok=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold this lock file, which stays behind; BlockingIOError where another process holds it."""
    try:
        import fcntl
    except ImportError:  # not POSIX: there is no such lock, and no runner either
        yield
        return
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield

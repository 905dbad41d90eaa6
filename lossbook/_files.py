"""Files that are written whole or not at all, and locks by which two processes keep out of each other's way."""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Iterator
from pathlib import Path

_TEMPORARY = ".lossbook-part"


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write to path so that a reader, or a crash, finds either the old file or the new one; an OSError names path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_TEMPORARY}")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        # A full disk names no file, and the temporary one says nothing to a reader.
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def clear_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove what killed processes left of their writing in a folder and below it, or of one file in it."""
    pattern = f"**/.*{_TEMPORARY}" if name is None else f".{glob.escape(name)}.*{_TEMPORARY}"
    for leftover in folder.glob(pattern):
        leftover.unlink(missing_ok=True)


@contextlib.contextmanager
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

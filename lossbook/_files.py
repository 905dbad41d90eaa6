"""Files that are written whole or not at all, and locks by which two processes keep out of each other's way."""

from __future__ import annotations

import contextlib
import errno
import os
import warnings
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


def clear_leftovers(folder: Path, files: str | None = None) -> None:
    """Remove what killed processes left of their writing in a folder and below it, or of files in it by a pattern."""
    for leftover in folder.glob(f"**/.*{_TEMPORARY}" if files is None else f".{files}.*{_TEMPORARY}"):
        leftover.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold this lock file, which stays behind, or this folder; BlockingIOError where another process holds it."""
    try:
        import fcntl
    except ImportError:  # not POSIX: there is no such lock, and no runner either
        yield
        return
    lock = os.open(path, os.O_RDONLY if path.is_dir() else os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # EBADF: a folder on NFS.
            if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EBADF):
                raise
            warnings.warn(f"{path} cannot be locked here: let one process at a time write there", stacklevel=4)
        yield
    finally:
        os.close(lock)

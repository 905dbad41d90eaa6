"""Go where another process sees a file system that this one does not."""

from __future__ import annotations

import ctypes
import os


def enter(pid: int) -> None:
    """Take over the mounts of a process."""
    cwd = os.getcwd()
    with open(f"/proc/{pid}/ns/mnt") as namespace:
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), 0):
            raise OSError(ctypes.get_errno(), "setns")
    os.chdir(cwd)

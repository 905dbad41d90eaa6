"""Kill or stop this process exactly before one of the steps by which a file is written or removed.

After a step the disk is as before the next one, or as before the next file is written.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any


def die_at(point: int) -> None:
    """SIGKILL at the point-th of these moments, from 0: before each fsync, replace and unlink."""
    _send_at(point, signal.SIGKILL)


def wait_at(point: int) -> None:
    """SIGSTOP there: the process waits for SIGCONT."""
    _send_at(point, signal.SIGSTOP)


def _send_at(point: int, signum: int) -> None:
    passed = 0

    def moment() -> None:
        nonlocal passed
        if passed == point:
            os.kill(os.getpid(), signum)
        passed += 1

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **options: Any) -> Any:
            moment()
            return function(*arguments, **options)

        return step

    for name in ("fsync", "replace", "unlink"):
        setattr(os, name, watched(getattr(os, name)))

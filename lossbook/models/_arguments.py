"""Checks of sizes that the networks share."""

from __future__ import annotations


def size(name: str, value: int, low: int = 1) -> int:
    """Return value, or refuse it unless it is an integer of at least `low`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} must be an integer, but is {value!r}")
    if value < low:
        raise ValueError(f"{name} must be at least {low}, but is {value}")
    return value

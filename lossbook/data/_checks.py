"""Checks of plain arguments that generators, corruptions and loaders share."""

from __future__ import annotations

import numbers

from lossbook import checks


def seed(value: object) -> int:
    """`value` as a seed for NumPy and torch: a whole number in [0, 2**63)."""
    number = checks.whole("seed", value, 0)
    if number >= 2**63:
        raise ValueError(f"seed must be below 2**63, but is {number}")
    return number


def number(name: str, value: object, low: float, high: float) -> float:
    """`value` as a float, or ValueError when it is no number or lies outside [low, high]."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool) or not low <= float(value) <= high:
        raise ValueError(f"{name} must be a number in [{low:g}, {high:g}], but is {value!r}")
    return float(value)

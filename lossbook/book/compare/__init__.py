"""Losses compared on a user's own rows: the same tuning for each, several seeds, intervals that say what is chance."""

from __future__ import annotations

from lossbook._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "command": ["compare_losses"],
        "data": ["Rows", "read"],
        "experiment": ["METRICS", "MEASURES", "Comparison", "compare", "measures"],
        "losses": ["Candidate", "check_losses", "parse_losses", "usable"],
        "parts": ["Parts", "split"],
        "report": ["class_accuracy", "interval", "save", "summary", "verdict"],
    },
)

"""Losses compared on a user's own rows: the same tuning for each, several seeds, intervals that say what is chance."""

from __future__ import annotations

from lossbook._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "command": ["compare_losses"],
        "data": ["Rows", "read", "split"],
        "experiment": [
            "METRICS",
            "MEASURES",
            "Comparison",
            "class_accuracy",
            "compare",
            "interval",
            "measures",
            "save",
            "summary",
            "verdict",
        ],
        "losses": ["Candidate", "check_losses", "parse_losses", "usable"],
    },
)

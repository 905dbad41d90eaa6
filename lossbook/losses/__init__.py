"""Differentiable objectives: plain functions of `(logits, target)`, a module per family."""

from __future__ import annotations

from lossbook._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "surrogate": ["comp_sum", "crammer_singer", "cross_entropy", "generalized_cross_entropy", "mae"],
        "calibration": ["brier", "focal"],
        "criterion": ["Criterion"],
    },
)

"""Procedures that look for an input, near a given one, at which a model does worse."""

from __future__ import annotations

from lossbook._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, {"gradient_ascent": ["max_score_shift", "pgd"]})

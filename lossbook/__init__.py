"""lossbook: a book that runs. Losses, calibration and the geometry of training, with every conclusion measured."""

from __future__ import annotations

from lossbook._lazy import attach

__version__ = "0.1.0"

_SUBPACKAGES = [
    "adapt",
    "attacks",
    "book",
    "calibrators",
    "checks",
    "data",
    "layers",
    "losses",
    "metrics",
    "models",
    "theory",
    "train",
    "viz",
]
__getattr__, __dir__, __all__ = attach(__name__, {name: [] for name in _SUBPACKAGES})

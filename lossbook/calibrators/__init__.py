"""Post-hoc calibration: scikit-learn estimators that are fitted on logits and give probabilities."""

from __future__ import annotations

from lossbook._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, {"temperature": ["TemperatureScaling"]})

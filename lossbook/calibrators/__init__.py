"""Post-hoc calibration: scikit-learn estimators that are fitted on logits and give probabilities."""

from __future__ import annotations

from lossbook._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "temperature": ["TemperatureScaling"],
        "affine": ["DirichletCalibration", "MatrixScaling", "VectorScaling"],
        "one_vs_rest": ["BetaCalibration", "HistogramBinning", "IsotonicCalibration", "PlattScaling"],
        "correctness": ["CorrectnessAwareScaling"],
        "conformal": ["ConformalQuantile"],
        "detection": ["DetectionCalibrator", "PerClassScoreCalibrator"],
        "saved": ["from_dict"],
    },
)

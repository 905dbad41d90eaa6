"""Numbers computed from predictions or features: plain functions, and streaming `torchmetrics.Metric` classes.

A function takes torch tensors or arrays, computes in float64 and returns a Python float. A class keeps bins or sums,
never samples, and merges exactly. Only the classes import torchmetrics.
"""

from __future__ import annotations

from lossbook._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "classification": ["accuracy"],
        "calibration": [
            "ConsistencyBand",
            "ReliabilityBins",
            "average_calibration_error",
            "brier_score",
            "classwise_calibration_error",
            "consistency_band",
            "expected_calibration_error",
            "maximum_calibration_error",
            "mmce",
            "negative_log_likelihood",
            "posterior_kl",
            "reliability_bins",
            "squared_calibration_error",
            "top_label_calibration_error",
            "true_top_label_ece",
        ],
        "collapse": [
            "class_means",
            "collapse_report",
            "nc1",
            "nc1_ratio",
            "nc2_equiangle",
            "nc2_equinorm",
            "nc2_etf",
            "nc2_max_angle",
            "nc2_orthogonal",
            "nc3_etf",
            "nc3_orthogonal",
            "nc3_self_duality",
            "nc4",
            "nc_bias",
        ],
        "retrieval": ["pooled_auc"],
        "streaming": [
            "Accuracy",
            "BrierScore",
            "CalibrationError",
            "ClasswiseCalibrationError",
            "NearestMeanDisagreement",
            "NegativeLogLikelihood",
            "NeuralCollapse",
        ],
    },
)

"""Differentiable objectives: plain functions of `(logits, target)`, a module per family."""

from __future__ import annotations

from lossbook._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "surrogate": [
            "aldr_kl",
            "bias_loss",
            "comp_sum",
            "crammer_singer",
            "cross_entropy",
            "ensloss",
            "exponential",
            "generalized_cross_entropy",
            "hinge",
            "l2_svm",
            "ldr_kl",
            "log_spherical_softmax",
            "log_taylor_softmax",
            "logistic",
            "mae",
            "smooth_adversarial_comp_sum",
            "spherical_mse",
            "z_loss",
        ],
        "imbalance": ["anyloss", "soft_confusion"],
        "contrastive": ["info_nce"],
        "metric": ["normalized_softmax"],
        "retrieval": ["BackwardCompatible", "backward_compatible", "mann_whitney", "mann_whitney_in_batch"],
        "hyperbolic": ["hyperbolic_cross_entropy", "pairwise_confusion"],
        "selfsupervised": ["eckart_young"],
        "regression": ["bag_loss", "crossing_penalty", "pinball"],
        "calibration": [
            "brier",
            "confidence_penalty",
            "correctness_aware",
            "focal",
            "focal_adaptive",
            "mmce_penalty",
        ],
        "distillation": [
            "balanced_divergence",
            "binary_kl",
            "binary_kl_norm",
            "forward_kl",
            "norm_direction",
            "pskd",
            "reverse_kl",
        ],
        "criterion": ["Criterion"],
    },
)

"""Losses chosen for what they do to the probabilities, not only to the decision.

The arguments that all losses share are described in `lossbook.losses.surrogate`.
"""

from __future__ import annotations

from lossbook._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "probability": ["brier", "confidence_penalty", "focal", "focal_adaptive"],
        "kernel": ["mmce_penalty"],
        "ranking": ["rank_violation_rate", "rankmixup_mndcg", "rankmixup_mrl"],
        "targets": ["cape_targets"],
        "correctness": ["correctness_aware"],
    },
)

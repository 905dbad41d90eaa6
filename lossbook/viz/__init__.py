"""Figures: one plot is one function of data that returns axes; `play` and `animate` make it move."""

from __future__ import annotations

from lossbook._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "animation": ["animate"],
        "geometry": ["class_mean_basis", "class_means_3d", "decision_surface", "gram_heatmap"],
        "history": ["collapse_curves", "history_bands"],
        "intervals": ["interval_plot"],
        "lengths": ["lengths_vs_counts"],
        "losses": ["gradient_curves", "loss_curves"],
        "picture": ["Picture", "describe", "show"],
        "interactive": ["play"],
        "ranks": ["rank_correlation_heatmap"],
        "reliability": ["reliability_diagram"],
        "simplex": ["simplex_contours", "simplex_scatter"],
        "style": [
            "LOSS_COLORS",
            "QUANTITY_CMAP",
            "SIGNED_CMAP",
            "class_style",
            "loss_name",
            "loss_style",
            "quantity_colors",
            "use_style",
        ],
    },
)

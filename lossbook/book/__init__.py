"""The book around the package: catalogue, claims, running notebooks, the command line, the site."""

from __future__ import annotations

from lossbook._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "bench": [],
        "catalog": ["load_catalog"],
        "claims": ["claim"],
        "cli": [],
        "notebook": ["Run", "header", "setup", "show_source"],
        "prewarm": [],
        "results": [],
        "runner": ["run_notebooks"],
        "site": ["build_site"],
    },
)

"""The static site: executed notebooks, and what can be listed from them, the catalogue and the package, as pages.

`build` writes what Sphinx reads and runs it; a module per kind of generated page gives that page's text.
"""

from __future__ import annotations

from lossbook.book.site.build import SOURCE, SPEED, SiteError, build_site, find_notebooks
from lossbook.book.site.markup import heading

__all__ = ["SOURCE", "SPEED", "SiteError", "build_site", "find_notebooks", "heading"]

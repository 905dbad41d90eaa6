"""The site: Sphinx with MyST-NB over the executed notebooks. `lossbook site` builds it; nothing is executed here."""

import functools
import sys
from importlib.metadata import version as _version

from sphinx.search.en import SearchEnglish

# nbformat's validator would compile grammars of internet addresses, for seconds, to check what no notebook has.
sys.modules.setdefault("rfc3987_syntax", None)

project = "lossbook"
author = "lossbook contributors"
copyright = "lossbook contributors. Code under MIT, text and figures under CC BY 4.0"
version = release = _version("lossbook")
language = "en"

extensions = ["myst_nb"]
add_module_names = False
# A block of text without a language is text: a listing of files, a command.
highlight_language = "none"
exclude_patterns = ["**.ipynb_checkpoints", "_static/**"]
templates_path = ["_templates"]

myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 3

nb_execution_mode = "off"
nb_merge_streams = True
# What a cell prints as Markdown may hold formulas, as the text around it does.
nb_render_markdown_format = "myst"
# The site has no kernel: no widget scripts are fetched, and what a widget would have shown falls back to its text.
nb_ipywidgets_js = {}
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]
# Tracebacks and shell cells have lexers of their own that only some Pygments know; they are shown uncoloured. A claim's
# machine-readable part stands beside its HTML and is not shown.
suppress_warnings = ["misc.highlighting_failure", "mystnb.unknown_mime_type"]

# One file beside the pages, so that formulas appear without a network, also from file://. The menu could load more.
mathjax_path = "mathjax/tex-svg.js"
# Formulas start where the text does: the column is wider than a line of text.
mathjax3_config = {
    "options": {"enableMenu": False},
    "svg": {"fontCache": "global", "displayAlign": "left", "displayIndent": "1.5em"},
}

html_theme = "pydata_sphinx_theme"
html_title = "lossbook"
html_favicon = "_static/logo.svg"
html_static_path = ["_static"]
html_css_files = ["book.css", "lists.css"]
html_js_files = ["book.js"]
html_sidebars = {"**": ["contents"]}
html_copy_source = False
html_show_sourcelink = False
# A browser does not let a page opened from file:// read its neighbours, which is what the summaries would need.
html_show_search_summary = False
html_context = {"default_mode": "auto"}
html_theme_options = {
    "logo": {"text": "lossbook", "image_light": "_static/logo.svg", "image_dark": "_static/logo.svg", "alt_text": ""},
    "navbar_center": [],
    "navbar_end": ["theme-switcher"],
    "navbar_persistent": ["search-button-field"],
    "search_bar_text": "Search the book",
    "secondary_sidebar_items": ["page-toc"],
    "article_header_start": ["part"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "show_toc_level": 2,
}


class RememberedStems(SearchEnglish):
    """The book has few words, and says each of them on many pages."""

    stem = functools.cache(SearchEnglish.stem)


def setup(app):
    app.add_search_language(RememberedStems)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

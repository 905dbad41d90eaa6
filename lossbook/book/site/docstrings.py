"""The package's docstrings: their formulas, and their text for the site.

They are plain text for `help()`, not reStructuredText: a formula is an indented block, code stands between single
backticks, and stars and bars are stars and bars.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from typing import Any

from lossbook.book.site.names import everything

_SECTION = re.compile(r"(Args|Returns|Raises|Attributes|Yields):$")
_CODE = re.compile(r"(`[^`]+`)")


def summary(value: Any) -> str:
    """The first sentence or line of a docstring."""
    return " ".join((inspect.getdoc(value) or "").partition("\n\n")[0].split())


def formula(value: Any) -> str:
    """The first indented block of a docstring, before its sections: the formula; empty if there is none."""
    lines: list[str] = []
    for line in (inspect.getdoc(value) or "").splitlines():
        if _SECTION.match(line) or (lines and line and not line.startswith(" ")):
            break
        if lines or line.startswith("    "):
            lines.append(line)
    return textwrap.dedent("\n".join(lines)).strip().replace("`", "")


def documented(value: Any, own: set[str], package: str) -> list[str]:
    """The lines of a docstring as reStructuredText, with its sections as lists; `own` and `package` as below."""
    from sphinx.ext.napoleon import Config, GoogleDocstring

    lines = restructured((inspect.getdoc(value) or "").splitlines(), own, package)
    config: Any = Config(napoleon_use_param=False, napoleon_use_rtype=False, napoleon_use_ivar=True)
    what: Any = "class" if inspect.isclass(value) else "function"
    return GoogleDocstring(lines, config, what=what, obj=value).lines()


def restructured(lines: list[str], own: set[str], package: str) -> list[str]:
    """A docstring's lines as reStructuredText with Google sections.

    Args:
        lines: the docstring, its common indentation taken off.
        own: the names of the arguments, which are no links even where a function is called the same.
        package: the folder whose names are meant first, "losses".
    """
    out: list[str] = []
    section = block = False
    for i, line in enumerate(lines):
        before = lines[i - 1] if i else ""
        if _SECTION.match(line):
            section, block = True, False
        elif line and not line.startswith(" "):
            section = block = False
        elif line.startswith("    ") and not section and not block and not before.strip():
            out += [".. code-block:: none", "   :class: formula", ""]
            block = True
        if block:
            out.append(("   " + line[4:]).rstrip().replace("`", ""))
        elif section and (item := re.match(r" {4}(\w[\w, *]*): ", line)):
            out.append(item[0] + _inline(line[item.end() :], own, package))
        else:
            out.append(_inline(line, own, package))
    return out


def _inline(text: str, own: set[str], package: str) -> str:
    parts = _CODE.split(text)
    for i, part in enumerate(parts):
        if i % 2 == 0:
            parts[i] = re.sub(r"([\\*_|`])", r"\\\1", part)
            continue
        code = part[1:-1]
        target = None if code in own else _target(code, package)
        # A space that prints nothing: code may touch the letter after it.
        end = "\\ " if parts[i + 1][:1].isalnum() else ""
        start = "\\ " if parts[i - 1][-1:].isalnum() else ""
        parts[i] = f"{start}:py:obj:`{code} <{target}>`{end}" if target else f"{start}``{code}``{end}"
    return "".join(parts)


def _target(code: str, package: str) -> str | None:
    for path in (f"lossbook.{package}.{code}", f"lossbook.{code}", code):
        if path in everything():
            return path
    ends = [full for full in everything() if full.endswith(f".{code}")]
    return ends[0] if len(ends) == 1 else None

"""What the first cells of every notebook call: the run's settings, the title block, a function's own code."""

from __future__ import annotations

import inspect
import random
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
PROFILES = ("quick", "full")


@dataclass(frozen=True)
class Run:
    """The settings of this run of a notebook."""

    profile: str
    seed: int
    device: torch.device

    @property
    def quick(self) -> bool:
        return self.profile == "quick"

    def pick(self, quick: T, full: T) -> T:
        """The first value in the quick profile, the second in the full one."""
        return quick if self.quick else full

    def seeds(self, n: int) -> list[int]:
        """n seeds, the run's own first."""
        return list(range(self.seed, self.seed + n))


def setup(profile: str = "quick", seed: int = 0, device: str = "auto") -> Run:
    """Apply a notebook's parameters: seeds of Python, NumPy and torch, the figure style, the device.

    Raises:
        ValueError: an unknown profile, a seed that is not a non-negative integer, a device that is not there.
    """
    import numpy as np
    import torch

    from lossbook import viz

    if profile not in PROFILES:
        raise ValueError(f"profile must be 'quick' or 'full', but is {profile!r}")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**31:
        raise ValueError(f"seed must be an integer in [0, 2^31), but is {seed!r}")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device!r} is not available here: {str(error).splitlines()[0]}") from error
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    viz.use_style()
    return Run(profile, seed, torch.device(device))


def header(notebook: str) -> None:
    """Show a notebook's papers and claims, as the catalogue has them.

    Args:
        notebook: its path below `notebooks/`, with or without `.ipynb`.
    """
    from IPython.display import Markdown, display

    display(Markdown(_header(notebook)))


def _header(notebook: str) -> str:
    from lossbook.book.catalog import load_catalog

    catalog = load_catalog()
    notebook = notebook if notebook.endswith(".ipynb") else f"{notebook}.ipynb"
    entries = catalog.of_notebook(notebook)
    if not entries:
        raise KeyError(f"the catalogue lists nothing for {notebook!r}")
    lines = []
    for entry in entries:
        link = "standard material" if entry.key in catalog.foundations else "not on arXiv"
        if entry.arxiv:
            link = f"[arXiv {entry.arxiv}](https://arxiv.org/abs/{entry.arxiv})"
        lines.append(f"- **{entry.title}** ({link})")
    claims = [claim for claim in catalog.claims.values() if claim.notebook == notebook]
    lines.append("")
    lines.append(f"This notebook measures {len(claims)} claims:")
    lines.append("")
    lines += [f"{i}. {claim.text}" for i, claim in enumerate(claims, start=1)]
    return "\n".join(lines)


def show_source(function: Callable[..., Any]) -> None:
    """Show a function's code as it stands in the package, so that a notebook never holds a second copy of it."""
    from IPython.display import Markdown, display

    source = textwrap.dedent(inspect.getsource(inspect.unwrap(function)))
    display(Markdown(f"```python\n{source}```"))

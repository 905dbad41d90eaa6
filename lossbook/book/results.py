"""What the executed notebooks say: their claims, held against the catalogue."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lossbook.book.claims import MIME

if TYPE_CHECKING:
    import pandas as pd

    from lossbook.book.catalog import Catalog


class ResultsError(ValueError):
    """The executed notebooks cannot be read, or contradict each other; the message is one sentence."""


@dataclass(frozen=True)
class ClaimResult:
    """What a notebook measured for one claim."""

    key: str
    status: str
    seeds: int
    measured: Mapping[str, Any]


def claims_of(nb: Mapping[str, Any]) -> list[ClaimResult]:
    """The claims in a notebook's outputs, in the order of its cells.

    Raises:
        ResultsError: a claim output without key, status, seeds or measured.
    """
    found = []
    for cell in nb["cells"]:
        for output in cell.get("outputs", []):
            payload = output.get("data", {}).get(MIME)
            if payload is None:
                continue
            try:
                found.append(ClaimResult(*(payload[name] for name in ("key", "status", "seeds", "measured"))))
            except (KeyError, TypeError) as error:
                raise ResultsError(f"the claim output {payload!r} has no {error}") from error
    return found


def claims_table(executed_dir: str | Path, catalog: Catalog | None = None) -> pd.DataFrame:
    """The catalogue's claims, and what the executed notebooks measured.

    A row per claim of the catalogue, in its order, with columns claim, notebook, expected, measured (the status, or
    "not measured"), seeds and ok. A claim that the notebooks make and the catalogue does not have follows, not ok.

    Raises:
        ResultsError: no executed notebooks, one that is damaged, or a claim made twice with different statuses.
    """
    import pandas as pd

    from lossbook.book.catalog import load_catalog

    catalog = catalog or load_catalog()
    measured = _measured(Path(executed_dir))
    rows = []
    for key, claim in catalog.claims.items():
        result = measured.pop(key, None)
        status, seeds = (result.status, result.seeds) if result else ("not measured", 0)
        rows.append((key, claim.notebook, claim.expected, status, seeds, status == claim.expected))
    rows += [(key, "", "not in the catalogue", result.status, result.seeds, False) for key, result in measured.items()]
    return pd.DataFrame(rows, columns=["claim", "notebook", "expected", "measured", "seeds", "ok"])


def _measured(folder: Path) -> dict[str, ClaimResult]:
    import nbformat

    paths = [path for path in sorted(folder.rglob("*.ipynb")) if not path.name.endswith(".failed.ipynb")]
    if not paths:
        raise ResultsError(f"there are no executed notebooks in {folder}; `lossbook run` makes them")
    measured: dict[str, ClaimResult] = {}
    for path in paths:
        try:
            results = claims_of(nbformat.read(path, as_version=4))
        except ResultsError as error:
            raise ResultsError(f"{path}: {error}") from error
        except Exception as error:
            raise ResultsError(f"{path} is damaged; `lossbook run` makes it again") from error
        for result in results:
            if measured.setdefault(result.key, result).status != result.status:
                raise ResultsError(f"{path}: claim {result.key!r} is made twice, with different statuses")
    return measured

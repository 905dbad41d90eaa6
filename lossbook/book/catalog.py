"""The catalogue: the 204 papers and the standard material around them, with the claims that the notebooks measure."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

KINDS = ("core", "mechanism", "idea")
STATUSES = ("reproduced", "not reproduced")


@dataclass(frozen=True)
class Claim:
    """A statement that a notebook's own numbers can refute."""

    key: str  # "comp-sum/noise-favours-large-tau": the entry's key, then the claim's id
    text: str
    expected: str  # one of STATUSES
    notebook: str  # "01-surrogates/01-cross-entropy-family.ipynb"
    paper: str = ""  # what the paper reported
    reason: str = ""  # why it does not reproduce


@dataclass(frozen=True)
class Entry:
    """A paper of the corpus, or a piece of standard material that several papers build on."""

    key: str
    title: str
    part: str = ""
    kind: str = "core"
    arxiv: str = ""
    verified: bool = False  # the formula was checked against the paper's own code
    functions: tuple[str, ...] = ()
    golden: tuple[str, ...] = ()
    notebook: str = ""  # empty: planned
    claims: tuple[Claim, ...] = ()

    @property
    def built(self) -> bool:
        return bool(self.notebook)


@dataclass(frozen=True)
class Catalog:
    papers: dict[str, Entry]
    foundations: dict[str, Entry]
    claims: dict[str, Claim] = field(init=False)

    def __post_init__(self) -> None:
        claims = {claim.key: claim for entry in self.entries.values() for claim in entry.claims}
        object.__setattr__(self, "claims", claims)

    @property
    def entries(self) -> dict[str, Entry]:
        return {**self.foundations, **self.papers}

    def of_notebook(self, notebook: str) -> list[Entry]:
        """The entries that a notebook builds or measures a claim of, foundations first."""
        return [
            entry
            for entry in self.entries.values()
            if entry.notebook == notebook or any(claim.notebook == notebook for claim in entry.claims)
        ]


class CatalogError(ValueError):
    """The catalogue contradicts itself; the message names the entry."""


@cache
def load_catalog(path: Path | None = None) -> Catalog:
    """Read and check the catalogue, by default the package's own `catalog.toml`.

    Raises:
        CatalogError: an unknown field, a key or claim used twice, an expected status without the reason it needs.
    """
    text = path.read_text() if path else resources.files("lossbook.book").joinpath("catalog.toml").read_text()
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise CatalogError(f"the catalogue is not valid TOML: {error}") from error
    if unknown := set(raw) - {"papers", "foundations"}:
        raise CatalogError(f"the catalogue has an unknown table {sorted(unknown)[0]!r}")
    papers = {key: _entry(key, fields) for key, fields in raw.get("papers", {}).items()}
    foundations = {key: _entry(key, fields) for key, fields in raw.get("foundations", {}).items()}
    if shared := papers.keys() & foundations.keys():
        raise CatalogError(f"{sorted(shared)[0]!r} is both a paper and a foundation")
    return Catalog(papers, foundations)


def _entry(key: str, fields: dict[str, Any]) -> Entry:
    if unknown := set(fields) - set(Entry.__dataclass_fields__) - {"key"}:
        raise CatalogError(f"{key}: unknown field {sorted(unknown)[0]!r}")
    if fields.get("kind", "core") not in KINDS:
        raise CatalogError(f"{key}: kind must be one of {', '.join(KINDS)}, but is {fields['kind']!r}")
    if not fields.get("title"):
        raise CatalogError(f"{key}: has no title")
    notebook = fields.get("notebook", "")
    claims = tuple(_claim(key, notebook, claim) for claim in fields.pop("claims", []))
    keys = [claim.key for claim in claims]
    for claim_key in keys:
        if keys.count(claim_key) > 1:
            raise CatalogError(f"claim {claim_key!r} is listed twice")
    functions, golden = tuple(fields.pop("functions", ())), tuple(fields.pop("golden", ()))
    return Entry(key=key, claims=claims, functions=functions, golden=golden, **fields)


def _claim(key: str, notebook: str, fields: dict[str, Any]) -> Claim:
    name = f"{key}/{fields.get('id', '')}"
    if not re.fullmatch(r"[a-z0-9-]+/[a-z0-9-]+", name):
        raise CatalogError(f"claim {name!r}: id must be lower case words joined by hyphens")
    if unknown := set(fields) - {"id", "text", "paper", "expected", "reason", "notebook"}:
        raise CatalogError(f"claim {name!r}: unknown field {sorted(unknown)[0]!r}")
    if not fields.get("text"):
        raise CatalogError(f"claim {name!r} has no text")
    if fields.get("expected") not in STATUSES:
        raise CatalogError(f"claim {name!r}: expected must be one of {', '.join(map(repr, STATUSES))}")
    if fields["expected"] == "not reproduced" and not fields.get("reason"):
        raise CatalogError(f"claim {name!r} is not reproduced: say why in `reason`")
    # A paper may be shown in more than one notebook; a claim is measured in one.
    home = fields.get("notebook", notebook)
    if not home:
        raise CatalogError(f"claim {name!r} belongs to no notebook")
    return Claim(name, fields["text"], fields["expected"], home, fields.get("paper", ""), fields.get("reason", ""))

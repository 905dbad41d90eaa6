"""`claim`: the line of a notebook that its own numbers can refute."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

MIME = "application/vnd.lossbook.claim+json"
MIN_SEEDS = 3


def claim(
    key: str, holds: bool | Sequence[bool], *, measured: Mapping[str, Any] | None = None, seeds: int | None = None
) -> None:
    """State whether a claim of the catalogue holds in what was just measured, and show it.

    The claim is *reproduced* if it holds for every seed. The output carries the result in a machine-readable part, from
    which `lossbook claims` and the tests compare it with the status that the catalogue expects.

    Args:
        key: "entry/claim-id" in the catalogue.
        holds: one truth value a seed; or a single one with `seeds`, for a statement about the spread over seeds.
        measured: the numbers that it rests on, name -> number or short list of numbers.
        seeds: how many seeds a single truth value rests on.

    Raises:
        KeyError: no such claim in the catalogue.
        ValueError: fewer than three seeds, or something that is not a truth value.
    """
    from lossbook.book.catalog import load_catalog

    claims = load_catalog().claims
    if key not in claims:
        raise KeyError(f"the catalogue has no claim {key!r}; its claims are {', '.join(sorted(claims))}")
    verdicts, seeds = _verdicts(key, holds, seeds)
    payload = {
        "key": key,
        "status": "reproduced" if all(verdicts) else "not reproduced",
        "holds": verdicts,
        "seeds": seeds,
        "measured": {name: _plain(value) for name, value in (measured or {}).items()},
    }
    _show(payload, claims[key].text, claims[key].expected)


def _verdicts(key: str, holds: Any, seeds: int | None) -> tuple[list[bool], int]:
    values = holds.tolist() if hasattr(holds, "tolist") else holds
    single = not isinstance(values, Sequence)
    verdicts = [v.item() if hasattr(v, "item") else v for v in ([values] if single else values)]
    if any(not isinstance(v, bool) for v in verdicts):
        raise ValueError(f"claim {key!r}: holds must be one truth value a seed, but is {holds!r}")
    if single and seeds is None:
        raise ValueError(f"claim {key!r}: a single truth value needs seeds=, the number of seeds it rests on")
    if not single and seeds is not None:
        raise ValueError(f"claim {key!r}: seeds= goes with a single truth value; {len(verdicts)} were given")
    count = seeds if seeds is not None else len(verdicts)
    if count < MIN_SEEDS:
        raise ValueError(f"claim {key!r} rests on {count} seeds; at least {MIN_SEEDS} are needed")
    return verdicts, count


def _plain(value: Any) -> Any:
    """A number or a list of numbers as JSON holds them, to six significant digits."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        # JSON has no NaN and no infinity.
        return float(f"{value:.6g}") if math.isfinite(value) else str(value)
    return value


def _show(payload: dict[str, Any], text: str, expected: str) -> None:
    from IPython.display import display

    held = sum(payload["holds"])
    how = f"{held} of {payload['seeds']} seeds" if len(payload["holds"]) > 1 else f"over {payload['seeds']} seeds"
    numbers = ", ".join(f"{name} = {short_number(value)}" for name, value in payload["measured"].items())
    mark = "✓" if payload["status"] == "reproduced" else "✗"
    surprise = "" if payload["status"] == expected else f" The catalogue expects: {expected}."
    line = f"{mark} {payload['status']} ({how}): {text}{surprise}"
    page = (
        f"<div class='lossbook-claim'><p><strong>{mark} {payload['status']}</strong> ({how}). {html.escape(text)}"
        f"<strong>{html.escape(surprise)}</strong></p><p><small>{html.escape(numbers)}</small></p></div>"
    )
    display({MIME: payload, "text/html": page, "text/plain": f"{line}\n  {numbers}"}, raw=True)


def short_number(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(short_number, value)) + "]"
    return f"{value:.3g}" if isinstance(value, float) else str(value)

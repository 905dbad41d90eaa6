"""The page on speed: the measurements that `lossbook bench` wrote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lossbook.book.site.markup import plain, row


def speed_page(report: Mapping[str, Any]) -> str:
    from lossbook.book.bench.measure import promised

    machine, rows = report["machine"], report["measurements"]
    pairs = sorted({len(one["samples"]) for one in rows})
    lines = [
        "# How fast is it?",
        "",
        "Each row times two things in turn, in one run: what this package does, and another way to the same result, or "
        "a unit of work such as one product of matrices. The ratio says how many times as fast the package is; below 1 "
        f"it is the slower one. It is the median of {' or '.join(map(str, pairs))} pairs, with the smallest and the "
        "largest in brackets. What is promised is what the README and the documentation say; the command fails where "
        "one is slower. The memory is how far the package, and the other, raise its peak. The last column is the "
        "package's share of what a copy or a product of matrices reaches on the same machine.",
        "",
        f"Measured on {plain(machine['device'])}, {machine['cores']} cores, {machine['memory']:g} GiB of memory, with "
        f"Python {machine['python']}, torch {plain(machine['torch'])} (threads: {machine['threads']}) and lossbook "
        f"{machine['lossbook']}. On your own machine `lossbook bench` prints the same table, with seconds, and "
        "`lossbook bench import` one group of it.",
        "",
        "| group | what | against | times as fast | promised | memory in MiB | of the ceiling |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in rows:
        what = plain(one["name"]) + (f"<br>*{plain(one['note'])}*" if one["note"] else "")
        # A line for the ratio and, held together by spaces that do not break, one for its range.
        ratio = f"{_times(one['ratio'])}<br>({_times(one['low'])}\u00a0to\u00a0{_times(one['high'])})"
        promise = "" if one["at_least"] is None else promised(one["at_least"])
        memory = "" if one["memory"] is None else "{:,.0f} against {:,.0f}".format(*one["memory"])
        ceiling = "" if one["ceiling"] is None else f"{one['ceiling']:.0%}"
        lines.append(row(plain(one["group"]), what, plain(one["peer_name"]), ratio, promise, memory, ceiling))
    return "\n".join([*lines, ""])


def _times(ratio: float) -> str:
    return f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.2f}"

"""The command `lossbook compare`."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lossbook import checks
from lossbook.book.audit.command import write_report

NETWORKS = "networks"
RESULTS = ("results.json", "results.csv", "classes.csv")


def compare_losses(
    data: str,
    losses: str,
    out: Path,
    *,
    target: str | None = None,
    ignore: Sequence[str] = (),
    metric: str = "accuracy",
    model: str = "auto",
    seeds: int = 5,
    rates: Sequence[float] = (),
    epochs: int | None = None,
    batch_size: int = 64,
    rows: int = 20_000,
    image_size: int = 32,
    seed: int = 0,
    device: str = "auto",
    timeout: float = 86_400.0,
) -> Path:
    """Run the notebook that compares losses on a user's rows, and put its results into `out`.

    They are `report.html`, `report.ipynb`, `results.json`, `results.csv` and `classes.csv`. They appear when all are
    complete, and replace those of an earlier comparison. Beside them the folder `networks` keeps what was trained, from
    its first minute on: the same command goes on from there, and one with a further loss trains only that.

    Args:
        data, target, ignore, rows, image_size: as `lossbook.book.compare.data.read`.
        losses: as `lossbook.book.compare.losses.parse_losses`.
        out: the folder of the report.
        seeds: how many, from `seed` on.
        rates: learning rates to choose among; none takes `lossbook.book.compare.experiment.RATES`.
        metric, model, epochs, batch_size, device: as `lossbook.book.compare.compare`.
        seed: of the sample, and the first of the splits.
        timeout: seconds for the whole notebook.

    Returns:
        The page to open.

    Raises:
        ValueError: a bad argument, or data that cannot be compared on.
        OSError: a file that is missing, a folder that cannot be written.
        RunError: the notebook is missing or failed.
        Interrupted: Ctrl-C or SIGTERM.
    """
    from lossbook.book.compare.experiment import METRICS, MIN_SEEDS, MODELS, RATES
    from lossbook.book.compare.losses import parse_losses
    from lossbook.data import names
    from lossbook.train.settings import one_of, pick_device, real

    parse_losses(losses)
    one_of("metric", metric, tuple(METRICS))
    one_of("model", model, MODELS)
    pick_device(device)
    checks.whole("seeds", seeds, MIN_SEEDS)
    for rate in rates:
        real("lr", rate, positive=True)
    path = Path(data)
    if not path.exists() and data not in names():
        raise FileNotFoundError(f"{path} does not exist, and is no dataset of the book ({', '.join(names())})")
    out = out.resolve()
    if path.is_dir() and out.is_relative_to(path.resolve()):
        raise ValueError(f"{out} lies in the folder of the data: choose another one with --out")
    parameters: dict[str, Any] = {
        "data": str(path.resolve()) if path.exists() else data,
        "losses": losses,
        "target": target or "",
        "ignore": list(ignore),
        "metric": metric,
        "model": model,
        "seeds": seeds,
        "rates": sorted(set(rates)) or list(RATES),
        "epochs": epochs or 0,
        "batch_size": batch_size,
        "rows": rows,
        "image_size": image_size,
        "seed": seed,
        "device": device,
        "networks": str(out / NETWORKS),
    }
    title, what = f"Losses on {path.name}", f"the comparison on {data}"
    return write_report("audits/compare.ipynb", parameters, out, RESULTS, timeout, title=title, what=what)


def findings(folder: Path) -> str:
    """A comparison's sentences, for the terminal."""
    found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    sentences = [html.unescape(sentence.replace("*", "")) for sentence in found["verdict"]]
    return "\n".join([f"{found['file']}, {found['rows']:,} rows:", *sentences])

"""The commands `lossbook audit calibration`, `lossbook audit collapse` and `lossbook calibrate`."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lossbook import _files
from lossbook.book._jobs import RunError
from lossbook.book.runner import run_notebooks

if TYPE_CHECKING:
    import numpy as np
    from nbformat import NotebookNode
    from numpy.typing import NDArray


NOTEBOOKS = Path(__file__).resolve().parents[3] / "notebooks"
REPORT = "report.html"


def audit_calibration(
    predictions: Path,
    labels: Path | None,
    out: Path,
    *,
    label_column: str | None = None,
    n_bins: int = 15,
    sample_rows: int = 20_000,
    seed: int = 0,
    timeout: float = 3600.0,
) -> Path:
    """Run the calibration audit's notebook on a file, and put its results into `out`.

    They are `report.html`, `report.ipynb`, `numbers.json`, `classes.csv` and `calibrator.json`. They appear when all
    are complete, and replace those of an earlier audit; nothing else in the folder is touched.

    Args:
        predictions, labels, label_column: as `lossbook.data.read_predictions`.
        n_bins, sample_rows, seed: as `lossbook.book.audit.calibration.audit`.
        timeout: seconds for the whole notebook.

    Returns:
        The page to open.

    Raises:
        ValueError: a file that cannot be used, by name and row.
        OSError: a file that is missing, a folder that cannot be written.
        RunError: the notebook is missing or failed.
    """
    parameters = {
        "predictions": _found(predictions),
        "labels": _found(labels),
        "label_column": label_column or "",
        "n_bins": n_bins,
        "sample_rows": sample_rows,
        "seed": seed,
    }
    results = ("numbers.json", "classes.csv", "calibrator.json")
    return _audit("calibration", predictions, parameters, out, results, timeout)


def audit_collapse(
    features: Path,
    labels: Path | None,
    out: Path,
    *,
    classifier: Path | None = None,
    label_column: str | None = None,
    seed: int = 0,
    timeout: float = 3600.0,
) -> Path:
    """Run the collapse audit's notebook on a file, and put its results into `out`.

    They are `report.html`, `report.ipynb`, `numbers.json` and `classes.csv`. They appear when all are complete, and
    replace those of an earlier audit; nothing else in the folder is touched.

    Args:
        features, labels, label_column: as `lossbook.data.read_features`.
        classifier: as `lossbook.data.read_classifier`; None leaves out what needs one.
        seed: as `lossbook.book.audit.collapse.audit`.
        timeout: seconds for the whole notebook.

    Returns:
        The page to open.

    Raises:
        ValueError, OSError, RunError: as `audit_calibration`.
    """
    parameters = {
        "features": _found(features),
        "labels": _found(labels),
        "classifier": _found(classifier),
        "label_column": label_column or "",
        "seed": seed,
    }
    return _audit("collapse", features, parameters, out, ("numbers.json", "classes.csv"), timeout)


def _found(path: Path | None) -> str:
    """The absolute path of a file, as a parameter for a notebook, whose kernel works in a folder of its own."""
    if path is None:
        return ""
    from lossbook.data._labelled import existing

    return str(existing(path).resolve())


def _audit(
    kind: str, file: Path, parameters: dict[str, Any], out: Path, results: tuple[str, ...], timeout: float
) -> Path:
    """Run the notebook of this audit; the page."""
    title, what = f"{kind.capitalize()} of {file.name}", f"the audit of {file}"
    return write_report(f"audits/{kind}.ipynb", parameters, out, results, timeout, title=title, what=what)


def write_report(
    name: str, parameters: dict[str, Any], out: Path, results: tuple[str, ...], timeout: float, *, title: str, what: str
) -> Path:
    """Run a notebook on a user's file, and put its page and its results into `out` when all are complete.

    Args:
        name: the notebook, below notebooks/. It leaves its results in the folder `out` of its parameters.
        parameters: of the notebook, without `out`.
        out: the user's folder; files of the same names are replaced, others left alone.
        results: names of all files that the notebook may write.
        timeout: seconds for the whole notebook.
        title: of the page.
        what: is running, for refusals: "the audit of predictions.npz".

    Returns:
        The page.

    Raises:
        OSError: a folder that cannot be written.
        RunError: the notebook is missing or failed, or another report is being written to `out`.
    """
    notebook = NOTEBOOKS / name
    if not notebook.is_file():
        raise RunError(f"there is no {notebook}: {what} runs from a checkout of the book")
    out = out.resolve()
    with _working_folder(out) as folder:
        made = folder / "results"
        made.mkdir()
        [result] = run_notebooks(
            [notebook],
            root=NOTEBOOKS,
            parameters=parameters | {"out": str(made)},
            out=folder / "run",
            timeout=timeout,
            force=True,
        )
        if result.status == "failed" or result.executed is None:
            # What a file is refused for is a sentence that names it; where in the notebook it was found helps nobody.
            cell, is_data, sentence = (result.error or "").partition("DataError: ")
            raise RunError(sentence if is_data else f"{what} failed at {cell}")
        shutil.copy2(result.executed, made / "report.ipynb")
        _write_page(made / "report.ipynb", made / REPORT, title)
        # The page goes first and comes last: while there is one, all that stands beside it belongs to it.
        for name in (REPORT, "report.ipynb", *results):
            if name == REPORT or not (made / name).exists():
                (out / name).unlink(missing_ok=True)
        for path in sorted(made.iterdir(), key=lambda path: (path.name == REPORT, path.name)):
            os.replace(path, out / path.name)
    return out / REPORT


@contextlib.contextmanager
def _working_folder(out: Path) -> Iterator[Path]:
    """A folder in `out` that is gone afterwards; while it is held, a second audit into `out` is refused."""
    out.mkdir(parents=True, exist_ok=True)
    folder = out / ".audit"
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_files.locked(out))
        except BlockingIOError:
            raise RunError(
                f"another command is writing to {out}: wait for it, or choose another folder with --out"
            ) from None
        # What a killed audit has left.
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def findings(folder: Path) -> str:
    """An audit's main sentences, for the terminal."""
    found = json.loads((folder / "numbers.json").read_text(encoding="utf-8"))
    return "\n".join([f"{found['file']}:", *(sentence.replace("*", "") for sentence in found["verdict"][:3])])


def _write_page(notebook: Path, page: Path, title: str) -> None:
    """The executed notebook without its code, as one HTML file that asks no other for anything."""
    import nbformat
    from nbconvert import HTMLExporter

    nb: NotebookNode = nbformat.read(notebook, as_version=4)
    nb.metadata["title"] = title
    # The scripts that a page of nbconvert's would fetch are for formulas and live widgets; the report has neither.
    exporter = HTMLExporter(
        exclude_input=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        require_js_url="",
        jquery_url="",
        mathjax_url="",
        mermaid_js_url="",
        jupyter_widgets_base_url="",
    )
    page.write_text(exporter.from_notebook_node(nb)[0], encoding="utf-8")


def calibrate(calibrator: Path, predictions: Path, out: Path) -> int:
    """Apply a saved calibrator to a file of predictions; the number of rows written.

    The file is read and written in chunks, and `out` appears when it is complete. It may be `.npy` (N, K), `.csv` or
    `.parquet` with a column a class; the numbers have the precision of the predictions (float32 or float64).

    Raises:
        ValueError: a file that cannot be used, by name and row; other classes than the calibrator's.
        OSError: a file that is missing or cannot be written.
    """
    from lossbook.book.audit.calibration import to_probabilities
    from lossbook.book.audit.compare import from_json, log_probabilities
    from lossbook.data import DataError, read_predictions

    if out.suffix.lower() not in _WRITERS:
        raise ValueError(
            f"{out}: the result can be written as {', '.join(_WRITERS)}, not {out.suffix or 'without one'}"
        )
    try:
        fitted, names = from_json(calibrator.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise DataError(f"{calibrator}: {error}") from None
    read = read_predictions(predictions, with_labels=False)
    if read.num_classes != len(names):
        raise DataError(f"{predictions} has {read.num_classes} classes, but {calibrator} is for {len(names)}")
    # Names that only count say nothing of the order of the columns.
    counted = tuple(map(str, range(len(names))))
    if names != read.class_names and counted not in (names, read.class_names):
        k = next(i for i, name in enumerate(names) if name != read.class_names[i])
        raise DataError(
            f"{predictions} has class {read.class_names[k]!r} in column {k} of its scores, but {calibrator} has "
            f"{names[k]!r} there: give the columns the same order and names"
        )
    if out.exists() and out.samefile(predictions):
        raise ValueError(f"{out} is the file of predictions itself: give another name for the result")
    first, _ = next(read.chunks(1))
    part = out.with_name(f".{out.name}.part")
    try:
        with _WRITERS[out.suffix.lower()](part, (read.rows, len(names)), first.dtype, names) as write:
            for scores, _ in read.chunks():
                probs = fitted.predict_proba(log_probabilities(to_probabilities(scores, read.kind)))
                write(probs.astype(scores.dtype))
        os.replace(part, out)
    finally:
        part.unlink(missing_ok=True)
    return read.rows


Write = Callable[["NDArray[np.floating]"], object]


@contextlib.contextmanager
def _npy(path: Path, shape: tuple[int, int], dtype: np.dtype, names: tuple[str, ...]) -> Iterator[Write]:
    import numpy as np

    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        yield lambda probs: file.write(probs.tobytes())


@contextlib.contextmanager
def _csv(path: Path, shape: tuple[int, int], dtype: np.dtype, names: tuple[str, ...]) -> Iterator[Write]:
    import pandas as pd

    with path.open("w", encoding="utf-8", newline="") as file:
        pd.DataFrame(columns=list(names)).to_csv(file, index=False)
        yield lambda probs: pd.DataFrame(probs).to_csv(file, index=False, header=False)


@contextlib.contextmanager
def _parquet(path: Path, shape: tuple[int, int], dtype: np.dtype, names: tuple[str, ...]) -> Iterator[Write]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = pa.from_numpy_dtype(dtype)
    schema = pa.schema([(name, kind) for name in names])
    with pq.ParquetWriter(path, schema) as writer:
        yield lambda probs: writer.write_table(pa.table([pa.array(column) for column in probs.T], schema=schema))


_WRITERS = {".npy": _npy, ".csv": _csv, ".parquet": _parquet}

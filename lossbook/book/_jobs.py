"""One notebook of a run: what is to be done, whether it has to be, and what is kept of it."""

from __future__ import annotations

import ast
import contextlib
import copy
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lossbook import _files
from lossbook._files import write_atomically

if TYPE_CHECKING:
    from nbformat import NotebookNode

logger = logging.getLogger(__name__)

_INJECTED = "injected-parameters"  # papermill's tag
_WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


class RunError(Exception):
    """The run cannot start or go on; the message is one sentence for the person who started it."""


@dataclass(frozen=True)
class Result:
    """How one notebook ended.

    executed is the file to read: the executed notebook, or if it failed, the failed execution (None if it got nowhere).
    seconds is the wall time of the run, overhead the part of it before the first code cell started.
    """

    notebook: Path
    status: Literal["ok", "cached", "failed"]
    executed: Path | None
    seconds: float
    overhead: float
    error: str | None = None


@dataclass
class Job:
    """A notebook of the run. Its thread fills in what follows `kernel`; the main thread reads it, and kills."""

    source: Path
    source_hash: str
    rel: Path
    executed: Path
    nb: NotebookNode
    cells: int
    parameters: dict[str, Any]
    key: str
    expected: float | None
    result: Result | None = None
    kernel: Any = None
    started: float = 0.0
    first_cell: float | None = None
    cell: int = 0
    executions: int = 0
    dead_since: float | None = None
    killed_because: str | None = None
    error: str | None = None
    done: threading.Event = field(default_factory=threading.Event)

    @property
    def record(self) -> Path:
        return self.executed.with_suffix(".json")

    @property
    def failed(self) -> Path:
        return self.executed.with_suffix(".failed.ipynb")

    def kill(self, because: str) -> None:
        self.killed_because = self.killed_because or because
        if self.kernel is not None and self.kernel.poll() is None:
            with contextlib.suppress(OSError):
                # The group: a notebook's own worker processes go with it.
                os.killpg(self.kernel.pid, signal.SIGKILL)

    def enter(self, index: int) -> None:
        """A code cell starts; cells are counted from one and without the injected parameters, as in the source."""
        self.first_cell = self.first_cell or time.monotonic()
        self.cell = sum(_INJECTED not in cell.metadata.get("tags", []) for cell in self.nb.cells[: index + 1])
        self.executions += 1


def find(paths: Sequence[str | Path] | None, root: Path) -> dict[Path, Path]:
    """The notebooks, and their paths relative to root; one outside root keeps only its name."""
    if paths is None and not root.is_dir():
        raise RunError(f"there is no folder {root} here: change to the book's folder, or name the notebooks")
    found: dict[Path, Path] = {}
    for path in [root] if paths is None else [Path(path) for path in paths]:
        if not path.exists() and (root / path).exists():
            path = root / path  # as the book names it: "01-surrogates"
        if path.is_dir():
            inside = [p for p in sorted(path.rglob("*.ipynb")) if not _is_hidden(p.relative_to(path))]
        elif path.is_file():
            inside = [path]
        else:
            raise RunError(f"there is no notebook {path}")
        for notebook in (p.resolve() for p in inside):
            in_root = notebook.is_relative_to(root.resolve())
            found[notebook] = notebook.relative_to(root.resolve()) if in_root else Path(notebook.name)
    if not found:
        raise RunError(f"there are no notebooks in {', '.join(str(path) for path in paths or [root])}")
    first: dict[Path, Path] = {}
    for notebook, rel in found.items():
        if first.setdefault(rel, notebook) != notebook:
            raise RunError(f"{first[rel]} and {notebook} would both be written to {rel}: run one at a time")
    return found


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def prepare(path: Path, rel: Path, out: Path, wanted: Mapping[str, Any], extra: Mapping[str, Any], here: str) -> Job:
    """Read a notebook and decide what it is given: of wanted what it has a parameter for, and all of extra.

    here: what else decides the result (`surroundings`); with the cells and the parameters it makes the record's key.
    """
    import nbformat

    try:
        source = path.read_bytes()
        nb = nbformat.reads(source.decode(), as_version=4)
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from error
    except Exception as error:
        raise RunError(f"{path} is not a notebook: {first_line(error)}") from error
    declared = _declared(nb)
    for name in extra:
        if name not in declared:
            raise RunError(f"{rel} has no parameter {name!r}; it has {', '.join(declared) or 'none'}")
    given = {name: value for name, value in {**wanted, **extra}.items() if name in declared}
    # Only what differs from the notebook's own values is injected: an ordinary run shows the notebook as it is written.
    injected = {name: value for name, value in given.items() if declared[name] != value}
    cells = [(cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in nb.cells]
    key = sha256(json.dumps([cells, {**declared, **injected}, here], default=str))
    executed = out / rel
    if executed == path:
        raise RunError(f"{out} holds the notebooks themselves: choose another folder for the executed ones")
    expected = _read_record(executed.with_suffix(".json")).get("seconds")
    return Job(path, sha256(source), rel, executed, nb, len(nb.cells), injected, key, expected)


def _declared(nb: NotebookNode) -> dict[str, Any]:
    """The parameters of a notebook with their values; a value that is not a literal stands as its text."""
    cell = next((cell for cell in nb.cells if "parameters" in cell.metadata.get("tags", [])), None)
    try:
        statements = ast.parse(cell.source).body if cell is not None else []
    except SyntaxError:
        # Running the cell says it better.
        return {}
    values: dict[str, Any] = {}
    for statement in statements:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        for target in targets:
            if isinstance(target, ast.Name) and isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value:
                values[target.id] = _literal(statement.value)
    return values


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node)


def surroundings(device: str) -> str:
    """What a result depends on besides its notebook: the package, torch's and Python's version, the kind of device."""
    package = hashlib.sha256()
    folder = Path(__file__).parents[1]
    for path in sorted(folder.rglob("*.*")):
        if path.is_file() and "__pycache__" not in path.parts:
            package.update(f"{path.relative_to(folder)}\0{sha256(path.read_bytes())}\0".encode())
    torch, python = importlib.metadata.version("torch"), platform.python_version()
    return f"{package.hexdigest()} torch {torch} python {python} {_kind(device)}"


def _kind(device: str) -> str:
    if device != "auto":
        return device.split(":")[0]
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def sha256(content: str | bytes) -> str:
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def clean(nb: NotebookNode) -> NotebookNode:
    """A copy of an executed notebook without what changes from run to run: timings, widget state, Python's version.

    Outputs and cell ids stay. The same form is written to `out` and, by maintainers, committed.
    """
    nb = copy.deepcopy(nb)
    for name in ("papermill", "widgets"):
        nb.metadata.pop(name, None)
    nb.metadata.get("language_info", {}).pop("version", None)
    for cell in nb.cells:
        for name in ("papermill", "execution"):
            cell.metadata.pop(name, None)
        if not cell.metadata.get("tags", True):
            del cell.metadata["tags"]
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if len(data) > 1:
                # Without the widget's state a view of it is an error message; the text beside it still reads.
                data.pop(_WIDGET_VIEW, None)
    return nb


def _read_record(path: Path) -> dict[str, Any]:
    """The record of a last good run; empty if there is none or it is damaged."""
    try:
        record = json.loads(path.read_bytes())
        whole = record.pop("sha256") == _digest(record)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return record if whole else {}


def _digest(record: dict[str, Any]) -> str:
    # As it is when it has been read back: there, the names in a dictionary are strings.
    return sha256(json.dumps(json.loads(json.dumps(record, default=str)), sort_keys=True))


def cached(job: Job) -> Result | None:
    record = _read_record(job.record)
    if not job.record.exists() or record.get("key", job.key) != job.key:
        return None
    try:
        intact = bool(record) and record["executed"] == sha256(job.executed.read_bytes())
    except OSError:
        intact = False
    if not intact:
        logger.warning("%s runs again: its last result is damaged", job.rel)
        return None
    return Result(job.source, "cached", job.executed, record["seconds"], record["overhead"])


def finish(job: Job) -> Result:
    """Write down how a notebook ended. A failure leaves the last good execution alone."""
    seconds = time.monotonic() - job.started
    overhead = seconds if job.first_cell is None else job.first_cell - job.started
    text = _text(clean(job.nb))
    if job.error is not None:
        # Without a record there is no last result: a notebook that has failed runs again, even if nothing changes.
        job.record.unlink(missing_ok=True)
        if job.first_cell is not None:
            write_atomically(job.failed, text)
        return Result(job.source, "failed", job.failed if job.first_cell else None, seconds, overhead, job.error)
    # A crash after this line costs a run, never a wrong answer: the record that stands is of another execution.
    write_atomically(job.executed, text)
    record = {
        "key": job.key,
        "executed": sha256(text),
        "seconds": seconds,
        "overhead": overhead,
        "parameters": job.parameters,
    }
    record["sha256"] = _digest(record)
    write_atomically(job.record, json.dumps(record, indent=1, default=str) + "\n")
    job.failed.unlink(missing_ok=True)
    return Result(job.source, "ok", job.executed, seconds, overhead)


def write_back(job: Job) -> None:
    """Put the executed notebook in the place of its source, without the cell of injected parameters."""
    import nbformat

    if job.result is None or job.result.executed is None or job.result.status == "failed":
        return
    if sha256(job.source.read_bytes()) != job.source_hash:
        error = "it was edited while it ran, so the result was not written back"
        job.result = replace(job.result, status="failed", error=error)
        return
    nb = nbformat.read(job.result.executed, as_version=4)
    nb.cells = [cell for cell in nb.cells if _INJECTED not in cell.metadata.get("tags", [])]
    with writing(job.source):
        write_atomically(job.source, _text(nb))


def _text(nb: NotebookNode) -> str:
    import nbformat

    return nbformat.writes(nb).rstrip("\n") + "\n"


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(f"cannot write {error.filename or path}: {error.strerror}") from error


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the folder for one run, and clear away what a run that was killed while writing left in it."""
    with contextlib.ExitStack() as stack:
        with writing(out):
            out.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(_files.locked(out / ".lock"))
            except BlockingIOError:
                raise RunError(
                    f"another run is writing to {out}: wait for it, or choose another folder with --out"
                ) from None
            _files.clear_leftovers(out)
        yield

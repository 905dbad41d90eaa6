"""Files of rows of numbers with a label each, whatever their format: opened by what they say, read block by block.

`predictions` and `features` share it. They differ in what the numbers are called and in what a label may be.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lossbook.data import _arrays, _columns
from lossbook.data.dataset import DataError

Numbers = NDArray[np.floating]
Labels = NDArray[np.int64]
# From (where the labels are, labels as they were read, the number of the first row) to labels (n,) of int64.
Convert = Callable[[str, Any, int], Labels]

NUMBERS_PER_BLOCK = 2**20

_LABEL_MEMBERS = ("labels", "label", "y", "target", "targets", "y_true")
_PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".joblib", ".ckpt")


@dataclass(frozen=True)
class Wanted:
    """What a file must hold besides the labels, for refusals and for the choice among the members of a .npz file."""

    one: str  #: "score"
    what: str  #: "the predictions"
    shape: str  #: "(N, K)"
    members: tuple[str, ...]  #: names, in lower case
    call: str  #: names to suggest


@dataclass(frozen=True)
class Source:
    """An opened file of rows.

    names: of its columns, "0", "1", … where it has none. blocks: (numbers (n, columns), raw labels or None) of so many
    rows at a time. remark: what is to be said about how it was read.
    """

    names: tuple[str, ...]
    blocks: Callable[[int], Iterator[tuple[Any, Any]]]
    remark: str = ""

    @property
    def columns(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class LabelSource:
    """Opened labels. where: for refusals. said: for the report. blocks: None when they come with the numbers."""

    where: str
    said: str
    blocks: Callable[[int], Iterator[Any]] | None


def existing(path: str | os.PathLike[str]) -> Path:
    """The path of a file that is there and is neither empty nor a pickle."""
    path = Path(path)
    if path.is_dir():
        raise DataError(f"{path} is a folder, not a file")
    with _arrays.damage_named(path):
        try:
            with path.open("rb") as stream:
                first = stream.read(2)
        except FileNotFoundError:
            raise FileNotFoundError(f"{path} does not exist") from None
    # A pickle of protocol 2 or later starts so.
    if path.suffix.lower() in _PICKLES or (first[:1] == b"\x80" and first[1:] <= b"\x0f"):
        raise DataError(f"{path} is a pickle, which can run code when it is opened; {_arrays.SAFE}")
    if not first:
        raise DataError(f"{path} is empty")
    return path


def open_rows(path: Path, wanted: Wanted, label_column: str | None) -> tuple[Source, LabelSource | None]:
    """The numbers of a file, and its labels if it has some."""
    form = _format(path)
    if form in (".npy", ".npz"):
        return _array_rows(path, form, wanted, label_column)
    return _table_rows(_open_table(path, form), wanted, label_column)


def open_labels(path: Path, column: str | None, class_names: tuple[str, ...] = ()) -> LabelSource:
    """The labels of a file of labels.

    Args:
        class_names: the names of the classes where they are known; a first line that is one of them is no header.
    """
    form = _format(path)
    if form == ".npy":
        if column is not None:
            raise DataError(f"{path} holds one array and no column {column!r}")
        return _label_array(_arrays.stored_array(path), path.name)
    if form == ".npz":
        members = _arrays.stored_members(path)
        member = _label_member(path, members, column) or (next(iter(members)) if len(members) == 1 else None)
        if member is None:
            raise DataError(f"{path} has no member that is the labels; call it 'labels': {described(members)}")
        return _label_array(members[member], f"member {member!r} of {path.name}")
    table = _open_table(path, form)
    label = table.label(column)
    said = path.name if label is None else f"column {table.names[label]!r} of {path.name}"
    if label is None:
        rest, _ = table.others(None)
        if len(rest) > 1:
            raise DataError(f"{path} has several columns, name the one of the labels: {_columns.listed(table.names)}")
        label = rest[0]
        if form != ".parquet" and table.names[label] in class_names and not all_whole(class_names):
            table = _open_table(path, form, header=False)
    return LabelSource(str(path), said, lambda rows: (y for _, y in table.blocks((), label, rows)))


def paired(
    path: Path, source: Source, labels: LabelSource | None, rows: int, one: str, convert: Convert
) -> Iterator[tuple[Numbers, Labels]]:
    """(numbers, labels), each finite and converted; DataError when there are more of one than of the other.

    Args:
        labels: None gives -1 for every label.
        one: what one of the numbers is called.
    """
    if labels is None:
        start = 0
        for raw, _ in source.blocks(rows):
            yield _finite(path, raw, start, one), np.full(len(raw), -1)
            start += len(raw)
        return
    if labels.blocks is None:
        pairs: Iterator[Any] = source.blocks(rows)
    else:
        both = zip_longest(source.blocks(rows), labels.blocks(rows))
        pairs = ((None if block is None else block[0], y) for block, y in both)
    seen = labelled = 0
    for raw, y in pairs:
        start = seen
        seen += 0 if raw is None else len(raw)
        labelled += 0 if y is None else len(y)
        # Where one of the two is shorter, the rest of the other is only counted.
        if seen == labelled and raw is not None:
            yield _finite(path, raw, start, one), convert(labels.where, y, start)
    if seen != labelled:
        raise DataError(
            f"{path} holds {seen:,} rows, but {labels.where} holds {labelled:,} labels{_headers(seen, labelled)}"
        )


def sampled(
    chunks: Iterator[tuple[Numbers, Labels]], rows: int, n: int, seed: int
) -> tuple[Numbers, Labels, NDArray[np.int64]]:
    """A uniform random sample of min(n, rows) rows without replacement, in order, and their numbers."""
    chosen = _uniform_rows(rows, n, seed)
    parts, start = [], 0
    for numbers, labels in chunks:
        first, last = np.searchsorted(chosen, (start, start + len(numbers)))
        here = chosen[first:last] - start
        parts.append((numbers[here], labels[here]))
        start += len(numbers)
    numbers, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
    return numbers, labels, chosen


def bad_whole(raw: np.ndarray, limit: int) -> NDArray[np.bool_]:
    """(n,) which numbers are no whole numbers in [0, limit)."""
    with np.errstate(all="ignore"):
        # Negated, so that NaN is bad too.
        bad = ~((raw >= 0) & (raw < limit))
        if raw.dtype.kind == "f":
            bad |= raw != np.floor(raw)
    return bad


def distinct(raw: Any) -> tuple[list[Any], np.ndarray]:
    """(the different values, which of them each row has); a missing one is None."""
    if isinstance(raw, np.ndarray):
        values, codes = np.unique(raw, return_inverse=True)
        return values.tolist(), codes
    encoded = raw.dictionary_encode()
    indices = encoded.indices.cast("int64").fill_null(-1).to_numpy(zero_copy_only=False)
    used, codes = np.unique(indices, return_inverse=True)
    return [None if i < 0 else encoded.dictionary[i].as_py() for i in used.tolist()], codes


def shown(label: Any) -> str:
    """A label for a refusal."""
    return repr(label) if isinstance(label, str) else f"{label:g}" if isinstance(label, float) else str(label)


def all_whole(names: tuple[str, ...]) -> bool:
    """Whether all names are whole numbers."""
    return all(_columns.WHOLE.fullmatch(name) for name in names)


def described(members: dict[str, _arrays.StoredArray]) -> str:
    """The members of a .npz file, for a refusal."""
    some = [f"{name!r} ({m.dtype} of shape {m.shape})" for name, m in members.items()]
    return ", ".join(some[:20]) + (f" and {len(some) - 20} more" if len(some) > 20 else "")


def _format(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    last = suffixes[-1:] if suffixes[-1:] != [".gz"] else suffixes[-2:-1]
    known = {".npy", ".npz", ".parquet"} if suffixes[-1:] != [".gz"] else set()
    if last and last[0] in known | {".csv", ".tsv"}:
        return last[0]
    raise DataError(
        f"{path} must end in .npy, .npz, .csv, .csv.gz, .tsv, .tsv.gz or .parquet, by which its format is known"
    )


def _open_table(path: Path, form: str, *, header: bool | None = None) -> _columns.Table:
    if form == ".parquet":
        return _columns.open_parquet(path)
    return _columns.open_csv(path, "\t" if form == ".tsv" else ",", header=header)


def _array_rows(path: Path, form: str, wanted: Wanted, label_column: str | None) -> tuple[Source, LabelSource | None]:
    labels = None
    if form == ".npy":
        array = _arrays.stored_array(path)
        if label_column is not None:
            raise DataError(f"{path} holds one array and no column {label_column!r}; give a file of labels")
    else:
        members = _arrays.stored_members(path)
        label = _label_member(path, members, label_column)
        array = _member(path, {name: member for name, member in members.items() if name != label}, wanted)
        if label is not None:
            labels = _label_array(members[label], f"member {label!r} of {path.name}")
    if array.dtype.kind != "f" or not 1 <= len(array.shape) <= 2:
        raise DataError(
            f"{array} must hold floating-point {wanted.one}s of shape {wanted.shape}, but holds {array.dtype} of shape "
            f"{array.shape}"
        )
    if array.shape[0] == 0:
        raise DataError(f"{array} has no rows")
    columns = array.shape[1] if len(array.shape) == 2 else 1
    _check_columns(path, columns, wanted)
    names = tuple(map(str, range(columns)))
    return Source(names, lambda rows: ((block, None) for block in array.blocks(rows))), labels


def _table_rows(table: _columns.Table, wanted: Wanted, label_column: str | None) -> tuple[Source, LabelSource | None]:
    path = table.path
    label = table.label(label_column)
    rest, index = table.others(label)
    used = table.score_columns(rest)
    columns, names = table.classes(used)
    _check_columns(path, columns, wanted)
    remark = f"; left out: the column{'s' * (len(index) > 1)} {_columns.listed(table.names[i] for i in index)}, which "
    remark += "number the rows" if len(index) > 1 else "numbers the rows"
    labels = None if label is None else LabelSource(str(path), f"column {table.names[label]!r} of {path.name}", None)
    return Source(names, lambda rows: table.blocks(used, label, rows), remark if index else ""), labels


def _check_columns(path: Path, columns: int, wanted: Wanted) -> None:
    if not 1 <= columns <= _columns.MAX_COLUMNS:
        raise DataError(
            f"{path} has {columns:,} columns of {wanted.one}s; between 1 and {_columns.MAX_COLUMNS:,} are read"
        )


def _label_member(path: Path, members: dict[str, _arrays.StoredArray], wanted: str | None) -> str | None:
    if wanted is not None:
        if wanted not in members:
            raise DataError(f"{path} has no member {wanted!r}; its members are {described(members)}")
        return wanted
    named = [name for name in members if name.lower() in _LABEL_MEMBERS]
    whole = [name for name, m in members.items() if m.dtype.kind in "iu" and len(m.shape) == 1]
    found = named or whole
    if len(found) > 1:
        raise DataError(f"{path} has several members that may be the labels, name one of them: {described(members)}")
    return found[0] if found else None


def _member(path: Path, members: dict[str, _arrays.StoredArray], wanted: Wanted) -> _arrays.StoredArray:
    named = [name for name in members if name.lower() in wanted.members]
    matrices = [name for name, m in members.items() if m.dtype.kind == "f" and len(m.shape) == 2]
    found = named or matrices
    if len(found) == 1:
        return _arrays.usable(members[found[0]])
    problem = "several members that may be" if found else "no member that is"
    raise DataError(
        f"{path} has {problem} {wanted.what}; call one {wanted.call} and leave out others of these names: "
        f"{described(members) or 'there is none besides the labels'}"
    )


def _label_array(array: _arrays.StoredArray, said: str) -> LabelSource:
    _arrays.usable(array)
    if array.dtype.kind not in "iuf" or not (len(array.shape) == 1 or (len(array.shape) == 2 and array.shape[1] == 1)):
        raise DataError(
            f"{array} must hold one whole number a row, but holds {array.dtype} of shape {array.shape}; names of "
            "classes are read from tables"
        )
    return LabelSource(str(array), said, lambda rows: (block.reshape(-1) for block in array.blocks(rows)))


def _headers(rows: int, labels: int) -> str:
    return "; is a header missing, or a first row taken for one?" if abs(rows - labels) == 1 else ""


def _finite(path: Path, raw: np.ndarray, start: int, one: str) -> Numbers:
    """The rows as float32 or float64 in C order, their own copy; DataError when one is NaN or infinite."""
    with np.errstate(all="ignore"):
        numbers: Numbers = np.array(raw, np.float32 if raw.dtype.itemsize <= 4 else np.float64, order="C")
        numbers = numbers.reshape(len(raw), -1)
        # One sum sees every number that is not finite; it may also overflow by itself.
        if np.isfinite(numbers.sum()):
            return numbers
    bad = np.argwhere(~np.isfinite(numbers))
    if len(bad):
        row, column = bad[0]
        raise DataError(
            f"{path}: row {start + row} (counting from 0) has {numbers[row, column]} in {one} {column}, which is no "
            "finite number"
        )
    return numbers


def _uniform_rows(rows: int, n: int, seed: int) -> NDArray[np.int64]:
    """min(n, rows) of the numbers below `rows`, ascending: those with the smallest of as many random keys."""
    random = np.random.default_rng(seed)
    keys, chosen = np.empty(0), np.empty(0, np.int64)
    for start in range(0, rows, NUMBERS_PER_BLOCK):
        stop = min(start + NUMBERS_PER_BLOCK, rows)
        keys = np.concatenate([keys, random.random(stop - start)])
        chosen = np.concatenate([chosen, np.arange(start, stop)])
        if len(keys) > n:
            smallest = np.argpartition(keys, n - 1)[:n]
            keys, chosen = keys[smallest], chosen[smallest]
    return np.sort(chosen)

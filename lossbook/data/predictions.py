"""A model's predictions from a user's file: logits or probabilities with labels, checked row by row and streamed.

Nothing in a file is trusted. It is never held in memory as a whole, nothing goes through pickle, and what does not fit
is refused in a sentence that names the file and the row.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lossbook import checks
from lossbook.data import _arrays, _checks, _columns
from lossbook.data.dataset import DataError

SCORE_MEMBERS = ("probs", "probabilities", "logits", "predictions", "scores", "pyx", "arr_0")
LABEL_MEMBERS = ("labels", "label", "y", "target", "targets", "y_true")

_SUM_TOLERANCE = 1e-3
_VALUE_TOLERANCE = 1e-4
_NUMBERS_PER_BLOCK = 2**20
_PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".joblib", ".ckpt")
# In a file of probabilities a row that is none is a mistake in the file; where most rows are none, it holds logits. One
# logit for two classes often lies in [0, 1] by chance.
_MOST, _MOST_OF_ONE_COLUMN = 0.5, 0.99

Scores = NDArray[np.floating]
Labels = NDArray[np.int64]
Kind = Literal["logits", "probabilities"]


@dataclass(frozen=True)
class Predictions:
    """Scores of N rows for K classes with their labels, in a file. `read_predictions` makes it."""

    path: Path
    rows: int
    num_classes: int
    class_names: tuple[str, ...]  #: the headers of the columns where the file has some, otherwise "0", "1", …
    kind: Kind
    labels_from: str  #: what the labels were read from
    note: str  #: how the kind was told, in a sentence
    _pairs: Callable[[int], Iterator[tuple[Scores, Labels]]] = field(repr=False, compare=False)

    def chunks(self, rows: int | None = None) -> Iterator[tuple[Scores, Labels]]:
        """(scores (n, K), labels (n,)) of the whole file in order, each checked; may be called any number of times.

        Scores are float32 where the file holds half or single precision, otherwise float64. Probabilities are clipped
        to [0, 1] and divided by their sum, because those in real files are a little off. A single column p of
        probabilities becomes (1 - p, p), one of logits s becomes (0, s).

        Args:
            rows: n of every chunk but the last; by default as many as hold about a million scores.

        Raises:
            DataError: the file is no longer what it was when it was opened.
        """
        size = _block_rows(self.num_classes) if rows is None else checks.whole("rows", rows, 1)
        start = 0
        for scores, labels in self._pairs(size):
            if self.kind == "probabilities":
                _refuse_unless_probabilities(self.path, scores, start)
                np.clip(scores, 0, 1, out=scores)
            if scores.shape[1] == 1:
                first = 1 - scores if self.kind == "probabilities" else np.zeros_like(scores)
                scores = np.concatenate([first, scores], axis=1)
            if self.kind == "probabilities":
                scores /= scores.sum(axis=1, keepdims=True)
            yield scores, labels
            start += len(scores)
        if start != self.rows:
            raise DataError(f"{self.path} has changed: it had {self.rows:,} rows and now has {start:,}")

    def sample(self, n: int, seed: int) -> tuple[Scores, Labels, NDArray[np.int64]]:
        """A uniform random sample of the rows without replacement, in one pass and in memory for n rows and a chunk.

        Returns:
            scores (n', K) and labels (n',) as in `chunks`, and the rows' numbers (n',), ascending; n' = min(n, rows).
        """
        chosen = _uniform_rows(self.rows, checks.whole("n", n, 1), _checks.seed(seed))
        parts, start = [], 0
        for scores, labels in self.chunks():
            first, last = np.searchsorted(chosen, (start, start + len(scores)))
            here = chosen[first:last] - start
            parts.append((scores[here], labels[here]))
            start += len(scores)
        scores, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
        return scores, labels, chosen


def read_predictions(
    path: str | os.PathLike[str],
    *,
    labels: str | os.PathLike[str] | None = None,
    label_column: str | None = None,
    with_labels: bool = True,
) -> Predictions:
    """Open a file of logits or probabilities with its labels, and check every row of it in one pass.

    Scores are floating-point numbers, one column a class, or one column for two classes, which is then the probability
    (or the logit) of class 1. Known are

    - `.npy`: one array of shape (N, K), (N, 1) or (N,);
    - `.npz`, compressed or not: a member named probs, probabilities, logits, predictions, scores, pyx or arr_0, or the
      only one that can be meant;
    - `.csv`, `.tsv`, also with `.gz`: a column a class, with or without a header;
    - `.parquet`: a floating-point column a class, or one column with a list of scores in each row.

    Labels are whole numbers from 0 to K - 1, or in a table the names of the classes, which are the headers of their
    columns (headers that are whole numbers are names too). They are read from `labels`, a file of one of these kinds,
    or from the predictions' own file: the member or column named label, labels, target, y, y_true …

    The file holds probabilities when its rows sum to one (within 1e-3) and lie in [0, 1] (within 1e-4). Otherwise it
    holds logits, of which logarithms of probabilities are a case; scores that all lie in [0, 1] without summing to one
    are neither, and a file in which most rows are probabilities and one is not is refused.

    Args:
        path: the file with the predictions.
        labels: the file with the labels, when they are not in the same file.
        label_column: the column or member with the labels (of `labels`, where it is given).
        with_labels: if False, labels are neither needed nor looked at, and all come out as -1.

    Raises:
        FileNotFoundError: a file is missing.
        DataError: a file is damaged, of an unknown kind, a pickle, or holds something that does not fit, be it NaN, an
            infinite score, a label out of range, or different numbers of predictions and labels. It is a ValueError,
            and its sentence names the file and the row, counted from 0.
    """
    path = _existing(path)
    source, own_labels = _open_scores(path, label_column if labels is None else None)
    given = own_labels if labels is None else _open_labels(_existing(labels), label_column, source.names)
    if given is None and with_labels:
        raise DataError(
            f"{path} comes without labels: give a file of labels, name the column or member that holds them, or call "
            "it 'label'"
        )
    survey = _Survey(path, source.columns)
    pairs = partial(_paired, path, source, given if with_labels else None)
    for scores, _ in pairs(_block_rows(source.columns)):
        survey.add(scores)
    if survey.rows == 0:
        raise DataError(f"{path} has no rows")
    kind, note = survey.verdict()
    note += source.remark
    return Predictions(
        path,
        survey.rows,
        len(source.names),
        source.names,
        kind,
        given.said if given and with_labels else "",
        note,
        pairs,
    )


@dataclass(frozen=True)
class _Source:
    """An opened file of predictions.

    names: of the K classes. columns: how many the file has, K or 1. blocks: (scores, raw labels or None) of so many
    rows at a time. remark: what is to be said about how it was read.
    """

    names: tuple[str, ...]
    columns: int
    blocks: Callable[[int], Iterator[tuple[Any, Any]]]
    remark: str = ""


@dataclass(frozen=True)
class _LabelSource:
    """Opened labels. where: for refusals. said: for the report. blocks: None when they come with the scores."""

    where: str
    said: str
    blocks: Callable[[int], Iterator[Any]] | None


def _existing(path: str | os.PathLike[str]) -> Path:
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


def _open_scores(path: Path, label_column: str | None) -> tuple[_Source, _LabelSource | None]:
    form = _format(path)
    if form in (".npy", ".npz"):
        return _array_scores(path, form, label_column)
    return _table_scores(_open_table(path, form), label_column)


def _array_scores(path: Path, form: str, label_column: str | None) -> tuple[_Source, _LabelSource | None]:
    labels = None
    if form == ".npy":
        array = _arrays.stored_array(path)
        if label_column is not None:
            raise DataError(f"{path} holds one array and no column {label_column!r}; give a file of labels")
    else:
        members = _arrays.stored_members(path)
        label = _label_member(path, members, label_column)
        array = _score_member(path, {name: member for name, member in members.items() if name != label})
        if label is not None:
            labels = _label_array(members[label], f"member {label!r} of {path.name}")
    if array.dtype.kind != "f" or not 1 <= len(array.shape) <= 2:
        raise DataError(
            f"{array} must hold floating-point scores of shape (N, K), but holds {array.dtype} of shape {array.shape}"
        )
    if array.shape[0] == 0:
        raise DataError(f"{array} has no rows")
    columns = array.shape[1] if len(array.shape) == 2 else 1
    names = tuple(map(str, range(_num_classes(path, columns))))
    return _Source(names, columns, lambda rows: ((block, None) for block in array.blocks(rows))), labels


def _label_member(path: Path, members: dict[str, _arrays.StoredArray], wanted: str | None) -> str | None:
    if wanted is not None:
        if wanted not in members:
            raise DataError(f"{path} has no member {wanted!r}; its members are {_described(members)}")
        return wanted
    named = [name for name in members if name.lower() in LABEL_MEMBERS]
    whole = [name for name, m in members.items() if m.dtype.kind in "iu" and len(m.shape) == 1]
    found = named or whole
    if len(found) > 1:
        raise DataError(f"{path} has several members that may be the labels, name one of them: {_described(members)}")
    return found[0] if found else None


def _score_member(path: Path, members: dict[str, _arrays.StoredArray]) -> _arrays.StoredArray:
    named = [name for name in members if name.lower() in SCORE_MEMBERS]
    matrices = [name for name, m in members.items() if m.dtype.kind == "f" and len(m.shape) == 2]
    found = named or matrices
    if len(found) == 1:
        return _arrays.usable(members[found[0]])
    problem = "several members that may be" if found else "no member that is"
    raise DataError(
        f"{path} has {problem} the predictions; call one 'probs' or 'logits' and leave out others of these names: "
        f"{_described(members) or 'there is none besides the labels'}"
    )


def _described(members: dict[str, _arrays.StoredArray]) -> str:
    shown = [f"{name!r} ({m.dtype} of shape {m.shape})" for name, m in members.items()]
    return ", ".join(shown[:20]) + (f" and {len(shown) - 20} more" if len(shown) > 20 else "")


def _table_scores(table: _columns.Table, label_column: str | None) -> tuple[_Source, _LabelSource | None]:
    path = table.path
    label = table.label(label_column)
    rest, index = table.others(label)
    used = table.score_columns(rest)
    columns, names = table.classes(used)
    remark = f"; left out: the column{'s' * (len(index) > 1)} {_columns.listed(table.names[i] for i in index)}, which "
    remark += "number the rows" if len(index) > 1 else "numbers the rows"
    if _num_classes(path, columns) != len(names):
        names = ("0", "1")
    labels = None if label is None else _LabelSource(str(path), f"column {table.names[label]!r} of {path.name}", None)
    return _Source(names, columns, lambda rows: table.blocks(used, label, rows), remark if index else ""), labels


def _open_labels(path: Path, column: str | None, names: tuple[str, ...]) -> _LabelSource:
    form = _format(path)
    if form == ".npy":
        if column is not None:
            raise DataError(f"{path} holds one array and no column {column!r}")
        return _label_array(_arrays.stored_array(path), path.name)
    if form == ".npz":
        members = _arrays.stored_members(path)
        member = _label_member(path, members, column) or (next(iter(members)) if len(members) == 1 else None)
        if member is None:
            raise DataError(f"{path} has no member that is the labels; call it 'labels': {_described(members)}")
        return _label_array(members[member], f"member {member!r} of {path.name}")
    table = _open_table(path, form)
    label = table.label(column)
    said = path.name if label is None else f"column {table.names[label]!r} of {path.name}"
    if label is None:
        rest, _ = table.others(None)
        if len(rest) > 1:
            raise DataError(f"{path} has several columns, name the one of the labels: {_columns.listed(table.names)}")
        label = rest[0]
        if form != ".parquet" and table.names[label] in names and not _all_whole(names):
            table = _open_table(path, form, header=False)
    return _LabelSource(str(path), said, lambda rows: (y for _, y in table.blocks((), label, rows)))


def _label_array(array: _arrays.StoredArray, said: str) -> _LabelSource:
    _arrays.usable(array)
    if array.dtype.kind not in "iuf" or not (len(array.shape) == 1 or (len(array.shape) == 2 and array.shape[1] == 1)):
        raise DataError(
            f"{array} must hold one whole number a row, but holds {array.dtype} of shape {array.shape}; labels of "
            "classes are 0 to K - 1"
        )
    return _LabelSource(str(array), said, lambda rows: (block.reshape(-1) for block in array.blocks(rows)))


def _num_classes(path: Path, columns: int) -> int:
    if not 1 <= columns <= _columns.MAX_CLASSES:
        raise DataError(f"{path} has {columns:,} columns of scores; between 1 and {_columns.MAX_CLASSES:,} are read")
    return max(columns, 2)


def _block_rows(columns: int) -> int:
    return max(1, _NUMBERS_PER_BLOCK // columns)


def _paired(path: Path, source: _Source, labels: _LabelSource | None, rows: int) -> Iterator[tuple[Scores, Labels]]:
    """(scores, labels) as numbers, each finite and in range; DataError when there are more of one than of the other."""
    if labels is None:
        start = 0
        for raw, _ in source.blocks(rows):
            yield _finite(path, raw, start), np.full(len(raw), -1)
            start += len(raw)
        return
    lookup = _lookup(source.names)
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
            yield _finite(path, raw, start), _labels(labels.where, y, source.names, lookup, start)
    if seen != labelled:
        raise DataError(
            f"{path} holds {seen:,} rows, but {labels.where} holds {labelled:,} labels{_headers(seen, labelled)}"
        )


def _headers(rows: int, labels: int) -> str:
    return "; is a header missing, or a first row taken for one?" if abs(rows - labels) == 1 else ""


def _finite(path: Path, raw: np.ndarray, start: int) -> Scores:
    """The rows as float32 or float64 in C order, their own copy; DataError when one is NaN or infinite."""
    with np.errstate(all="ignore"):
        scores: Scores = np.array(raw, np.float32 if raw.dtype.itemsize <= 4 else np.float64, order="C")
        scores = scores.reshape(len(raw), -1)
        # One sum sees every number that is not finite; it may also overflow by itself.
        if np.isfinite(scores.sum()):
            return scores
    bad = np.argwhere(~np.isfinite(scores))
    if len(bad):
        row, column = bad[0]
        raise DataError(
            f"{path}: row {start + row} (counting from 0) has {scores[row, column]} in score {column}, which is no "
            "finite number"
        )
    return scores


def _all_whole(names: Sequence[str]) -> bool:
    return all(re.fullmatch(r"[+-]?\d{1,18}", name) for name in names)


def _lookup(names: tuple[str, ...]) -> dict[str, int] | None:
    """Name to class, or None when the names are 0 to K - 1."""
    lookup = {name: k for k, name in enumerate(names)}
    return None if names == tuple(map(str, range(len(names)))) else lookup


def _labels(where: str, raw: Any, names: tuple[str, ...], lookup: dict[str, int] | None, start: int) -> Labels:
    """Labels (n,) in [0, K) of numbers (an array) or of text (a pyarrow array, in which null is missing)."""
    if isinstance(raw, np.ndarray) and lookup is None:
        with np.errstate(all="ignore"):
            # Negated, so that NaN is bad too.
            bad = ~((raw >= 0) & (raw < len(names)))
            if raw.dtype.kind == "f":
                bad |= raw != np.floor(raw)
        if not bad.any():
            return raw.astype(np.int64)
        row = int(bad.argmax())
        value = raw[row]
    else:
        values, codes = _distinct(raw)
        classes = np.array([_class(value, names, lookup) for value in values], np.int64)
        found = classes[codes]
        if not (found < 0).any():
            return found
        row = int((found < 0).argmax())
        value = values[codes[row]]
    if value is None:
        raise DataError(f"{where}: row {start + row} (counting from 0) has no label")
    shown = repr(value) if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)
    known = f"0 to {len(names) - 1}" if lookup is None else _columns.listed(names)
    raise DataError(
        f"{where}: row {start + row} (counting from 0) has the label {shown}, but the {len(names)} classes of the "
        f"predictions are {known}"
    )


def _distinct(raw: Any) -> tuple[list[Any], np.ndarray]:
    """(the different values, which of them each row has); a missing one is None."""
    if isinstance(raw, np.ndarray):
        values, codes = np.unique(raw, return_inverse=True)
        return values.tolist(), codes
    encoded = raw.dictionary_encode(null_encoding="encode")
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy()


def _class(value: Any, names: tuple[str, ...], lookup: dict[str, int] | None) -> int:
    """The class that a label means, or -1. Whole numbers are positions, unless the classes' own names are some."""
    text = "" if value is None else str(value).strip()
    if lookup is not None and text in lookup:
        return lookup[text]
    number = re.fullmatch(r"([+-]?\d{1,18})(?:\.0*)?", text)
    if number is None:
        return -1
    k = int(number[1])
    if lookup is not None and _all_whole(names):
        return lookup.get(str(k), -1)
    return k if 0 <= k < len(names) else -1


class _Survey:
    """What all rows together say about the kind of scores."""

    def __init__(self, path: Path, columns: int) -> None:
        self.path, self.columns = path, columns
        self.rows = self.good = 0
        self.low, self.high = np.inf, -np.inf
        self.logs = columns > 1
        self.first_bad: str | None = None

    def add(self, scores: Scores) -> None:
        bad = _not_probabilities(scores)
        if self.first_bad is None and bad.any():
            row = int(bad.argmax())
            self.first_bad = f"row {self.rows + row} (counting from 0) {_what_is_wrong(scores[row])}"
        self.rows += len(scores)
        self.good += len(scores) - int(bad.sum())
        self.low, self.high = min(self.low, float(scores.min())), max(self.high, float(scores.max()))
        self.logs = self.logs and self.high <= _VALUE_TOLERANCE and _are_logarithms(scores)

    def verdict(self) -> tuple[Kind, str]:
        """(the kind, how it was told); DataError when the scores are of neither kind."""
        inside = self.low >= -_VALUE_TOLERANCE and self.high <= 1 + _VALUE_TOLERANCE
        rows = f"all {self.rows:,} rows" if self.rows > 1 else "the one row"
        if self.first_bad is None:
            if self.columns == 1:
                return "probabilities", f"{rows} lie in [0, 1], taken for the probability of class 1"
            return "probabilities", f"{rows} lie in [0, 1] and sum to one"
        if self.logs:
            return "logits", f"{rows} are logarithms of probabilities, which serve as logits"
        if self.good > self.rows * (_MOST if self.columns > 1 else _MOST_OF_ONE_COLUMN):
            others = f"{self.good:,} of {self.rows:,} rows are probabilities"
            raise DataError(f"{self.path}: {self.first_bad}, but {others}")
        if inside:
            raise DataError(
                f"{self.path}: {self.first_bad}, although every score lies in [0, 1]: these are neither probabilities "
                "of which one class is right nor logits"
            )
        one = " of class 1, against 0 for class 0" if self.columns == 1 else ""
        return "logits", f"the scores reach from {self.low:.4g} to {self.high:.4g}, so they are logits{one}"


def _not_probabilities(scores: Scores) -> NDArray[np.bool_]:
    """(n,) which rows are no probabilities. A single column is one of two classes, and has no sum."""
    with np.errstate(all="ignore"):
        bad = np.zeros(len(scores), bool) if scores.shape[1] == 1 else np.abs(scores.sum(axis=1) - 1) > _SUM_TOLERANCE
    if scores.min() < -_VALUE_TOLERANCE or scores.max() > 1 + _VALUE_TOLERANCE:
        bad |= ((scores < -_VALUE_TOLERANCE) | (scores > 1 + _VALUE_TOLERANCE)).any(axis=1)
    return bad


def _what_is_wrong(row: Scores) -> str:
    outside = (row < -_VALUE_TOLERANCE) | (row > 1 + _VALUE_TOLERANCE)
    if outside.any():
        column = int(outside.argmax())
        return f"has {row[column]:g} in score {column}, outside [0, 1]"
    return f"sums to {row.sum():.6g}, not to one"


def _are_logarithms(scores: Scores) -> bool:
    return bool((np.abs(np.exp(scores).sum(axis=1) - 1) <= _SUM_TOLERANCE).all())


def _refuse_unless_probabilities(path: Path, scores: Scores, start: int) -> None:
    bad = _not_probabilities(scores)
    if bad.any():
        row = int(bad.argmax())
        raise DataError(f"{path}: row {start + row} (counting from 0) {_what_is_wrong(scores[row])}")


def _uniform_rows(rows: int, n: int, seed: int) -> NDArray[np.int64]:
    """min(n, rows) of the numbers below `rows`, ascending: those with the smallest of as many random keys."""
    random = np.random.default_rng(seed)
    keys, chosen = np.empty(0), np.empty(0, np.int64)
    for start in range(0, rows, _NUMBERS_PER_BLOCK):
        stop = min(start + _NUMBERS_PER_BLOCK, rows)
        keys = np.concatenate([keys, random.random(stop - start)])
        chosen = np.concatenate([chosen, np.arange(start, stop)])
        if len(keys) > n:
            smallest = np.argpartition(keys, n - 1)[:n]
            keys, chosen = keys[smallest], chosen[smallest]
    return np.sort(chosen)

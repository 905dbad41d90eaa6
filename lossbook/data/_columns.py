"""Tables in .csv, .tsv and .parquet files, block by block, with pyarrow: which columns hold scores, which the labels.

The memory needed depends on the block (in a .parquet file on its pages), not on the file.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lossbook.data import _parquet
from lossbook.data._arrays import damage_named
from lossbook.data.dataset import DataError

MAX_COLUMNS = 2**20
MAX_TABLE_COLUMNS = 2**16  # Each takes Arrow some four to ten kilobytes.
LABEL_COLUMNS = (
    "label", "labels", "target", "targets", "y", "y_true", "true", "true_label", "truth", "ground_truth", "gt", "class",
)  # fmt: skip
_INDEX_COLUMNS = ("", "id", "idx", "index", "row", "__index_level_0__")
# How columns of scores are often named: p_cat, p_dog.
_PREFIX = re.compile(r"(?:p|prob|probs|proba|probability|logit|logits|score|scores|pred|class)[_ .:\-](?=.)", re.I)
WHOLE = re.compile(r"[+-]?\d{1,18}")

_CSV_BLOCK = 2**21
_PARQUET_BUFFER = 2**18
_PARQUET_NUMBERS = 2**18
_PARQUET_TEXTS = 2**10  # rows, where texts are no codes of a dictionary

# From the columns of scores and the one of labels to their record batches, in which column i is named str(i).
Batches = Callable[[Sequence[int], int | None], Iterator[Any]]


@dataclass(frozen=True)
class Table:
    """A file of rows: the names of its columns, and its first rows with the types that these show."""

    path: Path
    names: tuple[str, ...]
    has_header: bool
    head: Any
    batches: Batches

    def label(self, wanted: str | None) -> int | None:
        """The column of labels: the one asked for, or else the one whose name says so, or None."""
        if wanted is not None:
            if wanted not in self.names:
                raise DataError(f"{self.path} has no column {wanted!r}; its columns are {listed(self.names)}")
            return self.names.index(wanted)
        found = [i for i, name in enumerate(self.names) if name.lower() in LABEL_COLUMNS]
        if len(found) > 1:
            names = listed(self.names[i] for i in found)
            raise DataError(f"{self.path} has several columns that may be the labels, name one of them: {names}")
        return found[0] if found else None

    def others(self, label: int | None) -> tuple[list[int], list[int]]:
        """(the columns besides the label, without those that only number the rows; these)."""
        rest = [i for i in range(len(self.names)) if i != label]
        index = [i for i in rest if len(rest) > 1 and _numbers_rows(self.names[i], self.head.column(i))]
        return [i for i in rest if i not in index], index

    def score_columns(self, columns: list[int]) -> list[int]:
        """Those of `columns` that hold scores: the one with a list in every row, or all, which must be numbers."""
        import pyarrow as pa

        types = {i: self.head.column(i).type for i in columns}
        if lists := [i for i in columns if _is_list(types[i])]:
            if len(lists) > 1:
                names = listed(self.names[i] for i in lists)
                raise DataError(f"{self.path} has several columns with lists of numbers, keep one of them: {names}")
            return lists
        for i in columns:
            # Text says what it is when it is read.
            if self.path.suffix.lower() == ".parquet" and not pa.types.is_floating(types[i]):
                raise DataError(
                    f"{self.path} has the column {self.names[i]!r} of type {types[i]}; leave out every column but the "
                    "floating-point scores of the classes and the labels"
                )
        if not columns:
            raise DataError(f"{self.path} has no column of scores; its columns are {listed(self.names)}")
        return columns

    def classes(self, columns: list[int]) -> tuple[int, tuple[str, ...]]:
        """(scores in a row, the names of their classes)."""
        if _is_list(self.head.column(columns[0]).type):
            width = _width(self.head.column(columns[0]))
            return width, _numbered(width)
        if not self.has_header:
            return len(columns), _numbered(len(columns))
        return len(columns), _without_prefix([self.names[i] for i in columns])

    def blocks(self, scores: Sequence[int], label: int | None, rows: int) -> Iterator[tuple[Any, Any]]:
        """(scores (n, K), labels (n,)) in blocks of `rows` rows, the last one shorter; None where no column is asked.

        Labels are a NumPy array of numbers, or a pyarrow array of text (or of its codes) in which null is missing.
        """
        start, width = 0, None
        for block in _regroup(self.batches(scores, label), rows):
            numbers = None
            if scores:
                numbers = self._scores(block, scores, start, width)
                width = numbers.shape[1]
            yield numbers, None if label is None else self._labels(block.column(str(label)))
            start += block.num_rows

    def _labels(self, column: Any) -> Any:
        import pyarrow as pa

        kind = column.type
        if pa.types.is_integer(kind) or pa.types.is_floating(kind):
            return column.to_numpy()
        return pa.concat_arrays((column.cast(pa.string()) if pa.types.is_null(kind) else column).chunks)

    def _scores(self, block: Any, columns: Sequence[int], start: int, width: int | None) -> np.ndarray:
        import pyarrow as pa

        arrays = [block.column(str(i)) for i in columns]
        if _is_list(arrays[0].type):
            return self._from_lists(arrays[0], start, width)
        single = all(pa.types.is_float32(a.type) or pa.types.is_float16(a.type) for a in arrays)
        scores = np.empty((block.num_rows, len(arrays)), np.float32 if single else np.float64)
        for column, array in enumerate(arrays):
            # A missing number becomes NaN.
            scores[:, column] = array.to_numpy()
        return scores

    def _from_lists(self, column: Any, start: int, width: int | None) -> np.ndarray:
        import pyarrow.compute as pc

        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
        width = int(lengths[0]) if width is None else width
        if (lengths != width).any():
            row = int((lengths != width).argmax())
            raise DataError(
                f"{self.path}: row {start + row} (counting from 0) has {lengths[row]} numbers, but those before it "
                f"have {width}"
            )
        return pc.list_flatten(column).to_numpy().reshape(len(lengths), width)


def open_csv(path: Path, delimiter: str, *, header: bool | None = None) -> Table:
    """A table of text. Where header is None, a first line with words, or with pandas' numbers of columns, is one."""
    with _damage_named(path):
        first, skip = _first_line(path)
        fields = [field.strip() for field in next(csv.reader([first], delimiter=delimiter), [])]
    if len(fields) == 1 and (found := re.search(r"[,;\t]", first)):
        marks = {",": "commas", ";": "semicolons", "\t": "tabs"}
        raise DataError(f"{path} must separate columns by {marks[delimiter]}, but its first line has {marks[found[0]]}")
    _check_count(path, len(fields))
    has_header = _is_header(fields) if header is None else header
    if has_header:
        names, skip = _unique(path, [field.removeprefix("#").strip() for field in fields]), skip + 1
    else:
        names = _numbered(len(fields))
    read = partial(_csv_batches, path, delimiter, skip, _numbered(len(names)))

    def batches(scores: Sequence[int], label: int | None) -> Iterator[Any]:
        return read(dict.fromkeys(map(str, scores), "float64") | ({} if label is None else {str(label): "string"}))

    return Table(path, names, has_header, _first(path, read({})), batches)


def csv_texts(path: Path, delimiter: str) -> tuple[tuple[str, ...], Iterator[Any]]:
    """The names of a text table's columns, and its record batches with every field as text; an empty one is null."""
    table = open_csv(path, delimiter)
    with _damage_named(path):
        skip = _first_line(path)[1] + table.has_header
    places = _numbered(len(table.names))
    return table.names, _csv_batches(path, delimiter, skip, places, dict.fromkeys(places, "string"))


def parquet_columns(path: Path) -> tuple[tuple[str, ...], Iterator[Any]]:
    """The names of a Parquet file's columns, and its record batches with the columns as they are."""
    import pyarrow.parquet as pq

    def batches() -> Iterator[Any]:
        with _damage_named(path), pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_PARQUET_NUMBERS // max(1, len(names))):
                batch.validate(full=True)
                yield batch

    with _damage_named(path):
        _parquet.check(path)
        with pq.ParquetFile(path) as file:
            _check_count(path, len(file.schema_arrow))
            names = _unique(path, file.schema_arrow.names)
    return names, batches()


def open_parquet(path: Path) -> Table:
    """A Parquet file, in which each column has a name and a type."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _damage_named(path):
        delta = _parquet.check(path)
        with pq.ParquetFile(path) as file:
            _check_count(path, len(file.schema_arrow))
            names, types = _unique(path, file.schema_arrow.names), file.schema_arrow.types
    readable = [i for i, kind in enumerate(types) if _is_plain(kind)]
    if not readable:
        raise DataError(f"{path} has no column of numbers or names, but {listed(map(str, types))}")
    # Texts stay codes of a dictionary, because a long one may stand in every row.
    texts = [i for i in readable if _is_text(types[i])]
    read = partial(_parquet_batches, path, names, [i for i in texts if names[i] not in delta])
    # The first row shows how long lists are.
    first = _first(path, read(readable, 1))
    width = sum(_width(column) if _is_list(column.type) else 1 for column in first.columns)
    rows = max(1, _PARQUET_NUMBERS // max(width, 1))
    if not delta.isdisjoint(names[i] for i in texts):
        rows = min(rows, _PARQUET_TEXTS)

    def batches(scores: Sequence[int], label: int | None) -> Iterator[Any]:
        if label is not None and label not in readable:
            raise DataError(f"{path} has labels of type {types[label]}; they must be whole numbers or names of classes")
        return read([*scores, *([] if label is None else [label])], rows)

    start = _first(path, batches(readable, None))
    columns = {i: column for i, column in zip(readable, start.columns, strict=True) if not _is_text(types[i])}
    # Of the others only the type matters.
    filled = [columns[i] if i in columns else pa.nulls(start.num_rows, kind) for i, kind in enumerate(types)]
    return Table(path, names, True, pa.table(filled, list(map(str, range(len(names))))), batches)


def listed(names: Iterable[str], limit: int = 20) -> str:
    """Names for a sentence, not more than `limit`."""
    shown = [repr(name) for name in names]
    return ", ".join(shown[:limit]) + (f" and {len(shown) - limit} more" if len(shown) > limit else "")


def _csv_batches(path: Path, delimiter: str, skip: int, names: Sequence[str], types: dict[str, str]) -> Iterator[Any]:
    """The columns that have a type here; without types all, as they look."""
    import pyarrow as pa
    from pyarrow import csv as arrow

    with _damage_named(path):
        try:
            with (
                pa.input_stream(path, compression="detect") as stream,
                arrow.open_csv(
                    stream,
                    # One thread: it counts the lines, and reads no blocks ahead.
                    arrow.ReadOptions(use_threads=False, block_size=_CSV_BLOCK, skip_rows=skip, column_names=names),
                    arrow.ParseOptions(delimiter=delimiter),
                    arrow.ConvertOptions(
                        column_types={name: pa.type_for_alias(kind) for name, kind in types.items()},
                        include_columns=list(types),
                        # Empty means missing; "NA" may be the name of a class, and is no number.
                        null_values=[""],
                        strings_can_be_null=True,
                    ),
                ) as reader,
            ):
                yield from reader
        except pa.ArrowInvalid as error:
            raise DataError(f"{path}{_in_words(str(error), skip)}") from None


def _in_words(message: str, skip: int) -> str:
    """What Arrow says of a line, as the end of a sentence. It counts lines from 1 and leaves out empty ones."""
    if found := re.search(r"Row #(\d+): Expected (\d+) columns, got (\d+)", message):
        line, expected, fields = found.groups()
        return f": line {line} (without empty lines) has {fields} fields, but the first has {expected}"
    wrong = r"column #(\d+): Row #(\d+): CSV conversion error to double: invalid value '(.*)'"
    if found := re.search(wrong, message, re.DOTALL):
        column, line, value = found.groups()
        row = int(line) - 1 - skip
        return f": row {row} (counting from 0) has {value[:40]!r} in column {column}, which is no number"
    if "Empty CSV file" in message:
        return " has no rows"
    if "straddl" in message:
        return f" has a line of more than {_CSV_BLOCK:,} bytes, or a quotation mark that is never closed"
    return f" is damaged or cannot be read: {message.splitlines()[0] if message else 'Arrow does not say why'}"


def _first_line(path: Path) -> tuple[str, int]:
    """(the first line that is not empty, how many empty ones are before it)."""
    with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as stream:
        start = stream.read(_CSV_BLOCK)
    for skip, line in enumerate(io.BytesIO(start.removeprefix(b"\xef\xbb\xbf"))):
        if line.strip():
            if len(line) == _CSV_BLOCK:
                raise DataError(f"{path} has a first line of more than {_CSV_BLOCK:,} bytes")
            try:
                return line.decode().strip("\r\n"), skip
            except UnicodeDecodeError:
                raise DataError(f"{path} is no text in UTF-8") from None
    raise DataError(f"{path} has no rows")


def _is_header(fields: Sequence[str]) -> bool:
    whole = [bool(WHOLE.fullmatch(field)) for field in fields]
    if any(not is_whole and _is_number(field) for is_whole, field in zip(whole, fields, strict=True)):
        return False
    return not all(whole) or (len(fields) > 1 and tuple(fields) == _numbered(len(fields)))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _parquet_batches(
    path: Path, names: Sequence[str], codes: Sequence[int], wanted: Sequence[int], rows: int
) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Buffered, because a column of a row group is otherwise read as a whole.
    options = {"buffer_size": _PARQUET_BUFFER, "pre_buffer": False, "read_dictionary": [names[i] for i in codes]}
    with _damage_named(path), pq.ParquetFile(path, **options) as file:
        for batch in file.iter_batches(rows, columns=[names[i] for i in wanted], use_threads=False):
            # Codes beyond their dictionary and text that is no UTF-8 come out of a damaged file unseen.
            batch.validate(full=True)
            # A name with a dot may bring others along.
            columns = [batch.column(names[i]) for i in wanted]
            columns = [column.dictionary_encode() if _is_text(column.type) else column for column in columns]
            yield pa.record_batch(columns, list(map(str, wanted)))


def _first(path: Path, batches: Iterator[Any]) -> Any:
    for batch in batches:
        if batch.num_rows:
            return batch
    raise DataError(f"{path} has no rows")


def _regroup(batches: Iterable[Any], rows: int) -> Iterator[Any]:
    """Tables of `rows` rows, the last one shorter."""
    import pyarrow as pa

    held: list[Any] = []
    missing = rows
    for batch in batches:
        while batch.num_rows:
            held.append(batch.slice(0, missing))
            batch = batch.slice(missing)
            missing -= held[-1].num_rows
            if not missing:
                yield pa.Table.from_batches(held)
                held, missing = [], rows
    if held:
        yield pa.Table.from_batches(held)


def _numbers_rows(name: str, column: Any) -> bool:
    """Whether a column is whole numbers, and has the name of an index or counts up from 0 or 1."""
    import pyarrow as pa

    if not pa.types.is_integer(column.type) or column.null_count:
        return False
    numbers = column.to_numpy(zero_copy_only=False)
    counts = len(numbers) > 2 and numbers[0] in (0, 1) and bool((np.diff(numbers) == 1).all())
    return counts or name.lower() in _INDEX_COLUMNS


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return lists and pa.types.is_floating(kind.value_type)


def _check_count(path: Path, columns: int) -> None:
    if columns > MAX_TABLE_COLUMNS:
        raise DataError(
            f"{path} has {columns:,} columns; of a table up to {MAX_TABLE_COLUMNS:,} are read: save the numbers as .npy"
        )


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_plain(kind: Any) -> bool:
    """Whether a column may be numbers, lists of them, or names."""
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    numbers = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    return numbers or _is_text(kind) or _is_list(kind) or pa.types.is_null(kind)


def _width(lists: Any) -> int:
    """The length of the first of some lists; 0 where it is missing."""
    import pyarrow.compute as pc

    return pc.list_value_length(lists.slice(0, 1))[0].as_py() or 0


def _without_prefix(names: list[str]) -> tuple[str, ...]:
    """The names without the prefix such as p_ or prob_, if all have the same."""
    prefixes = {match[0] if (match := _PREFIX.match(name)) else "" for name in names}
    return tuple(name[len(min(prefixes)) :] for name in names) if len(names) > 1 == len(prefixes) else tuple(names)


def _unique(path: Path, names: Sequence[str]) -> tuple[str, ...]:
    for name, times in Counter(names).items():
        if times > 1:
            raise DataError(f"{path} has {times} columns named {name!r}")
    return tuple(names)


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(map(str, range(count)))


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    import pyarrow as pa

    with damage_named(path):
        try:
            yield
        except (pa.ArrowException, csv.Error) as error:
            raise ValueError(str(error)) from None

"""What `lossbook compare` is given: the rows of a table, of a folder of images or of a dataset of the book.

`read` looks at them once, refuses what cannot be compared on, and notes what makes a comparison doubtful.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from lossbook.data import DataError

if TYPE_CHECKING:
    from pandas import DataFrame, Series

MIN_ROWS = 10  # of a class: two of them are then in the test part, two in the validation part
MAX_CATEGORIES = 50
MAX_CLASSES = 1000
_MISSING = ("", "na", "n/a", "nan", "null", "none", "?", "-")
_MISSING_TEXT = "(missing)"


@dataclass(frozen=True, eq=False, repr=False)
class Rows:
    """Labelled rows before any split: columns of numbers and of texts, or images.

    numbers: (N, F) float64, NaN where one is missing. texts: (N, T) str objects, "(missing)" where one is missing.
    images: (N, C, S, S) in [0, 1] float32, or None. notes: what was decided on the way, in sentences.
    """

    name: str
    y: NDArray[np.int64]
    classes: tuple[str, ...]
    total: int  #: rows of the source, of which these may be a sample
    numbers: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 0)))
    number_names: tuple[str, ...] = ()
    texts: NDArray[np.object_] = field(default_factory=lambda: np.empty((0, 0), object))
    text_names: tuple[str, ...] = ()
    images: NDArray[np.float32] | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.y)

    @property
    def counts(self) -> NDArray[np.int64]:
        """(K,) rows of each class."""
        return np.bincount(self.y, minlength=len(self.classes))


def read(
    source: str | os.PathLike[str],
    *,
    target: str | None = None,
    ignore: Sequence[str] = (),
    rows: int = 20_000,
    image_size: int = 32,
    seed: int = 0,
) -> Rows:
    """The rows of a table (.csv, .tsv, .parquet, .npz), of a folder or zip file of images, or of a dataset by name.

    Of a table, columns of numbers are features as they are; columns of text with up to 50 different values are
    categories. A column with one value, and one that only numbers the rows, is left out. Images lie in a folder for
    each class. Of a dataset of the book, its splits are taken together.

    Args:
        source: the file or folder; or a name of `lossbook.data.names()`, where there is no file of that name.
        target: the column of the labels; None takes the one called label, target, y, class or the like.
        ignore: columns that are no features.
        rows: a random sample of so many is read, if there are more.
        image_size: side in pixels to which images are scaled.
        seed: of the sample.

    Raises:
        FileNotFoundError: there is neither such a file nor such a dataset.
        DataError: what was found cannot be compared on; the sentence names the column, row, class or file.
    """
    from lossbook.data import names

    path = Path(source)
    if not path.exists() and str(source) in names():
        if target or ignore:
            raise DataError(f"{source} is a dataset of the book: it has no columns to name")
        found = _of_dataset(str(source), rows, seed)
    elif path.is_dir() or path.suffix.lower() == ".zip":
        if target or ignore:
            raise DataError(f"{path} holds images, whose labels are the names of their folders, and no columns to name")
        found = _of_images(path, rows, image_size, seed)
    elif not path.exists():
        raise FileNotFoundError(f"{path} does not exist, and is no dataset of the book ({', '.join(names())})")
    elif path.suffix.lower() in (".npz", ".npy"):
        found = _of_arrays(path, target, ignore, rows, seed)
    else:
        found = _of_table(path, target, ignore, rows, seed)
    _check_classes(found)
    return replace(found, notes=(*found.notes, *_copies(found)))


def _check_classes(rows: Rows) -> None:
    k, counts = len(rows.classes), rows.counts
    if k < 2:
        raise DataError(f"{rows.name} has one class only, {rows.classes[0]!r}: there is nothing to tell apart")
    if counts.min() < MIN_ROWS:
        few = int(counts.argmin())
        held = f"{counts[few]} row{'s' if counts[few] != 1 else ''}"
        sample = f" in a sample of {len(rows):,} rows; raise --rows" if len(rows) < rows.total else ""
        raise DataError(
            f"{rows.name}: class {rows.classes[few]!r}, one of {k}, has {held}{sample}, but "
            f"{MIN_ROWS} are needed to train, to choose and to judge with"
        )
    if k > MAX_CLASSES:
        raise DataError(f"{rows.name} has {k:,} classes; up to {MAX_CLASSES:,} are compared on")


def _copies(rows: Rows) -> list[str]:
    """A note, if rows with the same label and the same features stand more than once."""
    features = rows.images if rows.images is not None else rows.numbers
    # Adding 0 makes one of -0 and 0. Hashes, because the images themselves would stand in memory once more.
    hashes = (hash((row + 0).tobytes()) for row in features)
    texts = map(tuple, rows.texts.tolist()) if rows.text_names else itertools.repeat(())
    copies = len(rows) - len(set(zip(rows.y.tolist(), hashes, texts, strict=False)))
    if not copies:
        return []
    return [
        f"{copies:,} of {len(rows):,} rows are copies of another row. A copy of a test row may be among the training "
        "rows, which flatters every loss."
    ]


def _giving_away(
    numbers: dict[str, NDArray[np.float64]], texts: dict[str, NDArray[np.object_]], y: NDArray[np.int64]
) -> list[str]:
    """Columns that tell every class: each text goes with one class, or each class is a range of the numbers."""
    found = []
    for name, column in (numbers | texts).items():
        _, first, codes = np.unique(column, return_index=True, return_inverse=True)
        ranges = 1 + np.count_nonzero(np.diff(y[first]))
        if (y[first][codes] == y).all() and (name in texts or ranges == len(np.unique(y))):
            found.append(name)
    return found


def _of_dataset(name: str, limit: int, seed: int) -> Rows:
    from lossbook.data import load

    data = load(name)
    x = torch.cat([part.x for part in (data.train, data.val, data.test)])
    y = torch.cat([part.y for part in (data.train, data.val, data.test)]).numpy()
    total, notes = len(y), ("The splits that the dataset comes with are taken together.",)
    if limit < total:
        chosen = np.sort(np.random.default_rng(seed).choice(total, limit, replace=False))
        x, y = x[torch.from_numpy(chosen)], y[chosen]
    if x.dim() == 4:
        return Rows(name, y, data.classes, total, images=x.numpy(), notes=notes)
    numbers, names = x.double().numpy(), tuple(map(str, range(x.shape[1])))
    return Rows(name, y, data.classes, total, numbers, names, notes=notes)


def _of_images(path: Path, limit: int, size: int, seed: int) -> Rows:
    from lossbook.data import images

    found = images.read_classes(path, size=size, limit=limit, seed=seed)
    notes = [f"Images are scaled to {found.x.shape[2]} × {found.x.shape[2]} pixels, without regard to proportions."]
    if len(found.split_folders) > 1:
        notes.append(f"The folders {', '.join(found.split_folders)} are taken together.")
    classes, y = np.unique(found.y, return_inverse=True)
    pixels = np.divide(found.x, 255, dtype=np.float32)
    named = tuple(found.classes[k] for k in classes)
    return Rows(path.name, y, named, found.found, images=pixels, notes=tuple(notes))


def _of_arrays(path: Path, target: str | None, ignore: Sequence[str], limit: int, seed: int) -> Rows:
    from lossbook.data import read_features

    if ignore:
        raise DataError(f"{path} holds arrays, whose columns have no names: --ignore {ignore[0]} names none")
    found = read_features(path, label_column=target)
    numbers, y, _ = found.sample(limit, seed)
    frame = dict(zip(map(str, range(found.dim)), numbers.astype(np.float64).T, strict=True))
    used, codes = np.unique(y, return_inverse=True)
    classes = tuple(found.class_names[k] for k in used)
    return _with_features(path, codes, classes, found.rows, frame, {}, [])


def _of_table(path: Path, target: str | None, ignore: Sequence[str], limit: int, seed: int) -> Rows:
    from lossbook.data import _columns, _labelled

    path = _labelled.existing(path)
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] == [".parquet"]:
        names, batches = _columns.parquet_columns(path)
    elif suffixes[-1:] in ([".csv"], [".tsv"]) or suffixes[-2:] in ([".csv", ".gz"], [".tsv", ".gz"]):
        names, batches = _columns.csv_texts(path, "\t" if ".tsv" in suffixes[-2:] else ",")
    else:
        raise DataError(
            f"{path} must be a table (.csv, .tsv, .parquet, .npz), a folder of images with a folder for each class, or "
            "a zip file of one"
        )
    label = _target(path, names, target)
    for name in ignore:
        if name not in names:
            raise DataError(f"{path} has no column {name!r} to ignore; its columns are {_columns.listed(names)}")
    if label in ignore:
        raise DataError(f"{path}: the column {label!r} is the target, and cannot be ignored")
    frame, places, total = _sample(path, names, batches, limit, seed)
    y, classes = _labels(path, label, frame[label], places)
    numbers: dict[str, NDArray[np.float64]] = {}
    texts: dict[str, NDArray[np.object_]] = {}
    notes = []
    for name in names:
        if name == label or name in ignore:
            continue
        values = _as_numbers(frame[name])
        if values is not None and _is_index(name, values, places):
            notes.append(f"The column {name!r} numbers the rows, and is left out.")
        elif values is not None:
            numbers[name] = _finite(path, name, values, places)
        else:
            texts[name] = _as_texts(path, name, frame[name], places)
    if ignore:
        notes.append(f"Left out as asked: {_columns.listed(ignore)}.")
    if giving := _giving_away(numbers, texts, y):
        notes.append(
            f"Columns that tell every class alone, without a mistake: {_columns.listed(giving)}. If one was made from "
            "the labels, leave it out by --ignore: it hides what a loss does."
        )
    return _with_features(path, y, classes, total, numbers, texts, notes)


def _with_features(
    path: Path,
    y: NDArray[np.int64],
    classes: tuple[str, ...],
    total: int,
    numbers: dict[str, NDArray[np.float64]],
    texts: dict[str, NDArray[np.object_]],
    notes: list[str],
) -> Rows:
    """Rows of a table, without the columns that have one value."""
    from lossbook.data._columns import listed

    constant = [name for name, column in numbers.items() if _is_constant(column)]
    constant += [name for name, column in texts.items() if (column == column[0]).all()]
    if len(constant) == len(numbers) + len(texts):
        has = f"only columns with one value besides the labels ({listed(constant)})" if constant else "only labels"
        raise DataError(f"{path} has {has}: there is nothing to tell the classes apart by")
    if constant:
        notes.append(f"Left out, because all rows have the same value: {listed(constant)}.")
    numbers = {name: column for name, column in numbers.items() if name not in constant}
    texts = {name: column for name, column in texts.items() if name not in constant}
    gaps = {name: float(np.isnan(column).mean()) for name, column in numbers.items() if np.isnan(column).any()}
    gaps |= {name: share for name, column in texts.items() if (share := float((column == _MISSING_TEXT).mean()))}
    if gaps:
        most = max(gaps, key=gaps.__getitem__)
        notes.append(
            f"Values are missing in {len(gaps)} columns, most in {most!r} ({gaps[most]:.1%}). A missing number becomes "
            "the training mean, with a column that says so; a missing text is a category of its own."
        )
    n = len(y)
    return Rows(
        path.name,
        y,
        classes,
        total,
        np.stack(list(numbers.values()), axis=1) if numbers else np.empty((n, 0)),
        tuple(numbers),
        np.stack(list(texts.values()), axis=1) if texts else np.empty((n, 0), object),
        tuple(texts),
        notes=tuple(notes),
    )


def _is_constant(column: NDArray[np.float64]) -> bool:
    """Whether it has one value in all rows; a column that is missing in some rows says that, at least."""
    missing = np.isnan(column)
    return bool(missing.all() or (not missing.any() and (column == column[0]).all()))


def _target(path: Path, names: Sequence[str], wanted: str | None) -> str:
    from lossbook.data import _columns

    if wanted is not None:
        if wanted not in names:
            raise DataError(f"{path} has no column {wanted!r}; its columns are {_columns.listed(names)}")
        return wanted
    found = [name for name in names if name.lower() in _columns.LABEL_COLUMNS]
    if len(found) != 1:
        what = f"several columns that may be the labels ({_columns.listed(found)})" if found else "no column of labels"
        raise DataError(f"{path} has {what}; name it by --target: its columns are {_columns.listed(names)}")
    return found[0]


def _sample(
    path: Path, names: Sequence[str], batches: Iterator[Any], limit: int, seed: int
) -> tuple[DataFrame, NDArray[np.int64], int]:
    """(a uniform sample of the rows in their order, their numbers in the file, how many the file has)."""
    import pyarrow as pa

    rng = np.random.default_rng(seed)
    tables: list[Any] = []
    keys, places, total = np.empty(0), np.empty(0, np.int64), 0
    for batch in batches:
        tables.append(pa.Table.from_batches([batch]).rename_columns([str(i) for i in range(len(names))]))
        keys = np.concatenate([keys, rng.random(batch.num_rows)])
        places = np.concatenate([places, np.arange(total, total + batch.num_rows)])
        total += batch.num_rows
        if len(keys) > 2 * limit + 1000:
            tables, keys, places = _smallest(tables, keys, places, limit)
    if not total:
        raise DataError(f"{path} has no rows")
    if len(keys) > limit:
        tables, keys, places = _smallest(tables, keys, places, limit)
    frame = pa.concat_tables(tables).to_pandas()
    frame.columns = list(names)
    return frame, places, total


def _smallest(
    tables: list[Any], keys: NDArray[np.float64], places: NDArray[np.int64], limit: int
) -> tuple[list[Any], NDArray[np.float64], NDArray[np.int64]]:
    import pyarrow as pa

    kept = np.sort(np.argpartition(keys, limit)[:limit])
    # Taken, so that the batches they come from can go.
    return [pa.concat_tables(tables).take(pa.array(kept))], keys[kept], places[kept]


def _as_numbers(column: Series[Any]) -> NDArray[np.float64] | None:
    """The numbers of a column, NaN where one is missing; None where it holds something else."""
    import pandas as pd
    from pandas.api import types

    if types.is_bool_dtype(column) or types.is_numeric_dtype(column):
        return column.to_numpy(np.float64, na_value=np.nan)
    if types.is_datetime64_any_dtype(column):
        return None
    text = column.astype("object").map(lambda value: None if value is None else str(value).strip(), na_action="ignore")
    missing = text.isna() | text.str.lower().isin(_MISSING)
    if missing.all():
        return None
    numbers = pd.to_numeric(text.mask(missing), errors="coerce")
    return None if numbers[~missing].isna().any() else numbers.to_numpy(np.float64)


def _as_texts(path: Path, name: str, column: Series[Any], places: NDArray[np.int64]) -> NDArray[np.object_]:
    values = column.astype("object").where(column.notna(), _MISSING_TEXT).map(str).to_numpy(object)
    different = len(set(values))
    if different > MAX_CATEGORIES:
        # Where most are numbers, the text that is none is the one to show.
        i = next((i for i, value in enumerate(values) if _is_word(value)), 0)
        raise DataError(
            f"{path}: the column {name!r} has {different:,} different texts, such as {str(values[i])[:40]!r} in row "
            f"{places[i]} (counting from 0); up to {MAX_CATEGORIES} are taken as categories: leave it out by --ignore "
            f"{name!r}, or make numbers of it"
        )
    return values


def _is_word(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return value != _MISSING_TEXT and value.strip().lower() not in _MISSING
    return False


def _is_index(name: str, values: NDArray[np.float64], places: NDArray[np.int64]) -> bool:
    """Whether a column is called an index, or counts the rows."""
    whole = not np.isnan(values).any() and (values == np.floor(values)).all()
    if not whole or len(np.unique(values)) < len(values):
        return False
    return name.lower() in ("", "id", "idx", "index", "row", "__index_level_0__") or bool(
        len(values) > 2 and (np.diff(values) == np.diff(places)).all()
    )


def _finite(path: Path, name: str, values: NDArray[np.float64], places: NDArray[np.int64]) -> NDArray[np.float64]:
    bad = np.abs(values) > 1e100
    if bad.any():
        i = int(bad.argmax())
        raise DataError(f"{path}: row {places[i]} (counting from 0) has {values[i]:g} in the column {name!r}")
    return values


def _labels(
    path: Path, name: str, column: Series[Any], places: NDArray[np.int64]
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Labels as positions in the names of the classes, in the order of the numbers or of the alphabet."""
    from pandas.api.types import is_bool_dtype

    values = None if is_bool_dtype(column) else _as_numbers(column)
    if values is not None:
        missing = np.isnan(values)
    else:
        texts = column.astype("object").where(column.notna(), "").map(str).str.strip().to_numpy(object)
        missing = texts == ""
    if missing.any():
        raise DataError(
            f"{path}: row {places[int(missing.argmax())]} (counting from 0) has no label in the column {name!r}; "
            f"{int(missing.sum()):,} rows have none: leave them out of the file"
        )
    if values is None:
        classes, y = np.unique(texts.astype(str), return_inverse=True)
        return y.astype(np.int64), tuple(map(str, classes))
    if (values != np.floor(values)).any():
        i = int((values != np.floor(values)).argmax())
        raise DataError(
            f"{path}: the column {name!r} has {values[i]:g} in row {places[i]} (counting from 0); labels are whole "
            "numbers or names"
        )
    found, y = np.unique(values, return_inverse=True)
    return y.astype(np.int64), tuple(f"{value:.0f}" for value in found)

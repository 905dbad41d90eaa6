"""What a user gives to compare on: tables, folders of images, datasets, and what is refused."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lossbook.book.compare import read, split
from lossbook.data import DataError


def frame(n: int = 60, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "height": rng.normal(170, 10, n).round(1),
            "colour": np.array(["red", "green", "blue"])[np.arange(n) % 3],
            "kind": np.array(["ant", "bee"])[np.arange(n) % 2],
        }
    )


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".tsv", ".parquet"])
def test_a_table(tmp_path: Path, suffix: str) -> None:
    path, table = tmp_path / f"t{suffix}", frame()
    table.loc[[3, 7], "height"] = np.nan
    table.loc[5, "colour"] = None
    if suffix == ".parquet":
        table.to_parquet(path)
    else:
        table.to_csv(path, index=False, sep="\t" if ".tsv" in suffix else ",")
    rows = read(path, target="kind")
    assert (rows.classes, len(rows), rows.total) == (("ant", "bee"), 60, 60)
    assert (rows.number_names, rows.text_names) == (("height",), ("colour",))
    np.testing.assert_array_equal(rows.y, np.arange(60) % 2)
    np.testing.assert_array_equal(np.isnan(rows.numbers[:, 0]), np.isin(np.arange(60), [3, 7]))
    assert rows.texts[5, 0] == "(missing)"
    assert "missing in 2 columns" in rows.notes[0]
    parts = split(rows, 0)
    width = 2 + len(np.unique(rows.texts[parts.places[0], 0]))
    assert parts.train.x.shape == (36, width)


def test_markers_of_missing_numbers_and_columns_that_tell_nothing(tmp_path: Path) -> None:
    table = frame().astype(str).assign(same="1", id=[str(i) for i in range(60)], flag=["True", "False"] * 30)
    table.loc[4, "height"] = "NA"
    table.to_csv(tmp_path / "t.csv", index=False)
    rows = read(tmp_path / "t.csv", target="kind", ignore=["flag"])
    assert rows.number_names == ("height",)
    assert np.isnan(rows.numbers[4, 0])
    assert rows.notes[:3] == (
        "The column 'id' numbers the rows, and is left out.",
        "Left out as asked: 'flag'.",
        "Left out, because all rows have the same value: 'same'.",
    )


def test_what_makes_a_comparison_doubtful_is_noted(tmp_path: Path) -> None:
    plain = frame().assign(height=np.arange(60) % 59 + 0.5)
    table = plain.assign(place=np.arange(60) % 2 + 5, sort=np.array(["A", "B"])[np.arange(60) % 2])
    table = pd.concat([table, table.head(6)]).assign(id=range(66))  # the index makes no row another one
    notes = read(_write(tmp_path / "t.csv", table), target="kind").notes
    assert any(note.startswith("Columns that tell every class alone") and "'place', 'sort'." in note for note in notes)
    assert any(note.startswith("6 of 66 rows are copies of another row") for note in notes)
    folder = images(tmp_path / "pictures")
    (folder / "dark" / "again.jpg").write_bytes((folder / "dark" / "0.jpg").read_bytes())
    assert read(folder).notes[-1].startswith("1 of 25 rows are copies")
    assert read(_write(tmp_path / "t.csv", plain), target="kind").notes == ()


def test_columns_of_lists_and_labels_of_true_and_false(tmp_path: Path) -> None:
    table = frame().assign(kind=np.arange(60) % 2 == 0, vector=[[float(i), 2.0] for i in range(60)])
    table.to_parquet(tmp_path / "t.parquet")
    assert read(tmp_path / "t.parquet", target="kind", ignore=["vector"]).classes == ("False", "True")
    with pytest.raises(DataError, match="the column 'vector' has 60 different texts"):
        read(tmp_path / "t.parquet", target="kind")


def test_arrays_and_a_dataset(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "a.npz", features=rng.standard_normal((40, 3)), labels=np.repeat([3, 7], 20))
    rows = read(tmp_path / "a.npz")
    assert (rows.classes, rows.numbers.shape) == (("3", "7"), (40, 3))
    digits = read("digits", rows=500)
    assert digits.images is not None
    assert (digits.images.shape, digits.total, len(digits.classes)) == ((500, 1, 8, 8), 1797, 10)
    with pytest.raises(DataError, match="digits is a dataset of the book"):
        read("digits", target="y")


def test_a_sample_is_uniform_and_reproducible(tmp_path: Path) -> None:
    table = frame(3000).assign(place=np.arange(3000) ** 1.5)
    table.to_csv(tmp_path / "t.csv", index=False)
    chosen = [read(tmp_path / "t.csv", target="kind", rows=600, seed=s).numbers[:, 1] for s in (0, 0, 1)]
    np.testing.assert_array_equal(chosen[0], chosen[1])
    assert (np.diff(chosen[0]) > 0).all()  # in the order of the file, none twice
    assert not np.array_equal(chosen[0], chosen[2])
    assert abs((chosen[0] < 1500**1.5).mean() - 0.5) < 0.1


def images(folder: Path, depth: tuple[str, ...] = ("",), n: int = 12, side: int = 9) -> Path:
    rng = np.random.default_rng(0)
    for top in depth:
        for label, grey in (("dark", 40), ("light", 200)):
            place = folder / top / label
            place.mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(grey - 30, grey + 30, (side, side + i % 2), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{i}.{'png' if i % 2 else 'jpg'}")
    return folder


def test_a_folder_of_images(tmp_path: Path) -> None:
    folder = images(tmp_path / "pictures")
    (folder / "dark" / ".hidden").write_text("nothing")
    rows = read(folder, image_size=8)
    assert rows.images is not None
    assert (rows.classes, rows.images.shape, rows.images.dtype) == (("dark", "light"), (24, 1, 8, 8), np.float32)
    assert rows.images[rows.y == 0].mean() < 0.3 < 0.6 < rows.images[rows.y == 1].mean()
    assert "8 × 8" in rows.notes[0]
    assert read(folder, image_size=64).images.shape[2] == 9  # type: ignore[union-attr]  # none is larger
    some = read(folder, image_size=8, rows=22)
    assert (len(some), some.total) == (22, 24)


def test_a_zip_file_of_two_splits_and_a_colour_image(tmp_path: Path) -> None:
    folder = images(tmp_path / "pictures", ("test", "train"), n=6)
    Image.new("RGB", (9, 9), (10, 20, 30)).save(folder / "train" / "dark" / "colour.png")
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        for path in folder.rglob("*.*"):
            archive.write(path, path.relative_to(folder))
    rows = read(tmp_path / "p.zip", image_size=8)
    assert rows.images is not None
    assert rows.images.shape == (25, 3, 8, 8)
    assert "The folders test, train are taken together." in rows.notes


def _write(path: Path, table: pd.DataFrame) -> Path:
    table.to_csv(path, index=False)
    return path


# What is done to the table, how it is read, what the refusal says.
BAD_TABLES: dict[str, tuple[Callable[[pd.DataFrame], pd.DataFrame], dict, str]] = {
    "no target": (lambda t: t, {}, "has no column of labels; name it by --target: its columns are 'height', 'colour'"),
    "another target": (lambda t: t, {"target": "sort"}, "has no column 'sort'; its columns are 'height'"),
    "two targets": (lambda t: t.assign(y=0, label=1), {}, "several columns that may be the labels"),
    "one class": (lambda t: t.assign(kind="ant"), {"target": "kind"}, "has one class only, 'ant'"),
    "rare class": (
        lambda t: t.assign(kind=["cow"] * 4 + ["ant"] * 56), {"target": "kind"}, "'cow', one of 2, has 4 rows",
    ),
    "three rows": (lambda t: t.head(3), {"target": "kind"}, "class 'bee', one of 2, has 1 row, but 10"),
    "no label": (
        lambda t: t.assign(kind=t.kind.where(t.index != 17)), {"target": "kind"}, "row 17 .* has no label in",
    ),
    "NaN label": (lambda t: t.assign(kind=[1.0, np.nan] * 30), {"target": "kind"}, "row 1 .* has no label"),
    "a regression": (lambda t: t, {"target": "height"}, "labels are whole numbers or names"),
    "constant": (
        lambda t: t.assign(height=1.0, colour="red"), {"target": "kind"}, "only columns with one value besides",
    ),
    "only labels": (lambda t: t[["kind"]].assign(id=range(60)), {"target": "kind"}, "only labels"),
    "free text": (
        lambda t: t.assign(colour=[f"word {i}" for i in range(60)]), {"target": "kind"},
        "'colour' has 60 different texts, such as 'word 0'.*--ignore 'colour'",
    ),
    "one word": (
        lambda t: t.assign(height=np.where(t.index == 9, "tall", (t.index + 0.5).astype(str))), {"target": "kind"},
        "'height' has 60 different texts, such as 'tall' in row 9",
    ),
    "infinite": (
        lambda t: t.assign(height=t.height.where(t.index != 9, np.inf)), {"target": "kind"}, "row 9 .* has inf in",
    ),
    "ignored": (lambda t: t, {"target": "kind", "ignore": ["wing"]}, "has no column 'wing' to ignore"),
    "target ignored": (lambda t: t, {"target": "kind", "ignore": ["kind"]}, "is the target, and cannot be ignored"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_TABLES)
def test_a_table_that_cannot_be_used(tmp_path: Path, name: str) -> None:
    change, how, sentence = BAD_TABLES[name]
    path = _write(tmp_path / "t.csv", change(frame()))
    with pytest.raises(DataError, match=sentence) as error:
        read(path, **how)
    assert "t.csv" in str(error.value)
    assert "\n" not in str(error.value)


def test_ten_thousand_texts(tmp_path: Path) -> None:
    table = frame(10_000).assign(name=[f"person {i}" for i in range(10_000)])
    with pytest.raises(DataError, match="'name' has 10,000 different texts"):
        read(_write(tmp_path / "t.csv", table), target="kind")


def test_files_and_folders_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a,b\n")
    (tmp_path / "none.csv").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "hollow" / "a" / "b").mkdir(parents=True)
    flat = tmp_path / "flat"
    flat.mkdir()
    Image.new("L", (5, 5)).save(flat / "a.png")
    for path, error, sentence in [
        (tmp_path / "no.csv", FileNotFoundError, "no.csv does not exist, and is no dataset of the book .digits"),
        (tmp_path / "t.txt", DataError, "must be a table"),
        (tmp_path / "none.csv", DataError, "is empty"),
        (tmp_path / "empty", DataError, "empty holds no images named <class>/<file>"),
        (tmp_path / "hollow", DataError, "hollow holds no images named <class>/<file>"),
        (flat, DataError, "'a.png', which is not named <class>/<file>"),
    ]:
        with pytest.raises(error, match=sentence):
            read(path)


def test_an_image_that_is_none_is_named(tmp_path: Path) -> None:
    folder = images(tmp_path / "pictures")
    (folder / "light" / "notes.png").write_text("this is no image")
    with pytest.raises(DataError, match=r"'light/notes.png', which cannot be decoded as an image"):
        read(folder)
    with pytest.raises(DataError, match="no columns to name"):
        read(folder, target="light")

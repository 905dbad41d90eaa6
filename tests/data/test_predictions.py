from __future__ import annotations

import gzip
import io
import pickle
import tracemalloc
import zipfile

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lossbook.data import DataError, read_predictions

N, K = 12, 3
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 3, (N, K))
PROBS = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
Y = RNG.integers(0, K, N)
NAMES = ["cat", "dog", "owl"]
FORMATS = ["npy", "npz", "zip", "csv", "csv.gz", "tsv", "parquet", "lists"]


def changed(array, place, value):
    array = np.array(array)
    array[place] = value
    return array


def npy_bytes(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def write(folder, form, scores, labels=None):
    """A file of predictions in this format; labels go inside where the format has room for them."""
    path = folder / f"predictions.{ {'zip': 'npz', 'lists': 'parquet'}.get(form, form) }"
    if form == "npy":
        np.save(path, scores)
    elif form in ("npz", "zip"):
        save = np.savez if form == "npz" else np.savez_compressed
        save(path, probs=scores, **({} if labels is None else {"labels": labels}))
    elif form == "lists":
        columns = {"probs": pa.array(list(scores))} | ({} if labels is None else {"label": labels, "text": ["a"] * N})
        pq.write_table(pa.table(columns), path)
    else:
        frame = pd.DataFrame(scores, columns=NAMES[: scores.shape[1]])
        frame = frame if labels is None else frame.assign(label=labels)
        if form == "parquet":
            frame.to_parquet(path)
        else:
            frame.to_csv(path, sep="\t" if form == "tsv" else ",", index=False)
    return path


def save(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def labels_file(folder, labels=Y):
    np.save(folder / "y.npy", labels)
    return folder / "y.npy"


def whole(predictions, rows=None):
    scores, labels = zip(*predictions.chunks(rows), strict=True)
    return np.concatenate(scores), np.concatenate(labels)


@pytest.mark.parametrize("scores", [LOGITS, PROBS], ids=["logits", "probabilities"])
@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("form", FORMATS)
def test_round_trip(tmp_path, form, inside, scores):
    inside = inside and form != "npy"
    path = write(tmp_path, form, scores, Y if inside else None)
    p = read_predictions(path, labels=None if inside else labels_file(tmp_path))
    assert (p.path, p.rows, p.num_classes) == (path, N, K)
    assert p.kind == ("logits" if scores is LOGITS else "probabilities")
    assert p.class_names == (tuple(NAMES) if form[:3] in ("csv", "tsv", "par") else ("0", "1", "2"))
    assert path.name in p.labels_from if inside else p.labels_from == "y.npy"
    for _ in range(2):
        x, y = whole(p, 5)
        np.testing.assert_allclose(x, scores, rtol=1e-14)
        np.testing.assert_array_equal(y, Y)
        assert x.dtype == np.float64 and y.dtype == np.int64


@pytest.mark.parametrize("kind", ["<f2", ">f2", "<f4", ">f4", "<f8", ">f8", "g"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("form", ["npy", "npz", "zip"])
def test_every_float_in_every_order(tmp_path, form, order, kind):
    scores = np.asarray(LOGITS.astype(kind), order=order)
    x, _ = whole(read_predictions(write(tmp_path, form, scores), labels=labels_file(tmp_path)), 5)
    assert x.dtype == (np.float32 if kind[-1] in "24" else np.float64) and x.flags.c_contiguous
    np.testing.assert_array_equal(x, scores.astype(x.dtype))


@pytest.mark.parametrize("kind", ["u1", "<i2", ">i4", "u8", "f4"])
@pytest.mark.parametrize("column", [False, True])
def test_every_whole_number_is_a_label(tmp_path, kind, column):
    labels = Y.astype(kind).reshape((-1, 1) if column else -1)
    p = read_predictions(write(tmp_path, "npy", PROBS), labels=labels_file(tmp_path, labels))
    np.testing.assert_array_equal(whole(p)[1], Y)


@pytest.mark.parametrize("shape", [(N,), (N, 1)])
@pytest.mark.parametrize("form", ["npy", "npz"])
def test_one_column_is_class_1_of_two(tmp_path, form, shape):
    y = labels_file(tmp_path, Y % 2)
    p = read_predictions(write(tmp_path, form, PROBS[:, 0].reshape(shape)), labels=y)
    assert p.kind == "probabilities" and p.num_classes == 2 and "class 1" in p.note
    np.testing.assert_allclose(whole(p)[0], np.stack([1 - PROBS[:, 0], PROBS[:, 0]], axis=1), rtol=1e-14)
    p = read_predictions(write(tmp_path, form, LOGITS[:, 0].reshape(shape)), labels=y)
    assert p.kind == "logits" and "class 1" in p.note
    np.testing.assert_array_equal(whole(p)[0], np.stack([0 * LOGITS[:, 0], LOGITS[:, 0]], axis=1))


def test_one_column_with_one_number_that_is_no_probability(tmp_path):
    scores = changed(np.full(400, 0.5), 350, 1.5)
    with pytest.raises(DataError, match="row 350 .counting from 0. has 1.5 in score 0, .* but 399 of 400"):
        read_predictions(write(tmp_path, "npy", scores), labels=labels_file(tmp_path, np.arange(400) % 2))


def test_one_column_of_a_table(tmp_path):
    pd.DataFrame({"spam": PROBS[:, 0], "label": Y % 2}).to_csv(tmp_path / "p.csv", index=False)
    p = read_predictions(tmp_path / "p.csv")
    assert p.class_names == ("0", "1") and p.num_classes == 2
    np.testing.assert_allclose(whole(p)[0][:, 1], PROBS[:, 0], rtol=1e-14)


def test_probabilities_a_little_off_are_put_right(tmp_path):
    off = PROBS * 1.0005
    off[0] = [1.00005, -0.00005, 0.0002]
    p = read_predictions(write(tmp_path, "npy", off), labels=labels_file(tmp_path))
    x, _ = whole(p)
    assert p.kind == "probabilities" and x.min() >= 0 and x.max() <= 1
    np.testing.assert_allclose(x.sum(axis=1), 1, atol=1e-15)
    np.testing.assert_allclose(x[1:], PROBS[1:], rtol=1e-12)


def test_how_the_kind_was_told(tmp_path):
    y = labels_file(tmp_path)
    notes = [
        read_predictions(write(tmp_path, "npy", x), labels=y).note for x in (PROBS, LOGITS, np.log(PROBS), LOGITS - 50)
    ]
    assert notes[0] == "all 12 rows lie in [0, 1] and sum to one"
    assert notes[1].startswith("the scores reach from") and "logarithms" in notes[2] and "reach" in notes[3]


def table_text(header, scores=PROBS, labels=Y, sep=","):
    rows = [sep.join([*(repr(float(v)) for v in row), str(y)]) for row, y in zip(scores, labels, strict=True)]
    return "\n".join(([header] if header else []) + rows) + "\n"


@pytest.mark.parametrize(
    ("text", "column", "names"),
    [
        (table_text("cat,dog,owl,label"), None, NAMES),
        (table_text("cat,dog,owl,label", labels=[NAMES[y] for y in Y]), None, NAMES),
        (table_text("cat,dog,owl,answer"), "answer", NAMES),
        (table_text("p_cat,p_dog,p_owl,Target", labels=[NAMES[y] for y in Y]), None, NAMES),
        (table_text("1,2,3,label", labels=Y + 1), None, ["1", "2", "3"]),
        (table_text("prob_2,prob_1,prob_0,label", labels=2 - Y), None, ["2", "1", "0"]),
        (table_text(""), "3", ["0", "1", "2"]),
        ("\n\r\n" + table_text("# cat, dog, owl, label").replace("\n", "\r\n"), None, NAMES),
        ("\ufeff" + table_text('"cat","d,g","owl",y'), None, ["cat", "d,g", "owl"]),
        (table_text("cat,dog,owl,label", labels=Y.astype(float)), None, NAMES),
    ],
)
def test_tables_of_text(tmp_path, text, column, names):
    p = read_predictions(save(tmp_path, "p.csv", text), label_column=column)
    assert p.class_names == tuple(names) and p.rows == N
    x, y = whole(p, 5)
    np.testing.assert_allclose(x, PROBS, rtol=1e-14)
    np.testing.assert_array_equal(y, Y)


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_columns_that_number_the_rows_are_left_out(tmp_path, form):
    frame = pd.DataFrame(PROBS, columns=NAMES).assign(label=Y)
    frame.insert(0, "id", RNG.permutation(N))
    frame.insert(0, "nr", np.arange(N))
    path = tmp_path / f"p.{form}"
    frame.to_csv(path) if form == "csv" else frame.to_parquet(path)
    p = read_predictions(path)
    assert p.class_names == tuple(NAMES) and "left out: the columns" in p.note
    np.testing.assert_allclose(whole(p)[0], PROBS, rtol=1e-14)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("y.csv", "\n".join(map(str, Y))),
        ("y.csv", "label\n" + "\n".join(map(str, Y))),
        ("y.csv", "answer\n" + "\n".join(NAMES[y] for y in Y)),
        ("y.csv", "\n".join(NAMES[y] for y in Y)),
        ("y.csv", pd.Series(Y, name="label").to_csv()),
        ("y.tsv.gz", gzip.compress(pd.Series(Y).to_csv(sep="\t").encode(), mtime=0)),
    ],
)
def test_labels_in_a_table_of_their_own(tmp_path, name, content):
    p = read_predictions(write(tmp_path, "csv", PROBS, 2 - Y), labels=save(tmp_path, name, content))
    assert p.labels_from.endswith(name)
    np.testing.assert_array_equal(whole(p)[1], Y)


def test_labels_in_other_files(tmp_path):
    path = write(tmp_path, "parquet", PROBS)
    np.savez(tmp_path / "y.npz", anything=Y)
    np.savez(tmp_path / "two.npz", a=Y, b=2 - Y)
    pd.DataFrame({"a": pd.Categorical.from_codes(Y, NAMES), "b": 2 - Y}).to_parquet(tmp_path / "y.parquet")
    for labels, column in (("y.npz", None), ("two.npz", "a"), ("y.parquet", "a")):
        p = read_predictions(path, labels=tmp_path / labels, label_column=column)
        np.testing.assert_array_equal(whole(p)[1], Y)


def test_arrays_without_names(tmp_path):
    np.savez(tmp_path / "p.npz", PROBS.astype(np.float32), Y)
    p = read_predictions(tmp_path / "p.npz")
    np.testing.assert_array_equal(whole(p)[1], Y)
    np.savez(tmp_path / "p.npz", what=PROBS, names=np.array(NAMES, object), labels=Y)
    assert read_predictions(tmp_path / "p.npz").num_classes == K


SCORES = [
    (changed(LOGITS, (7, 1), np.nan), "row 7 .counting from 0. has nan in score 1"),
    (changed(LOGITS, (7, 1), -np.inf), "row 7 .counting from 0. has -inf"),
    (changed(PROBS, (7, 1), 1.2), "row 7 .counting from 0. has 1.2 in score 1, outside .0, 1., but 11 of 12"),
    (PROBS * changed(np.ones((N, 1)), 7, 0.9), "row 7 .counting from 0. sums to 0.9, not to one, but 11 of 12"),
    (changed(PROBS / 2, 2, PROBS[2]), "row 0 .counting from 0. sums to 0.5, .* although every score lies"),
]


@pytest.mark.parametrize(("scores", "message"), SCORES)
@pytest.mark.parametrize("form", FORMATS)
def test_rows_that_are_refused(tmp_path, form, scores, message):
    path = write(tmp_path, form, scores)
    with pytest.raises(DataError, match=message) as error:
        read_predictions(path, labels=labels_file(tmp_path))
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (np.ones((N, K), int), "floating-point scores .* holds int64"),
        (np.ones((N, K), bool), "floating-point scores .* holds bool"),
        (np.ones((N, K), complex), "holds complex128"),
        (np.full((N, K), "a"), "holds <U1"),
        (np.ones((N, K, 2)), "of shape .12, 3, 2."),
        (np.float64(3), "of shape ()"),
        (np.ones((0, K)), "no rows"),
        (np.ones((N, 0)), "has 0 columns"),
        (np.zeros((1, 2**20 + 1), np.float16), "1,048,577 columns"),
        (np.zeros(3, "f8,i4"), "of shape"),
        (PROBS.astype(object), "Python objects .dtype object.*np.save"),
    ],
)
@pytest.mark.parametrize("form", ["npy", "zip"])
def test_arrays_that_are_refused(tmp_path, form, scores, message):
    path = tmp_path / f"p.{'npy' if form == 'npy' else 'npz'}"
    np.save(path, scores) if form == "npy" else np.savez_compressed(path, probs=scores)
    with pytest.raises(DataError, match=message) as error:
        read_predictions(path, labels=labels_file(tmp_path))
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (changed(Y, 7, 3), "row 7 .counting from 0. has the label 3, but the 3 classes .* 0 to 2"),
        (changed(Y, 7, -1), "row 7 .counting from 0. has the label -1"),
        (changed(Y.astype(float), 7, 0.5), "row 7 .counting from 0. has the label 0.5"),
        (changed(Y.astype(float), 7, np.nan), "row 7 .counting from 0. has the label nan"),
        (changed(Y.astype(np.uint64), 7, 2**64 - 1), "has the label 18446744073709551615"),
        (Y[:-1], "predictions.npy holds 12 rows, but .*y.npy holds 11 labels"),
        (np.arange(200) % K, "predictions.npy holds 12 rows, but .*y.npy holds 200 labels"),
        (np.ones(N, bool), "one whole number a row, but holds bool"),
        (np.eye(K)[Y], "one whole number a row, but holds float64 of shape .12, 3."),
        (np.array(NAMES)[Y], "but holds <U3"),
        (np.array(NAMES, object)[Y], "Python objects"),
        (Y[:0], "holds 12 rows, but .* 0 labels"),
    ],
)
def test_labels_that_are_refused(tmp_path, labels, message):
    path = write(tmp_path, "npy", PROBS)
    with pytest.raises(DataError, match=message):
        read_predictions(path, labels=labels_file(tmp_path, labels))


@pytest.mark.parametrize("form", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("label", "message"),
    [("bird", "row 7 .counting from 0. has the label 'bird', .* 'cat', 'dog', 'owl'"), (None, "row 7 .* has no label")],
)
def test_names_that_are_refused(tmp_path, form, label, message):
    path = write(tmp_path, form, PROBS, [NAMES[y] if i != 7 else label for i, y in enumerate(Y)])
    with pytest.raises(DataError, match=message):
        read_predictions(path)


ROW = "0.2,0.3,0.5,1\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b,c,label\n" + ROW + "0.2,0.3\n", "line 3 .* has 2 fields, but the first has 4"),
        ("a,b,c,label\n" + ROW + "0.2,0.3,0.5,1,7\n", "line 3 .* has 5 fields"),
        ("a,b,c,label\n" + ROW + "0.2,x,0.5,1\n", "row 1 .counting from 0. has 'x' in column 1"),
        ("a,b,c,label\n" + ROW + "0.2,,0.5,1\n", "row 1 .counting from 0. has nan in score 1"),
        ("a,b,c,label\n" + ROW + "0.2,NA,0.5,1\n", "row 1 .counting from 0. has 'NA'"),
        ("a,b,c,label\n" + ROW + "0.2,0.3,0.5,\n", "row 1 .counting from 0. has no label"),
        ("a,b,c,label\n" + ROW + "0.2,0.3,0.5,2.5\n", "has the label '2.5'"),
        ("1,2,3,label\n" + ROW + "0.2,0.3,0.5,0\n", "has the label '0', but .* '1', '2', '3'"),
        ("a,b,b,label\n" + ROW, "2 columns named 'b'"),
        ("a,b,label,target\n" + ROW, "several columns that may be the labels.*'label', 'target'"),
        ("a,b,c,label\n", "no rows"),
        ("\n\n", "no rows"),
        ("label\n1\n", "no column of scores"),
        ("a;b;c;label\n1;2;3;0\n", "separate columns by commas, .* has semicolons"),
        ("a,b,c,d\n" + ROW, "comes without labels"),
        (ROW, "comes without labels"),
        ("a,b,c,label\n" + ROW + '"' + "x" * 2**22, "a quotation mark that is never closed|fields"),
        ("a" * 2**21 + "\n", "first line of more than"),
        (b"\xff\xfea\0,\0b\0\n", "no text in UTF-8"),
        (b"a,b,c,label\n0.2,0.3,0.5,\xff\n", "UTF8"),
    ],
)
def test_text_that_is_refused(tmp_path, text, message):
    path = save(tmp_path, "p.csv", text)
    with pytest.raises(DataError, match=message) as error:
        read_predictions(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"a": [0.5], "b": [0.5], "c": ["x"], "label": [0]}, "column 'c' of type string"),
        ({"a": [0.5], "b": [1], "label": [0]}, "column 'b' of type int64"),
        ({"a": [0.5], "b": [0.5], "label": [True]}, "labels of type bool"),
        ({"a": [[0.5, 0.5], [1.0]], "label": [0, 1]}, "row 1 .counting from 0. has 1 numbers"),
        ({"a": [[0.5, 0.5], None], "label": [0, 1]}, "row 1 .counting from 0. has 0 numbers"),
        ({"a": [[0.5, 0.5]], "b": [[0.5, 0.5]], "label": [0]}, "several columns with lists"),
        ({"a": [[]], "label": [0]}, "string|column 'a'|0 columns"),
        ({"a": pa.array([], "f8"), "label": pa.array([], "i8")}, "no rows"),
    ],
)
def test_parquet_that_is_refused(tmp_path, columns, message):
    pq.write_table(pa.table(columns), tmp_path / "p.parquet")
    with pytest.raises(DataError, match=message):
        read_predictions(tmp_path / "p.parquet")


def archive(folder, members, encrypt=False):
    path = folder / "p.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        for name, content in members:
            z.writestr(name, content)
    if encrypt:
        data = bytearray(path.read_bytes())
        data[6] |= 1
        data[data.index(b"PK\x01\x02") + 8] |= 1
        path.write_bytes(data)
    return path


P, L = npy_bytes(PROBS), npy_bytes(Y)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("probs.npy", P), ("logits.npy", P), ("y.npy", L)], "several members .* 'probs' .*'logits' "),
        ([("a.npy", P), ("b.npy", P), ("y.npy", L)], "several members .* 'a' .*'b' "),
        ([("probs.npy", P), ("y.npy", L), ("labels.npy", L)], "several members that may be the labels"),
        ([("y.npy", L)], "no member that is the predictions"),
        ([("probs.npy", P)], "comes without labels"),
        ([("../probs.npy", P), ("y.npy", L)], "a path for a name"),
        ([("a/data.pkl", b"x")], "pickle"),
        ([("readme.txt", b"x")], "no .npy array"),
        ([("probs.npy", P), ("probs.npy", P)], "two members named 'probs'"),
        ([("probs.npy", P[:-1]), ("y.npy", L)], "member 'probs' is truncated"),
        ([("probs.npy", P + b"x"), ("y.npy", L)], "member 'probs' goes on"),
        ([("probs.npy", P[:40]), ("y.npy", L)], "header that cannot be read"),
        ([("probs.npy", b"not an array"), ("y.npy", L)], "is no .npy array"),
        ([("probs.npy", P.replace(b"(12, 3)", b"(9999999, 9999999)")), ("y.npy", L)], "truncated|header"),
        ([], "without arrays"),
    ],
)
def test_archives_that_are_refused(tmp_path, members, message):
    path = archive(tmp_path, members)
    with pytest.raises(DataError, match=message) as error:
        read_predictions(path)
    assert str(path) in str(error.value)


def test_encrypted_member(tmp_path):
    with pytest.raises(DataError, match="encrypted member 'probs.npy'"):
        read_predictions(archive(tmp_path, [("probs.npy", P), ("y.npy", L)], encrypt=True))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.npy", b"", "is empty"),
        ("p.npy", P[:-1], "truncated: its shape .* 1 are missing"),
        ("p.npy", P + b"x", "goes on after"),
        ("p.npy", P[:20], "header that cannot be read"),
        ("p.npy", b"PK\x03\x04", "is no .npy array"),
        ("p.npy", P.replace(b"(12, 3)", b"(-2, 3)"), "shape .-2, 3."),
        ("p.npz", b"PK\x03\x04", "p.npz is damaged"),
        ("p.parquet", b"PAR1PAR1PAR1", "p.parquet cannot be read: it announces a footer"),
        ("p.csv.gz", b"\x1f\x8bnot gzip", "p.csv.gz is damaged"),
        ("p.csv.gz", gzip.compress(table_text("a,b,c,label").encode(), mtime=0)[:-20], "p.csv.gz is damaged"),
        ("p.npy", pickle.dumps(PROBS.tolist()), "is a pickle, .*np.save"),
        ("p.csv", pickle.dumps(PROBS.tolist(), 2), "is a pickle"),
        ("p.pt", b"PK\x03\x04", "is a pickle"),
        ("p.pkl", b"(lp0", "is a pickle"),
        ("p.mat", b"x", "must end in .npy, .npz, .csv"),
        ("p", b"x", "must end in .npy"),
        ("p.npy.gz", b"x", "must end in .npy"),
    ],
)
def test_files_that_are_refused(tmp_path, name, content, message):
    path = save(tmp_path, name, content)
    with pytest.raises(DataError, match=message):
        read_predictions(path, labels=labels_file(tmp_path))
    (tmp_path / "good").mkdir()
    with pytest.raises(DataError, match=message if "truncated" not in message else "truncated"):
        read_predictions(write(tmp_path / "good", "npy", PROBS), labels=path)


def test_missing_files_folders_and_columns(tmp_path):
    path = write(tmp_path, "csv", PROBS, Y)
    with pytest.raises(FileNotFoundError, match="nothing.npy does not exist"):
        read_predictions(tmp_path / "nothing.npy")
    with pytest.raises(FileNotFoundError, match="nothing.npy does not exist"):
        read_predictions(path, labels=tmp_path / "nothing.npy")
    with pytest.raises(DataError, match="is a folder"):
        read_predictions(tmp_path)
    with pytest.raises(DataError, match="no column 'answer'; its columns are 'cat'"):
        read_predictions(path, label_column="answer")
    with pytest.raises(DataError, match="no member 'answer'; its members are 'probs'"):
        read_predictions(write(tmp_path, "npz", PROBS, Y), label_column="answer")
    with pytest.raises(DataError, match="one array"):
        read_predictions(write(tmp_path, "npy", PROBS), label_column="answer")
    with pytest.raises(DataError, match="several columns, name the one"):
        read_predictions(path, labels=write(tmp_path, "tsv", PROBS))


def test_a_file_that_changes_is_noticed(tmp_path):
    y = labels_file(tmp_path)
    path = write(tmp_path, "csv", PROBS)
    p = read_predictions(path, labels=y)
    write(tmp_path, "csv", PROBS[:-2])
    labels_file(tmp_path, Y[:-2])
    with pytest.raises(DataError, match="has changed|truncated|goes on|holds"):
        list(p.chunks())
    write(tmp_path, "csv", PROBS * 2)
    labels_file(tmp_path)
    with pytest.raises(DataError, match="row 0 "):
        list(p.chunks())


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    files = {}
    for form in FORMATS:
        (folder / form).mkdir()
        labels = None if form == "npy" else Y
        path = write(folder / form, form, PROBS, labels)
        files[form] = read_predictions(path, labels=labels_file(folder / form) if labels is None else None)
    return files


@settings(max_examples=60, deadline=None)
@given(form=st.sampled_from(FORMATS), rows=st.integers(1, N + 2))
def test_chunks_make_up_the_whole(opened, form, rows):
    parts = list(opened[form].chunks(rows))
    assert [len(y) for _, y in parts] == [min(rows, N - start) for start in range(0, N, rows)]
    np.testing.assert_allclose(np.concatenate([x for x, _ in parts]), PROBS, rtol=1e-14)
    np.testing.assert_array_equal(np.concatenate([y for _, y in parts]), Y)


@settings(max_examples=60, deadline=None)
@given(form=st.sampled_from(FORMATS), n=st.integers(1, N + 3), seed=st.integers(0, 2**32))
def test_a_sample_is_rows_of_the_file(opened, form, n, seed):
    x, y, index = opened[form].sample(n, seed)
    assert len(index) == min(n, N) and (np.diff(index) > 0).all()
    np.testing.assert_allclose(x, PROBS[index], rtol=1e-14)
    np.testing.assert_array_equal(y, Y[index])
    np.testing.assert_array_equal(index, opened["npy"].sample(n, seed)[2])


def test_samples_are_uniform(opened):
    """Over 2000 seeds each row is drawn 500 times, give or take 5 standard deviations."""
    counts = np.zeros(N)
    for seed in range(2000):
        counts[opened["npy"].sample(3, seed)[2]] += 1
    assert np.abs(counts - 500).max() < 5 * np.sqrt(2000 * 0.25 * 0.75)


@pytest.mark.parametrize("arguments", [{"n": 0, "seed": 0}, {"n": 2.5, "seed": 0}, {"n": 1, "seed": -1}])
def test_bad_arguments(opened, arguments):
    with pytest.raises(ValueError, match="must be a whole number"):
        opened["npy"].sample(**arguments)
    with pytest.raises(ValueError, match="rows must be a whole number"):
        list(opened["npy"].chunks(0))


@pytest.mark.parametrize("order", ["C", "F"])
def test_memory_does_not_grow_with_the_file(tmp_path, order):
    """64 MB in a compressed file of 64 kB."""
    scores = np.zeros((2**19, 32), np.float32, order=order)
    scores[:, 0] = 1
    np.savez_compressed(tmp_path / "p.npz", probs=scores, y=np.zeros(2**19, np.int8))
    del scores
    tracemalloc.start()
    try:
        p = read_predictions(tmp_path / "p.npz")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert p.rows == 2**19 and peak < 2**25


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), form=st.sampled_from(FORMATS))
def test_any_mutation_is_read_or_refused(tmp_path, data, form):
    labels = None if form == "npy" else Y
    path = write(tmp_path, form, PROBS, labels)
    y = labels_file(tmp_path) if labels is None else None
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    try:
        p = read_predictions(path, labels=y)
        assert p.rows > 0 and p.num_classes > 1
        whole(p, 5)
    except DataError as error:
        assert str(path) in str(error)

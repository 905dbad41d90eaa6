"""Files that no program writes: every reader reads them or refuses them by name, in bounded memory and time.

Mutants of small real files and files put together from hostile parts are read in another process (`reading.py`), so
that a crash, a hang or a filled memory is a failure of one case. Nothing may be written, started or connected to.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import struct
import sys
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from lossbook.book.audit import compare
from lossbook.data import DataError, _arrays, cifar

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")

SECONDS = 10  # of processor time for a file of this size
MIB = 2**20
PARQUET = 1280 * MIB  # Pages of 2^29 bytes and lists of 2^26 numbers may be somebody's.

EXTREME = (
    0, 1, 2, -1, 127, 128, 255, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**63,
    2**64 - 1,
)  # fmt: skip
HOSTILE_NAMES = (
    "../../evil.npy", "/tmp/evil.npy", "..\\evil.npy", "C:\\evil.npy", "probs\0.npy", "probs.npy", "PROBS.npy",
    "labels.npy", "a/../b.npy", "./probs.npy", "x" * 30_000 + ".npy", "", ".npy", "x.pkl", "test/cat/1.png",
    "test/cat/01.png", "test/Cat/1.png", "test/cat/../../../1.png", "/test/cat/1.png", "test/c\u0061\u0301t/1.png",
    "test/c\u00e1t/1.png", "test/cat/", "test/cat/1.png/2", "test/" + "c" * 60_000 + "/1.png", "test/con/nul.png",
    "test/cat/٣.png", "test/cat/\ud800.png", "<script>alert(1)</script>/a/b.png", "cifar-10-batches-py/test_batch",
    "cifar-10-batches-py/../test_batch", "x/cifar-10-batches-py/data_batch_1",
)  # fmt: skip


# Seeds: small real files, or the same of scikit-learn's digits.


class Seeds(NamedTuple):
    digits: np.ndarray  #: (n, 28, 28) uint8
    labels: np.ndarray  #: (n,) in [0, 10)
    jpegs: Sequence[bytes]
    probs: np.ndarray  #: (n, 10)
    answers: bytes  #: what people said of labels, as JSON
    verse: bytes


def real(folder: Path) -> Seeds:
    with gzip.open(folder / "mnist/t10k-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(16 + 784 * 3)[16:], np.uint8)
    errors = folder / "label-errors"
    with zipfile.ZipFile(folder / "cifar10/test.zip") as archive:
        jpegs = [archive.read(name) for name in archive.namelist() if name.endswith(".jpg")][:3]
    with (folder / "tinyshakespeare/input.txt").open("rb") as file:
        verse = file.read(300)
    return Seeds(
        images.reshape(3, 28, 28),
        np.load(errors / "mnist_test_set_original_labels.npy")[:30],
        jpegs,
        np.load(errors / "mnist_test_set_pyx.npy")[:30],
        json.dumps(json.loads((errors / "mnist_mturk.json").read_bytes())[:5]).encode(),
        verse,
    )


def bundled() -> Seeds:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    digits = np.kron(bunch.images[:3], np.ones((3, 3)))[:, :28, :28].clip(0, 16).astype(np.uint8) * 15
    digits = np.pad(digits, ((0, 0), (2, 2), (2, 2)))
    rng = np.random.default_rng(0)
    verdict = {"our_guessed_label": 3, "mturk": {"given": 4, "both": 1}}
    return Seeds(
        digits,
        bunch.target[:30],
        [image(np.stack([digit] * 3, axis=2), "JPEG") for digit in digits],
        rng.dirichlet(np.ones(10), 30),
        json.dumps([verdict | {"id": i, "given_original_label": int(bunch.target[i])} for i in range(2)]).encode(),
        b"First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n",
    )


def image(pixels: np.ndarray, kind: str, mode: str | None = None, **options: Any) -> bytes:
    file = io.BytesIO()
    picture = Image.fromarray(pixels)
    (picture.convert(mode) if mode else picture).save(file, kind, **options)
    return file.getvalue()


def idx_file(array: np.ndarray) -> bytes:
    codes = {"u1": 8, "i4": 12, "f8": 14}
    header = struct.pack(f">HBB{array.ndim}I", 0, codes[array.dtype.str[1:]], array.ndim, *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def batch(pixels: np.ndarray, labels: Sequence[int]) -> bytes:
    """What Python 2 wrote of a CIFAR-10 batch."""

    def text(value: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(value)) + value

    kind = b"cnumpy\ndtype\n(U\x02u1K\0K\1tR(K\3U\1|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\0tU\1btq\2R(K\1(K%cM\0\x0ct" % len(pixels)
    numbers = b"](" + b"".join(b"K%c" % label for label in labels) + b"e"
    data = array + kind + b"\x89" + text(pixels.tobytes()) + b"tb"
    return b"\x80\2}q\1(" + text(b"labels") + numbers + text(b"data") + data + b"u."


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz(packed: bool = True, **arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    (np.savez_compressed if packed else np.savez)(file, **arrays)
    return file.getvalue()


def table(x: np.ndarray, y: Sequence[Any], header: bool = True) -> bytes:
    file = io.StringIO()
    lines = csv.writer(file, lineterminator="\n")
    lines.writerows([[*(f"p_{k}" for k in range(x.shape[1])), "label"]] * header)
    lines.writerows([*(f"{p:.6g}" for p in row), label] for row, label in zip(x, y, strict=True))
    return file.getvalue().encode()


def parquet(columns: dict[str, Any], **options: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, **options)
    return file.getvalue()


def parquets(x: np.ndarray, y: np.ndarray) -> list[bytes]:
    wide = {f"p_{k}": x[:, k] for k in range(x.shape[1])} | {"label": y}
    names = {"a": x[:, 0], "b": 1 - x[:, 0], "label": pa.array(["ab"[k % 2] for k in y]).dictionary_encode()}
    return [
        parquet(wide, compression="none"),
        parquet(wide, compression="snappy", row_group_size=7),
        parquet(wide, compression="gzip", data_page_version="2.0"),
        parquet(names, compression="zstd", use_dictionary=True),
        parquet({"scores": list(x), "label": y}, compression="brotli"),
        parquet({"scores": pa.FixedSizeListArray.from_arrays(x.ravel(), x.shape[1]), "label": y}, compression="lz4"),
        parquet(wide, use_dictionary=False, column_encoding="BYTE_STREAM_SPLIT"),
        parquet({"a": pa.array([None, *x[1:, 0]]), "b": x[:, 1], "label": y, "s": [{"t": 1}] * len(y)}),
        parquet({"x": x[:, 0], "label": pa.array([None, *map(str, y[1:])])}, data_page_size=64, write_page_index=True),
    ]


def zipped(members: Sequence[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that come twice
        with zipfile.ZipFile(file, "w", method) as archive:
            for name, content in members:
                archive.writestr(name, content)
    return file.getvalue()


def tarred(members: Sequence[tuple[str | tarfile.TarInfo, bytes]], form: int = tarfile.GNU_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for name, content in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            if info.isreg():
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content) if info.isreg() else None)
    return file.getvalue()


def packed(content: bytes) -> bytes:
    return gzip.compress(content, 1, mtime=0)


# Mutations.


@st.composite
def mutants(draw: st.DrawFn, seeds: Sequence[bytes], marks: Sequence[bytes] = ()) -> bytes:
    """A seed after up to three operations, which like to work at its ends and near the marks of its format."""
    content = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(0, 3))):
        content = mutated(draw, content, seeds, marks)
    return content


def place(draw: st.DrawFn, content: bytes, marks: Sequence[bytes]) -> int:
    last = len(content)
    kind = draw(st.integers(0, 3))
    if kind == 0:
        return min(last, draw(st.integers(0, 64)))
    if kind == 1:
        return max(0, last - draw(st.integers(0, 128)))
    start = draw(st.integers(0, last))
    if kind == 2 and marks and (found := content.find(draw(st.sampled_from(marks)), start)) >= 0:
        return min(last, found + draw(st.integers(0, 48)))
    return start


OPERATIONS = ("number", "number", "varint", "replace", "insert", "delete", "double", "swap", "cut off", "splice")


def mutated(draw: st.DrawFn, content: bytes, seeds: Sequence[bytes], marks: Sequence[bytes]) -> bytes:
    operation = draw(st.sampled_from(OPERATIONS))
    if operation == "number":
        return numbered(draw, content, marks)
    start = place(draw, content, marks)
    end = min(len(content), start + draw(st.sampled_from((1, 2, 3, 4, 8, 16, 64, 512, 4096))))
    before, part, after = content[:start], content[start:end], content[end:]
    if operation == "varint":
        return before + varint(draw(st.sampled_from(EXTREME)) % 2**64) + content[start + draw(st.integers(0, 5)) :]
    if operation == "replace":
        return before + draw(st.binary(min_size=1, max_size=2)) + content[start + 1 :]
    if operation == "insert":
        few = draw(st.binary(min_size=1, max_size=8) | st.sampled_from((b"\0" * 64, b"\xff" * 64, b"(" * 300)))
        return before + few * draw(st.sampled_from((1, 1, 1, 100))) + content[start:]
    if operation == "double":
        return before + part * draw(st.sampled_from((2, 2, 3, 50))) + after
    if operation == "swap":
        middle, last = sorted((draw(st.integers(0, len(after))), draw(st.integers(0, len(after)))))
        return before + after[middle:last] + after[:middle] + part + after[last:]
    if operation == "splice":
        other = draw(st.sampled_from(seeds))
        return before + other[place(draw, other, marks) :]
    return before + after if operation == "delete" else before


def numbered(draw: st.DrawFn, content: bytes, marks: Sequence[bytes]) -> bytes:
    """An extreme number of 1 to 8 bytes, in either order, over what was there."""
    start, width = place(draw, content, marks), draw(st.sampled_from((1, 2, 4, 8)))
    value = draw(st.sampled_from(EXTREME)) % 2 ** (8 * width)
    return content[:start] + value.to_bytes(width, draw(st.sampled_from(("little", "big")))) + content[start + width :]


def varint(value: int) -> bytes:
    return bytes([128 | value & 127]) + varint(value >> 7) if value > 127 else bytes([value])


# Repairs, so that what a mutant says is looked at.


def png_repaired(content: bytes) -> bytes:
    """Every chunk of a PNG with its right checksum."""
    start, done = 8, content[:8]
    while start + 12 <= len(content):
        [size] = struct.unpack_from(">I", content, start)
        if start + 12 + size > len(content):
            break
        body = content[start + 4 : start + 8 + size]
        done += content[start : start + 4] + body + struct.pack(">I", zlib.crc32(body))
        start += 12 + size
    return done + content[start:]


def tar_repaired(content: bytes) -> bytes:
    """The first headers with their right checksums."""
    done = bytearray(content)
    for start in range(0, min(len(done), 2**16) - 511, 512):
        head = done[start : start + 512]
        if head[257:262] == b"ustar":
            head[148:156] = b" " * 8
            done[start + 148 : start + 156] = b"%06o\0 " % sum(head)
    return bytes(done)


@st.composite
def footers(draw: st.DrawFn, seeds: Sequence[bytes]) -> bytes:
    """Parquet files with a mutated footer of the announced length."""
    seed = draw(st.sampled_from(seeds))
    [size] = struct.unpack_from("<I", seed, len(seed) - 8)
    footer = draw(mutants([seed[-8 - size : -8]]))
    return seed[: -8 - size] + footer + struct.pack("<I", len(footer)) + b"PAR1"


@st.composite
def pages(draw: st.DrawFn, seeds: Sequence[bytes]) -> bytes:
    """Parquet files with mutated pages, before an intact footer."""
    seed = draw(st.sampled_from(seeds))
    [size] = struct.unpack_from("<I", seed, len(seed) - 8)
    kept = len(seed) - 8 - size
    body = draw(mutants([seed[:kept]]))
    return body[:kept].ljust(kept, b"\0") + seed[kept:]


# Files that are put together from hostile parts.


@st.composite
def zips(draw: st.DrawFn, names: st.SearchStrategy[str], contents: st.SearchStrategy[bytes]) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(file, "w") as archive:
            for _ in range(draw(st.integers(0, 4))):
                info = zipfile.ZipInfo("x")
                info.filename = draw(names).encode("utf-8", "replace").decode()
                info.compress_type = draw(st.sampled_from((0, 0, 8, 8, 12, 14)))
                mode = draw(st.sampled_from((0, 0o100644, 0o120777, 0o020666, 0o40777)))
                info.external_attr = mode << 16 | draw(st.sampled_from((0, 16)))
                archive.writestr(info, draw(contents))
            archive.comment = draw(st.sampled_from((b"", b"PK\5\6" + b"\0" * 18, b"x" * 60_000)))
    content = file.getvalue()
    for _ in range(draw(st.sampled_from((0, 0, 0, 1, 2)))):
        content = numbered(draw, content, (b"PK\1\2", b"PK\3\4", b"PK\5\6"))
    return content


@st.composite
def tars(draw: st.DrawFn, contents: Sequence[bytes]) -> bytes:
    wanted = [f"{cifar.FOLDER}/{name}" for name in (*cifar.TRAIN_BATCHES, cifar.TEST_BATCH)]
    members: list[tuple[str | tarfile.TarInfo, bytes]] = [(name, contents[0]) for name in wanted]
    for _ in range(draw(st.integers(0, 3))):
        info = tarfile.TarInfo(draw(st.sampled_from([*HOSTILE_NAMES, *wanted])))
        info.type = draw(st.sampled_from([bytes([kind]) for kind in b"01234567DKLSVxgX\0"]))
        info.linkname = draw(st.sampled_from(("/etc/passwd", "../..", wanted[0], "")))
        info.mode = draw(st.sampled_from((0o644, 0o7777, 0)))
        extended = ({}, {"size": "9" * 20}, {"path": "../x"}, {"GNU.sparse.size": "9" * 12})
        info.pax_headers = draw(st.sampled_from(extended))
        if not info.isreg():
            info.size = draw(st.sampled_from((0, 512, 2**33)))
        members.insert(draw(st.integers(0, len(members))), (info, draw(st.sampled_from(contents))))
    form = draw(st.sampled_from((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT)))
    try:
        content = tarred(members, form)
    except (ValueError, UnicodeError):
        content = tarred(members[-1:] if isinstance(members[-1][0], str) else [], tarfile.GNU_FORMAT)
    if draw(st.booleans()):
        content = tar_repaired(numbered(draw, content, (b"ustar", cifar.FOLDER.encode())))
    return packed(content)


OPCODES = (
    b"(", b".", b"0", b"1", b"2", b"N", b"I99\n", b"I01\n", b"L" + b"9" * 5000 + b"L\n", b"K\5", b"M\0\x0c",
    b"J\xff\xff\xff\xff", b"F1e999\n", b"G" + b"\x7f" * 8, b"S'x'\n", b"T\xff\xff\xff\x7f", b"T\2\0\0\0ab",
    b"U\4data", b"U\6labels", b"X\xff\xff\xff\xff", b"V\\ud800\n", b"C\1a", b"B\xff\xff\xff\x7f",
    b"\x8e" + b"\xff" * 7 + b"\x7f", b"\x96" + struct.pack("<Q", 2**34), b"\x8a\xff" + b"\x7f" * 255,
    b"\x8b\xff\xff\xff\x7f", b"\x95" + struct.pack("<Q", 2**40), b"}", b"]", b")", b"\x8f", b"\x90", b"\x91", b"a",
    b"e", b"s", b"u", b"d", b"l", b"t", b"\x85", b"\x86", b"\x87", b"R", b"b", b"o", b"i" + b"numpy\nndarray\n",
    b"\x81", b"\x92", b"\x93", b"\x94", b"q\1", b"h\1", b"r\xff\xff\xff\xff", b"j\xff\xff\xff\xff", b"p5\n", b"g5\n",
    b"p-1\n", b"P1\n", b"Q", b"\x97", b"\x98", b"\x82\1", b"\x84\xff\xff\xff\x7f", b"\x80\5", b"\x80\xff",
    b"cnumpy\ndtype\n", b"cnumpy\nndarray\n", b"cnumpy.core.multiarray\n_reconstruct\n", b"cos\nsystem\n",
    b"cbuiltins\neval\n", b"cnumpy\ndtype.__init__\n", b"((((", b"\x85" * 3000, b"]" * 3000,
    b"(" * 30_000 + b"t" * 30_000, b"q\1h\1h\1\x86" * 40, b"](h\1h\1e", b"\x88", b"\x89",
)  # fmt: skip


@st.composite
def pickles(draw: st.DrawFn, seed: bytes) -> bytes:
    """Opcodes in any order, within a batch or by themselves."""
    program = b"".join(draw(st.lists(st.sampled_from(OPCODES), max_size=20)))
    if draw(st.booleans()):
        return b"\x80\2" + program + b"."
    cut = draw(st.sampled_from([i for i in range(len(seed)) if not 700 < i < len(seed) - 8]))
    return seed[:cut] + program + seed[cut + draw(st.integers(0, 3)) :]


DTYPES = (
    "'<f8'", "'<f4'", "'>f2'", "'<f16'", "'|O'", "'<i8'", "'|b1'", "'|V8'", "'<M8[ns]'", "'|S0'", "'<U1000000'",
    "'f8,f8'", "'(2,2)f8'", "'(1000000000,1000000000)f8'", "[('a', '<f8')]", "[('a', '|O')]",
    "[('a', '<f8', (1000000, 100000))]", "[(('t', 'a'), 'O')]", "'<f9'", "'x'", "''", "None",
    "{'names': ['a'], 'formats': ['<f8'], 'offsets': [2147483647]}", "('<f8', (3,))", "'|V2147483647'", "[" * 300,
    "(" * 900 + ")" * 900, "-" * 3000 + "1", "'<f8'" + " " * 60_000, "'a'" * 2000, "[]", "'T'", "'m8'",
    "__import__('os').system('true')",
)  # fmt: skip
SHAPES = (
    "(3, 2)", "(6,)", "(6, 1)", "(0, 2)", "(3, 0)", "()", "(2, 3,)", "(-1, 2)", "(9223372036854775807, 2)",
    "(18446744073709551616, 0)", "(1e3, 2)", "(True, 6)", "(3L, 2L)", "[3, 2]", "(" + "1, " * 3000 + ")",
    "(3, 2" + "9" * 5000 + ")", "None", "('3', 2)", "(2**10,)", "(1099511627776, 1048576)",
)  # fmt: skip


@st.composite
def npys(draw: st.DrawFn) -> bytes:
    order = draw(st.sampled_from(("False", "True", "0", "'C'", "None")))
    kind, shape = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(SHAPES))
    header = f"{{'descr': {kind}, 'fortran_order': {order}, 'shape': {shape}, }}"
    forms = (header, header, header, header.replace("'shape'", "'shape', 'more'"), header * 2)
    header = draw(st.sampled_from(forms)) + "\n"
    version = draw(st.sampled_from((1, 1, 1, 2, 3, 4, 255)))
    size = draw(st.sampled_from((len(header), len(header), len(header), 0, 2**16 - 1, 2**32 - 1)))
    length = struct.pack("<H", min(size, 2**16 - 1)) if version == 1 else struct.pack("<I", size)
    bodies = (np.linspace(0, 1, 6).tobytes(), b"", b"\0" * 48, b"\xff" * 48, b"\x80\4.", bytes(2**16))
    return b"\x93NUMPY" + bytes([version, 0]) + length + header.encode() + draw(st.sampled_from(bodies))


CELLS = (
    "0.5", "0.25", "1", "0", "", "nan", "NaN", "inf", "-inf", "1e999", "1e-999", "0x10", "1_000", "9" * 400,
    "9" * 100_000, "-0", "+.5", ".", "1,5", '"', '""', '"0.5"', '"a\nb"', "'", "\0", "\ufeff", "cat", "label",
    "p_cat", "y", "id", "NA", "None", "=1+1", "<b>", "\u202e", "\u0660.\u0661", " 0.5 ", "\t", ";", "True",
    "2020-01-01", "1e5", "5e-324", "\x1a", "\u2028", "../..", "0.5" * 50_000, "1 0",
)  # fmt: skip


@st.composite
def csvs(draw: st.DrawFn) -> bytes:
    mark = draw(st.sampled_from((",", ",", ",", "\t", ";")))
    end = draw(st.sampled_from(("\n", "\n", "\r\n", "\r", "\n\n", "")))
    width = draw(st.integers(1, 4))
    row = st.lists(st.sampled_from(CELLS), min_size=width, max_size=width)
    rows = draw(st.lists(st.one_of(row, row, row, st.lists(st.sampled_from(CELLS), max_size=6)), max_size=5))
    if draw(st.booleans()):
        rows.insert(0, [*(f"p_{k}" for k in range(width - 1)), "label"])
    text = end.join(mark.join(cells) for cells in rows) + end
    start = draw(st.sampled_from((b"", b"", b"", b"\xef\xbb\xbf", b"\xff\xfe", b"\n" * 5, b"#", b'"')))
    return start + text.encode(draw(st.sampled_from(("utf-8", "utf-8", "utf-8", "utf-16", "utf-32", "utf-7"))))


def jsons(seed: bytes) -> st.SearchStrategy[bytes]:
    """The seed with a value, anywhere, replaced by another, and texts of any JSON at all."""
    content = json.loads(seed)
    odd = (None, True, -1, 0, 1.5, 10**25, 1e308, "", "x" * 20_000, "<script>", "\ud800", "\0")
    leaves = st.one_of(st.sampled_from(odd), st.integers(-3, 12), st.floats(), st.text(max_size=5))
    values = st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=6,
    )

    def changed(draw: st.DrawFn, part: Any, depth: int = 0) -> Any:
        if not isinstance(part, (dict, list)) or not part or (depth and draw(st.integers(0, 5)) == 0):
            return draw(values)
        keys = list(part) if isinstance(part, dict) else list(range(len(part)))
        key = draw(st.sampled_from(keys))
        copy = dict(part) if isinstance(part, dict) else list(part)
        if draw(st.integers(0, 9)) == 0:
            del copy[key]
        else:
            copy[key] = changed(draw, part[key], depth + 1)
        return copy

    @st.composite
    def documents(draw: st.DrawFn) -> bytes:
        return json.dumps(changed(draw, content)).encode()

    fixed = (
        b"[" * 100_000, b'{"a":' * 100_000, b"1" * 5000, b"1" * 300_000, b"\xff\xfe[\0]\0", b"\xef\xbb\xbf[]", b"NaN",
        b"[]", b"{}",
    )  # fmt: skip
    texts = values.map(lambda value: json.dumps(value).encode())
    return st.one_of(
        documents(), documents(), documents(), texts, st.sampled_from(fixed), mutants([seed], (b'"', b"["))
    )


class Target(NamedTuple):
    """What is fuzzed: a reader, the name of the file that it gets, what is in it, and the memory that it may take."""

    reader: str
    file: str
    contents: st.SearchStrategy[bytes]
    seed: bytes  #: which is read
    most: int = 64 * MIB


def targets(seeds: Seeds) -> dict[str, Target]:
    x, y = seeds.probs, seeds.labels.astype(np.int64)
    marks = (b"PK\1\2", b"PK\3\4", b"PK\5\6", b"NUMPY", b"descr", b"shape")

    arrays = [npy(x), npy(x.astype(np.float32)), npy(np.asfortranarray(x)), npy(x[:, :1])]
    label_arrays = [npy(y), npy(y.astype(np.float32)), npy(y.astype(np.uint8))]
    counts = npy(np.resize(np.arange(10), (4, 10)))
    any_npy = npys() | mutants(arrays, marks)
    archives = [npz(probs=x, labels=y), npz(False, probs=x, labels=y), npz(logits=np.asfortranarray(x), y=y)]
    any_npz = mutants(archives, marks) | zips(st.sampled_from(HOSTILE_NAMES), any_npy)
    w = np.linspace(-1, 1, 50).reshape(10, 5)
    heads = [npz(weight=w, bias=w[:, 0]), npy(w), npz(False, weight=w)]
    head_names = st.sampled_from(("weight.npy", "bias.npy", "fc.weight.npy", *HOSTILE_NAMES))
    any_head = mutants(heads, marks) | zips(head_names, npys() | mutants([npy(w), npy(w[:, 0])], marks))

    tables = [table(x, y), table(x[:, :2], ["p_0", "p_1"] * 15), table(x, y, header=False)]
    any_table = mutants(tables, (b",", b"\n")) | csvs()
    halves = any_table.map(lambda content: packed(content[:9]) + packed(content[9:]))
    any_gz = st.one_of(any_table.map(packed), mutants([packed(seed) for seed in tables]), halves)
    columns = parquets(x, y)
    any_parquet = st.one_of(mutants(columns), footers(columns), pages(columns))

    digits = seeds.digits
    idxs = [idx_file(digits), idx_file(seeds.labels.astype(np.uint8)), idx_file(digits[:1].astype(np.float64))]
    any_idx = mutants(idxs, (b"\0\0\x08",))
    any_idx_gz = any_idx.map(packed) | mutants([packed(seed) for seed in idxs])
    batches = [batch(np.resize(digits, (n, 3072)), range(n)) for n in (1, 2)]
    any_batch = mutants(batches, (b"cnumpy", b"T", b"labels", b"data")) | pickles(batches[0])
    members = [(f"{cifar.FOLDER}/{name}", batches[0]) for name in (*cifar.TRAIN_BATCHES, cifar.TEST_BATCH)]
    tarballs = [tarred(members), tarred(members, tarfile.PAX_FORMAT)]
    any_archive = st.one_of(
        tars([batches[0], b"", b"x" * 600]),
        mutants(tarballs, (b"ustar", b"cifar")).map(tar_repaired).map(packed),
        mutants([packed(seed) for seed in tarballs]),
    )

    colour = np.stack([digits[0]] * 3, axis=2)
    pngs = [image(digits[0], "PNG"), image(digits[0].astype(np.uint16), "PNG"), image(digits[0], "PNG", "1")]
    pngs += [image(colour, "PNG", mode) for mode in ("RGB", "P", "RGBA")]
    others = [*seeds.jpegs, image(colour, "JPEG", "CMYK"), image(colour, "JPEG", progressive=True)]
    others += [image(colour, kind) for kind in ("BMP", "WEBP", "GIF", "TIFF", "EPS", "PPM")]
    others += [image(colour, "WEBP", lossless=True), image(digits[0], "BMP")]
    any_picture = st.one_of(
        mutants(pngs, (b"IHDR", b"IDAT", b"PLTE", b"IEND")).map(png_repaired),
        mutants(others, (b"\xff\xc0", b"\xff\xda", b"\xff\xdb", b"\xff\xc4", b"RIFF", b"VP8", b"BM")),
    )
    names = ("test/a/0.png", "test/b/1.png", "train/a/2.png")
    sets = [
        zipped([(name, pngs[3]) for name in names], method) for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    ]
    any_set = mutants(sets, marks) | zips(st.sampled_from((*HOSTILE_NAMES, *names)), any_picture)
    any_lone = any_picture.map(lambda content: zipped([(names[0], content)]))

    calibrators = [
        compare.to_json(compare.fitted(name, x, y), tuple("abcdefghij")).encode()
        for name in ("temperature", "vector scaling", "isotonic regression")
        if name in compare.candidates(10)[0]
    ]
    any_calibrator = st.one_of(*map(jsons, calibrators))
    return {
        "idx": Target("idx", "images", any_idx, idxs[0]),
        "idx.gz": Target("idx", "images.gz", any_idx_gz, packed(idxs[0])),
        "batch": Target("batch", "test_batch", any_batch, batches[0]),
        "archive": Target("cifar", "cifar.tar.gz", any_archive, packed(tarballs[0])),
        "images": Target("images", "set.zip", any_set, sets[0], 256 * MIB),
        "pictures": Target("images", "set.zip", any_lone, sets[0], 256 * MIB),
        "npy": Target("unlabelled", "probs.npy", any_npy, arrays[0]),
        "npz": Target("predictions", "probs.npz", any_npz, archives[0]),
        "csv": Target("predictions", "probs.csv", any_table, tables[0]),
        "csv.gz": Target("predictions", "probs.csv.gz", any_gz, packed(tables[0])),
        "parquet": Target("predictions", "probs.parquet", any_parquet, columns[0], PARQUET),
        "features.npz": Target("features", "h.npz", any_npz, npz(features=x, labels=y)),
        "features.csv": Target("features", "h.csv", any_table, tables[0]),
        "features.parquet": Target("features", "h.parquet", any_parquet, columns[0], PARQUET),
        "labels.npy": Target("labels", "labels.npy", npys() | mutants(label_arrays, marks), label_arrays[0]),
        "labels.csv": Target("labels", "labels.csv", any_table, b"label\n" + b"1\n" * 30),
        "labels.parquet": Target("labels", "labels.parquet", any_parquet, columns[0], PARQUET),
        "classifier": Target("classifier", "head.npz", any_head, heads[0]),
        "text": Target("text", "tinyshakespeare/input.txt", mutants([seeds.verse]), seeds.verse),
        "judged": Target("judged", "label-errors/mnist_mturk.json", jsons(seeds.answers), seeds.answers),
        "people": Target("people", "cifar10h/cifar10h-counts.npy", npys() | mutants([counts], marks), counts),
        "calibrator": Target("calibrator", "calibrator.json", any_calibrator, calibrators[0]),
    }


TARGETS = (
    "idx", "idx.gz", "batch", "archive", "images", "pictures", "npy", "npz", "csv", "csv.gz", "parquet",
    "features.npz", "features.csv", "features.parquet", "labels.npy", "labels.csv", "labels.parquet", "classifier",
    "text", "judged", "people", "calibrator",
)  # fmt: skip


def companions(folder: Path, seeds: Seeds) -> None:
    """The files that a reader wants beside the one that is fuzzed."""
    x, y = seeds.probs, seeds.labels
    np.save(folder / "good.npy", x)
    np.savez(folder / "features.npz", features=x[:, :5], labels=y)
    for name in cifar.TRAIN_BATCHES:
        (folder / name).write_bytes(batch(np.resize(seeds.digits, (1, 3072)), [3]))
    for name in ("label-errors", "cifar10h", "tinyshakespeare"):
        (folder / name).mkdir()
    rows = max(entry["id"] for entry in json.loads(seeds.answers)) + 1
    given_labels = np.zeros(rows, np.int64)
    for entry in json.loads(seeds.answers):
        given_labels[entry["id"]] = entry["given_original_label"]
    np.save(folder / "label-errors/mnist_test_set_pyx.npy", np.full((rows, 10), 0.1))
    np.save(folder / "label-errors/mnist_test_set_original_labels.npy", given_labels)


def problem(target: Target, path: Path, verdict: Any, reading: Any) -> str:
    """What is wrong with a verdict, or nothing."""
    size = path.stat().st_size
    if verdict.outcome not in ("read", "refused"):
        return f"{verdict.outcome}: {verdict.said}"
    if verdict.touched or reading.written():
        return f"touched {verdict.touched or reading.written()}"
    where = str(path.parent if target.reader == "batch" else path)
    if verdict.outcome == "refused" and where not in verdict.said and "good.npy" not in verdict.said:
        return f"does not name the file: {verdict.said[:500]}"
    if verdict.outcome == "refused" and len(verdict.said) > 4000:
        return f"says {len(verdict.said)} characters: {verdict.said[:200]}"
    if not verdict.said.isprintable():
        return f"says what cannot be printed: {verdict.said[:500]!r}"
    if verdict.peak > target.most + 20 * size:
        return f"took {verdict.peak / MIB:.0f} MiB for {size} bytes: {verdict.said[:200]}"
    if verdict.seconds > SECONDS:
        return f"took {verdict.seconds:.1f} s for {size} bytes: {verdict.said[:200]}"
    return ""


# Tests.


@pytest.fixture(scope="module")
def reading(start_reading: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    return start_reading(tmp_path_factory.mktemp("process"))


@pytest.fixture(scope="module")
def bundled_targets() -> dict[str, Target]:
    return targets(bundled())


@pytest.fixture(scope="module", params=["bundled", "real"])
def fuzzed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Target]]:
    """(a folder with what the readers want, the targets): of real data where they are, and of bundled data."""
    seeds = real(request.getfixturevalue("shared_data")) if request.param == "real" else bundled()
    folder = tmp_path_factory.mktemp("files")
    companions(folder, seeds)
    return folder, targets(seeds)


@pytest.mark.parametrize("name", TARGETS)
def test_any_file_is_read_or_refused(reading, fuzzed, name):
    folder, target = fuzzed[0], fuzzed[1][name]
    path = folder / target.file
    path.write_bytes(target.seed)
    assert reading.read(target.reader, path).outcome == "read"
    before = sorted(folder.rglob("*"))

    @settings(max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(content=target.contents)
    def any_content(content: bytes) -> None:
        path.write_bytes(content)
        assert not problem(target, path, reading.read(target.reader, path), reading)

    any_content()
    assert sorted(folder.rglob("*")) == before
    path.unlink()


def test_every_target_is_fuzzed(fuzzed):
    assert set(TARGETS) == set(fuzzed[1])


@settings(max_examples=150, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(content=st.one_of(npys(), mutants([npy(np.linspace(0, 1, 6).reshape(3, 2))], (b"descr", b"shape"))))
def test_an_array_is_read_as_numpy_reads_it(tmp_path_factory, content):
    """And where NumPy reads numbers to the end of a file, they are not refused."""
    path = tmp_path_factory.getbasetemp() / "array.npy"
    path.write_bytes(content)
    try:
        array = _arrays.stored_array(path)
        found = np.concatenate(list(array.blocks(1000))) if array.nbytes else None
    except DataError as error:
        if "truncated" in str(error):
            return
        with pytest.raises(Exception):  # noqa: B017
            stream = io.BytesIO(content)
            numbers = np.load(stream, allow_pickle=False, mmap_mode=None)
            assert not stream.read(1) and numbers.dtype != object
    else:
        if found is not None:
            np.testing.assert_array_equal(found, np.load(path, allow_pickle=False))


@pytest.mark.slow
def test_the_process_sees_what_it_is_there_for(start_reading, tmp_path):
    """A write, a started process, taken memory, a crash, a hang and a filled memory are each found out."""
    reading = start_reading(tmp_path / "process")
    path = tmp_path / "x"
    path.write_bytes(idx_file(np.zeros((1, 2), np.uint8)))
    assert reading.read("idx", path).outcome == "read"
    for act, said in (("write", "open"), ("start", "subprocess.Popen")):
        assert said in reading.read(act, path).touched[0]
    assert reading.read("take", path).peak > 90 * MIB
    for act, said, seconds in (("crash", "died", 60.0), ("hang", "seconds", 2.0), ("fill", "bytes", 60.0)):
        # And the next file is read again.
        assert reading.read("idx", path).outcome == "read"
        reading.SECONDS = seconds
        verdict = reading.read(act, path)
        assert verdict.outcome == "lost" and said in verdict.said
        reading.SECONDS = 60.0


# What was found, or is meant to be refused.


def laughs(depth: int = 40) -> bytes:
    """Tuples of two of the one before, depth times."""
    return b")q\5" + b"h\5h\5\x86q\5" * depth


def tuple_of_laughs() -> bytes:
    """A batch whose array has as its shape what takes for ever to write down."""
    good = batch(np.zeros((1, 3072), np.uint8), [0])
    return good.replace(b"K\1(K\1M\0\x0ct", b"K\1(" + laughs() + b"h\5h\5t")


def sparse_archive() -> bytes:
    """GNU tar's old sparse header, which goes on for as long as there are blocks."""
    info = tarfile.TarInfo("x")
    info.type = tarfile.GNUTYPE_SPARSE
    head = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    head[482] = 1
    more = (b"00000000001\0" * 42).ljust(504, b"\0") + b"\1" + bytes(7)
    return packed(tar_repaired(bytes(head)) + more * 100_000)


def long_headers(kind: bytes) -> bytes:
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, 2**26
    return packed(info.tobuf(tarfile.GNU_FORMAT) + b"9" * 2**26)


def page_of_a_gigabyte() -> bytes:
    """A page of 320 bytes that announces 2^30, before a footer that knows nothing of it."""
    seed = parquet({"a": np.linspace(0, 1, 40), "label": np.arange(40) % 2}, compression="none", use_dictionary=False)
    size = seed.index(b"\x15", 6)
    end = next(i for i in range(size + 1, size + 9) if seed[i] < 128) + 1
    # As many bytes of the page are left out, so that what follows stays where the footer says.
    longer = 6 - (end - size)
    return seed[:size] + b"\x15\x80\x80\x80\x80\x08" + seed[end : end + 100] + seed[end + 100 + longer :]


def list_of_millions() -> bytes:
    count = 2**26 + 2**22
    lists = pa.ListArray.from_arrays(np.array([0, count], np.int32), pa.nulls(count, pa.bool_()))
    return parquet({"s": lists, "label": [0]}, compression="zstd")


def nested(depth: int) -> bytes:
    """A footer of a column in a column in a column …"""
    group, leaf = b"\x48\1a\x15\2\0", b"\x15\x0a\x25\0\x18\1a\0"
    footer = b"\x15\2\x19\xfc" + varint(depth + 1) + group * depth + leaf + b"\x16\2\x19\x0c\0"
    return b"PAR1" + footer + struct.pack("<I", len(footer)) + b"PAR1"


def long_labels(rows: int, **options: Any) -> bytes:
    """A label of 10,000 characters in each row."""
    half, labels = np.full(rows, 0.5), pa.DictionaryArray.from_arrays(np.zeros(rows, np.int32), ["x" * 10_000])
    return parquet({"a": half, "b": half, "label": labels}, compression="zstd", store_schema=False, **options)


def overlapping(copies: int) -> bytes:
    """A zip file with one piece of deflated zeros, to which many names lead."""
    name, data = "test/cat/%05d.png", bytes(2**20)
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    squeezed = deflate.compress(data) + deflate.flush()
    fields = (20, 0, 8, 0, 0, zlib.crc32(data), len(squeezed), len(data), 18, 0)
    local = b"PK\3\4" + struct.pack("<5H3I2H", *fields) + (name % 0).encode() + squeezed
    head = b"PK\1\2" + struct.pack("<H5H3I2H", 20, *fields) + struct.pack("<3H2I", 0, 0, 0, 0, 0)
    entries = b"".join(head + (name % i).encode() for i in range(copies))
    return local + entries + b"PK\5\6" + struct.pack("<4H2IH", 0, 0, copies, copies, len(entries), len(local), 0)


def announced_png(width: int, height: int) -> bytes:
    png = image(np.zeros((1, 1), np.uint8), "PNG")
    return png_repaired(png[:16] + struct.pack(">II", width, height) + png[24:])


def picture(content: bytes) -> bytes:
    return zipped([("test/cat/0.png", content)])


def ztxt() -> bytes:
    """A PNG with a compressed remark of 256 MiB."""
    remark = b"zTXtComment\0\0" + zlib.compress(bytes(2**26), 9)
    chunk = struct.pack(">I", len(remark) - 4) + remark + struct.pack(">I", zlib.crc32(remark))
    png = image(np.zeros((2, 2), np.uint8), "PNG")
    return png[:33] + chunk + png[33:]


class Found(NamedTuple):
    target: str
    content: Callable[[], bytes]
    said: str  #: a pattern of the refusal
    most: int  #: MiB


OPEN = b"a,b,label\n0.5,0.5,"
VOTE = b'[{"id": 0, "given_original_label": 0, "our_guessed_label": 1, "mturk": {"given": 1%b}}]' % (b"0" * 30)
SCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n"
NUMBERS = npy(np.zeros((2**17, 32)))
FOUND = {
    "a hash that takes for ever": Found("batch", lambda: b"\x80\2}(" + laughs() + b"Nu.", "key that is no string", 16),
    "a sentence that takes for ever": Found("batch", tuple_of_laughs, "no shape", 16),
    "bytes that are reserved": Found("batch", lambda: b"\x80\5\x96" + struct.pack("<Q", 2**31) + b".", "opcode", 16),
    "an object a byte": Found("batch", lambda: b"\x80\2(" + b"]" * 2**22 + b".", "more than 1048576 steps", 160),
    "a name of control characters": Found(
        "batch", lambda: b"cos\x1b[2J\nsystem" + b"x" * 10_000 + b"\n.", r"asks for os\\x1b\[2J", 16
    ),
    "a sparse archive": Found("archive", sparse_archive, "no plain file", 16),
    "a long extended header": Found("archive", lambda: long_headers(tarfile.XHDTYPE), "lacks", 16),
    "a long name": Found("archive", lambda: long_headers(tarfile.GNUTYPE_LONGNAME), "lacks", 16),
    "many members": Found("archive", lambda: packed(tarred([("x", b"")] * 1000)), "more than 200 members", 16),
    "a npz of bzip2": Found("npz", lambda: zipped([("probs.npy", NUMBERS)], zipfile.ZIP_BZIP2), "method 12", 16),
    "a npz of LZMA": Found("npz", lambda: zipped([("probs.npy", NUMBERS)], zipfile.ZIP_LZMA), "method 14", 16),
    "a csv of many columns": Found("csv", lambda: b"0.5," * 250_000 + b"1\n", "250,001 columns", 64),
    "a csv without end": Found("csv", lambda: OPEN + b"0\n" + b"1" * 2**25, "a line of more than", 64),
    "a csv of a quotation": Found("csv", lambda: OPEN + b'"' + b"a\n" * 2**23, "probs.csv", 64),
    "a csv that unpacks": Found(
        "csv.gz", lambda: gzip.compress(OPEN + b"0\n" + b"0" * 2**26, 9), "a line of more than", 64
    ),
    "a page that announces": Found("parquet", page_of_a_gigabyte, "1,073,741,824", 16),
    "a list of millions": Found("parquet", list_of_millions, "lists of 71,303,168 numbers", 32),
    "columns in columns": Found("parquet", lambda: nested(10_000), "nested too deeply", 16),
    "a long label in every row": Found("parquet", lambda: long_labels(50_000), "has the label 'xxx", 96),
    "a long label in every row, delta-encoded": Found(
        "parquet",
        lambda: long_labels(20_000, use_dictionary=False, column_encoding={"label": "DELTA_BYTE_ARRAY"}),
        "has the label 'xxx",
        96,
    ),
    "an encrypted footer": Found("parquet", lambda: b"PARE" + bytes(40) + b"PARE", "encrypted", 16),
    "overlapping members": Found("images", lambda: overlapping(3000), "over 200 times|unpacks to", 32),
    "a png that announces": Found("images", lambda: picture(announced_png(50_000, 50_000)), "pixels|exceeds", 16),
    "a png with a long remark": Found("images", lambda: picture(ztxt()), "cannot be decoded|method|200 times", 32),
    "PostScript": Found("images", lambda: picture(SCRIPT), "cannot identify", 16),
    "a vote beyond measure": Found("judged", lambda: VOTE, "no verdict", 16),
    "json in json": Found("calibrator", lambda: b"[" * 10**6, "not JSON", 64),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found(reading, tmp_path, bundled_targets, name):
    """Each file is refused for its reason, after the seed of its target was read."""
    name, content, said, most = FOUND[name]
    target = bundled_targets[name]
    companions(tmp_path, bundled())
    path = tmp_path / target.file
    path.write_bytes(target.seed)
    assert reading.read(target.reader, path).outcome == "read"
    path.write_bytes(content())
    verdict = reading.read(target.reader, path)
    assert verdict.outcome == "refused", verdict
    assert re.search(said, verdict.said), verdict.said
    assert not problem(target._replace(most=most * MIB), path, verdict, reading)

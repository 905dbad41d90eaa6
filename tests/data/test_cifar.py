from __future__ import annotations

import gzip
import io
import pickle
import struct
import subprocess
import sys
import tarfile
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lossbook.data import DataError, cifar

BATCHES = [*cifar.TRAIN_BATCHES, cifar.TEST_BATCH]


def string(value: bytes) -> bytes:
    """A Python 2 string in pickle protocol 2: SHORT_BINSTRING or BINSTRING."""
    return b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + struct.pack("<i", len(value)) + value


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def array(values: np.ndarray, *, dtype: bytes = b"u1", fortran: bool = False) -> bytes:
    """What Python 2's cPickle wrote for a NumPy array, opcode by opcode."""
    shape = b"(" + b"".join(number(n) for n in values.shape) + b"t"
    made = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + string(b"b") + b"tR"
    kind = (
        b"cnumpy\ndtype\n("
        + string(dtype)
        + b"K\x00K\x01tR(K\x03"
        + string(b"|")
        + b"NNN"
        + number(-1)
        + number(-1)
        + b"K\x00tb"
    )
    raw = values.tobytes("F" if fortran else "C")
    return made + b"(K\x01" + shape + kind + (b"\x88" if fortran else b"\x89") + string(raw) + b"tb"


def batch(x: np.ndarray, y: list[int], **options) -> bytes:
    labels = b"](" + b"".join(number(label) for label in y) + b"e"
    return (
        b"\x80\x02}("
        + string(b"batch_label")
        + string(b"testing batch 1 of 1")
        + string(b"labels")
        + labels
        + string(b"data")
        + array(x, **options)
        + b"u."
    )


def pixels(n: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(n, 3072), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Six batches of two images each; batch i has the labels i and i + 1."""
    folder = tmp_path / cifar.FOLDER
    folder.mkdir()
    for i, name in enumerate(BATCHES):
        (folder / name).write_bytes(batch(pixels(seed=i), [i, i + 1]))
    return folder


def pack(path, members):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            if info.isreg():
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def official(folder):
    return [(f"{cifar.FOLDER}/{name}", (folder / name).read_bytes()) for name in BATCHES]


def test_the_test_pickle_is_what_numpy_understands():
    """The hand-written opcodes mean what they should: pickle itself, unrestricted, reads the same array from them."""
    x = pixels()
    loaded = pickle.loads(batch(x, [1, 2]), encoding="bytes")
    np.testing.assert_array_equal(loaded[b"data"], x)
    assert loaded[b"labels"] == [1, 2]


@pytest.mark.parametrize("packed", [False, True])
def test_folder_and_archive(folder, tmp_path, packed):
    readme = (f"{cifar.FOLDER}/readme.html", b"<html>")
    path = pack(tmp_path / "cifar-10-python.tar.gz", [readme, *official(folder)]) if packed else folder
    found = cifar.read(path)
    expected = np.concatenate([pixels(seed=i) for i in range(5)]).reshape(-1, 3, 32, 32)
    np.testing.assert_array_equal(found.train_x, expected)
    np.testing.assert_array_equal(found.test_x, pixels(seed=5).reshape(-1, 3, 32, 32))
    assert found.train_y.tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5] and found.test_y.tolist() == [5, 6]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted({cifar.FOLDER, path.name}), "nothing is unpacked"


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("top", ["", "./"])
def test_an_archive_packed_again(folder, tmp_path, form, top):
    """As GNU tar, bsdtar (extended headers) and macOS (a ._ file beside each, attributes in its header) pack it."""
    path = tmp_path / "again.tar.gz"
    with tarfile.open(path, "w:gz", format=form) as archive:
        info = tarfile.TarInfo(f"{top}{cifar.FOLDER}")
        info.type, info.mode = tarfile.DIRTYPE, 0o755
        archive.addfile(info)
        for name, content in official(folder):
            beside = name.replace("/", "/._")
            for member, data in ((beside, b"\0\5\x16\7" + bytes(159)), (name, content)):
                info = tarfile.TarInfo(top + member)
                info.size, info.mtime, info.uname = len(data), 1234567890.5, "jörg"
                info.pax_headers = {"LIBARCHIVE.creationtime": "1.5", "SCHILY.xattr.com.apple.quarantine": "q" * 600}
                if form == tarfile.USTAR_FORMAT:
                    info.uname = "root"
                archive.addfile(info, io.BytesIO(data))
    np.testing.assert_array_equal(cifar.read(path).test_x, pixels(seed=5).reshape(-1, 3, 32, 32))


@pytest.mark.skipif(sys.platform != "linux", reason="needs GNU tar")
@pytest.mark.parametrize("form", ["v7", "ustar", "gnu", "pax"])
def test_an_archive_packed_by_tar(folder, tmp_path, form):
    path = tmp_path / "again.tar.gz"
    subprocess.run(["tar", f"--format={form}", "-czf", path, "-C", tmp_path, cifar.FOLDER], check=True)
    np.testing.assert_array_equal(cifar.read(path).test_x, pixels(seed=5).reshape(-1, 3, 32, 32))


def test_fortran_order(folder):
    (folder / "test_batch").write_bytes(batch(pixels(seed=5), [5, 6], fortran=True))
    np.testing.assert_array_equal(cifar.read(folder).test_x, pixels(seed=5).reshape(-1, 3, 32, 32))


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('the pickle was run')",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no CIFAR-10 batch"),
        (b"hello", "no CIFAR-10 batch"),
        (pickle.dumps(Evil(), protocol=2), "asks for .*exec"),
        (b"cos\nsystem\n(S'true'\ntR.", "asks for os.system"),
        (b"\x80\x02cnumpy\nload\n(U\x01xtR.", "asks for numpy.load"),
        (pickle.dumps({b"data": 1}, protocol=2), "no CIFAR-10 batch|asks for"),
        (batch(pixels(), [1]), "2 images, but 1 labels"),
        (batch(pixels(), [1, 10]), "labels are not whole numbers"),
        (batch(pixels(), [-1, 1]), "labels are not whole numbers"),
        (batch(pixels(), [1, 1], dtype=b"O8"), "not 8-bit values"),
        (batch(pixels()[:, :100], [1, 1]), "have shape"),
        (batch(pixels().reshape(2, 3, 1024), [1, 1]), "have shape"),
        (batch(pixels(), [1, 2])[:-100], "no CIFAR-10 batch"),
        (b"\x80\x02" + b"r\xff\xff\xff\xff" * 3 + b".", "no CIFAR-10 batch"),
        (b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f" + b"abc.", "no CIFAR-10 batch"),
    ],
)
def test_bad_batches_are_refused_by_name(folder, content, message):
    (folder / "data_batch_3").write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        cifar.read(folder)
    assert str(folder) in str(error.value) and "data_batch_3" in str(error.value)


def test_a_pickle_that_announces_much_costs_little(folder):
    (folder / "data_batch_1").write_bytes(b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"abc.")
    tracemalloc.start()
    try:
        with pytest.raises(DataError):
            cifar.read(folder)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


def test_missing_parts(folder, tmp_path):
    path = pack(tmp_path / "part.tar.gz", official(folder)[:-1])
    with pytest.raises(DataError, match="lacks cifar-10-batches-py/test_batch"):
        cifar.read(path)
    (folder / "data_batch_2").unlink()
    with pytest.raises(DataError, match="lacks the file data_batch_2"):
        cifar.read(folder)
    with pytest.raises(DataError, match="none does not exist"):
        cifar.read(tmp_path / "none")


def link(name: str, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


@pytest.mark.parametrize(
    "name",
    [
        "../data_batch_1",
        "/etc/data_batch_1",
        f"{cifar.FOLDER}/../../data_batch_1",
        "..\\data_batch_1",
        link(f"{cifar.FOLDER}/data_batch_1", "/etc/passwd"),
    ],
)
def test_members_that_lead_outside_are_refused(folder, tmp_path, name):
    path = pack(tmp_path / "evil.tar.gz", [(name, b""), *official(folder)])
    with pytest.raises(DataError, match="no plain file inside"):
        cifar.read(path)


def test_the_same_batch_twice(folder, tmp_path):
    with pytest.raises(DataError, match="twice"):
        cifar.read(pack(tmp_path / "twice.tar.gz", [*official(folder), official(folder)[0]]))


def test_archive_bombs_are_refused(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "MAX_ARCHIVE_BYTES", 2**20)
    path = pack(tmp_path / "bomb.tar.gz", [("zeros", bytes(2**22)), *official(folder)])
    with pytest.raises(DataError, match="unpacks to more than 1048576 bytes"):
        cifar.read(path)


def test_large_members_are_refused(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "MAX_BATCH_BYTES", 2000)
    with pytest.raises(DataError, match="more than 2000 bytes"):
        cifar.read(pack(tmp_path / "large.tar.gz", official(folder)))
    with pytest.raises(DataError, match="more than 2000 bytes"):
        cifar.read(folder)


@pytest.mark.parametrize("content", [b"", b"no archive", gzip.compress(b"no tar file either", mtime=0)])
def test_no_archive_at_all(tmp_path, content):
    path = tmp_path / "cifar-10-python.tar.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"cifar-10-python\.tar\.gz"):
        cifar.read(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_mutation_of_a_batch_is_read_or_refused(folder, data):
    content = bytearray(batch(np.zeros((1, 3072), np.uint8), [7]))
    # Zero pixels are most of the file; what matters is around them.
    start = content.index(bytes(3072))
    places = [*range(start), *range(start + 3072, len(content))]
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.sampled_from(places))] = data.draw(st.integers(0, 255))
    (folder / "test_batch").write_bytes(content)
    try:
        assert cifar.read(folder).test_x.shape[1:] == (3, 32, 32)
    except DataError as error:
        assert "test_batch" in str(error)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_mutation_of_an_archive_is_read_or_refused(folder, tmp_path, data):
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        info = tarfile.TarInfo(f"{cifar.FOLDER}/test_batch")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"abcd"))
    content = bytearray(plain.getvalue())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, 511))] = data.draw(st.integers(0, 255))
    path = tmp_path / "mutant.tar.gz"
    path.write_bytes(gzip.compress(bytes(content[: data.draw(st.integers(0, 2048))]), 1))
    with pytest.raises(DataError, match=r"mutant\.tar\.gz"):
        cifar.read(path)

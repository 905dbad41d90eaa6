from __future__ import annotations

import gzip
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lossbook.data import DataError, idx

SMALL = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["u1", "i1", "i2", "i4", "f4", "f8"])
def test_round_trip_in_native_byte_order(tmp_path, idx_bytes, kind, packed):
    array = (np.arange(24).reshape(2, 3, 4) * 5).astype(kind)
    path = tmp_path / "a"
    path.write_bytes(idx_bytes(array, packed=packed))
    result = idx.read(path)
    assert result.dtype == array.dtype and result.dtype.isnative
    np.testing.assert_array_equal(result, array)


def header(code: int, *shape: int) -> bytes:
    return bytes([0, 0, code, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "truncated"),
        (b"\0\0\x08", "truncated"),
        (b"\0\0\x08\x03\0\0", "truncated"),
        (b"PK\x03\x04 and so on", "no IDX file"),
        (b"\0\0\x07\x01\0\0\0\1a", "no IDX file"),
        (b"\0\0\x08\x00a", "no IDX file"),
        (b"\0\0\x08\x05" + b"\0\0\0\1" * 5 + b"a", "no IDX file"),
        (header(8, 2, 2) + b"abc", "ends 1 bytes early"),
        (header(8, 2, 2) + b"abcde", "goes on after the 4 bytes"),
        (header(8, 2**32 - 1, 2**32 - 1, 28), "announces the shape"),
        (header(8, 0, 28, 28), "announces the shape"),
        (gzip.compress(header(8, 2, 2) + b"abcd", mtime=0)[:-3], "damaged gzip"),
        (gzip.compress(header(8, 2, 2) + b"abcd", mtime=0)[:-8] + b"\0" * 8, "damaged gzip"),
        (b"\x1f\x8bnot gzip at all", "damaged gzip"),
    ],
)
def test_bad_files_are_refused_by_name(tmp_path, content, message):
    path = tmp_path / "some-images"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        idx.read(path)
    assert str(path) in str(error.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(DataError, match="nothing does not exist"):
        idx.read(tmp_path / "nothing")
    with pytest.raises(DataError, match="cannot be read"):
        idx.read(tmp_path)


@pytest.mark.parametrize("shape", [(2, 2), (2**15, 2**14)])
def test_gzip_bombs_and_empty_promises_cost_little_memory(tmp_path, shape):
    """A file that unpacks to 64 MB of zeros, one that announces 512 MB and holds 64 MB."""
    path = tmp_path / "bomb"
    path.write_bytes(gzip.compress(header(8, *shape) + bytes(2**26), 1))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="goes on|truncated"):
            idx.read(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    held = 4 if shape == (2, 2) else 2**26
    assert peak < 1.5 * held + 2**23


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), packed=st.booleans())
def test_any_mutation_is_read_or_refused(tmp_path, idx_bytes, data, packed):
    content = bytearray(idx_bytes(SMALL, packed=packed))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    path = tmp_path / "mutant"
    path.write_bytes(content)
    try:
        assert idx.read(path).size > 0
    except DataError as error:
        assert str(path) in str(error)


def write_pair(folder, idx_bytes, x, y):
    (folder / "x").write_bytes(idx_bytes(x))
    (folder / "y").write_bytes(idx_bytes(y))
    return folder / "x", folder / "y"


def test_labelled_images(tmp_path, idx_bytes):
    x, y = idx.read_labelled_images(*write_pair(tmp_path, idx_bytes, SMALL, np.array([3, 9], np.uint8)))
    np.testing.assert_array_equal(x, SMALL[:, None])
    assert y.dtype == np.int64 and y.tolist() == [3, 9]


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (SMALL[0], np.zeros(3, np.uint8), "must hold 8-bit images"),
        (SMALL.astype("i4"), np.zeros(2, np.uint8), "must hold 8-bit images"),
        (SMALL, np.zeros((2, 1), np.uint8), "must hold 8-bit labels"),
        (SMALL, np.zeros(2, "i4"), "must hold 8-bit labels"),
        (SMALL, np.zeros(3, np.uint8), "3 labels, but .* 2 images"),
        (SMALL, np.array([0, 10], np.uint8), "the label 10, but there are 10 classes"),
    ],
)
def test_pairs_that_do_not_fit(tmp_path, idx_bytes, x, y, message):
    with pytest.raises(DataError, match=message):
        idx.read_labelled_images(*write_pair(tmp_path, idx_bytes, x, y))


def test_official_test_images(shared_data):
    folder = shared_data / "mnist"
    x, y = idx.read_labelled_images(folder / "t10k-images-idx3-ubyte.gz", folder / "t10k-labels-idx1-ubyte.gz")
    assert x.shape == (10_000, 1, 28, 28) and x.dtype == np.uint8
    assert np.bincount(y).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    original = np.load(shared_data / "label-errors" / "mnist_test_set_original_labels.npy")
    np.testing.assert_array_equal(y, original)

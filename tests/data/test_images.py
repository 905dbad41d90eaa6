from __future__ import annotations

import io
import os
import stat
import struct
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from lossbook.data import DataError, images


def picture(value: int, *, size=(3, 2), mode="RGB", kind="PNG") -> bytes:
    file = io.BytesIO()
    colour = value if mode in ("1", "L", "I;16") else (value, value + 1, value + 2, 200)[: len(mode)]
    Image.new(mode, size, colour).save(file, kind)
    return file.getvalue()


TREE = {
    "train/dog/b.png": picture(10),
    "train/cat/a.png": picture(20),
    "test/dog/00001.png": picture(30),
    "test/cat/00010.png": picture(40),
    "test/dog/00002.png": picture(50),
}


def write_zip(path, tree, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in tree.items():
            archive.writestr(name, content)
    return path


def write_folder(path, tree):
    for name, content in tree.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


@pytest.fixture(params=["zip", "folder"])
def store(request, tmp_path):
    if request.param == "zip":
        return lambda tree: write_zip(tmp_path / "set.zip", tree)
    return lambda tree: write_folder(tmp_path / "set", tree)


def test_order_classes_and_pixels(store, tmp_path):
    found = images.read(store(TREE))
    assert found.classes == ("cat", "dog") and set(found.splits) == {"train", "test"}
    x, y = found.splits["train"]
    # Names that are no numbers: the order of the paths.
    assert y.tolist() == [0, 1] and x[:, 0, 0, 0].tolist() == [20, 10]
    x, y = found.splits["test"]
    # A number for each file of the split: the order of the numbers, across classes.
    assert y.tolist() == [1, 1, 0] and x[:, 0, 0, 0].tolist() == [30, 50, 40]
    assert x.shape == (3, 3, 2, 3) and x.dtype == np.uint8 and y.dtype == np.int64
    assert x[0, :, 1, 2].tolist() == [30, 31, 32]
    assert len(list(tmp_path.iterdir())) == 1, "nothing is unpacked"


def test_numbers_that_repeat_between_classes_keep_the_order_of_paths(store):
    tree = {"train/dog/1.png": picture(1), "train/cat/2.png": picture(2), "train/cat/1.png": picture(3)}
    x, y = images.read(store(tree)).splits["train"]
    assert y.tolist() == [0, 0, 1] and x[:, 0, 0, 0].tolist() == [3, 2, 1]


def test_hidden_files_are_passed_over(store):
    found = images.read(store({**TREE, ".DS_Store": b"x", "__MACOSX/train/cat/._a.png": b"x", "train/cat/.x": b"x"}))
    assert [len(y) for _, y in found.splits.values()] == [3, 2]


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGBA", 3), ("1", 3), ("CMYK", 3)])
def test_modes(store, mode, channels):
    kind = "JPEG" if mode == "CMYK" else "PNG"
    x, _ = images.read(store({"train/a/1": picture(1, mode=mode, kind=kind)})).splits["train"]
    assert x.shape == (1, channels, 2, 3)


def huge_png() -> bytes:
    """A PNG of a few bytes that announces 100,000 × 100,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train/cat/notes.txt", b"not an image", "cannot be decoded"),
        ("train/cat/empty.png", b"", "cannot be decoded"),
        ("train/cat/cut.png", picture(1, size=(40, 40))[:-30], "cannot be decoded"),
        ("train/cat/large.png", picture(1, size=(4, 2)), "other|first"),
        ("train/cat/grey.png", picture(1, mode="L"), "first image has"),
        ("train/cat/deep.png", picture(1, mode="I;16"), "only 8-bit images"),
        ("train/cat/anim.gif", picture(1, mode="L", kind="GIF"), "cannot be decoded"),
        ("train/cat/bomb.png", huge_png(), "cannot be decoded.*(pixels|bomb)"),
        ("train/cat/wide.png", picture(1, mode="L", size=(2**13, 2**12)), "pixels, more than"),
        ("readme.txt", b"hello", "not named <split>/<class>/<file>"),
        ("train/cat/more/1.png", picture(1), "not named <split>/<class>/<file>"),
    ],
)
def test_what_is_no_image_of_the_set_is_refused_by_name(store, name, content, message):
    path = store({**TREE, name: content})
    with pytest.raises(DataError, match=message) as error:
        images.read(path)
    assert str(path) in str(error.value) and name in str(error.value)


@pytest.mark.parametrize(
    "name", ["../evil.png", "/etc/evil.png", "train/../../x.png", "a\\..\\b.png", "c:/x/y.png", "a//b.png"]
)
def test_zip_names_that_lead_outside_are_refused(tmp_path, name):
    with pytest.raises(DataError, match="no path inside"):
        images.read(write_zip(tmp_path / "evil.zip", {**TREE, name: picture(1)}))
    assert [p.name for p in tmp_path.iterdir()] == ["evil.zip"]


def test_a_zip_name_that_is_empty(tmp_path):
    path = write_zip(tmp_path / "nameless.zip", {"NAME": picture(1)})
    path.write_bytes(path.read_bytes().replace(b"NAME", b"\0AME"))
    with pytest.raises(DataError, match="holds '', which is no path inside"):
        images.read(path)


def test_links_are_refused(tmp_path):
    path = tmp_path / "link.zip"
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("train/cat/1.png")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(DataError, match="which is a link"):
        images.read(path)
    folder = write_folder(tmp_path / "set", TREE)
    os.symlink("/etc", folder / "train" / "bird")
    with pytest.raises(DataError, match="'train/bird', which is a link"):
        images.read(folder)


def test_zip_bombs_are_refused(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="over 200 times its packed size"):
        images.read(write_zip(tmp_path / "ratio.zip", {"train/cat/1.png": bytes(2**20)}))
    with pytest.raises(DataError, match="more than the 16777216 allowed a file"):
        images.read(write_zip(tmp_path / "file.zip", {"train/cat/1.png": bytes(2**24 + 1)}))
    monkeypatch.setattr(images, "MAX_TOTAL_BYTES", 200)
    with pytest.raises(DataError, match="unpacks to more than 200 bytes"):
        images.read(write_zip(tmp_path / "total.zip", TREE))
    monkeypatch.setattr(images, "MAX_TOTAL_BYTES", 2**20)
    monkeypatch.setattr(images, "MAX_DECODED_BYTES", 80)
    with pytest.raises(DataError, match="over 80 bytes"):
        images.read(write_zip(tmp_path / "decoded.zip", TREE))


def test_an_entry_that_unpacks_to_more_than_it_announces(tmp_path):
    """64 MB of zeros behind an announced size of 20 kB: at most the announced size is unpacked."""
    path = write_zip(tmp_path / "liar.zip", {"train/cat/1.png": bytes(2**24), "train/cat/2.png": bytes(2**24)})
    true, announced = struct.pack("<I", 2**24), struct.pack("<I", 20_000)
    path.write_bytes(path.read_bytes().replace(true, announced))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"liar\.zip"):
            images.read(path)
        assert tracemalloc.get_traced_memory()[1] < 2**21
    finally:
        tracemalloc.stop()


def test_other_archives(tmp_path):
    with pytest.raises(DataError, match="packed with method 14"):
        images.read(write_zip(tmp_path / "lzma.zip", TREE, zipfile.ZIP_LZMA))
    for name, content in {
        "none.zip": b"",
        "text.zip": b"hello",
        "cut.zip": write_zip(tmp_path / "a", TREE).read_bytes()[:-9],
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name} is a damaged zip file"):
            images.read(tmp_path / name)
    with pytest.raises(DataError, match="missing does not exist"):
        images.read(tmp_path / "missing")
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(tmp_path / "twice.zip", "w") as archive:
        for _ in range(2):
            archive.writestr("train/cat/1.png", picture(1))
    with pytest.raises(DataError, match=r"'train/cat/1\.png' twice"):
        images.read(tmp_path / "twice.zip")


def test_an_encrypted_entry(tmp_path):
    path = write_zip(tmp_path / "locked.zip", {"train/cat/1.png": picture(1)})
    content = bytearray(path.read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="encrypted"):
        images.read(path)


def test_nothing_in_it(store, tmp_path):
    (tmp_path / "set").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        images.read(store({}))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_mutation_of_a_zip_is_read_or_refused(tmp_path, data):
    tree = {"train/a/1.png": picture(3), "train/b/2.jpg": picture(9, kind="JPEG")}
    content = bytearray(write_zip(tmp_path / "small.zip", tree).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: len(content) - data.draw(st.sampled_from([0, 0, 0, 1, 30]))]
    path = tmp_path / "mutant.zip"
    path.write_bytes(content)
    try:
        x, y = images.read(path).splits.popitem()[1]
        assert len(x) == len(y) > 0
    except DataError as error:
        assert str(path) in str(error)


def test_cifar_test_images_come_in_the_official_order(shared_data):
    found = images.read(shared_data / "cifar10" / "test.zip")
    x, y = found.splits["test"]
    assert x.shape == (10_000, 3, 32, 32)
    original = np.load(shared_data / "label-errors" / "cifar10_test_set_original_labels.npy")
    np.testing.assert_array_equal(y, original)
    assert found.classes[y[0]] == "cat"

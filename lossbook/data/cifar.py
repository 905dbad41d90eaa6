"""Read CIFAR-10's official Python batches, from their folder or from cifar-10-python.tar.gz, without running them.

The batches are pickles written by Python 2. A pickle may call anything it can import, so the reader admits three
names, those that a NumPy array is pickled with, and answers each with a stand-in that only stores what it is given.
NumPy's own unpickling is never reached.
"""

from __future__ import annotations

import gzip
import io
import os
import pickle
import tarfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from lossbook.data.dataset import DataError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FOLDER = "cifar-10-batches-py"
TRAIN_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
TEST_BATCH = "test_batch"
MAX_BATCH_BYTES = 2**26  # An official batch has 31 MB,
MAX_ARCHIVE_BYTES = 2**29  # and the six of them, unpacked, 186 MB.
MAX_MEMBERS = 200
MAX_STEPS = 2**20  # An official batch takes some 100,000 to read.
_CHUNK = 2**20
_PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE)
_HEADERS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME)


class Batches(NamedTuple):
    """Images `(N, 3, 32, 32)` uint8 and labels `(N,)` int64, in the official order."""

    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray


def read(path: str | os.PathLike[str]) -> Batches:
    """All six batches from the folder `cifar-10-batches-py` or the archive `cifar-10-python.tar.gz`.

    Raises:
        DataError: a batch is missing, damaged or holds anything but 32 × 32 colour images with labels.
    """
    path = Path(path)
    raw = _from_folder(path) if path.is_dir() else _from_archive(path)
    train = [_decode(raw[name], f"{path}: {name}") for name in TRAIN_BATCHES]
    test_x, test_y = _decode(raw[TEST_BATCH], f"{path}: {TEST_BATCH}")
    return Batches(np.concatenate([x for x, _ in train]), np.concatenate([y for _, y in train]), test_x, test_y)


def _from_folder(folder: Path) -> dict[str, bytes]:
    found = {}
    for name in (*TRAIN_BATCHES, TEST_BATCH):
        path = folder / name
        try:
            if path.stat().st_size > MAX_BATCH_BYTES:
                raise DataError(f"{path} has more than {MAX_BATCH_BYTES} bytes, so it is no CIFAR-10 batch")
            found[name] = path.read_bytes()
        except FileNotFoundError:
            raise DataError(f"{folder} lacks the file {name}") from None
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    return found


def _from_archive(path: Path) -> dict[str, bytes]:
    try:
        with gzip.open(path) as unpacked:
            found = _members(_Bounded(unpacked, path), path)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise DataError(f"{path} is a damaged tar.gz file: {error}") from None
    missing = [name for name in (*TRAIN_BATCHES, TEST_BATCH) if name not in found]
    if missing:
        raise DataError(f"{path} lacks {FOLDER}/{missing[0]}")
    return found


def _members(archive: _Bounded, path: Path) -> dict[str, bytes]:
    """The batches. Header by header, because a TarFile believes what a sparse or an extended header announces."""
    found: dict[str, bytes] = {}
    for _ in range(MAX_MEMBERS):
        block = archive.read(tarfile.BLOCKSIZE)
        if not block.strip(b"\0"):
            # At its end gzip compares the checksum.
            archive.skip(MAX_ARCHIVE_BYTES)
            return found
        member = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        if member.size < 0:
            raise DataError(f"{path} holds {member.name!r} of {member.size} bytes")
        size = member.size + -member.size % tarfile.BLOCKSIZE
        if member.type in _HEADERS:
            # Times of files and long names, of which no batch has one.
            archive.skip(size)
            continue
        where = PurePosixPath(member.name)
        if where.is_absolute() or ".." in where.parts or "\\" in member.name or member.type not in _PLAIN:
            raise DataError(f"{path} holds {member.name!r}, which is no plain file inside the archive")
        if where.parent.name != FOLDER or where.name not in (*TRAIN_BATCHES, TEST_BATCH):
            archive.skip(size)
            continue
        if member.size > MAX_BATCH_BYTES or where.name in found:
            raise DataError(f"{path} holds {member.name!r} twice or with more than {MAX_BATCH_BYTES} bytes")
        data = archive.read(size)
        if len(data) < member.size:
            raise DataError(f"{path} is truncated: it ends within {member.name!r}")
        found[where.name] = data[: member.size]
    raise DataError(f"{path} holds more than {MAX_MEMBERS} members, so it is not CIFAR-10")


class _Bounded:
    """A stream that refuses to give more than an archive may hold: a gzip bomb ends here."""

    def __init__(self, stream: gzip.GzipFile, path: Path) -> None:
        self.stream, self.path, self.left = stream, path, MAX_ARCHIVE_BYTES

    def read(self, size: int) -> bytes:
        data = self.stream.read(size)
        self.left -= len(data)
        if self.left < 0:
            raise DataError(f"{self.path} unpacks to more than {MAX_ARCHIVE_BYTES} bytes, so it is not CIFAR-10")
        return data

    def skip(self, size: int) -> None:
        """Pass over so many bytes, or what is left."""
        while size > 0 and (data := self.read(min(size, _CHUNK))):
            size -= len(data)


class _Type:
    """Stands for numpy.dtype: keeps its name."""

    def __init__(self, name: object = None, *_: object) -> None:
        self.name = name

    def __setstate__(self, state: object) -> None:
        pass


class _Array:
    """Stands for numpy.ndarray: keeps the state (version, shape, dtype, is Fortran order, bytes)."""

    def __init__(self, *_: object) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state


class _Opcodes(dict[int, Any]):
    def __missing__(self, code: int) -> None:
        raise DataError(f"it has the opcode {bytes([code])!r}, which no CIFAR-10 batch needs")


class _Steps(io.BytesIO):
    """A pickle of which an unpickler takes no more than so many pieces: a byte of it can make an object of 64."""

    left = MAX_STEPS

    def read(self, size: int | None = -1) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise DataError(f"it takes more than {MAX_STEPS} steps to read")
        return super().read(size)


# The Python unpickler, not the C one: the C one reserves memory for whatever size or index a pickle announces.
class _BatchUnpickler(pickle._Unpickler):
    stack: list[Any]
    ADMITTED = {  # noqa: RUF012
        ("numpy.core.multiarray", "_reconstruct"): _Array,
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Type,
    }

    def find_class(self, module: str, name: str) -> type:
        try:
            return self.ADMITTED[module, name]
        except KeyError:
            raise DataError(f"it asks for {module}.{name}, which no CIFAR-10 batch needs") from None

    # Of a tuple that holds another twice, and so on, a few bytes each, the hash takes for ever.
    def load_setitem(self) -> None:
        self._check_keys(self.stack[-2:-1])
        super().load_setitem()  # type: ignore[misc]

    def load_setitems(self) -> None:
        self._check_keys(self.stack[::2])
        super().load_setitems()  # type: ignore[misc]

    def _check_keys(self, keys: list[Any]) -> None:
        if not all(isinstance(key, bytes) for key in keys):
            raise DataError("it has a key that is no string")

    # What Python 2 wrote of strings, whole numbers, lists, tuples, dictionaries and arrays.
    dispatch = _Opcodes(
        {code: pickle._Unpickler.dispatch[code] for code in b"\x80.(NUTJKM\x8a\x88\x89]ae)t\x85\x86\x87}cRbqrhj"}
        | {ord("s"): load_setitem, ord("u"): load_setitems}
    )


def _decode(data: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        batch = _BatchUnpickler(_Steps(data), encoding="bytes").load()
        images, labels = _images(batch[b"data"].state), _labels(batch[b"labels"])
        if len(images) != len(labels):
            raise DataError(f"it has {len(images)} images, but {len(labels)} labels")
        return images, labels
    except DataError as error:
        raise DataError(f"{where} is refused: {error}") from None
    # Random bytes can make an unpickler raise nearly anything.
    except Exception as error:
        raise DataError(f"{where} is no CIFAR-10 batch: {type(error).__name__} {error}") from None


def _images(state: tuple[Any, ...]) -> np.ndarray:
    _, shape, dtype, fortran, values = state
    if not isinstance(dtype, _Type) or dtype.name not in (b"u1", b"|u1") or not isinstance(values, bytes):
        raise DataError("its data are not 8-bit values")
    if not isinstance(shape, tuple) or not all(type(n) is int for n in shape):
        raise DataError("its data have no shape")
    if len(shape) != 2 or shape[0] < 1 or shape[1] != 3072 or len(values) != shape[0] * 3072:
        raise DataError(f"its data have shape {shape} and {len(values)} bytes, not (N, 3072)")
    pixels = np.frombuffer(values, np.uint8).reshape(shape, order="F" if fortran else "C")
    return pixels.reshape(-1, 3, 32, 32)


def _labels(labels: object) -> np.ndarray:
    if not isinstance(labels, list) or not all(type(label) is int and 0 <= label < len(CLASSES) for label in labels):
        raise DataError(f"its labels are not whole numbers in [0, {len(CLASSES)})")
    return np.array(labels, np.int64)

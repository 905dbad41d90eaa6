"""Arrays in .npy and .npz files, block by block: the memory needed depends on the block, not on the file.

The header of a file says what follows; here it is held against the bytes that are there before anything is read. Files
are read, not memory-mapped, because the pages of a mapped file count as memory of the process.
"""

from __future__ import annotations

import io
import lzma
import math
import struct
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from lossbook.data.dataset import DataError

# NumPy's limit for the text of a header, and what stands before it.
_HEADER_BYTES = 10_000 + 12
# A compressed member in column order has to be unpacked to be read by rows.
_UNPACK_BYTES = 2**33
_COPY_BYTES = 2**22

SAFE = "save plain numbers instead: np.save('numbers.npy', np.asarray(numbers, dtype=np.float32))"


@dataclass(frozen=True)
class StoredArray:
    """An array of numbers in a .npy file or a member of a .npz file, and where its values start."""

    path: Path
    member: str | None
    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool
    offset: int

    def __str__(self) -> str:
        return str(self.path) if self.member is None else f"{self.path}, member {stem(self.member)!r}"

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def blocks(self, rows: int) -> Iterator[np.ndarray]:
        """The array in blocks of `rows` rows, in order, the last one shorter."""
        with ExitStack() as stack:
            stack.enter_context(damage_named(self))
            stream: IO[bytes] = stack.enter_context(self.path.open("rb"))
            if self.member is not None:
                archive = stack.enter_context(zipfile.ZipFile(stream))
                stream = stack.enter_context(archive.open(self.member))
            _exactly(stream, self.offset, self)
            columns = math.prod(self.shape[1:])
            by_column = self.fortran and columns > 1
            if by_column and self.member is not None:
                stream = stack.enter_context(_unpacked(stream, self))
            first = stream.tell() if by_column else 0
            for start in range(0, self.shape[0], rows):
                count = min(rows, self.shape[0] - start)
                if by_column:
                    block = np.empty((count, columns), self.dtype)
                    for column in range(columns):
                        stream.seek(first + (column * self.shape[0] + start) * self.dtype.itemsize)
                        block[:, column] = np.frombuffer(
                            _exactly(stream, count * self.dtype.itemsize, self), self.dtype
                        )
                else:
                    data = _exactly(stream, count * columns * self.dtype.itemsize, self)
                    block = np.frombuffer(data, self.dtype).reshape(count, *self.shape[1:])
                yield block
            # At its end zipfile compares the checksum.
            if not by_column and stream.read(1):
                raise DataError(f"{self} goes on after the {self.nbytes} bytes that its shape {self.shape} needs")


def stored_array(path: Path) -> StoredArray:
    """The array in a .npy file. Object arrays, and files that are shorter or longer than announced, are refused."""
    with damage_named(path), path.open("rb") as stream:
        array = _header(stream, path, None)
    _check_size(array, path.stat().st_size)
    return array


def stored_members(path: Path) -> dict[str, StoredArray]:
    """The arrays in a .npz file by name (without .npy). Object arrays are among them; `usable` refuses one."""
    with damage_named(path), path.open("rb") as stream, zipfile.ZipFile(stream) as archive:
        members: dict[str, StoredArray] = {}
        for info in archive.infolist():
            if info.filename.lower().endswith((".pkl", ".pickle")):
                raise DataError(
                    f"{path} holds the pickle {info.filename!r}, which can run code when it is opened; {SAFE}"
                )
            if "/" in info.filename or "\\" in info.filename or info.filename.startswith("."):
                raise DataError(f"{path} has a member with a path for a name, {info.filename!r}, and is not read")
            if not info.filename.endswith(".npy"):
                raise DataError(f"{path} has the member {info.filename!r}, which is no .npy array")
            if info.flag_bits & 1:
                raise DataError(f"{path} has the encrypted member {info.filename!r}")
            # zipfile unpacks those of other methods, such as bzip2, by the block, whatever comes out of one.
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise DataError(
                    f"{path} has the member {info.filename!r} packed with method {info.compress_type}, which NumPy "
                    "does not use: save np.savez_compressed('numbers.npz', probs=numbers)"
                )
            if stem(info.filename) in members:
                raise DataError(f"{path} has two members named {stem(info.filename)!r}")
            with archive.open(info) as member:
                array = _header(member, path, info.filename)
            if not array.dtype.hasobject:
                _check_size(array, info.file_size)
            members[stem(info.filename)] = array
    if not members:
        raise DataError(f"{path} is an archive without arrays")
    return members


def usable(array: StoredArray) -> StoredArray:
    """The array, or DataError when it holds Python objects."""
    if array.dtype.hasobject:
        raise DataError(
            f"{array} holds Python objects (dtype object), which NumPy stores as a pickle, and a pickle can run code "
            f"when it is opened; {SAFE}"
        )
    return array


def stem(member: str) -> str:
    return member.removesuffix(".npy")


@contextmanager
def damage_named(where: object) -> Iterator[None]:
    """Whatever the libraries raise on a damaged file becomes a DataError that names it."""
    try:
        yield
    except (DataError, FileNotFoundError):
        raise
    except (
        OSError,
        EOFError,
        ValueError,
        NotImplementedError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        struct.error,
        MemoryError,
    ) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).strip()
        raise DataError(f"{where} is damaged or cannot be read: {reason or type(error).__name__}") from None


def _header(stream: IO[bytes], path: Path, member: str | None) -> StoredArray:
    where = path if member is None else f"{path}, member {stem(member)!r}"
    # Bounded: the length that a header gives for itself may be 4 GB.
    head = io.BytesIO(stream.read(_HEADER_BYTES))
    if not head.getvalue().startswith(npy.MAGIC_PREFIX):
        raise DataError(
            f"{where} is no .npy array: it starts with the bytes {head.getvalue()[:6].hex(' ') or '(none)'}"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            version = npy.read_magic(head)
            shape, fortran, dtype = _read_header(head, version)
    # What NumPy raises on a damaged header is not documented.
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{where} has a header that cannot be read: {reason}") from None
    if min(shape, default=0) < 0:
        raise DataError(f"{where} announces the shape {shape}")
    return StoredArray(path, member, shape, dtype, fortran, head.tell())


def _read_header(head: IO[bytes], version: tuple[int, int]) -> Any:
    if version == (1, 0):
        return npy.read_array_header_1_0(head)
    # Version 3 differs from 2 in the encoding of field names, and arrays with fields are not read.
    if version in ((2, 0), (3, 0)):
        return npy.read_array_header_2_0(head)
    raise ValueError(f"its version is {version}")


def _check_size(array: StoredArray, size: int) -> None:
    usable(array)
    missing = array.offset + array.nbytes - size
    if missing > 0:
        raise DataError(
            f"{array} is truncated: its shape {array.shape} needs {array.nbytes:,} bytes, and {missing:,} are missing"
        )
    if missing < 0:
        raise DataError(f"{array} goes on after the {array.nbytes:,} bytes that its shape {array.shape} needs")


@contextmanager
def _unpacked(stream: IO[bytes], array: StoredArray) -> Iterator[IO[bytes]]:
    if array.nbytes > _UNPACK_BYTES:
        raise DataError(f"{array} is in column order and too large to be unpacked: save np.ascontiguousarray(numbers)")
    with tempfile.TemporaryFile() as copy:
        for start in range(0, array.nbytes, _COPY_BYTES):
            copy.write(_exactly(stream, min(_COPY_BYTES, array.nbytes - start), array))
        if stream.read(1):
            raise DataError(f"{array} goes on after the {array.nbytes} bytes that its shape {array.shape} needs")
        copy.seek(0)
        yield copy


def _exactly(stream: IO[bytes], size: int, array: StoredArray) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise DataError(f"{array} is truncated: it ends {size - len(data)} bytes early or more")
    return data

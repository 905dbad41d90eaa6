"""Read IDX files, the format of MNIST: a magic number, the dimensions, then the values, all big-endian.

The layout is described at `http://yann.lecun.com/exdb/mnist/`: two zero bytes, a type code, the number of dimensions,
one uint32 for each dimension, and the values in C order.
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from lossbook.data.dataset import DataError

DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
MAX_BYTES = 2**30  # MNIST's training images are 47 MB.
_CHUNK = 2**20


def read(path: str | os.PathLike[str]) -> np.ndarray:
    """The array in an IDX file, plain or gzipped, in the machine's byte order.

    Nothing in the file is trusted: at most the announced size plus one byte is read, and more than 1 GiB is refused.

    Raises:
        DataError: the file is missing, truncated, corrupt, too long, or no IDX file.
    """
    path = Path(path)
    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            # GzipFile lacks nothing of BinaryIO that is used here.
            return _parse(cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if zipped else raw, path)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is a damaged gzip file: {error}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None


def read_labelled_images(
    images: str | os.PathLike[str], labels: str | os.PathLike[str], num_classes: int = 10
) -> tuple[np.ndarray, np.ndarray]:
    """Images `(N, 1, H, W)` uint8 and labels `(N,)` int64 from a pair of IDX files.

    Raises:
        DataError: a file is damaged, holds something else, or the two do not belong together.
    """
    x, y = read(images), read(labels)
    if x.ndim != 3 or x.dtype != np.uint8:
        raise DataError(f"{images} must hold 8-bit images, but holds {x.dtype} values of shape {x.shape}")
    if y.ndim != 1 or y.dtype != np.uint8:
        raise DataError(f"{labels} must hold 8-bit labels, but holds {y.dtype} values of shape {y.shape}")
    if len(x) != len(y):
        raise DataError(f"{labels} holds {len(y)} labels, but {images} holds {len(x)} images")
    if y.max() >= num_classes:
        raise DataError(f"{labels} holds the label {y.max()}, but there are {num_classes} classes")
    return x[:, None], y.astype(np.int64)


def _parse(stream: BinaryIO, path: Path) -> np.ndarray:
    magic = _exactly(stream, 4, path)
    if magic[:2] != b"\0\0" or magic[2] not in DTYPES or not 1 <= magic[3] <= 4:
        raise DataError(f"{path} is no IDX file: it starts with the bytes {magic.hex(' ')}")
    dtype = np.dtype(DTYPES[magic[2]])
    shape = struct.unpack(f">{magic[3]}I", _exactly(stream, 4 * magic[3], path))
    size = math.prod(shape) * dtype.itemsize
    if not 0 < size <= MAX_BYTES:
        raise DataError(f"{path} announces the shape {shape}, which is {size} bytes and not between 1 and {MAX_BYTES}")
    values = np.frombuffer(_exactly(stream, size, path), dtype).reshape(shape)
    if stream.read(1):
        raise DataError(f"{path} goes on after the {size} bytes that its shape {shape} needs")
    return values.astype(dtype.newbyteorder("="), copy=False)


def _exactly(stream: BinaryIO, size: int, path: Path) -> bytearray:
    # Grows with what is there, so that a short file that announces much costs little memory.
    data = bytearray()
    while len(data) < size:
        chunk = stream.read(min(_CHUNK, size - len(data)))
        if not chunk:
            raise DataError(f"{path} is truncated: it ends {size - len(data)} bytes early")
        data += chunk
    return data

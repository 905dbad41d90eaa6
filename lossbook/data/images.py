"""Read labelled images from a folder `<split>/<class>/<file>` or a zip file of one, in memory.

`read` takes images of one size as they are; `read_classes` takes a user's folder of any, and makes them one size.

Nothing is unpacked to disk. Names that point elsewhere, links, archives that grow beyond measure and files that are no
images are refused before they are decoded.
"""

from __future__ import annotations

import io
import os
import stat
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TypeVar

import numpy as np

from lossbook.data.dataset import DataError

FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
EIGHT_BIT_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")
MAX_FILE_BYTES = 2**24
MAX_TOTAL_BYTES = 2**31  # of all files, unpacked
MAX_DECODED_BYTES = 2**32  # of all images, as uint8
Images = TypeVar("Images")
MAX_RATIO = 200  # Images are compressed already; deflate's own limit is 1032.


class ImageFiles(NamedTuple):
    """Per split images `(N, C, H, W)` uint8 and labels `(N,)` int64; `classes[k]` is the name of label k."""

    classes: tuple[str, ...]
    splits: dict[str, tuple[np.ndarray, np.ndarray]]


class ClassImages(NamedTuple):
    """Images `x (N, C, S, S)` uint8 and labels `y (N,)` int64; `classes[k]` is the name of label k.

    found: how many there are in all. split_folders: the names of the folders above those of the classes, () where there
    are none.
    """

    x: np.ndarray
    y: np.ndarray
    classes: tuple[str, ...]
    found: int
    split_folders: tuple[str, ...]


class _Entry(NamedTuple):
    split: str
    label: str
    stem: str
    name: str


def read(path: str | os.PathLike[str]) -> ImageFiles:
    """Every image under `<split>/<class>/<file>` of a folder or zip file. C is 1 when all images are grey, else 3.

    Classes are numbered in alphabetical order over all splits. The images of a split come in the order of their numbers
    where every file of the split is named by a number of its own (`test/cat/00000.jpg`, `test/ship/00001.jpg`: the
    order of the set they were taken from), else in the order of their paths. Hidden files are passed over.

    Raises:
        DataError: a name leads outside, a file is a link, no image, damaged or of another size than the first; or there
            is more than 16 MiB in a file, 2 GiB in all files or 4 GiB in all pixels.
    """
    return _opened(Path(path), _entry, _decode_all)


def read_classes(
    path: str | os.PathLike[str], *, size: int = 32, limit: int | None = None, seed: int = 0
) -> ClassImages:
    """Images under `<class>/<file>` of a folder or zip file, scaled to one square size without regard to proportions.

    Folders above those of the classes (`train/`, `test/`, or the one that was zipped) are taken together. C is 1 when
    all images are grey, else 3. Hidden files are passed over.

    Args:
        size: side of the images, S; smaller where the first image is, at least 4.
        limit: images decoded at most, drawn at random from all; None: all.
        seed: of that draw.

    Raises:
        DataError: as `read`, but for images of different sizes.
    """

    def decode(path: Path, entries: list[_Entry], read_bytes: Callable[[str], bytes]) -> ClassImages:
        return _decode_square(path, entries, read_bytes, size, limit, seed)

    return _opened(Path(path), _class_entry, decode)


def _opened(
    path: Path,
    entry: Callable[[str, Path], _Entry | None],
    decode: Callable[[Path, list[_Entry], Callable[[str], bytes]], Images],
) -> Images:
    """What `decode` makes of the names and the bytes of a folder or a zip file."""
    if path.is_dir():
        return decode(path, _folder_names(path, entry), lambda name: _read_file(path / name))
    try:
        with zipfile.ZipFile(path) as archive:
            return decode(path, _zip_names(archive, path, entry), lambda name: _read_member(archive, name))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except DataError:
        raise
    # What zipfile raises on a damaged archive: besides its own error, those of decompression, of seeking to a
    # nonsensical offset, of undecodable names, of unknown methods and of encrypted entries.
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{path} is a damaged zip file: {error}") from None


def _zip_names(archive: zipfile.ZipFile, path: Path, make: Callable[[str, Path], _Entry | None]) -> list[_Entry]:
    total, entries = 0, {}
    for info in archive.infolist():
        _refuse_unsafe(info.filename, path)
        if stat.S_ISLNK(info.external_attr >> 16):
            raise DataError(f"{path} holds {info.filename!r}, which is a link")
        if info.is_dir():
            continue
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(f"{path} holds {info.filename!r}, packed with method {info.compress_type}, not deflate")
        total += info.file_size
        _refuse_large(info.filename, info.file_size, total, path)
        if info.file_size > MAX_RATIO * max(info.compress_size, 1):
            raise DataError(f"{path} holds {info.filename!r}, which unpacks to over {MAX_RATIO} times its packed size")
        if info.filename in entries:
            raise DataError(f"{path} holds {info.filename!r} twice")
        entries[info.filename] = make(info.filename, path)
    return [entry for entry in entries.values() if entry]


def _folder_names(folder: Path, make: Callable[[str, Path], _Entry | None]) -> list[_Entry]:
    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be read: {error.strerror or error}") from None

    total, entries = 0, []
    for parent, folders, files in os.walk(folder, onerror=refuse):
        for name in (*folders, *files):
            inside = (Path(parent) / name).relative_to(folder).as_posix()
            status = os.lstat(folder / inside)
            if stat.S_ISDIR(status.st_mode):
                continue
            if not stat.S_ISREG(status.st_mode):
                raise DataError(f"{folder} holds {inside!r}, which is a link or no plain file")
            total += status.st_size
            _refuse_large(inside, status.st_size, total, folder)
            entries.append(make(inside, folder))
    return [entry for entry in entries if entry]


def _refuse_large(name: str, size: int, total: int, path: Path) -> None:
    if size > MAX_FILE_BYTES:
        raise DataError(f"{path} holds {name!r} with {size} bytes, more than the {MAX_FILE_BYTES} allowed a file")
    if total > MAX_TOTAL_BYTES:
        raise DataError(f"{path} unpacks to more than {MAX_TOTAL_BYTES} bytes")


def _refuse_unsafe(name: str, path: Path) -> None:
    if name.startswith("/") or "\\" in name or ":" in name or {"", ".", ".."} & set(name.rstrip("/").split("/")):
        raise DataError(f"{path} holds {name!r}, which is no path inside it")


def _entry(name: str, path: Path) -> _Entry | None:
    parts = PurePosixPath(name).parts
    if _is_hidden(parts):
        return None
    if len(parts) != 3:
        raise DataError(f"{path} holds {name!r}, which is not named <split>/<class>/<file>")
    return _Entry(parts[0], parts[1], PurePosixPath(name).stem, name)


def _class_entry(name: str, path: Path) -> _Entry | None:
    parts = PurePosixPath(name).parts
    if _is_hidden(parts):
        return None
    if len(parts) not in (2, 3):
        raise DataError(f"{path} holds {name!r}, which is not named <class>/<file>: a folder for each class is needed")
    return _Entry("" if len(parts) == 2 else parts[0], parts[-2], PurePosixPath(name).stem, name)


def _is_hidden(parts: tuple[str, ...]) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def _read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    # A bare read() unpacks whatever there is before it compares with the announced size; this stops there.
    with archive.open(name) as file:
        return file.read(archive.getinfo(name).file_size)


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None


def _decode_all(path: Path, entries: list[_Entry], read_bytes: Callable[[str], bytes]) -> ImageFiles:
    if not entries:
        raise DataError(f"{path} holds no images named <split>/<class>/<file>")
    classes = tuple(sorted({entry.label for entry in entries}))
    number = {name: k for k, name in enumerate(classes)}
    with warnings.catch_warnings():
        from PIL import Image

        warnings.simplefilter("error", Image.DecompressionBombWarning)
        shape = _decode(entries[0].name, read_bytes, path).shape
        if len(entries) * shape[0] * shape[1] * shape[2] > MAX_DECODED_BYTES:
            raise DataError(f"{path} holds {len(entries)} images of shape {shape}, over {MAX_DECODED_BYTES} bytes")
        splits = {}
        for split in sorted({entry.split for entry in entries}):
            ordered = _ordered([entry for entry in entries if entry.split == split])
            x = np.empty((len(ordered), *shape), np.uint8)
            _fill(x, [entry.name for entry in ordered], read_bytes, path)
            splits[split] = x, np.array([number[entry.label] for entry in ordered], np.int64)
    return ImageFiles(classes, splits)


def _decode_square(
    path: Path,
    entries: list[_Entry],
    read_bytes: Callable[[str], bytes],
    size: int,
    limit: int | None,
    seed: int,
) -> ClassImages:
    from PIL import Image

    if not entries:
        raise DataError(f"{path} holds no images named <class>/<file>")
    splits = tuple(sorted({entry.split for entry in entries}))
    if "" in splits and len(splits) > 1:
        two = next(entry.name for entry in entries if not entry.split)
        three = next(entry.name for entry in entries if entry.split)
        raise DataError(f"{path} holds {two!r} and {three!r}: all images must be as many folders deep")
    classes = tuple(sorted({entry.label for entry in entries}))
    number = {name: k for k, name in enumerate(classes)}
    ordered = sorted(entries, key=lambda entry: entry.name)
    if limit is not None and limit < len(ordered):
        chosen = np.random.default_rng(seed).choice(len(ordered), limit, replace=False)
        ordered = [ordered[i] for i in np.sort(chosen)]
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        size = max(4, min(size, max(_decode(ordered[0].name, read_bytes, path).shape[1:])))
        pictures = [_decode(entry.name, read_bytes, path, size) for entry in ordered]
    channels = max(len(picture) for picture in pictures)
    x = np.stack([np.broadcast_to(picture, (channels, size, size)) for picture in pictures])
    y = np.array([number[entry.label] for entry in ordered], np.int64)
    return ClassImages(x, y, classes, len(entries), () if splits == ("",) else splits)


def _ordered(entries: list[_Entry]) -> list[_Entry]:
    stems = [entry.stem for entry in entries]
    if all(stem.isascii() and stem.isdigit() and len(stem) < 19 for stem in stems):
        numbers = [int(stem) for stem in stems]
        if len(set(numbers)) == len(numbers):
            return [entries[i] for i in np.argsort(numbers)]
    return sorted(entries, key=lambda entry: entry.name)


def _fill(x: np.ndarray, names: list[str], read_bytes: Callable[[str], bytes], path: Path) -> None:
    # One thread: for small images the decoder's work is less than what handing it to a second thread costs.
    for i, name in enumerate(names):
        pixels = _decode(name, read_bytes, path)
        if pixels.shape != x.shape[1:]:
            raise DataError(f"{path} holds {name!r} of shape {pixels.shape}, but the first image has {x.shape[1:]}")
        x[i] = pixels


def _decode(name: str, read_bytes: Callable[[str], bytes], path: Path, size: int | None = None) -> np.ndarray:
    """One image as `(C, H, W)` uint8, scaled to H = W = size if that is given."""
    from PIL import Image

    data = read_bytes(name)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.mode not in EIGHT_BIT_MODES:
                raise DataError(f"its mode is {image.mode}, and only 8-bit images are read")
            if image.width * image.height > MAX_FILE_BYTES:
                raise DataError(f"it has {image.width} × {image.height} pixels, more than {MAX_FILE_BYTES}")
            plain = image if image.mode in ("L", "RGB") else image.convert("RGB")
            if size is not None:
                # Bilinear over as many pixels as become one.
                plain = plain.resize((size, size), Image.Resampling.BILINEAR)
            pixels = np.frombuffer(plain.tobytes(), np.uint8).reshape(plain.height, plain.width, -1)
    # A decoder fed random bytes can raise nearly anything; whatever it is, the file is no image.
    except Exception as error:
        raise DataError(f"{path} holds {name!r}, which cannot be decoded as an image: {error}") from None
    return pixels.transpose(2, 0, 1)

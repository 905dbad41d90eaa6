"""What a .parquet file announces, held against its bytes before pyarrow believes it.

pyarrow reserves, and fills, what a page says that it holds; a few bytes may say two gigabytes. So the sizes in the
footer and before every page are read here first, and by this code: pyarrow's own reader of the footer ends the process
where a row group lacks a column. The layout is that of https://parquet.apache.org/docs/file-format,
written in Thrift's compact protocol.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from pathlib import Path
from typing import IO, Any

from lossbook.data.dataset import DataError

_MAX_FOOTER = 2**28
_MAX_HEADER = 2**20  # of a page
_MAX_DEPTH = 16  # of columns within columns
# A page of each column of a row group is unpacked at a time. Together they may have so many bytes,
_PAGES = 2**29
_PAGES_RATIO = 200  # and this many times those of the file.
# A list is read as a whole, and one may hold all numbers of its row group. These may be so many,
_LISTS = 2**26
_LISTS_RATIO = 512  # and so many for each byte of the file: a million one-hot rows of 1000 classes need about 300.
_DELTA_TEXTS = (6, 7)  # encodings: DELTA_LENGTH_BYTE_ARRAY, DELTA_BYTE_ARRAY


class _Thrift:
    """Thrift's compact protocol: structs as dictionaries by field number. IndexError where the bytes end."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def whole(self) -> int:
        value = shift = 0
        while shift < 70:
            byte = self.byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
        raise ValueError("a number has more than ten bytes")

    def signed(self) -> int:
        value = self.whole()
        return value >> 1 ^ -(value & 1)

    def skipped(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise IndexError
        self.at += size
        return self.data[self.at - size : self.at]

    def fields(self) -> Iterator[tuple[int, int]]:
        """(number, type) of each field of a struct; whoever asks reads it by `field` before the next."""
        number = 0
        while head := self.byte():
            number = number + (head >> 4) if head >> 4 else self.signed()
            yield number, head & 15

    def elements(self) -> Iterator[int]:
        """The type of each element of a list; whoever asks reads it by `value` or `struct` before the next."""
        head = self.byte()
        size = head >> 4 if head >> 4 < 15 else self.whole()
        return repeat(head & 15, min(size, len(self.data)))

    def struct(self, depth: int = 0) -> dict[int, Any]:
        if depth > _MAX_DEPTH:
            raise ValueError("its structure is too deep")
        return {number: self.field(kind, depth) for number, kind in self.fields()}

    def field(self, kind: int, depth: int = 0) -> Any:
        return kind == 1 if kind in (1, 2) else self.value(kind, depth)

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind in (1, 2, 3):
            return self.byte()
        if kind in (4, 5, 6):
            return self.signed()
        if kind == 7:
            return self.skipped(8)
        if kind == 8:
            return self.skipped(self.whole())
        if kind in (9, 10) and depth <= _MAX_DEPTH:
            return [self.value(element, depth + 1) for element in self.elements()]
        if kind == 12:
            return self.struct(depth + 1)
        raise ValueError(f"a field is of type {kind}")


def check(path: Path) -> set[str]:
    """The columns with delta-encoded texts, which pyarrow does not read as codes of a dictionary.

    DataError when a .parquet file is damaged where it says how large it is, or grows beyond measure.
    """
    with path.open("rb") as file:
        try:
            return _check(file, path)
        except (IndexError, KeyError, TypeError, AttributeError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            reason = str(error) if type(error) is ValueError else "its footer or the header of a page is damaged"
            raise DataError(f"{path} cannot be read: {reason}") from None


def _check(file: IO[bytes], path: Path) -> set[str]:
    size = file.seek(0, 2)
    file.seek(max(0, size - 8))
    tail = file.read(8)
    if size < 12 or tail[4:] != b"PAR1":
        encrypted = ": its footer is encrypted" if tail[4:] == b"PARE" else ", or it is truncated"
        raise DataError(f"{path} is no .parquet file that can be read{encrypted}")
    [length] = struct.unpack("<I", tail[:4])
    end = size - 8 - length
    if end < 4 or length > _MAX_FOOTER:
        raise ValueError(f"it announces a footer of {length:,} bytes")
    file.seek(end)
    footer, repeated = _Thrift(file.read(length)), []
    delta: set[str] = set()
    for number, kind in footer.fields():
        if number == 2 and kind == 9:
            repeated = _repeated(footer.struct() for _ in footer.elements())
        elif number == 4 and kind == 9:
            for _ in footer.elements():
                for inner, inner_kind in footer.fields():
                    if inner == 1 and inner_kind == 9:
                        _check_columns(file, (footer.struct() for _ in footer.elements()), repeated, delta, size, end)
                    else:
                        footer.field(inner_kind)
        else:
            footer.field(kind)
    return delta


def _check_columns(
    file: IO[bytes], chunks: Iterable[dict[int, Any]], repeated: Sequence[bool], delta: set[str], size: int, end: int
) -> None:
    """The columns of a row group, in a file of `size` bytes whose pages lie before `end`."""
    count = pages = 0
    for count, chunk in enumerate(chunks, 1):
        if 3 not in chunk or 1 in chunk:
            raise ValueError("a column is encrypted or in another file")
        column = chunk[3]
        if repeated[count - 1] and column[5] > _LISTS + _LISTS_RATIO * size:
            raise ValueError(f"lists of {column[5]:,} numbers in {size:,} bytes: write smaller row groups")
        if any(encoding in _DELTA_TEXTS for encoding in column[2]):
            delta.add(b".".join(column[3]).decode())
        start = min(column[9], column.get(11) or column[9])
        # Without rows pyarrow writes the offset 0, where the file's first word is and no page.
        if column[5] == start == 0:
            continue
        if start < 4 or column[7] < 0 or start + column[7] > end:
            raise ValueError(f"a column lies at bytes {start:,} to {start + column[7]:,} of {end:,}")
        pages += _largest_page(file, start, start + column[7])
        if pages > _PAGES + _PAGES_RATIO * size:
            raise ValueError(f"its pages, in {size:,} bytes, unpack to {pages:,} at a time: write smaller pages")
    if count < len(repeated):
        raise ValueError("a row group lacks a column")


def _repeated(schema: Iterable[dict[int, Any]]) -> list[bool]:
    """Of each column, in order, whether a row has many values; the elements come with how many follow below them."""
    leaves: list[bool] = []
    above: list[list[Any]] = []  # [elements still to come, repeated]
    for element in schema:
        children = element.get(5, 0)
        many = element.get(3) == 2 or bool(above and above[-1][1])
        if above:
            above[-1][0] -= 1
        if children > 0:
            above.append([children, many and bool(above)])
        else:
            leaves.append(many)
        while above and above[-1][0] == 0:
            above.pop()
        if len(above) > _MAX_DEPTH:
            raise ValueError("its columns are nested too deeply")
    return leaves


def _largest_page(file: IO[bytes], start: int, end: int) -> int:
    """Bytes of the largest page of a column, unpacked."""
    largest = 0
    while start < end:
        header, read = _page_header(file, start, end)
        unpacked, packed = header[2], header[3]
        start += read + packed
        if packed < 0 or unpacked < 0 or start > end:
            raise ValueError(f"a page announces {packed:,} bytes, {unpacked:,} unpacked, and ends outside its column")
        # A value of a dictionary takes at least its length.
        if 7 in header and not 0 <= header[7][1] <= unpacked:
            raise ValueError(f"a dictionary of {unpacked:,} bytes announces {header[7][1]:,} values")
        largest = max(largest, unpacked)
    return largest


def _page_header(file: IO[bytes], start: int, end: int) -> tuple[dict[int, Any], int]:
    for size in (256, _MAX_HEADER):
        file.seek(start)
        thrift = _Thrift(file.read(min(size, end - start)))
        try:
            return thrift.struct(), thrift.at
        except IndexError:
            pass
    raise IndexError

"""Writers of small data files, and no way out: LOSSBOOK_DATA is unset and proxies are off."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable

import numpy as np
import pytest

CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


@pytest.fixture(autouse=True)
def no_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOSSBOOK_DATA", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture(scope="session")
def idx_bytes() -> Callable[..., bytes]:
    def build(array: np.ndarray, *, packed: bool = False) -> bytes:
        code = CODES[array.dtype.str[1:]]
        header = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
        data = header + array.astype(array.dtype.newbyteorder(">")).tobytes()
        return gzip.compress(data, mtime=0) if packed else data

    return build

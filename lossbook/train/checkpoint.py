"""Checkpoints that survive a killed process: written whole or not at all, and read without running code."""

from __future__ import annotations

import hashlib
import io
import math
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, shapes, dtypes and values."""
    sha = hashlib.sha256()
    for name, tensor in tensors.items():
        sha.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        sha.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return sha.hexdigest()


def prepare(path: str | os.PathLike[str]) -> Path:
    """The checkpoint's path, its folder made."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"checkpoint must be a file, but {path} is a folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def write(path: Path, content: dict[str, Any]) -> None:
    """Replace the checkpoint; when the disk refuses, warn and keep the former one."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        warnings.warn(
            f"checkpoint {path} could not be written ({error.strerror}); training goes on without it", stacklevel=3
        )


def read(path: Path, run: dict[str, Any]) -> dict[str, Any] | None:
    """The checkpoint's content, or None where there is no file.

    Raises:
        ValueError: the file is damaged, or belongs to a run other than `run`; the sentence names what differs.
    """
    if not path.exists():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        before = content["run"]
    except Exception as error:  # a damaged archive surfaces as any of half a dozen types
        raise ValueError(f"checkpoint {path} is damaged or no checkpoint of fit: delete it to start anew") from error
    for name, value in run.items():
        if not _same(name, before.get(name), value):
            raise ValueError(
                f"checkpoint {path} belongs to another run: {name} was {_short(before.get(name))}, is {_short(value)}"
            )
    return content


def _same(name: str, before: Any, now: Any) -> bool:
    if name != "objective":
        return before == now
    # Another number of threads rounds sums differently; another loss or activation differs by far more.
    return isinstance(before, float) and math.isclose(before, now, rel_tol=1e-4)


def _short(value: Any) -> str:
    return f"{value[:8]}…" if isinstance(value, str) and len(value) == 64 else repr(value)

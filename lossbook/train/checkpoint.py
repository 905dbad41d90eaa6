"""Checkpoints that survive a killed process: held by one, written whole or not at all, read without running code."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import pickle
import re
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lossbook import _files


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, shapes, dtypes and values."""
    sha = hashlib.sha256()
    for name, tensor in tensors.items():
        sha.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        sha.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return sha.hexdigest()


def fingerprint(what: Mapping[str, Any]) -> str:
    """SHA-256 of names and values; of a function its name, of another object its repr without its address."""

    def readable(value: Any) -> str:
        if isinstance(value, Tensor):
            return digest({"": value})
        return getattr(value, "__qualname__", None) or re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))

    return hashlib.sha256(json.dumps(what, sort_keys=True, default=readable).encode()).hexdigest()


@contextmanager
def held(path: str | os.PathLike[str]) -> Iterator[Path]:
    """The checkpoint's path, for this process alone, its folder made and what a killed one left of it cleared away.

    Raises:
        ValueError: a folder stands there, its folder cannot be written to, or another process trains with it.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"checkpoint must be a file, but {path} is a folder")
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Refused now rather than after the first epoch.
            tempfile.TemporaryFile(dir=path.parent).close()
            stack.enter_context(_files.locked(path.with_name(f".{path.name}.lock")))
            _files.clear_leftovers(path.parent, path.name)
        except BlockingIOError:
            raise ValueError(
                f"another process trains with checkpoint {path}: wait for it, or choose another file"
            ) from None
        except OSError as error:
            raise ValueError(
                f"checkpoint {path} cannot be written ({error.strerror}): choose another folder"
            ) from error
        yield path


def to_bytes(content: Any) -> bytes:
    """What `torch.save` writes.

    Raises:
        MemoryError: there is not enough for it.
    """
    buffer = io.BytesIO()
    try:
        torch.save(content, buffer)
    except RuntimeError as error:
        # torch then complains of a position in its buffer, which could not grow.
        if isinstance(error.__context__, MemoryError):
            raise MemoryError from error
        raise
    return buffer.getvalue()


def write(path: Path, content: dict[str, Any]) -> None:
    """Replace the checkpoint; when disk or memory refuse, warn and keep the former one."""
    try:
        _files.write_atomically(path, to_bytes(content))
    except (OSError, MemoryError) as error:
        why = error.strerror if isinstance(error, OSError) else "out of memory"
        warnings.warn(f"checkpoint {path} could not be written ({why}); training goes on without it", stacklevel=3)


def read(path: Path, run: dict[str, Any]) -> dict[str, Any] | None:
    """The checkpoint's content; None where there is no file, or a damaged one, which is put aside with a warning.

    Raises:
        ValueError: the file is something else, or belongs to a run other than `run`; the sentence names what differs.
    """
    if not path.exists():
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            # torch does not look at the checksums, and would go on from weights with a flipped bit.
            if broken := archive.testzip():
                raise zipfile.BadZipFile(broken)
        content = torch.load(path, map_location="cpu", weights_only=True)
        before = content["run"]
    except (pickle.UnpicklingError, KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{path} is no checkpoint of fit: choose another file") from error
    except Exception:  # a damaged archive surfaces as any of half a dozen types
        aside = path.with_name(f"{path.name}.damaged")
        os.replace(path, aside)
        warnings.warn(
            f"checkpoint {path} is damaged: it is kept as {aside.name}, and training starts anew", stacklevel=3
        )
        return None
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

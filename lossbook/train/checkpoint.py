"""Checkpoints that survive a killed process: held by one, written whole or not at all, read without running code."""

from __future__ import annotations

import functools
import glob
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
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from lossbook import _files


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, shapes, dtypes and values."""
    sha = hashlib.sha256()
    for name, tensor in tensors.items():
        sha.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        sha.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return sha.hexdigest()


def fingerprint(what: Mapping[str, Any]) -> str:
    """SHA-256 of names and values.

    A function counts by its name and the plain values that it holds, a module by its repr, the plain attributes of it
    and its parts, its parameters and buffers; another object by its repr without its address.
    """
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=_readable).encode()).hexdigest()


def _readable(value: Any) -> Any:
    if isinstance(value, Tensor):
        return digest({"": value})
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, nn.Module):
        tensors = {**dict(value.named_parameters()), **dict(value.named_buffers())}
        return [structure(value), digest(tensors)]
    if isinstance(value, FunctionType):
        code, cells = value.__code__, [cell.cell_contents for cell in value.__closure__ or ()]
        seen = {name: value.__globals__.get(name) for name in code.co_names}
        held = [*cells, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values(), *code.co_consts]
        return [value.__qualname__, *filter(_is_plain, held), {k: v for k, v in seen.items() if _is_plain(v)}]
    return getattr(value, "__qualname__", None) or _without_addresses(repr(value))


def structure(module: nn.Module) -> str:
    """SHA-256 of what a module and its parts are, and of their plain values: a rate of dropout, a margin."""
    own = vars(nn.Module()).keys()
    plain = {
        name: {k: v for k, v in vars(part).items() if k not in own and _is_plain(v) and not isinstance(v, Tensor)}
        for name, part in module.named_modules()
    }
    return hashlib.sha256(f"{_without_addresses(repr(module))} {plain}".encode()).hexdigest()


def _is_plain(value: Any) -> bool:
    return isinstance(value, bool | int | float | str | Tensor)


def _without_addresses(text: str) -> str:
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)


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
            _files.clear_leftovers(path.parent, glob.escape(path.name))
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
    if not isinstance(now, float) or name not in ("loss at the start", "penalty at the start"):
        return before == now
    return isinstance(before, float) and close(before, now)


def close(before: float, now: float) -> bool:
    """Equal but for another number of threads, which rounds sums differently; another loss differs by far more."""
    return math.isclose(before, now, rel_tol=1e-4) or (math.isnan(before) and math.isnan(now))


def _short(value: Any) -> str:
    return f"{value[:8]}…" if isinstance(value, str) and len(value) == 64 else repr(value)

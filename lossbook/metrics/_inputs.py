"""What the metrics share: arrays become tensors without a copy, and rows are checked and visited in chunks.

So a metric of a million predictions reads them once from memory and needs little more memory than one of a thousand.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lossbook import checks

# Numbers per chunk: few enough to stay in a processor's cache. On the CPU a chunk is worked through by one thread (see
# `_row_sums`); a GPU wants few, large launches.
_CPU_CHUNK, _GPU_CHUNK = 2**20, 2**26
# Up to so many columns NumPy adds column to column in less time than it sums each short row.
_FEW_COLUMNS = 16
_SUM_TOLERANCE = 1e-4
_VALUE_TOLERANCE = 1e-4


def as_tensor(name: str, value: Any) -> Tensor:
    """The tensor behind a tensor, array or list; memory is shared wherever torch can."""
    if isinstance(value, Tensor):
        return value.detach()
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} must hold numbers, but has dtype {array.dtype}")
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    if not array.dtype.isnative or any(step < 0 for step in array.strides):
        array = array.astype(array.dtype.newbyteorder("="), order="C")
    with warnings.catch_warnings():
        # A read-only array (a memory map) is welcome: nothing here writes to its input.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def as_matrix(name: str, value: Any, shape: str = "(N, K)") -> Tensor:
    """A floating-point tensor with two dimensions and at least one entry."""
    tensor = as_tensor(name, value)
    if tensor.dim() != 2:
        raise ValueError(f"{name} must have shape {shape}, but has shape {tuple(tensor.shape)}")
    if not tensor.is_floating_point():
        raise ValueError(f"{name} must be floating point, but has dtype {tensor.dtype}")
    if tensor.numel() == 0:
        raise ValueError(f"{name} is empty: shape {tuple(tensor.shape)}")
    return tensor


def as_labels(name: str, value: Any, like: Tensor, num_classes: int | None, owner: str = "probs") -> Tensor:
    """int64 labels (N,), one for each row of `like`, on its device and in [0, num_classes)."""
    labels = as_tensor(name, value)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"{name} must hold integer labels, but has dtype {labels.dtype}")
    if labels.shape != (len(like),):
        raise ValueError(
            f"{name} must have shape ({len(like)},), a label a row of {owner}, but has shape {tuple(labels.shape)}"
        )
    labels = labels.to(device=like.device, dtype=torch.int64)
    if checks.can_read(labels):
        bad = labels < 0 if num_classes is None else (labels < 0) | (labels >= num_classes)
        if bad.any():
            row = _first(bad)
            known = "labels start at 0" if num_classes is None else f"{owner} has {num_classes} classes"
            raise ValueError(f"{name}[{row}] is label {int(labels[row])}, but {known}")
    return labels


def as_unit_interval(
    name: str, value: Any, like: Tensor | None = None, interval: tuple[float, float] = (0, 1)
) -> Tensor:
    """Numbers (N,) in the interval: confidences, or with `like` the outcome of each; those may be bool or integer."""
    tensor = as_tensor(name, value)
    if tensor.dim() != 1:
        raise ValueError(f"{name} must have shape (N,), but has shape {tuple(tensor.shape)}")
    if len(tensor) == 0:
        raise ValueError(f"{name} is empty")
    if like is not None:
        if len(tensor) != len(like):
            raise ValueError(f"{name} has {len(tensor)} entries, but there are {len(like)} predictions")
        tensor = tensor.to(like.device)
    elif not tensor.is_floating_point():
        raise ValueError(f"{name} must be floating point, but has dtype {tensor.dtype}")
    if checks.can_read(tensor):
        # Negated, so that NaN is bad too.
        low, high = interval[0] - _VALUE_TOLERANCE, interval[1] + _VALUE_TOLERANCE
        bad = ~((tensor >= low) & (tensor <= high))
        if bad.any():
            row = _first(bad)
            raise ValueError(f"{name}[{row}] is {tensor[row].item()}, outside [{interval[0]:g}, {interval[1]:g}]")
    return tensor


def row_chunks(matrix: Tensor, least: int = 1) -> Iterator[tuple[slice, Tensor]]:
    """(slice of rows, those rows) for the whole matrix, in order; `least` rows at a time or more."""
    size = _GPU_CHUNK if matrix.is_cuda else _CPU_CHUNK
    step = max(least, size // max(1, matrix[0].numel()))
    for start in range(0, len(matrix), step):
        rows = slice(start, min(start + step, len(matrix)))
        yield rows, matrix[rows]


def probability_chunks(name: str, probs: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """`row_chunks`, each checked: rows of probabilities in [0, 1] that sum to one within 1e-4."""
    for rows, chunk in row_chunks(probs):
        _check_probabilities(name, chunk, rows.start)
        yield rows, chunk


def finite_chunks(name: str, matrix: Tensor, least: int = 1) -> Iterator[tuple[slice, Tensor]]:
    """`row_chunks`, each checked to hold neither NaN nor infinity."""
    for rows, chunk in row_chunks(matrix, least):
        # One sum sees every non-finite entry; the exact question is asked only when it may have overflowed by itself.
        if checks.can_read(chunk) and not torch.isfinite(chunk.sum()) and not (good := torch.isfinite(chunk)).all():
            row, column = (int(i) for i in (~good).nonzero()[0])
            raise ValueError(
                f"{name}[{rows.start + row}, {column}] is {chunk[row, column].item()}, not a finite number"
            )
        yield rows, chunk


def top_label(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The largest entry of each row and its column (the first of several)."""
    if _is_numpy(rows):
        # NumPy's argmax takes a quarter of the time of torch's max on the CPU.
        predicted = torch.from_numpy(rows.numpy().argmax(axis=1))
        return rows.gather(1, predicted[:, None])[:, 0], predicted
    confidence, predicted = rows.max(dim=1)
    return confidence, predicted


def predictions(probs: Any, target: Any) -> tuple[Tensor, Tensor]:
    """(N, K) probabilities with (N,) labels, or (N,) confidences with (N,) outcomes."""
    probs = as_tensor("probs", probs)
    if probs.dim() == 1:
        confidence = as_unit_interval("probs", probs)
        return confidence, as_unit_interval("target", target, like=confidence)
    if probs.dim() != 2:
        raise ValueError(f"probs must have shape (N, K) or (N,), but has shape {tuple(probs.shape)}")
    return matrix_predictions(probs, target)


def matrix_predictions(probs: Any, target: Any) -> tuple[Tensor, Tensor]:
    probs = as_matrix("probs", probs)
    return probs, as_labels("target", target, probs, probs.shape[1])


def top_label_events(probs: Tensor, target: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """(confidence, outcome) chunk by chunk, of checked (N, K) probabilities or of (N,) confidences."""
    if probs.dim() == 1:
        for rows, chunk in row_chunks(probs):
            yield chunk, target[rows]
        return
    for rows, chunk in probability_chunks("probs", probs):
        confidence, predicted = top_label(chunk)
        yield confidence, predicted == target[rows]


def all_events(probs: Any, target: Any) -> tuple[Tensor, Tensor]:
    """(N,) confidences and (N,) float64 outcomes, of the top label or as given."""
    parts = zip(*top_label_events(*predictions(probs, target)), strict=True)
    confidence, outcome = (torch.cat(part) for part in parts)
    return confidence, outcome.to(torch.float64)


def _check_probabilities(name: str, chunk: Tensor, start: int) -> None:
    if not checks.can_read(chunk):
        return
    eps = torch.finfo(chunk.dtype).eps
    total = _row_sums(chunk)
    # Half precision cannot sum to one more closely than it can count. The comparisons are negated to catch NaN.
    off = ~((total - 1).abs() <= max(_SUM_TOLERANCE, eps))
    low, high = _extremes(chunk)
    slack = max(_VALUE_TOLERANCE, eps)
    if low >= -slack and high <= 1 + slack and not off.any():
        return
    outside = ~((chunk >= -slack) & (chunk <= 1 + slack))
    if outside.any():
        row, column = (int(i) for i in outside.nonzero()[0])
        raise ValueError(f"{name}[{start + row}, {column}] is {chunk[row, column].item():g}, outside [0, 1]")
    row = _first(off)
    raise ValueError(f"{name}[{start + row}] sums to {total[row].item():.6g}, not 1: are these logits?")


def _row_sums(chunk: Tensor) -> Tensor:
    if _is_numpy(chunk):
        # NumPy, because torch shares a chunk among its threads, and on a busy machine each of many small chunks then
        # waits for the last of them: measured, ten times slower than one thread.
        array = chunk.numpy()
        if array.shape[1] > _FEW_COLUMNS:
            return torch.from_numpy(array.sum(axis=1))
        total = array[:, 0].copy()
        for column in array.T[1:]:
            total += column
        return torch.from_numpy(total)
    return chunk.sum(dim=1, dtype=torch.float32 if chunk.dtype.itemsize < 4 else None)


def _extremes(chunk: Tensor) -> tuple[float, float]:
    if _is_numpy(chunk):
        array = chunk.numpy()
        return float(array.min()), float(array.max())
    low, high = torch.aminmax(chunk)
    return float(low), float(high)


def _is_numpy(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype in (torch.float32, torch.float64)


def _first(mask: Tensor) -> int:
    return int(mask.nonzero()[0, 0])

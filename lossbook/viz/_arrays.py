"""Input checks of the plots: tensors and arrays become NumPy, bad input is refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def numbers(name: str, value: Any, shape: tuple[int | None, ...]) -> Array:
    """value as a finite float64 array of the given shape (None: any length, at least 1)."""
    array = _numpy(name, value)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name} must hold numbers, but has dtype {array.dtype}")
    array = array.astype(np.float64)
    fits = array.ndim == len(shape) and all(want in (None, have) for want, have in zip(shape, array.shape, strict=True))
    if not fits or array.size == 0:
        wanted = ", ".join("any" if want is None else str(want) for want in shape)
        raise ValueError(f"{name} must have shape ({wanted}), but has shape {array.shape}")
    bad = ~np.isfinite(array)
    if bad.any():
        index = [int(i) for i in np.argwhere(bad)[0]]
        raise ValueError(f"{name} must be finite, but {name}{index} is {array[tuple(index)]}")
    return array


def probabilities(name: str, value: Any, num_classes: int | None = None) -> Array:
    """value as (N, K) rows that are not negative and sum to 1 (to 1e-3, for half precision)."""
    array = numbers(name, value, (None, num_classes))
    off = (array < -1e-6).any(axis=1) | (np.abs(array.sum(axis=1) - 1) > 1e-3)
    if off.any():
        row = int(off.argmax())
        raise ValueError(f"{name}[{row}] is not a probability vector: {array[row].round(4).tolist()}")
    return array


def labels(name: str, value: Any, length: int, num_classes: int | None = None) -> NDArray[np.int64]:
    """value as (length,) integer labels in [0, num_classes)."""
    array = _numpy(name, value)
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name} must hold integer labels, but has dtype {array.dtype}")
    if array.shape != (length,):
        raise ValueError(f"{name} must have shape ({length},), but has shape {array.shape}")
    bad = (array < 0) if num_classes is None else (array < 0) | (array >= num_classes)
    if bad.any():
        limit = "" if num_classes is None else f", but there are {num_classes} classes"
        raise ValueError(f"{name} has label {int(array[bad][0])}{limit or ', which is negative'}")
    return array.astype(np.int64)


def _numpy(name: str, value: Any) -> NDArray[Any]:
    # bfloat16 has no NumPy counterpart, hence the detour over float.
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.double() if value.is_floating_point() else value
        return np.asarray(value.numpy())
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} must be an array with rows of one length: {error}") from None

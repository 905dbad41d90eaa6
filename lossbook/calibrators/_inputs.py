"""The checks that all calibrators share: of logits and labels, and of what a saved calibrator is read from."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d, validate_data
from torch import Tensor, float64


def check_logits(estimator: BaseEstimator, logits: Any, *, reset: bool, name: str = "logits") -> np.ndarray:
    """(N, K) float64 array of finite numbers; `reset` in fit, which learns K and needs K ≥ 2."""
    z = validate_data(
        estimator,
        to_numpy(logits),
        reset=reset,
        dtype=np.float64,
        order="C",
        ensure_all_finite=False,
        ensure_min_features=2 if reset else 1,
    )
    if not np.isfinite(z).all():
        row, column = (int(i) for i in np.argwhere(~np.isfinite(z))[0])
        value = "NaN" if np.isnan(z[row, column]) else z[row, column]
        raise ValueError(f"{name}[{row}, {column}] is {value}, not a finite number")
    return z


def to_numpy(values: Any) -> Any:
    # NumPy has no bfloat16; float64 is what fit and predict compute in anyway.
    return values.detach().cpu().to(float64).numpy() if isinstance(values, Tensor) else values


def check_labels(y: Any, n: int, num_classes: int) -> np.ndarray:
    """int64 labels (n,) of at least two classes, checked; whole numbers of any numeric type are labels."""
    if y is None:
        raise ValueError("fit requires y to be passed, but the target y is None")
    labels = column_or_1d(y.detach().cpu().numpy() if isinstance(y, Tensor) else y, warn=True)
    check_classification_targets(labels)
    if labels.dtype.kind not in "biuf":
        raise ValueError(f"y must hold integer labels, but has dtype {labels.dtype}")
    if len(labels) != n:
        raise ValueError(f"y has {len(labels)} labels, but logits have {n} rows")
    bad = (labels < 0) | (labels >= num_classes)
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(f"y[{row}] is label {labels[row]}, but logits have {num_classes} classes")
    labels = labels.astype(np.int64)
    if (labels == labels[0]).all():
        raise ValueError(f"y holds one class only, label {labels[0]}: calibration needs at least two classes")
    return labels


def check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} must be {' or '.join(repr(a) for a in allowed)}, but is {value!r}")


def read_fields(name: str, value: object, fields: set[str]) -> dict[str, Any]:
    """value, if it is a dict with exactly these fields."""
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be an object, but is {value!r}")
    if missing := fields - value.keys():
        raise ValueError(f"{name} has no field {min(missing)!r}")
    if unknown := value.keys() - fields:
        raise ValueError(f"{name} has an unknown field {min(unknown, key=repr)!r}")
    return value


def read_number(name: str, value: object, low: float = -np.inf, high: float = np.inf) -> float:
    """value as a float; refuses what is no finite number in [low, high]."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise ValueError(f"{name} must be a number, but is {value!r}")
    try:
        number = float(value)
    except OverflowError:
        number = np.inf
    if not np.isfinite(number) or not low <= number <= high:
        raise ValueError(f"{name} must be a finite number in [{low:g}, {high:g}], but is {number:g}")
    return number


def read_list(name: str, value: object, length: int | None) -> list[Any]:
    """value, if it is a list of that length (of one entry at least, for None)."""
    if not isinstance(value, list):
        raise ValueError(f"{name} must be a list, but is {value!r}")
    if len(value) != length if length is not None else not value:
        raise ValueError(f"{name} must hold {length or 'at least one'} entries, but holds {len(value)}")
    return value


def read_vector(
    name: str, value: object, length: int | None, low: float = -np.inf, high: float = np.inf, *, ordered: bool = False
) -> np.ndarray:
    """(length,) float64 array of finite numbers in [low, high], strictly increasing where `ordered`."""
    entries = read_list(name, value, length)
    vector = np.array([read_number(f"{name}[{i}]", entry, low, high) for i, entry in enumerate(entries)])
    if ordered and (np.diff(vector) <= 0).any():
        i = int((np.diff(vector) <= 0).argmax()) + 1
        raise ValueError(f"{name} must increase, but {name}[{i}] is {vector[i]:g} after {vector[i - 1]:g}")
    return vector


def read_matrix(name: str, value: object, rows: int, columns: int) -> np.ndarray:
    """(rows, columns) float64 array of finite numbers."""
    entries = read_list(name, value, rows)
    return np.array([read_vector(f"{name}[{i}]", entry, columns) for i, entry in enumerate(entries)])

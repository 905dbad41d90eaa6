"""What people say about published labels: suspects that five of them judged, and CIFAR-10's test set by some fifty.

Both come as small public files that lie in the data folder or are downloaded to it, checked against their SHA-256. No
file is trusted: pickles are refused, and a value that does not fit is named with its file and place.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lossbook.data import cifar, fetch
from lossbook.data._arrays import stored_array
from lossbook.data.dataset import DataError
from lossbook.data.registry import data_root

LABEL_ERROR_SETS = ("mnist", "cifar10", "20news", "imdb")
JUDGES = 5
MAJORITY = 3
_TOLERANCE = 1e-4
# The answers that the files name, by the column of `Verdicts.votes`. A review can be neutral or off topic: neither.
_ANSWERS = {"given": 0, "guessed": 1, "both": 2, "neither": 3, "neutral": 3, "off-topic": 3}
_IMDB_LABELS = {"Negative": 0, "Positive": 1}


class Verdicts(NamedTuple):
    """What five people said of each of M rows: does the label that the set ships with fit, or the one of the model?"""

    row: Tensor  #: (M,) int64, which row of the set
    guess: Tensor  #: (M,) int64, the label that the model proposed; on a few rows of mnist the given one
    votes: Tensor  #: (M, 4) int64, how many of the five chose the given label, the guess, both, neither

    @property
    def wrong(self) -> Tensor:
        """(M,) bool: fewer than three of the five chose the given label alone. The authors' confirmed errors."""
        return self.votes[:, 0] < MAJORITY

    @property
    def guess_is_right(self) -> Tensor:
        """(M,) bool: at least three of the five chose the guess alone; the label can be corrected to it."""
        return self.votes[:, 1] >= MAJORITY

    @property
    def given_fits(self) -> Tensor:
        """(M,) bool: at least three of the five said that the given label fits, alone or together with the guess."""
        return self.votes[:, 0] + self.votes[:, 2] >= MAJORITY


class LabelErrors(NamedTuple):
    """A real test set without its inputs: a model's probabilities, the published labels, people's verdicts on some."""

    probs: Tensor  #: (N, K) float64, out-of-sample probabilities of the authors' model, in [0, 1]
    labels: Tensor  #: (N,) int64, the labels that the set ships with
    verdicts: Verdicts

    def corrected(self) -> tuple[Tensor, Tensor]:
        """Labels (N,) with the guess where most people chose it, and a mask (N,) of the rows that have a right label.

        Out of the mask are the confirmed errors on which people agree on no single label.
        """
        row, guess, _ = self.verdicts
        labels, known = self.labels.clone(), torch.ones(len(self.labels), dtype=torch.bool)
        agreed = self.verdicts.guess_is_right
        labels[row[agreed]] = guess[agreed]
        known[row[self.verdicts.wrong & ~agreed]] = False
        return labels, known


def label_error_set(name: str, *, root: str | os.PathLike[str] | None = None, download: bool = True) -> LabelErrors:
    """The test sets in which Northcutt, Athalye and Mueller had people judge suspected label errors.

    The suspects are theirs: rows which confident learning with these very probabilities ranked as doubtful. Nobody was
    asked about the other rows, so what is known of the errors in the set is a lower bound, and a share of errors found
    is a share of this list. On a few rows of mnist the guess is the given label; an answer there counts once, as given.

    Args:
        name: "mnist" (10,000 rows, 10 classes), "cifar10" (10,000, 10), "20news" (7,532, 20) or "imdb" (25,000, 2). The
            rows of the first two are in the order of the official test files.
        root: the data folder, as for `load`; the files are below its `label-errors/`.
        download: whether files that are missing are downloaded (imdb 1.3 MB, the others less).

    Returns:
        LabelErrors(probs, labels, verdicts).

    Raises:
        ValueError: there is no such set.
        DataError: a file is missing or not what it should be; the message names the file.

    Source: https://github.com/cleanlab/label-errors (Apache 2.0), the files of arXiv 2103.14749.
    """
    if name not in LABEL_ERROR_SETS:
        raise ValueError(f"name must be one of {', '.join(LABEL_ERROR_SETS)}, but is {name!r}")

    def path(suffix: str) -> Path:
        return _file(f"label-errors/{name}_{suffix}", root, download)

    probs = _probabilities(path("test_set_pyx.npy"))
    labels = _labels(path("test_set_original_labels.npy"), *probs.shape)
    places = _imdb_places(path("test_set_index_to_filename.json"), len(labels)) if name == "imdb" else None
    verdicts = _verdicts(path("mturk.json"), labels, probs.shape[1], places)
    return LabelErrors(torch.from_numpy(probs), torch.from_numpy(labels), verdicts)


def cifar10h(*, root: str | os.PathLike[str] | None = None, download: bool = True) -> Tensor:
    """CIFAR-10H: how many of about fifty people chose each class for each test image of CIFAR-10.

    Args:
        root: the data folder, as for `load`; the file is `cifar10h/cifar10h-counts.npy` below it.
        download: whether the file is downloaded (0.8 MB) when it is missing.

    Returns:
        Counts (10000, 10) int64, in the order of the official test batch. Divided by their sums they estimate what a
        person answers; an answer of less than about 2 % of the people cannot be told from none.

    Raises:
        DataError: the file is missing or not what it should be; the message names the file.

    Source: Peterson, Battleday, Griffiths, Russakovsky 2019 (arXiv 1908.07086),
    https://github.com/jcpeterson/cifar-10h (CC BY-NC-SA 4.0).
    """
    path = _file("cifar10h/cifar10h-counts.npy", root, download)
    counts = _array(path, "iu", 2)
    if counts.shape[1] != len(cifar.CLASSES):
        raise DataError(f"{path} must hold a count for each of the 10 classes, but has shape {counts.shape}")
    bad = (counts < 0).any(axis=1) | (counts.sum(axis=1) < 1)
    if bad.any():
        row = bad.argmax()
        raise DataError(f"{path} must hold counts of answers, but row {row} is {counts[row].tolist()}")
    return torch.from_numpy(counts.astype(np.int64))


def _file(name: str, root: str | os.PathLike[str] | None, download: bool) -> Path:
    folder = data_root(root)
    if download:
        return fetch.ensure(folder, name)
    found = fetch.local(folder, name)
    if found is None:
        raise DataError(f"{folder / name} is missing; it is published as {fetch.REMOTES[name].urls[0]}")
    return found


def _array(path: Path, kinds: str, dimensions: int) -> np.ndarray:
    array = stored_array(path)
    if array.dtype.kind not in kinds or len(array.shape) != dimensions or not array.nbytes:
        wanted = "floating-point" if kinds == "f" else "whole"
        shape = "(N, K)" if dimensions == 2 else "(N,)"
        raise DataError(
            f"{path} must hold {wanted} numbers of shape {shape}, but holds {array.dtype} of shape {array.shape}"
        )
    (values,) = array.blocks(array.shape[0])
    return values


def _probabilities(path: Path) -> np.ndarray:
    probs = _array(path, "f", 2).astype(np.float64)
    bad = ~(np.abs(probs - 0.5) <= 0.5 + _TOLERANCE).all(axis=1) | ~(np.abs(probs.sum(axis=1) - 1) <= _TOLERANCE)
    if probs.shape[1] < 2 or bad.any():
        row = bad.argmax()
        raise DataError(f"{path} must hold probabilities that sum to 1, but row {row} is {_short(probs[row])}")
    # imdb's are up to 1.00001.
    return probs.clip(0, 1)


def _labels(path: Path, rows: int, classes: int) -> np.ndarray:
    labels = _array(path, "iu", 1).astype(np.int64)
    if len(labels) != rows:
        raise DataError(f"{path} holds {len(labels)} labels, but there are probabilities for {rows} rows")
    bad = (labels < 0) | (labels >= classes)
    if bad.any():
        row = bad.argmax()
        raise DataError(f"{path} has label {labels[row]} in row {row}, but there are {classes} classes")
    return labels


def _json(path: Path) -> list[Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is no JSON file: {error}") from None
    if not isinstance(content, list) or not content:
        raise DataError(f"{path} must hold a list with at least one entry")
    return content


def _imdb_places(path: Path, rows: int) -> dict[str, int]:
    """The row of each review by the name that the verdicts use: neg/10003_3.txt is test/neg/10003_3 there.

    Some 200 reviews occur twice, under one name. They have no place; nobody judged them.
    """
    names = [f"test/{str(name).removesuffix('.txt')}" for name in _json(path)]
    if len(names) != rows:
        raise DataError(f"{path} names {len(names)} reviews, but there are probabilities for {rows} rows")
    times = Counter(names)
    return {name: row for row, name in enumerate(names) if times[name] == 1}


def _verdicts(path: Path, labels: np.ndarray, classes: int, places: dict[str, int] | None) -> Verdicts:
    entries = [_verdict(path, i, entry, places) for i, entry in enumerate(_json(path))]
    row, given, guess, votes = (np.array(part, np.int64) for part in zip(*entries, strict=True))
    checks = {
        "names a row that the set does not have": (row < 0) | (row >= len(labels)),
        "proposes a class that the set does not have": (guess < 0) | (guess >= classes),
    }
    for wrong, bad in checks.items():
        if bad.any():
            raise DataError(f"{path}: entry {bad.argmax()} {wrong}")
    checks = {
        "names a row that an earlier one names": ~np.isin(np.arange(len(row)), np.unique(row, return_index=True)[1]),
        "has another given label than the file of labels": given != labels[row],
        f"has not {JUDGES} answers": votes.sum(axis=1) - np.where(guess == given, votes[:, 1], 0) != JUDGES,
    }
    for wrong, bad in checks.items():
        if bad.any():
            raise DataError(f"{path}: entry {bad.argmax()} {wrong}")
    votes[guess == given, 1] = 0
    return Verdicts(torch.from_numpy(row), torch.from_numpy(guess), torch.from_numpy(votes))


def _verdict(path: Path, i: int, entry: Any, places: dict[str, int] | None) -> tuple[int, int, int, list[int]]:
    """(row, given label, guessed label, votes) of one entry."""
    try:
        row, given, guess = (entry[key] for key in ("id", "given_original_label", "our_guessed_label"))
        if places is not None:
            row, given, guess = places[row], _IMDB_LABELS[given], _IMDB_LABELS[guess]
        votes = [0] * 4
        for answer, number in entry["mturk"].items():
            if type(number) is not int or not 0 <= number < 2**31:
                raise ValueError
            votes[_ANSWERS[answer]] += number
        if not all(type(value) is int and abs(value) < 2**31 for value in (row, given, guess)):
            raise ValueError
    except (KeyError, TypeError, AttributeError, ValueError):
        raise DataError(f"{path}: entry {i} is no verdict on a row: {str(entry)[:200]}") from None
    return row, given, guess, votes


def _short(row: np.ndarray) -> list[float]:
    return [float(f"{value:.6g}") for value in row[:10]]

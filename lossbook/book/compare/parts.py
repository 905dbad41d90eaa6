"""The rows of a comparison cut into three parts by a seed; all that is learned from rows is learned from the first."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lossbook.book.compare.data import Rows
from lossbook.data import Split

TEST_SHARE = VAL_SHARE = 0.2


class Parts(NamedTuple):
    """Three disjoint parts of the rows, prepared for a network, and which rows they are."""

    train: Split
    val: Split
    test: Split
    places: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


def split(rows: Rows, seed: int) -> Parts:
    """60 % to train, 20 % to choose by, 20 % to judge by, stratified; prepared by what the training part shows.

    Numbers and pixels are standardised by the training mean and deviation (of pixels: of each channel). A missing
    number becomes the mean, and its column gets a second one that says where it was missing. A text becomes a column
    for each category of the training part; one that occurs only elsewhere has 0 in all of them.
    """
    from sklearn.model_selection import train_test_split

    rest, test = train_test_split(np.arange(len(rows)), test_size=TEST_SHARE, stratify=rows.y, random_state=seed)
    share = VAL_SHARE / (1 - TEST_SHARE)
    train, val = train_test_split(rest, test_size=share, stratify=rows.y[rest], random_state=seed)
    x = torch.from_numpy(_prepared(rows, train))
    y = torch.from_numpy(rows.y)
    places = (np.sort(train), np.sort(val), np.sort(test))
    first, second, third = (Split(x[torch.from_numpy(i)], y[torch.from_numpy(i)]) for i in places)
    return Parts(first, second, third, places)


def _prepared(rows: Rows, train: NDArray[np.int64]) -> NDArray[np.float32]:
    if rows.images is not None:
        mean = rows.images[train].mean(axis=(0, 2, 3), keepdims=True, dtype=np.float64)
        scale = rows.images[train].std(axis=(0, 2, 3), keepdims=True, dtype=np.float64)
        return ((rows.images - mean) / np.where(scale > 0, scale, 1)).astype(np.float32)
    columns = []
    for column in rows.numbers.T:
        missing = np.isnan(column)
        seen = column[train][~missing[train]]
        mean, scale = (seen.mean(), seen.std()) if len(seen) else (0.0, 0.0)
        columns.append(np.where(missing, 0.0, (column - mean) / (scale if scale > 0 else 1.0)))
        if missing.any():
            columns.append(missing.astype(np.float64))
    for column in rows.texts.T:
        columns += [(column == category).astype(np.float64) for category in np.unique(column[train])]
    return np.stack(columns, axis=1).astype(np.float32)

"""Detection: which boxes are right, whether their scores say so, and how well they are ranked.

Notation: detection d has a box, a score s_d, a class k_d and an image; N detections, M objects (the true boxes), K
classes. Matching gives it a flag t_d (true positive) and u_d, the IoU with the object it found; u_d = 0 for a false
positive. A box is (x1, y1, x2, y2) with x1 ≤ x2 and y1 ≤ y2, in any unit of length.

Every function takes torch tensors, arrays or lists, computes in float64 with NumPy and returns NumPy arrays or Python
floats. Scores and IoUs lie in [0, 1], except where only the order of scores counts; flags are booleans or 0 and 1.
`n_gt` (K,) counts the objects of each class over all images. Equal scores keep the order in which they are given.
Bad input raises ValueError with the row and the value.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from lossbook import checks
from lossbook.metrics import _bins
from lossbook.metrics._inputs import as_labels, as_tensor, as_unit_interval

_PAIRS = 2**18  # pairs of a detection and an object whose IoU is taken at once


class Matches(NamedTuple):
    """What `match_detections` finds, a detection an entry."""

    is_true_positive: np.ndarray  #: (N,) bool
    iou: np.ndarray  #: (N,) float64, IoU with the object found; 0 for a false positive
    gt_index: np.ndarray  #: (N,) int64, row of that object; -1 for a false positive


def box_iou(boxes: Any, others: Any) -> np.ndarray:
    """Intersection over union of every box with every other: (N, M) in [0, 1], 0 where both have no area.

    Args:
        boxes: (N, 4) corners (x1, y1, x2, y2).
        others: (M, 4), the same.

    Raises:
        ValueError: wrong shape, a corner that is not finite, x2 < x1 or y2 < y1.
    """
    return _iou(_boxes("boxes", boxes)[:, None], _boxes("others", others)[None])


def match_detections(
    boxes: Any,
    scores: Any,
    labels: Any,
    images: Any,
    gt_boxes: Any,
    gt_labels: Any,
    gt_images: Any,
    *,
    iou_threshold: float = 0.5,
) -> Matches:
    """Greedy matching: by descending score, each detection takes the best object of its image and class still free.

    It is a true positive if that object's IoU is above the threshold; each object is found once, later detections of
    it are false positives. Of objects with equal IoU the first is taken. Detections with low scores never change what
    those with higher scores are matched to, so that a cap on the number of detections may be applied afterwards.

    Takes O(P log P) time for the P pairs with overlap above the threshold, and memory for those pairs.

    Args:
        boxes: (N, 4) corners. N may be 0.
        scores: (N,) finite numbers, of which the order counts.
        labels, images: (N,) integers from 0: class and image.
        gt_boxes, gt_labels, gt_images: (M, 4), (M,) and (M,), the same for the objects. M may be 0.
        iou_threshold: τ in [0, 1); an IoU has to exceed it.

    Raises:
        ValueError: bad input, by name and row.

    Source: Lin et al. 2014 (COCO), whose code accepts IoU = τ too; with τ = 0 this would match boxes that are apart.
    """
    _check_threshold(iou_threshold)
    box, score = _boxes("boxes", boxes), _real("scores", scores)
    gt_box = _boxes("gt_boxes", gt_boxes)
    if len(score) != len(box):
        raise ValueError(f"scores has {len(score)} entries, but there are {len(box)} boxes")
    group, gt_group = _groups(
        (_whole("labels", labels, len(box), "boxes"), _whole("images", images, len(box), "boxes")),
        (
            _whole("gt_labels", gt_labels, len(gt_box), "gt_boxes"),
            _whole("gt_images", gt_images, len(gt_box), "gt_boxes"),
        ),
    )
    found = np.full(len(box), -1)
    overlap = np.zeros(len(box))
    pairs = list(_overlapping_pairs(box, group, gt_box, gt_group, iou_threshold))
    if pairs:
        detection, candidate, iou = (np.concatenate(part) for part in zip(*pairs, strict=True))
        rank = np.empty(len(box), dtype=np.int64)
        rank[np.argsort(-score, kind="stable")] = np.arange(len(box))
        taken = np.zeros(len(gt_box), dtype=bool)
        # In this order the first free pair of a detection is its best one, and whoever scores more has chosen before.
        order = np.lexsort((candidate, -iou, rank[detection]))
        for d, g, u in zip(detection[order].tolist(), candidate[order].tolist(), iou[order].tolist(), strict=True):
            if found[d] < 0 and not taken[g]:
                found[d], overlap[d], taken[g] = g, u, True
    return Matches(found >= 0, overlap, found)


def detection_ece(scores: Any, is_true_positive: Any, *, n_bins: int = 10) -> float:
    """D-ECE: Σ_b (n_b/N) |precision_b - mean score_b| over equal bins of the score, all classes together.

    Args:
        scores: (N,) in [0, 1].
        is_true_positive: (N,) flags.
        n_bins: number of bins; (lo, hi], the first closed on the left.

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: bad input, by name and row; no detections.

    Source: Küppers et al. 2020; Kuzucu et al. 2024, who take 10 bins and flags of an IoU threshold of 0.5.
    """
    _bins.check_bins(n_bins)
    score = as_unit_interval("scores", scores)
    flag = torch.from_numpy(_flags(is_true_positive, len(score))).to(score.device)
    return float(_bins.calibration_error(_bins.uniform_sums(score, flag, n_bins), norm=1))


def localization_ece(
    scores: Any, labels: Any, is_true_positive: Any, iou: Any, *, n_bins: int = 25, adaptive: bool = False
) -> float:
    """LaECE: does the score equal the IoU? The mean over the classes that have detections of

        Σ_b (n_kb/n_k) |mean_b u - mean_b s| = Σ_b (n_kb/n_k) |precision_b · mean IoU of true positives_b - mean_b s|.

    LaECE_0 is this with flags of an IoU threshold of 0. `adaptive` gives every detection a bin of its own (LaACE):
    per class mean_d |u_d - s_d|.

    Args:
        scores: (N,) in [0, 1].
        labels: (N,) classes, integers from 0.
        is_true_positive: (N,) flags.
        iou: (N,) in [0, 1]; what it says of a false positive is not looked at, u is 0 there.
        n_bins: number of equal bins of the score; (lo, hi], the first closed on the left.
        adaptive: no bins.

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: bad input, by name and row; no detections.

    Source: Kuzucu, Oksuz, Sadeghi, Dokania 2024, On Calibration of Object Detectors. Their code leaves out
    of the mean the classes whose error is exactly 0; here they count.
    """
    _bins.check_bins(n_bins)
    score = as_unit_interval("scores", scores).cpu()
    u = torch.from_numpy(_found_iou(is_true_positive, iou, len(score)))
    label = as_labels("labels", labels, score, None, "scores")
    present, label = label.unique(return_inverse=True)
    count = torch.bincount(label)
    if adaptive:
        error = torch.bincount(label, weights=(u - score.double()).abs())
    else:
        cell = label * n_bins + _bins.uniform_index(score, n_bins)
        _, total_score, total_iou = _bins.sums_by_index(cell, score, u, len(present) * n_bins)
        error = (total_iou - total_score).abs().reshape(-1, n_bins).sum(dim=1)
    return float((error / count).mean())


def lrp_error(labels: Any, is_true_positive: Any, iou: Any, n_gt: Any, *, iou_threshold: float = 0.0) -> float:
    """Localisation recall precision error: the mean over the classes that have objects of

        LRP = (Σ_TP (1 - u)/(1 - τ) + N_FP + N_FN) / (N_TP + N_FP + N_FN).

    Args:
        labels: (N,) classes in [0, K) of the detections that are kept; N may be 0.
        is_true_positive: (N,) flags of a matching at `iou_threshold`.
        iou: (N,) in [0, 1].
        n_gt: (K,) objects of each class.
        iou_threshold: τ in [0, 1).

    Returns:
        A number in [0, 1]; a class without a true positive has 1.

    Raises:
        ValueError: bad input, by name and row; more true positives than objects; a true positive's IoU below τ; no
            class has an object.

    Source: Oksuz, Cam, Akbas, Kalkan 2018; its authors' later code agrees.
    """
    label, flag, u, objects = _list_of_all_classes(labels, is_true_positive, iou, n_gt, iou_threshold)
    true = np.bincount(label, weights=flag, minlength=len(objects))
    false = np.bincount(label, minlength=len(objects)) - true
    error = np.bincount(label, weights=flag * (1 - u), minlength=len(objects)) / (1 - iou_threshold)
    present = objects > 0
    return float(((error + false + objects - true)[present] / (false + objects)[present]).mean())


def lrp_optimal_threshold(
    scores: Any, labels: Any, is_true_positive: Any, iou: Any, n_gt: Any, *, iou_threshold: float = 0.0
) -> np.ndarray:
    """The score from which on detections of a class are worth keeping: argmin_v LRP of those with s ≥ v, per class.

    Choose it on validation data. Of several minimisers the highest is taken.

    Args:
        scores: (N,) finite numbers.
        labels, is_true_positive, iou, n_gt, iou_threshold: as `lrp_error`.

    Returns:
        (K,) thresholds; infinity for a class without a true positive, of which nothing is worth keeping.

    Raises:
        ValueError: as `lrp_error`, but classes without objects are welcome.

    Source: Oksuz, Cam, Akbas, Kalkan 2018. Their code also stops between equal scores, which no threshold can.
    """
    label, flag, u, objects = _list_of_all_classes(
        labels, is_true_positive, iou, n_gt, iou_threshold, need_objects=False
    )
    score = _real("scores", scores, len(label))
    thresholds = np.full(len(objects), np.inf)
    for k, rows in _by_class(score, label):
        if not flag[rows].any():
            continue
        total = np.arange(1, len(rows) + 1)
        true = flag[rows].cumsum()
        error = (flag[rows] * (1 - u[rows])).cumsum() / (1 - iou_threshold)
        lrp = (error + (total - true) + (objects[k] - true)) / (total - true + objects[k])
        last_of_its_score = np.append(score[rows][1:] != score[rows][:-1], True)
        thresholds[k] = score[rows][last_of_its_score][lrp[last_of_its_score].argmin()]
    return thresholds


def average_precision(scores: Any, is_true_positive: Any, n_gt: int, *, recall_points: int | None = 101) -> float:
    """AP of one ranked list: mean over the recalls r = 0, 1/100, …, 1 of the best precision at a recall of at least r.

    After the first j detections by descending score, precision is TP_j/j and recall TP_j/n. A recall that is never
    reached counts 0. Recall and r are compared as integers, so that rounding decides nothing.

    Args:
        scores: (N,) finite numbers, of which the order counts; N may be 0.
        is_true_positive: (N,) flags.
        n_gt: n, objects there are to find; at least 1.
        recall_points: how many recalls, at least 2; None for the area without interpolation, Σ_TP precision / n.

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: bad input, by name and row; more true positives than objects.

    Source: Lin et al. 2014 (COCO).
    """
    n = checks.whole("n_gt", n_gt, 1)
    if recall_points is not None:
        checks.whole("recall_points", recall_points, 2)
    score = _real("scores", scores)
    flag = _flags(is_true_positive, len(score))
    if flag.sum() > n:
        raise ValueError(f"there are {int(flag.sum())} true positives, but n_gt is {n}")
    return _average_precision(flag[np.argsort(-score, kind="stable")], n, recall_points)


def ap_per_image_cap(
    scores: Any, labels: Any, images: Any, is_true_positive: Any, n_gt: Any, *, max_per_image: int = 300
) -> float:
    """Mean AP over the classes that have objects, after each image has kept its highest scores over all classes.

    The cap makes classes compete: whoever ranks rare classes first gains, although no class is ranked better.

    Args:
        scores: (N,) finite numbers, of which the order counts.
        labels: (N,) classes in [0, K).
        images: (N,) integers from 0.
        is_true_positive: (N,) flags of a matching by these scores, or by scores of the same order within each class.
        n_gt: (K,) objects of each class.
        max_per_image: detections kept of an image; 100 in COCO, 300 in LVIS.

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: bad input, by name and row; more true positives than objects; no class has an object.

    Source: Dave et al. 2021, Evaluating Large-Vocabulary Object Detectors: The Devil is in the Details.
    """
    limit = checks.whole("max_per_image", max_per_image, 1)
    score, label, flag, objects = _ranked_lists(scores, labels, is_true_positive, n_gt)
    keep = _highest(score, _whole("images", images, len(score), "scores"), limit)
    return _mean_average_precision(score[keep], label[keep], flag[keep], objects)


def ap_fixed(scores: Any, labels: Any, is_true_positive: Any, n_gt: Any, *, max_per_class: int = 10_000) -> float:
    """AP-Fixed: mean AP over the classes that have objects; each class keeps its highest scores over all images.

    No class can take the place of another: a strictly increasing change of a class's scores changes nothing.

    Args:
        scores, labels, is_true_positive, n_gt: as `ap_per_image_cap`.
        max_per_class: detections kept of a class.

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: as `ap_per_image_cap`.

    Source: Dave et al. 2021 and its code.
    """
    limit = checks.whole("max_per_class", max_per_class, 1)
    score, label, flag, objects = _ranked_lists(scores, labels, is_true_positive, n_gt)
    keep = _highest(score, label, limit)
    return _mean_average_precision(score[keep], label[keep], flag[keep], objects)


def ap_pool(scores: Any, labels: Any, is_true_positive: Any, n_gt: Any, *, max_per_class: int = 10_000) -> float:
    """AP-Pool: one AP for all detections in one list, with Σ_k n_k objects to find.

    Scores of different classes have to be comparable for it. Classes count by their objects, and detections of a class
    that has none are false positives.

    Args:
        scores, labels, is_true_positive, n_gt: as `ap_per_image_cap`.
        max_per_class: detections kept of a class before pooling.

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: as `ap_per_image_cap`.

    Source: Dave et al. 2021 and its code.
    """
    limit = checks.whole("max_per_class", max_per_class, 1)
    score, label, flag, objects = _ranked_lists(scores, labels, is_true_positive, n_gt)
    keep = _highest(score, label, limit)
    return _average_precision(flag[keep][np.argsort(-score[keep], kind="stable")], int(objects.sum()), 101)


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of the boxes in the last dimension, broadcast."""
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    intersection = sides.clip(min=0).prod(axis=-1)
    union = (a[..., 2:] - a[..., :2]).prod(axis=-1) + (b[..., 2:] - b[..., :2]).prod(axis=-1) - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)


def _groups(
    keys: tuple[np.ndarray, np.ndarray], others: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """One number for each pair of class and image, the same in both."""
    classes, label = np.unique(np.concatenate((keys[0], others[0])), return_inverse=True)
    _, image = np.unique(np.concatenate((keys[1], others[1])), return_inverse=True)
    group = image * len(classes) + label
    return group[: len(keys[0])], group[len(keys[0]) :]


def _overlapping_pairs(
    box: np.ndarray, group: np.ndarray, gt_box: np.ndarray, gt_group: np.ndarray, threshold: float
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(detection, object, IoU) of the pairs within a group with IoU above the threshold, a chunk at a time."""
    by_group = np.argsort(gt_group, kind="stable")
    first = np.searchsorted(gt_group[by_group], group, side="left")
    count = np.searchsorted(gt_group[by_group], group, side="right") - first
    end = count.cumsum()
    start = 0
    while start < len(box):
        done = int(end[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(end, done + _PAIRS, side="right")))
        detection = np.repeat(np.arange(start, stop), count[start:stop])
        offset = np.arange(len(detection)) - np.repeat(end[start:stop] - count[start:stop] - done, count[start:stop])
        candidate = by_group[first[detection] + offset]
        iou = _iou(box[detection], gt_box[candidate])
        above = iou > threshold
        yield detection[above], candidate[above], iou[above]
        start = stop


def _average_precision(flag: np.ndarray, n: int, recall_points: int | None) -> float:
    """AP of flags in the order of their scores."""
    true = flag.cumsum()
    precision = true / np.arange(1, len(flag) + 1)
    if recall_points is None:
        return float(precision[flag].sum()) / n
    best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    # TP/n ≥ j/(R - 1), without dividing.
    needed = -(-np.arange(recall_points) * n // (recall_points - 1))
    return float(best[np.searchsorted(true, needed, side="left")].mean())


def _mean_average_precision(score: np.ndarray, label: np.ndarray, flag: np.ndarray, objects: np.ndarray) -> float:
    values = np.zeros(len(objects))
    for k, rows in _by_class(score, label):
        if objects[k] > 0:
            values[k] = _average_precision(flag[rows], int(objects[k]), 101)
    return float(values[objects > 0].mean())


def _by_class(score: np.ndarray, label: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(class, its rows by descending score) for each class that has rows."""
    order = np.lexsort((-score, label))
    starts = np.flatnonzero(np.diff(label[order], prepend=-1))
    for rows in np.split(order, starts[1:]):
        if len(rows):
            yield int(label[rows[0]]), rows


def _highest(score: np.ndarray, group: np.ndarray, limit: int) -> np.ndarray:
    """Which rows are among the `limit` highest scores of their group."""
    order = np.lexsort((-score, group))
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    rank = np.arange(len(score)) - np.repeat(starts, np.diff(np.append(starts, len(score))))
    keep = np.empty(len(score), dtype=bool)
    keep[order] = rank < limit
    return keep


def _ranked_lists(
    scores: Any, labels: Any, is_true_positive: Any, n_gt: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    score = _real("scores", scores)
    label, objects = _labels_of_objects(labels, n_gt, len(score))
    flag = _flags(is_true_positive, len(score))
    _check_counts(label, flag, objects)
    _check_objects(objects)
    return score, label, flag, objects


def _list_of_all_classes(
    labels: Any, is_true_positive: Any, iou: Any, n_gt: Any, iou_threshold: float, need_objects: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    _check_threshold(iou_threshold)
    label, objects = _labels_of_objects(labels, n_gt)
    flag, u = _flags(is_true_positive, len(label)), _found_iou(is_true_positive, iou, len(label))
    if (bad := flag & (u < iou_threshold)).any():
        row = int(bad.argmax())
        raise ValueError(
            f"detection {row} is a true positive with iou {u[row]:g}, below iou_threshold {iou_threshold:g}"
        )
    _check_counts(label, flag, objects)
    if need_objects:
        _check_objects(objects)
    return label, flag, u, objects


def _check_threshold(iou_threshold: float) -> None:
    checks.parameter("iou_threshold", iou_threshold, 0, 1)
    if iou_threshold == 1:
        raise ValueError("iou_threshold must be below 1, but is 1")


def _labels_of_objects(labels: Any, n_gt: Any, n: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Labels (N,) and objects per class (K,), the former in [0, K)."""
    objects = _whole("n_gt", n_gt)
    label = _whole("labels", labels, n, "scores")
    if len(label) and label.max() >= len(objects):
        row = int((label >= len(objects)).argmax())
        raise ValueError(f"labels[{row}] is class {label[row]}, but n_gt has {len(objects)} classes")
    return label, objects


def _check_counts(label: np.ndarray, flag: np.ndarray, objects: np.ndarray) -> None:
    true = np.bincount(label[flag], minlength=len(objects))
    if (bad := true > objects).any():
        k = int(bad.argmax())
        raise ValueError(f"class {k} has {true[k]} true positives, but n_gt[{k}] is {objects[k]}")


def _check_objects(objects: np.ndarray) -> None:
    if not objects.any():
        raise ValueError(f"n_gt counts no object in any of its {len(objects)} classes")


def _found_iou(is_true_positive: Any, iou: Any, n: int) -> np.ndarray:
    """u (N,) float64: the IoU, and 0 for a false positive."""
    flag = _flags(is_true_positive, n)
    value = _real("iou", iou, n)
    if (bad := (value < 0) | (value > 1)).any():
        raise ValueError(f"iou[{bad.argmax()}] is {value[bad][0]:g}, outside [0, 1]")
    return np.where(flag, value, 0.0)


def _flags(is_true_positive: Any, n: int) -> np.ndarray:
    value = _real("is_true_positive", is_true_positive, n)
    if (bad := (value != 0) & (value != 1)).any():
        raise ValueError(
            f"is_true_positive must hold 0 and 1, but is_true_positive[{bad.argmax()}] is {value[bad][0]:g}"
        )
    return value == 1


def _real(name: str, value: Any, n: int | None = None) -> np.ndarray:
    """Finite float64 (N,)."""
    tensor = as_tensor(name, value)
    if tensor.dim() != 1:
        raise ValueError(f"{name} must have shape (N,), but has shape {tuple(tensor.shape)}")
    if n is not None and len(tensor) != n:
        raise ValueError(f"{name} has {len(tensor)} entries, but there are {n} detections")
    array = tensor.to("cpu", torch.float64).numpy()
    if (bad := ~np.isfinite(array)).any():
        raise ValueError(f"{name} must be finite, but {name}[{bad.argmax()}] is {array[bad][0]}")
    return array


def _whole(name: str, value: Any, n: int | None = None, owner: str = "") -> np.ndarray:
    """Integers (N,) from 0."""
    tensor = as_tensor(name, value)
    # An empty list has no dtype to speak of.
    if tensor.numel() and (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool):
        raise ValueError(f"{name} must hold integers, but has dtype {tensor.dtype}")
    if tensor.dim() != 1 or (n is not None and len(tensor) != n):
        wanted = "(N,)" if n is None else f"({n},), an entry for each of the {owner}"
        raise ValueError(f"{name} must have shape {wanted}, but has shape {tuple(tensor.shape)}")
    array = tensor.to("cpu", torch.int64).numpy()
    if len(array) and array.min() < 0:
        raise ValueError(f"{name}[{array.argmin()}] is {array.min()}, but must not be negative")
    return array


def _boxes(name: str, value: Any) -> np.ndarray:
    tensor = as_tensor(name, value)
    if tensor.dim() != 2 or tensor.shape[1] != 4:
        raise ValueError(f"{name} must have shape (N, 4), but has shape {tuple(tensor.shape)}")
    array = tensor.to("cpu", torch.float64).numpy()
    bad = ~np.isfinite(array).all(axis=1) | (array[:, 2:] < array[:, :2]).any(axis=1)
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(f"{name}[{row}] must be finite x1 <= x2 and y1 <= y2, but is {array[row].tolist()}")
    return array

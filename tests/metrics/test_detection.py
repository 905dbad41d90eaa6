"""Detection metrics: by hand, a loop of the definition, scikit-learn, the ECE of classes, invariances, bad input."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from lossbook import metrics

SQUARE = [0.0, 0.0, 10.0, 10.0]


def random_problem(seed, n=60, m=40, classes=3, images=4, size=6):
    """Boxes with small integer corners, so that overlaps, ties of the IoU and of the score are all common."""
    rng = np.random.default_rng(seed)

    def boxes(count):
        corner = rng.integers(0, size, (count, 2))
        return np.concatenate([corner, corner + rng.integers(0, 4, (count, 2))], axis=1)

    return (
        boxes(n),
        rng.integers(0, 8, n) / 8,
        rng.integers(0, classes, n),
        rng.integers(0, images, n) * 10**12,
        boxes(m),
        rng.integers(0, classes, m),
        rng.integers(0, images, m) * 10**12,
    )


def ranked(seed, n=300, classes=4, images=20):
    """scores, labels, images, flags, n_gt"""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    flags = rng.random(n) < 0.4
    n_gt = np.bincount(labels[flags], minlength=classes) + rng.integers(0, 30, classes)
    return rng.permutation(n) / n, labels, rng.integers(0, images, n), flags, n_gt


# Boxes and matching


def iou_by_areas(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union if union > 0 else 0.0


def test_iou_by_hand():
    others = [SQUARE, [5, 0, 15, 10], [5, 5, 15, 15], [10, 0, 20, 10], [2, 2, 4, 4], [3, 3, 3, 3], [20, 20, 30, 30]]
    expected = [1, 50 / 150, 25 / 175, 0, 4 / 100, 0, 0]
    np.testing.assert_allclose(metrics.box_iou([SQUARE], others), [expected], atol=1e-15)
    assert metrics.box_iou([[1, 1, 1, 1]], [[1, 1, 1, 1]]) == 0
    assert metrics.box_iou(np.zeros((0, 4)), [SQUARE]).shape == (0, 1)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.sampled_from([1e-3, 1.0, 1e4]))
def test_iou_is_symmetric_and_does_not_see_where_or_how_large(seed, scale):
    boxes, _, _, _, others, _, _ = random_problem(seed, n=6, m=5)
    iou = metrics.box_iou(boxes, others)
    np.testing.assert_allclose(iou, [[iou_by_areas(a, b) for b in others] for a in boxes], atol=1e-14)
    np.testing.assert_allclose(iou, metrics.box_iou(others, boxes).T, atol=1e-14)
    np.testing.assert_allclose(iou, metrics.box_iou(scale * boxes + 3, scale * others + 3), atol=1e-9)


def matching_by_loop(boxes, scores, labels, images, gt_boxes, gt_labels, gt_images, threshold):
    found, overlap = np.full(len(boxes), -1), np.zeros(len(boxes))
    free = set(range(len(gt_boxes)))
    for d in sorted(range(len(boxes)), key=lambda d: -scores[d]):
        best, best_iou = -1, threshold
        for g in sorted(free):
            if labels[d] == gt_labels[g] and images[d] == gt_images[g]:
                iou = iou_by_areas(boxes[d], gt_boxes[g])
                if iou > best_iou:
                    best, best_iou = g, iou
        if best >= 0:
            found[d], overlap[d] = best, best_iou
            free.remove(best)
    return found, overlap


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), threshold=st.sampled_from([0.0, 0.2, 0.5, 0.75]))
def test_matching_is_the_greedy_loop(seed, threshold):
    problem = random_problem(seed)
    found, overlap = matching_by_loop(*problem, threshold)
    matches = metrics.match_detections(*problem, iou_threshold=threshold)
    np.testing.assert_array_equal(matches.gt_index, found)
    np.testing.assert_allclose(matches.iou, overlap, atol=1e-15)
    np.testing.assert_array_equal(matches.is_true_positive, found >= 0)


def test_matching_in_chunks(monkeypatch):
    from lossbook.metrics import detection

    whole = metrics.match_detections(*random_problem(0), iou_threshold=0.1)
    for pairs in (1, 7, 40):
        monkeypatch.setattr(detection, "_PAIRS", pairs)
        for a, b in zip(metrics.match_detections(*random_problem(0), iou_threshold=0.1), whole, strict=True):
            np.testing.assert_array_equal(a, b)


def test_matching_by_hand():
    boxes = [SQUARE, SQUARE, [0, 0, 10, 8], SQUARE, SQUARE]
    scores, labels, images = [0.5, 0.9, 0.7, 0.95, 0.95], [0, 0, 0, 1, 0], [0, 0, 0, 0, 1]
    matches = metrics.match_detections(boxes, scores, labels, images, [SQUARE, [0, 0, 10, 7]], [0, 0], [0, 0])
    assert matches.gt_index.tolist() == [-1, 0, 1, -1, -1]
    np.testing.assert_allclose(matches.iou, [0, 1, 7 / 8, 0, 0])
    # The IoU has to exceed the threshold.
    assert not metrics.match_detections([SQUARE], [1], [0], [0], [[0, 0, 10, 5]], [0], [0]).is_true_positive.any()
    assert metrics.match_detections([SQUARE], [1], [0], [0], [[0, 0, 10, 5.1]], [0], [0]).is_true_positive.all()
    # Boxes that touch don't match at 0.
    apart = metrics.match_detections([SQUARE], [1], [0], [0], [[10, 0, 20, 10]], [0], [0], iou_threshold=0)
    assert not apart.is_true_positive.any()


def test_matching_nothing():
    none = np.zeros((0, 4))
    assert metrics.match_detections([SQUARE], [1], [0], [0], none, [], []).gt_index.tolist() == [-1]
    assert metrics.match_detections(none, [], [], [], [SQUARE], [0], [0]).gt_index.shape == (0,)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), keep=st.integers(1, 59))
def test_low_scores_change_no_match_of_high_ones(seed, keep):
    """So that the caps of the AP may be applied to matched detections."""
    problem = random_problem(seed)
    top = np.sort(np.argsort(-problem[1], kind="stable")[:keep])
    every = metrics.match_detections(*problem)
    few = metrics.match_detections(*(part[top] for part in problem[:4]), *problem[4:])
    np.testing.assert_array_equal(few.gt_index, every.gt_index[top])


def test_a_hundred_thousand_detections_take_a_second():
    rng = np.random.default_rng(0)
    n, m = 100_000, 20_000
    corner = rng.random((n, 2)) * 90
    boxes = np.concatenate([corner, corner + 10 + 10 * rng.random((n, 2))], axis=1)
    arguments = boxes, rng.random(n), rng.integers(0, 5, n), rng.integers(0, 500, n)
    start = time.process_time()
    matches = metrics.match_detections(*arguments, boxes[:m], *(part[:m] for part in arguments[2:]))
    assert time.process_time() - start < 2
    assert m / 2 < matches.is_true_positive.sum() <= m


# Calibration errors


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), n_bins=st.integers(1, 30))
def test_detection_ece_is_the_ece_of_the_flags(seed, n_bins):
    scores, _, _, flags, _ = ranked(seed)
    expected = metrics.expected_calibration_error(scores, flags, n_bins=n_bins)
    assert metrics.detection_ece(scores, flags, n_bins=n_bins) == pytest.approx(expected, abs=1e-14)


def laece_by_loop(scores, labels, flags, iou, n_bins):
    errors = []
    for k in sorted(set(labels.tolist())):
        s, u = scores[labels == k], np.where(flags, iou, 0)[labels == k]
        error = 0.0
        for b in range(n_bins):
            inside = ((s > b / n_bins) | ((b == 0) & (s == 0))) & (s <= (b + 1) / n_bins)
            if inside.any():
                error += inside.mean() * abs(u[inside].mean() - s[inside].mean())
        errors.append(error)
    return np.mean(errors)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), n_bins=st.integers(1, 30))
def test_localization_ece_is_the_loop(seed, n_bins):
    scores, labels, _, flags, _ = ranked(seed, n=80)
    labels = labels * 7 + 2  # classes 0 and 1, and many others, have no detections
    iou = np.random.default_rng(seed).random(80)
    found = metrics.localization_ece(scores, labels, flags, iou, n_bins=n_bins)
    assert found == pytest.approx(laece_by_loop(scores, labels, flags, iou, n_bins), abs=1e-13)
    per_class = [np.abs(np.where(flags, iou, 0) - scores)[labels == k].mean() for k in np.unique(labels)]
    adaptive = metrics.localization_ece(scores, labels, flags, iou, adaptive=True)
    assert adaptive == pytest.approx(np.mean(per_class), abs=1e-13)
    assert found <= adaptive + 1e-13  # the triangle inequality


def test_a_perfect_class_counts():
    scores, labels, iou = [0.75, 0.5], [0, 1], [0.75, 0.9]
    assert metrics.localization_ece(scores, labels, [1, 0], iou) == pytest.approx(0.25)
    assert metrics.localization_ece(scores, labels, [1, 0], iou, adaptive=True) == pytest.approx(0.25)


def test_tensors_and_dtypes():
    scores, labels, _, flags, _ = ranked(0)
    iou = np.random.default_rng(0).random(len(scores))
    expected = metrics.localization_ece(scores, labels, flags, iou)
    tensors = [torch.from_numpy(part) for part in (scores, labels, flags, iou)]
    assert metrics.localization_ece(*tensors) == expected
    assert metrics.localization_ece(tensors[0].requires_grad_(), tensors[1].int(), flags.astype(int), iou) == expected
    half = torch.from_numpy(scores).bfloat16()
    assert metrics.localization_ece(half, labels, flags, iou) == pytest.approx(expected, abs=0.02)
    assert metrics.detection_ece(half, flags) == pytest.approx(metrics.detection_ece(scores, flags), abs=0.02)


# Localisation recall precision


def lrp(flags, u, n_gt, tau):
    true = sum(flags)
    false, missed = len(flags) - true, n_gt - true
    error = sum((1 - x) / (1 - tau) for x, flag in zip(u, flags, strict=True) if flag)
    return (error + false + missed) / (true + false + missed)


def test_lrp_by_hand():
    # 2 true positives with IoU 0.8 and 0.6 at τ = 0.5, one false positive, one object missed
    found = metrics.lrp_error([0, 0, 0], [1, 0, 1], [0.8, 0.0, 0.6], [3], iou_threshold=0.5)
    assert found == pytest.approx((0.4 + 0.8 + 1 + 1) / 4)
    assert metrics.lrp_error([0, 0], [1, 1], [1.0, 1.0], [2]) == 0
    assert metrics.lrp_error([], [], [], [2]) == 1
    assert metrics.lrp_error([0], [0], [0.0], [2]) == 1
    # A class without objects is left out, and its false positives with it.
    assert metrics.lrp_error([0, 1, 1], [1, 0, 0], [1.0, 0, 0], [1, 0]) == 0


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), tau=st.sampled_from([0.0, 0.5]))
def test_lrp_and_its_threshold_are_the_loop(seed, tau):
    scores, labels, _, flags, n_gt = ranked(seed, n=60)
    scores = np.round(scores, 1)  # ties
    n_gt = n_gt + 1
    u = tau + (1 - tau) * np.random.default_rng(seed).random(60)
    rows = [labels == k for k in range(4)]
    expected = [lrp(flags[r], u[r], n, tau) for r, n in zip(rows, n_gt, strict=True)]
    assert metrics.lrp_error(labels, flags, u, n_gt, iou_threshold=tau) == pytest.approx(np.mean(expected), abs=1e-13)

    thresholds = metrics.lrp_optimal_threshold(scores, labels, flags, u, n_gt, iou_threshold=tau)
    for k, threshold in enumerate(thresholds):
        of = {v: rows[k] & (scores >= v) for v in np.unique(scores[rows[k]])}
        by_loop = {v: lrp(flags[kept], u[kept], n_gt[k], tau) for v, kept in of.items()}
        if not flags[rows[k]].any():
            assert threshold == np.inf
        else:
            assert by_loop[threshold] <= min(by_loop.values()) + 1e-13
    kept = scores >= thresholds[labels]
    after = metrics.lrp_error(labels[kept], flags[kept], u[kept], n_gt, iou_threshold=tau)
    assert after <= metrics.lrp_error(labels, flags, u, n_gt, iou_threshold=tau) + 1e-13


def test_threshold_of_a_class_without_true_positives_keeps_nothing():
    thresholds = metrics.lrp_optimal_threshold([0.9, 0.8, 0.3], [0, 1, 0], [1, 0, 0], [0.9, 0, 0], [1, 1, 0])
    assert thresholds.tolist() == [0.9, np.inf, np.inf]


# Average precision


def test_average_precision_by_hand():
    # Precision 1, 1/2, 2/3, 1/2, 3/5 at recall 1/4, 1/4, 2/4, 2/4, 3/4; made monotone from the right 1, 2/3, 2/3, 3/5,
    # 3/5. Recalls 0 to 0.25 (26 points) see 1, those to 0.5 (25) 2/3, those to 0.75 (25) 3/5, the last 25 nothing.
    scores, flags = [0.9, 0.8, 0.7, 0.6, 0.5], [1, 0, 1, 0, 1]
    expected = (26 * 1 + 25 * 2 / 3 + 25 * 3 / 5) / 101
    assert metrics.average_precision(scores, flags, 4) == pytest.approx(expected, abs=1e-15)
    # Eleven points, of Pascal VOC 2007: 0, 0.1, 0.2 | 0.3, 0.4, 0.5 | 0.6, 0.7
    expected = (3 * 1 + 3 * 2 / 3 + 2 * 3 / 5) / 11
    assert metrics.average_precision(scores, flags, 4, recall_points=11) == pytest.approx(expected, abs=1e-15)
    area = (1 + 2 / 3 + 3 / 5) / 4
    assert metrics.average_precision(scores, flags, 4, recall_points=None) == pytest.approx(area, abs=1e-15)


def test_average_precision_at_its_limits():
    assert metrics.average_precision([], [], 3) == 0
    assert metrics.average_precision([0.5], [0], 3) == 0
    assert metrics.average_precision([0.5, 0.4], [1, 1], 2) == 1
    # Recall 7/100 reaches the point 7 · 0.01, which as floating-point numbers is above 7/100.
    flags = np.arange(100) < 7
    assert metrics.average_precision(-np.arange(100.0), flags, 100) == pytest.approx(8 / 101, abs=1e-15)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 60))
def test_average_precision_without_interpolation_is_scikit_learns(seed, n):
    rng = np.random.default_rng(seed)
    flags, scores = rng.random(n) < 0.5, rng.permutation(n).astype(float)
    if flags.any():
        found = metrics.average_precision(scores, flags, int(flags.sum()), recall_points=None)
        assert found == pytest.approx(average_precision_score(flags, scores), abs=1e-14)
        # Interpolation raises precision; with many points the mean over recalls is the area.
        fine = metrics.average_precision(scores, flags, int(flags.sum()), recall_points=100_001)
        assert fine >= found - 1e-4


def interpolated_by_loop(flags, n, points=101):
    """max over the ranks with recall ≥ r of the precision, at every r."""
    total = 0.0
    for i in range(points):
        ranks = [j for j in range(1, len(flags) + 1) if flags[:j].sum() * (points - 1) >= i * n]
        total += max((flags[:j].sum() / j for j in ranks), default=0.0)
    return total / points


def aps_by_loop(scores, labels, flags, n_gt, kept):
    values = []
    for k in range(len(n_gt)):
        if n_gt[k]:
            rows = sorted(np.flatnonzero(kept & (labels == k)), key=lambda d: -scores[d])
            values.append(interpolated_by_loop(flags[rows], n_gt[k]))
    return np.mean(values)


@pytest.mark.parametrize("seed", range(5))
def test_the_three_averages_are_the_loop(seed):
    scores, labels, images, flags, n_gt = ranked(seed, n=60)
    flags[labels == 3], n_gt[3] = False, 0  # a class without objects
    n_gt[:3] += 1

    def highest(group, limit):
        return np.array([((group == group[d]) & (scores > scores[d])).sum() < limit for d in range(60)])

    by_image, by_class = highest(images, 2), highest(labels, 9)
    found = metrics.ap_per_image_cap(scores, labels, images, flags, n_gt, max_per_image=2)
    assert found == pytest.approx(aps_by_loop(scores, labels, flags, n_gt, by_image), abs=1e-14)
    found = metrics.ap_fixed(scores, labels, flags, n_gt, max_per_class=9)
    assert found == pytest.approx(aps_by_loop(scores, labels, flags, n_gt, by_class), abs=1e-14)
    rows = np.flatnonzero(by_class)
    pool = flags[rows[np.argsort(-scores[rows])]]
    found = metrics.ap_pool(scores, labels, flags, n_gt, max_per_class=9)
    assert found == pytest.approx(interpolated_by_loop(pool, n_gt.sum()), abs=1e-14)


def test_fixed_does_not_see_a_class_rescored_and_pool_does():
    scores, labels, images, flags, n_gt = ranked(1)
    rescored = scores ** (1 + labels)
    assert metrics.ap_fixed(rescored, labels, flags, n_gt) == metrics.ap_fixed(scores, labels, flags, n_gt)
    assert metrics.ap_pool(rescored, labels, flags, n_gt) != metrics.ap_pool(scores, labels, flags, n_gt)
    capped = [metrics.ap_per_image_cap(s, labels, images, flags, n_gt, max_per_image=5) for s in (scores, rescored)]
    assert capped[0] != capped[1]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), cap=st.integers(1, 30), share=st.integers(1, 60))
def test_fixed_cannot_be_gamed_by_any_increasing_change_of_a_class(seed, cap, share):
    """Whatever is demoted of a class as a whole below a rank, or stretched: AP-Fixed is the same number."""
    scores, labels, _, flags, n_gt = ranked(seed)
    n_gt = n_gt + 1
    rank = np.array([((labels == k) & (scores > s)).sum() for s, k in zip(scores, labels, strict=True)])
    stretch = np.random.default_rng(seed).uniform(0.2, 5, 4)[labels]
    expected = metrics.ap_fixed(scores, labels, flags, n_gt, max_per_class=cap)
    for changed in (scores - (rank >= share), scores**stretch - 2 * labels):
        assert metrics.ap_fixed(changed, labels, flags, n_gt, max_per_class=cap) == expected


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), cap=st.integers(1, 20))
def test_caps(seed, cap):
    """What is left out never raises AP; caps that leave nothing out give the same; one class has one AP."""
    scores, labels, images, flags, n_gt = ranked(seed)
    n_gt = n_gt + 1
    free = metrics.ap_fixed(scores, labels, flags, n_gt)
    assert metrics.ap_per_image_cap(scores, labels, images, flags, n_gt) == free
    assert metrics.ap_per_image_cap(scores, labels, images, flags, n_gt, max_per_image=cap) <= 1
    assert metrics.ap_fixed(scores, labels, flags, n_gt, max_per_class=cap) <= free + 1e-14
    one, total = np.zeros_like(labels), [int(n_gt.sum())]
    pooled = metrics.ap_pool(scores, labels, flags, n_gt)
    assert metrics.ap_fixed(scores, one, flags, total) == pytest.approx(pooled, abs=1e-14)
    assert metrics.average_precision(scores, flags, total[0]) == pytest.approx(pooled, abs=1e-14)


def test_equal_scores_keep_the_order_given():
    assert metrics.average_precision([1, 1], [1, 0], 1) == 1
    assert metrics.average_precision([1, 1], [0, 1], 1) == 0.5
    assert metrics.ap_pool([1, 1], [0, 1], [1, 0], [1, 1]) == pytest.approx(51 / 101)
    assert metrics.ap_pool([1, 1], [0, 1], [0, 1], [1, 1]) == pytest.approx(51 / 2 / 101)
    assert metrics.ap_per_image_cap([1, 1], [0, 0], [0, 0], [1, 0], [1], max_per_image=1) == 1
    assert metrics.ap_per_image_cap([1, 1], [0, 0], [0, 0], [0, 1], [1], max_per_image=1) == 0


# Bad input

NAN = float("nan")
GOOD = ([SQUARE], [0.5], [0], [0], [SQUARE], [0], [0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.box_iou([SQUARE], [[0, 0, 1]]), r"others must have shape \(N, 4\), but has shape \(1, 3\)"),
        (lambda: metrics.box_iou([[0, 0, NAN, 1]], [SQUARE]), r"boxes\[0\] must be finite"),
        (lambda: metrics.box_iou([SQUARE, [5, 0, 4, 1]], [SQUARE]), r"boxes\[1\] must be finite x1 <= x2 .*5.0, 0.0"),
        (lambda: metrics.match_detections(*GOOD, iou_threshold=1), "iou_threshold must be below 1"),
        (lambda: metrics.match_detections(*GOOD, iou_threshold=-0.1), r"iou_threshold must lie in \[0, 1\]"),
        (lambda: metrics.match_detections([SQUARE], [1, 2], *GOOD[2:]), "scores has 2 entries, but there are 1 boxes"),
        (lambda: metrics.match_detections([SQUARE], [NAN], *GOOD[2:]), r"scores\[0\] is nan"),
        (lambda: metrics.match_detections(*GOOD[:2], [0.5], *GOOD[3:]), "labels must hold integers"),
        (lambda: metrics.match_detections(*GOOD[:2], [-1], *GOOD[3:]), r"labels\[0\] is -1"),
        (lambda: metrics.match_detections(*GOOD[:6], [0, 1]), r"gt_images must have shape \(1,\), an entry for each"),
        (lambda: metrics.detection_ece([0.5, 1.5], [0, 1]), r"scores\[1\] is 1.5, outside \[0, 1\]"),
        (lambda: metrics.detection_ece([0.5], [0.5]), r"is_true_positive must hold 0 and 1, but .*\[0\] is 0.5"),
        (lambda: metrics.detection_ece([0.5], [0, 1]), "is_true_positive has 2 entries, but there are 1 detections"),
        (lambda: metrics.detection_ece([], []), "scores is empty"),
        (lambda: metrics.detection_ece([0.5], [1], n_bins=0), "n_bins must be a whole number of at least 1"),
        (lambda: metrics.localization_ece([0.5], [0], [1], [1.2]), r"iou\[0\] is 1.2, outside \[0, 1\]"),
        (lambda: metrics.localization_ece([0.5], [0], [1], [NAN]), r"iou\[0\] is nan"),
        (lambda: metrics.localization_ece([0.5], [-1], [1], [0.5]), r"labels\[0\] is label -1"),
        (lambda: metrics.lrp_error([0], [1], [0.4], [1], iou_threshold=0.5), "iou 0.4, below iou_threshold 0.5"),
        (lambda: metrics.lrp_error([0, 0], [1, 1], [1, 1], [1]), r"class 0 has 2 true positives, but n_gt\[0\] is 1"),
        (lambda: metrics.lrp_error([0], [0], [0], [0, 0]), "n_gt counts no object in any of its 2 classes"),
        (lambda: metrics.lrp_error([2], [0], [0], [1, 1]), r"labels\[0\] is class 2, but n_gt has 2 classes"),
        (
            lambda: metrics.lrp_optimal_threshold([0.1, 0.2], [0], [1], [1], [1]),
            "scores has 2 entries, but there are 1",
        ),
        (lambda: metrics.average_precision([0.5], [1], 0), "n_gt must be a whole number of at least 1"),
        (lambda: metrics.average_precision([0.5, 0.1], [1, 1], 1), "there are 2 true positives, but n_gt is 1"),
        (lambda: metrics.average_precision([0.5], [1], 1, recall_points=1), "recall_points must be a whole number of"),
        (lambda: metrics.ap_fixed([0.5], [1], [1], [1]), r"labels\[0\] is class 1, but n_gt has 1 classes"),
        (lambda: metrics.ap_fixed([0.5], [0], [1], [1.0]), "n_gt must hold integers"),
        (lambda: metrics.ap_fixed([0.5], [0], [1], [-1]), r"n_gt\[0\] is -1, but must not be negative"),
        (lambda: metrics.ap_pool([0.5], [0], [0], [0]), "n_gt counts no object"),
        (lambda: metrics.ap_per_image_cap([0.5], [0], [0], [0], [1], max_per_image=0), "max_per_image must be a whole"),
        (lambda: metrics.ap_per_image_cap([0.5], [0], [0, 1], [0], [1]), "images must have shape"),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()

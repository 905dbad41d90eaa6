"""Generated detections: what matching finds, calibrated scores that are calibrated, seeds, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import betaincc

import lossbook.data
from lossbook import metrics
from lossbook.data import synthetic, toy_detections


def match(d, threshold=0.0):
    return metrics.match_detections(*d[:4], *d[5:8], iou_threshold=threshold)


@pytest.fixture(scope="module")
def many():
    return toy_detections(3000, 3, seed=1)


def test_shapes_and_ranges():
    d = toy_detections(50, 4)
    n, m = len(d.scores), len(d.gt_labels)
    assert d.boxes.shape == (n, 4) and d.gt_boxes.shape == (m, 4) and d.bias.shape == (4,)
    assert len(d.labels) == len(d.images) == len(d.quality) == n and len(d.gt_images) == m
    assert d.labels.dtype == d.images.dtype == torch.int64 and d.scores.dtype == d.boxes.dtype == torch.float64
    assert d.scores.min() >= 0 and d.scores.max() <= 1 and d.labels.max() == 3 and d.images.max() == 49
    assert bool((d.boxes[:, 2:] > d.boxes[:, :2]).all()) and float(d.boxes.min()) >= 0
    assert d.n_gt.tolist() == [int((d.gt_labels == k).sum()) for k in range(4)]
    assert synthetic.toy_detections is toy_detections is lossbook.data.toy_detections


def test_boxes_of_an_image_overlap_only_in_pairs(many):
    """A detection overlaps with the object it shows and with nothing else."""
    for image in range(5):
        here, there = many.images == image, many.gt_images == image
        overlaps = metrics.box_iou(many.boxes[here], many.gt_boxes[there]) > 0
        assert overlaps.sum(axis=0).max() <= 1 and overlaps.sum(axis=1).max() <= 1
        assert ((metrics.box_iou(many.gt_boxes[there], many.gt_boxes[there]) > 0) == np.eye(int(there.sum()))).all()


def test_quality_is_the_expected_iou(many):
    """In twenty groups of equal quality and class, the mean IoU is the mean quality: within 4.5 sigma."""
    u = match(many).iou
    for k in range(3):
        rows = np.flatnonzero(many.labels == k)
        for group in np.array_split(rows[np.argsort(many.quality[rows])], 20):
            sigma = u[group].std() / len(group) ** 0.5
            assert abs(u[group].mean() - float(many.quality[group].mean())) < 4.5 * sigma


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.75])
def test_precision_is_the_one_promised(many, threshold):
    q = many.quality.numpy()
    promised = q**0.75 * betaincc(20 * q**0.25, 20 * (1 - q**0.25), threshold)
    hit = match(many, threshold).is_true_positive
    for group in np.array_split(np.argsort(q), 20):
        sigma = (promised[group] * (1 - promised[group])).sum() ** 0.5
        assert abs(hit[group].sum() - promised[group].sum()) < 4.5 * sigma + 1


def test_scores_are_the_distorted_quality(many):
    logit = torch.logit(many.quality)
    torch.testing.assert_close(torch.sigmoid(2.5 * logit + many.bias[many.labels]), many.scores)
    flags, u = match(many)[:2]
    true = metrics.localization_ece(many.quality, many.labels, flags, u)
    assert true < 0.01 < 0.04 < metrics.localization_ece(many.scores, many.labels, flags, u)


def test_miscalibration_leaves_the_draws_alone():
    raw = toy_detections(30, 3, seed=4)
    fair = toy_detections(30, 3, miscalibration=1.0, bias_spread=0.0, seed=4)
    torch.testing.assert_close(fair.scores, fair.quality)
    for name in ("boxes", "labels", "images", "quality", "gt_boxes", "gt_labels", "gt_images"):
        assert torch.equal(getattr(raw, name), getattr(fair, name))
    doubled = toy_detections(30, 3, bias_spread=2.0, seed=4)
    torch.testing.assert_close(doubled.bias, 2 * raw.bias)


def test_order_says_nothing():
    """The first detections of an image are as good as its last: ties are no help."""
    d = toy_detections(4000, 1)
    first = np.searchsorted(d.images.numpy(), np.arange(4000))
    last = np.searchsorted(d.images.numpy(), np.arange(4000), side="right") - 1
    difference = (d.quality[first] - d.quality[last]).numpy()
    assert abs(difference.mean()) < 4.5 * difference.std() / 4000**0.5


def test_seed_split_and_long_tail():
    d, again, other = toy_detections(60, 10, zipf=1.0), toy_detections(60, 10, zipf=1.0), toy_detections(60, 10, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(d, again, strict=True))
    assert not torch.equal(d.scores[:50], other.scores[:50])
    first, rest = d.split(20)
    assert first.images.max() < 20 <= rest.images.min() and first.gt_images.max() < 20 <= rest.gt_images.min()
    for whole, a, b in zip(d[:8], first, rest, strict=False):
        assert torch.equal(whole, torch.cat([a, b]))
    assert torch.equal(first.n_gt + rest.n_gt, d.n_gt) and torch.equal(rest.bias, d.bias)
    share = torch.bincount(toy_detections(2000, 4, zipf=1.0).labels).double()
    np.testing.assert_allclose(share / share.sum(), np.array([12, 6, 4, 3]) / 25, atol=0.01)


def test_nothing_to_see():
    d = toy_detections(3, 2, detections_per_image=0, background_per_image=0, missed_per_image=0)
    assert len(d.scores) == len(d.gt_boxes) == 0 and d.n_gt.tolist() == [0, 0]
    missed = toy_detections(3, 2, detections_per_image=0, background_per_image=0, missed_per_image=5)
    assert len(missed.scores) == 0 and len(missed.gt_boxes) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_images": 0}, "n_images must be a whole number of at least 1, but is 0"),
        ({"n_classes": 1.5}, "n_classes must be a whole number of at least 1, but is 1.5"),
        ({"miscalibration": 0}, r"miscalibration must lie in \(0, inf\), but is 0"),
        ({"bias_spread": -1}, r"bias_spread must lie in \[0, inf\), but is -1"),
        ({"zipf": 11}, r"zipf must be a number in \[0, 10\], but is 11"),
        ({"background_per_image": -1}, r"background_per_image must be a number in \[0, 1000\], but is -1"),
        ({"seed": -1}, "seed must be a whole number of at least 0"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        toy_detections(**arguments)

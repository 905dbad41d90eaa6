"""Digits before contexts: how often they agree, what the seed and rho change, images, bad input."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits

from lossbook.adapt.prototypes import compute
from lossbook.data import contextual_digits, synthetic
from lossbook.metrics import nearest_prototype


def test_types_and_all_the_digits() -> None:
    x, y, context, own = contextual_digits(0.9)
    assert x.shape == (1797, 3, 12, 12) and x.dtype == torch.float32
    assert x.min() >= 0 and x.max() == 1
    assert y.dtype == context.dtype == own.dtype == torch.int64
    assert torch.equal(torch.bincount(y), torch.from_numpy(load_digits().target).bincount())
    assert torch.equal(own, y % 5) and synthetic.contextual_digits is contextual_digits


@pytest.mark.parametrize("num_contexts", [2, 5, 10])
@pytest.mark.parametrize("rho", [0.0, 0.2, 0.6, 0.95, 1.0])
def test_the_own_context_has_probability_rho_and_the_others_share_the_rest(rho: float, num_contexts: int) -> None:
    split = contextual_digits(rho, num_contexts=num_contexts, seed=3)
    n = len(split.y)
    aligned = float((split.context == split.own).double().mean())
    assert abs(aligned - rho) <= 4.5 * (rho * (1 - rho) / n) ** 0.5
    shift = torch.bincount((split.context - split.own) % num_contexts, minlength=num_contexts)[1:] / n
    share = (1 - rho) / (num_contexts - 1)
    assert (shift - share).abs().max() <= 4.5 * (share * (1 - share) / n) ** 0.5


def test_rho_moves_some_contexts_and_nothing_else() -> None:
    """Row i is the same digit for every rho, so that the rows of two draws can be split; the seed changes the order."""
    weak, strong, other = contextual_digits(0.2), contextual_digits(0.95), contextual_digits(0.2, seed=1)
    assert torch.equal(weak.y, strong.y) and not torch.equal(weak.y, other.y)
    same = weak.context == strong.context
    assert 0.2 < same.double().mean() < 0.35
    assert torch.equal(weak.x[same], strong.x[same])
    assert (weak.x[~same] != strong.x[~same]).flatten(1).any(dim=1).all()
    aligned = weak.context == weak.own
    assert (strong.context[aligned] == strong.own[aligned]).all()
    assert all(torch.equal(a, b) for a, b in zip(weak, contextual_digits(0.2), strict=True))


def test_the_digit_is_the_same_before_every_context() -> None:
    """Full ink is white wherever it is, and the frame of two pixels holds the background alone."""
    split, bunch = contextual_digits(0.2, seed=0), load_digits()
    ink = torch.from_numpy(bunch.images).float() / 16
    # The order is the seed's: find each image by its class counts and full ink.
    full = split.x[:, :, 2:10, 2:10].amin(dim=1) == 1
    assert full.sum() >= (ink == 1).sum() and full.sum() < 1.01 * (ink == 1).sum() + 10
    frame = split.x[:, :, :2].amax(dim=(1, 2, 3))
    assert (frame <= 0.7 + 1e-6).all() and (frame > 0.2).all()


def test_the_frame_tells_the_context_and_nothing_of_the_digit() -> None:
    """By the nearest mean colour of the frame, at rho = 1/G."""
    split = contextual_digits(0.2)
    colour = torch.cat((split.x[:, :, :2], split.x[:, :, 10:]), dim=2).mean(dim=(2, 3))
    train, test = slice(0, 1000), slice(1000, None)
    for label, low, high in ((split.context, 0.99, 1.0), (split.own, 0.1, 0.3)):
        prototypes = compute(colour[train], label[train])
        found = nearest_prototype(colour[test], prototypes)
        assert low <= (found == label[test]).double().mean() <= high


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"rho": 1.1}, r"rho must be a number in \[0, 1\], but is 1.1"),
        ({"rho": float("nan")}, "rho must be a number"),
        ({"rho": 0.5, "num_contexts": 1}, "num_contexts must be a whole number of at least 2"),
        ({"rho": 0.5, "num_contexts": 11}, "num_contexts must be a whole number of at least 2 and at most 10"),
        ({"rho": 0.5, "seed": -1}, "seed must be a whole number"),
    ],
)
def test_bad_input_is_refused(arguments: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        contextual_digits(**arguments)

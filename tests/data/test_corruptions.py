from __future__ import annotations

import numpy as np
import pytest
import torch

from lossbook.data import Split, flip_labels, subsample, synthetic

N, K = 60_000, 5
LABELS = torch.arange(N) % K


@pytest.mark.parametrize(("kind", "changed"), [("uniform", 0.3 * 4 / 5), ("other", 0.3), ("pair", 0.3)])
def test_rate_and_where_labels_go(kind, changed):
    before = LABELS.clone()
    noisy, flipped = flip_labels(LABELS, 0.3, K, seed=1, kind=kind)
    assert noisy.dtype == torch.int64 and flipped.dtype == torch.bool
    assert torch.equal(LABELS, before) and torch.equal(flipped, noisy != LABELS)
    assert float(flipped.double().mean()) == pytest.approx(changed, abs=4.5 * (0.25 / N) ** 0.5)
    step = torch.bincount((noisy - LABELS)[flipped] % K, minlength=K).double() / flipped.sum()
    expected = [0, 1, 0, 0, 0] if kind == "pair" else [0, 0.25, 0.25, 0.25, 0.25]
    np.testing.assert_allclose(step.numpy(), expected, atol=0.02)


@pytest.mark.parametrize("kind", ["uniform", "other", "pair"])
def test_the_posterior_that_the_docstring_gives(kind):
    """After the noise, labels follow the transformed posterior: in ten bins of it, within 4.5 sigma."""
    split, r = synthetic.gaussian_mixture(N), 0.4
    p = split.posterior
    noisy, _ = flip_labels(split.y, r, K, seed=0, kind=kind)
    p = {
        "uniform": (1 - r) * p + r / K,
        "other": (1 - r) * p + r * (1 - p) / (K - 1),
        "pair": (1 - r) * p + r * p.roll(1, dims=1),
    }[kind]
    for k in range(K):
        hit = (noisy == k).double()
        for group in p[:, k].argsort().chunk(10):
            q = p[group, k]
            assert abs(float((hit[group] - q).sum())) < 4.5 * float((q * (1 - q)).sum().sqrt())


def test_limits_and_seeds():
    for kind in ("uniform", "other", "pair"):
        assert not flip_labels(LABELS, 0.0, K, seed=0, kind=kind)[1].any()
    assert flip_labels(LABELS, 1.0, K, seed=0, kind="other")[1].all()
    assert torch.equal(flip_labels(LABELS, 1.0, K, seed=0, kind="pair")[0], (LABELS + 1) % K)
    assert torch.equal(flip_labels(LABELS, 0.5, K, seed=3)[0], flip_labels(LABELS, 0.5, K, seed=3)[0])
    assert not torch.equal(flip_labels(LABELS, 0.5, K, seed=3)[0], flip_labels(LABELS, 0.5, K, seed=4)[0])
    noisy, flipped = flip_labels(torch.empty(0, dtype=torch.int64), 0.5, K, seed=0)
    assert len(noisy) == len(flipped) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((LABELS, 1.5, K), "rate must .* but is 1.5"),
        ((LABELS, float("nan"), K), "rate must .* but is nan"),
        ((LABELS, 0.5, 1), "num_classes must"),
        ((LABELS, 0.5, 4), r"labels in \[0, 4\), but holds 0 to 4"),
        ((LABELS - 1, 0.5, K), r"labels in \[0, 5\), but holds -1 to 3"),
        ((LABELS.double(), 0.5, K), "y must be a tensor of integer labels"),
        ((LABELS[None], 0.5, K), "y must be a tensor of integer labels"),
        (([0, 1], 0.5, K), "y must be a tensor of integer labels .* but is list"),
    ],
)
def test_flip_labels_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        flip_labels(*arguments, seed=0)


def test_flip_labels_refuses_an_unknown_kind():
    with pytest.raises(ValueError, match="kind must be one of uniform, other, pair, but is 'symmetric'"):
        flip_labels(LABELS, 0.5, K, seed=0, kind="symmetric")


@pytest.fixture
def split():
    y = torch.tensor([0] * 10 + [1] * 6 + [3] * 4)
    return Split(torch.arange(20.0)[:, None], y, torch.full((20, 4), 0.25, dtype=torch.float64))


@pytest.mark.parametrize(
    ("wanted", "counts"),
    [
        (4, [4, 4, 0, 4]),
        ([10, 5, 0, 1], [10, 5, 0, 1]),
        (np.array([1, 2, 0, 3]), [1, 2, 0, 3]),
        (torch.tensor([0, 6, 0, 0]), [0, 6, 0, 0]),
        ((1, 0, 0, 0, 0), [1, 0, 0, 0]),
    ],
)
def test_subsample_takes_what_was_asked_for(split, wanted, counts):
    part = subsample(split, wanted, seed=0)
    assert torch.bincount(part.y, minlength=4).tolist() == counts
    rows = part.x[:, 0].long()
    assert len(rows.unique()) == len(rows), "without replacement"
    assert torch.equal(split.y[rows], part.y) and part.posterior is None


def test_subsample_shuffles_by_its_seed(split):
    first, again, other = (subsample(split, 4, seed=s) for s in (0, 0, 1))
    assert torch.equal(first.x, again.x) and not torch.equal(first.x, other.x)
    assert not torch.equal(first.y, first.y.sort().values)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (5, "asks for 5 examples of class 3, but split has 4"),
        (0, "n_or_counts must be a whole number of at least 1, but is 0"),
        (2.0, "n_or_counts must be a whole number"),
        ([1, 1, 0], "3 entries, but split has labels up to 3"),
        ([1, 1, 1, 1], "1 examples of class 2, but split has 0"),
        ([1, -1, 0, 0], r"n_or_counts\[1\] must .* but is -1"),
        ([0, 0, 0, 0], "no example at all"),
        ("1234", r"n_or_counts\[0\] must be a whole number"),
    ],
)
def test_subsample_refuses(split, wanted, message):
    with pytest.raises(ValueError, match=message):
        subsample(split, wanted, seed=0)

"""Frames: their Gram matrices, their limits, their randomness."""

from __future__ import annotations

import pytest
import torch

from lossbook.theory import orthogonal_frame, simplex_etf


@pytest.mark.parametrize(("k", "d"), [(2, 1), (2, 5), (3, 2), (4, 3), (10, 9), (10, 64), (100, 128)])
def test_gram_is_that_of_a_simplex(k, d, generator):
    frame = simplex_etf(k, d, generator=generator)
    assert frame.shape == (k, d) and frame.dtype == torch.float64
    gram = (k * torch.eye(k) - torch.ones(k, k)).double() / (k - 1)
    torch.testing.assert_close(frame @ frame.T, gram, atol=1e-12, rtol=0)
    torch.testing.assert_close(frame.sum(dim=0), torch.zeros(d).double(), atol=1e-12, rtol=0)


def test_no_random_vectors_are_further_apart(generator):
    for _ in range(50):
        unit = torch.nn.functional.normalize(torch.randn(6, 8, generator=generator, dtype=torch.float64), dim=1)
        cosines = (unit @ unit.T).fill_diagonal_(-1)
        assert cosines.max() > -1 / 5


def test_descent_finds_no_vectors_further_apart(generator):
    # Unit vectors that repel each other, from random starts: a smooth stand-in for the largest cosine.
    v = torch.randn(5, 6, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([v], lr=0.05)
    others = ~torch.eye(6, dtype=torch.bool)
    for step in range(300):
        unit = torch.nn.functional.normalize(v, dim=-1)
        cosines = (unit @ unit.mT)[:, others]
        optimizer.zero_grad()
        (cosines * min(1 + step, 100)).logsumexp(dim=1).sum().backward()
        optimizer.step()
        assert (cosines.detach().amax(dim=1) >= -1 / 5 - 1e-12).all()
    assert (cosines.detach().amax(dim=1) < -1 / 5 + 5e-3).all()


def test_orientation_comes_from_the_generator_alone():
    def draw(seed):
        return simplex_etf(3, 4, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(draw(0), draw(0))
    assert not torch.allclose(draw(0), draw(1))
    # Every direction is as likely as its opposite: the mean of many draws is near 0.
    mean = torch.stack([draw(seed) for seed in range(1000)]).mean(dim=0)
    assert mean.abs().max() < 5 / 1000**0.5


def test_dtype():
    assert simplex_etf(3, 4, dtype=torch.float32).dtype == torch.float32


def test_orthogonal_frame_has_the_lengths(generator):
    lengths = [3.0, 0.0, 1.5]
    frame = orthogonal_frame(lengths, 3, generator=generator)
    torch.testing.assert_close(frame @ frame.T, torch.diag(torch.tensor(lengths).double() ** 2), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: simplex_etf(1, 3), "num_classes must be at least 2, but is 1"),
        (lambda: simplex_etf(5, 3), "dim must be at least num_classes - 1 = 4, but is 3"),
        (lambda: orthogonal_frame([1, 1, 1], 2), "dim must be at least 3"),
        (lambda: orthogonal_frame([1, -1], 2), "lengths must be finite and not negative"),
        (lambda: orthogonal_frame([], 2), "lengths must be K numbers"),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()

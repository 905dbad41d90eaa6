"""Gaussian pseudo-negatives: their moments, the mean that lags, no gradient, state, bad input."""

from __future__ import annotations

import pytest
import torch

from lossbook.train import GaussianPseudoNegatives


def test_moments_and_the_mean_of_two_batches(generator: torch.Generator) -> None:
    source = GaussianPseudoNegatives(2, momentum=0.8, variance=4.0)
    first = torch.tensor([[10.0, 0.0]]).repeat(20_000, 1)
    second = torch.tensor([[0.0, -20.0]]).repeat(20_000, 1)
    third = torch.zeros(20_000, 2)
    # 0.2 of this batch's mean and 0.8 of the previous one's: the third batch has forgotten the first.
    for batch, centre in ((first, [2.0, 0.0]), (second, [8.0, -4.0]), (third, [0.0, -16.0])):
        z = source.sample(batch, generator=generator)
        assert z.shape == batch.shape
        torch.testing.assert_close(z.mean(dim=0), torch.tensor(centre), rtol=0, atol=0.08)
        torch.testing.assert_close(torch.cov(z.T), 4 * torch.eye(2), rtol=0, atol=0.15)
    source.sample(first)
    source.reset()
    torch.testing.assert_close(source.sample(first).mean(dim=0), torch.tensor([2.0, 0.0]), rtol=0, atol=0.08)


def test_constants_seeded_and_saved() -> None:
    features = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    source, twin = GaussianPseudoNegatives(3), GaussianPseudoNegatives(3)
    source.sample(features)
    twin.load_state_dict(source.state_dict())
    a, b = (s.sample(features, generator=torch.Generator().manual_seed(1)) for s in (source, twin))
    assert a.equal(b) and a.dtype == torch.float64 and not a.requires_grad
    torch.testing.assert_close(source.previous, features.detach().mean(dim=0).float())


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: GaussianPseudoNegatives(0), "dim must be a whole number of at least 1"),
        (lambda: GaussianPseudoNegatives(2, momentum=1.1), r"momentum must lie in \[0, 1\], but is 1.1"),
        (lambda: GaussianPseudoNegatives(2, variance=0.0), r"variance must lie in \(0, inf\)"),
        (
            lambda: GaussianPseudoNegatives(2).sample(torch.zeros(4, 3)),
            r"features must be floating point of shape \(B, 2\)",
        ),
        (lambda: GaussianPseudoNegatives(2).sample(torch.zeros(0, 2)), r"shape \(0, 2\)"),
        (lambda: GaussianPseudoNegatives(1).sample(torch.tensor([[float("nan")]])), r"features\[0, 0\] is nan"),
    ],
)
def test_bad_input_is_refused_by_name(call, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()


def test_not_a_tensor_is_refused() -> None:
    with pytest.raises(TypeError, match=r"features must be a torch\.Tensor, but are list"):
        GaussianPseudoNegatives(2).sample([[0.0, 1.0]])

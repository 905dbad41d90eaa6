"""Eckart-Young: the formula written out, its gradient, its optimum, the independent batch, bad input."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad, vmap

from lossbook.losses import eckart_young
from lossbook.theory import canonical_correlations


def views(m: int = 2, n: int = 9, k: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(m, n, k, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def covariances(z: Tensor) -> tuple[Tensor, Tensor]:
    """C and V by numpy's covariance, pair by pair."""
    m, _, k = z.shape
    joint = torch.cov(torch.cat(list(z), dim=1).T)
    blocks = joint.reshape(m, k, m, k)
    C = blocks.sum(dim=(0, 2)) / m
    V = torch.stack([blocks[i, :, i] for i in range(m)]).sum(0) / m
    return C, V


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), m=st.integers(2, 4))
def test_formula_gradient_and_invariances(seed: int, m: int) -> None:
    z = views(m, seed=seed)
    C, V = covariances(z)
    expected = -2 * C.trace() + (V @ V).trace()
    torch.testing.assert_close(eckart_young(list(z)), expected)
    centred = z - z.mean(dim=1, keepdim=True)
    slope = 4 / (m * 8) * (centred @ V - centred.sum(dim=0))
    torch.testing.assert_close(grad(eckart_young)(z), slope)
    turn = torch.linalg.qr(views(1, 3, 3, seed=seed + 1)[0]).Q
    torch.testing.assert_close(eckart_young(z @ turn + 7), expected)
    torch.testing.assert_close(eckart_young(z.flip(0)), expected)


def test_optimum_of_two_views() -> None:
    """Canonical variates scaled to variance (1 + ρ)/... reach -sum (1 + ρ)²; nothing found from there is lower."""
    X, Y = views(2, 200, 4, seed=1)
    Y = Y + 0.7 * X
    rho = canonical_correlations(X, Y)
    qx, rx = torch.linalg.qr(X - X.mean(0))
    qy, ry = torch.linalg.qr(Y - Y.mean(0))
    u, _, vh = torch.linalg.svd(qx.T @ qy)
    scale = ((1 + rho) * 199).sqrt()
    best = torch.stack((qx @ u * scale, qy @ vh.T * scale))
    torch.testing.assert_close(eckart_young(best), -(1 + rho).square().sum())
    weights = [torch.linalg.solve(rx, u * scale), torch.linalg.solve(ry, vh.T * scale)]
    value = lambda a, b: eckart_young([X @ a, Y @ b])  # noqa: E731
    slopes = grad(value, argnums=(0, 1))(*weights)
    assert max(slope.abs().max() for slope in slopes) < 1e-10
    for seed in range(5):
        steps = 0.05 * views(2, 4, 4, seed=seed)
        assert value(weights[0] + steps[0], weights[1] + steps[1]) > value(*weights)


def test_collapse_is_no_minimum() -> None:
    """Both views at one point: loss 0, which is above what any correlated pair reaches."""
    assert eckart_young(torch.ones(2, 6, 3)) == 0
    z = views()[:1].repeat(2, 1, 1)
    assert eckart_young(0.1 * z) < 0


def test_independent_batches_make_it_unbiased() -> None:
    """The mean over many batches against the loss of their distribution, Cov = I: -2 k + k for equal views."""
    z = torch.randn(2, 4000, 8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    same = lambda part: torch.stack((part, part))  # noqa: E731
    unbiased = vmap(lambda a, b: eckart_young(same(a), independent=same(b)))(z[0], z[1]).mean()
    biased = vmap(lambda a: eckart_young(same(a)))(z[0]).mean()
    exact = -2 * 2 * 2 + 2
    assert unbiased.item() == pytest.approx(exact, abs=0.1)
    assert biased.item() > exact + 0.5


@pytest.mark.parametrize("independent", [False, True])
def test_gradcheck_and_dtypes(independent: bool) -> None:
    other = views(n=7, seed=1) if independent else None
    assert torch.autograd.gradcheck(lambda z: eckart_young(z, independent=other), views().requires_grad_(True))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        narrow = views().to(dtype)
        value = eckart_young(list(narrow))
        assert value.dtype == dtype
        tolerance = 8 * torch.finfo(dtype).eps
        torch.testing.assert_close(value.double(), eckart_young(narrow.double()), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"views": [torch.zeros(4, 2)]}, "views must hold at least two views, but holds 1"),
        ({"views": [torch.zeros(4, 2), torch.zeros(4, 3)]}, r"views\[1\] must have the shape of views\[0\], \(4, 2\)"),
        ({"views": torch.zeros(2, 1, 3)}, r"views\[0\] must be floating point of shape \(n, k\) with n >= 2"),
        ({"views": torch.zeros(2, 4, 3).long()}, r"views\[0\] must be floating point"),
        ({"views": torch.full((2, 4, 3), torch.nan)}, r"views\[0\] must be finite"),
        ({"independent": torch.zeros(3, 4, 2)}, "independent must hold 2 views, as views do, but holds 3"),
        ({"independent": torch.zeros(2, 4, 3)}, "independent must have 2 columns, as views have, but has 3"),
    ],
)
def test_bad_input_is_refused_by_name(change: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        eckart_young(**({"views": torch.zeros(2, 4, 2)} | change))


def test_wrong_types_are_refused() -> None:
    with pytest.raises(TypeError, match="views must be a list of tensors, but is int"):
        eckart_young(3)
    with pytest.raises(TypeError, match=r"views\[0\] must be a torch\.Tensor, but is list"):
        eckart_young([[1.0], [2.0]])

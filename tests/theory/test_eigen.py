"""Generalised eigenvalues and canonical correlations: scipy, scikit-learn, closed forms, bad input."""

from __future__ import annotations

import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cross_decomposition import CCA, PLSSVD
from torch import Tensor

from lossbook.losses import eckart_young
from lossbook.theory import canonical_correlations, cca_pencil, ey_optimum, generalized_eigenvalues


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def pencil(p: int, seed: int) -> tuple[Tensor, Tensor]:
    a, b = normal(2, p, p, seed=seed)
    return a + a.T, b @ b.T + 0.1 * torch.eye(p).double()


def two_views(n: int = 300, p: int = 5, q: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    shared = normal(n, 3, seed=seed)
    X = shared @ normal(3, p, seed=seed + 1) + normal(n, p, seed=seed + 2) + 5
    return X, shared @ normal(3, q, seed=seed + 3) + normal(n, q, seed=seed + 4)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), p=st.integers(1, 8))
def test_agrees_with_scipy(seed: int, p: int) -> None:
    A, B = pencil(p, seed)
    expected = torch.from_numpy(scipy.linalg.eigh(A.numpy(), B.numpy(), eigvals_only=True)[::-1].copy())
    torch.testing.assert_close(generalized_eigenvalues(A, B), expected)
    assert generalized_eigenvalues(A, B, 1) == generalized_eigenvalues(A, B)[:1]


@pytest.mark.parametrize("k", [1, 3, 6])
def test_no_descent_gets_below_the_optimum_and_it_is_reached(k: int) -> None:
    """k = 6 asks for more than the positive eigenvalues: the negative ones are worth nothing."""
    A, B = pencil(6, 3)
    assert generalized_eigenvalues(A, B).min() < 0
    U = (0.3 * normal(6, k, seed=1)).requires_grad_(True)
    optimizer = torch.optim.LBFGS([U], max_iter=500, line_search_fn="strong_wolfe", tolerance_grad=1e-12)

    def closure() -> Tensor:
        optimizer.zero_grad()
        inner = U.T @ B @ U
        loss = -2 * (U.T @ A @ U).trace() + (inner @ inner).trace()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert float(closure().detach()) == pytest.approx(ey_optimum(A, B, k), rel=1e-6)
    gram = torch.linalg.eigvalsh(U.detach().T @ B @ U.detach()).flip(0)
    torch.testing.assert_close(gram, generalized_eigenvalues(A, B, k).clamp_min(0), rtol=0, atol=1e-4)


def test_canonical_correlations_agree_with_sklearn() -> None:
    X, Y = two_views()
    rho = canonical_correlations(X, Y)
    model = CCA(n_components=4, max_iter=10_000, tol=1e-12).fit(X.numpy(), Y.numpy())
    x, y = (torch.from_numpy(part) for part in model.transform(X.numpy(), Y.numpy()))
    peers = torch.stack([torch.corrcoef(torch.stack((x[:, i], y[:, i])))[0, 1] for i in range(4)])
    torch.testing.assert_close(rho, peers, rtol=1e-6, atol=1e-6)
    assert (rho[:-1] >= rho[1:]).all() and rho.max() <= 1


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_pencil_of_cca_and_of_partial_least_squares(seed: int) -> None:
    X, Y = two_views(60, seed=seed)
    rho = canonical_correlations(X, Y)
    values = generalized_eigenvalues(*cca_pencil(X, Y))
    torch.testing.assert_close(values, torch.cat((1 + rho, torch.ones(1).double(), (1 - rho).flip(0))))
    assert ey_optimum(*cca_pencil(X, Y), 3) == pytest.approx(-float((1 + rho[:3]).square().sum()))
    cross = (X - X.mean(0)).T @ (Y - Y.mean(0)) / 59
    torch.testing.assert_close(
        generalized_eigenvalues(*cca_pencil(X, Y, c=1.0), 4), torch.linalg.svdvals(cross), rtol=1e-8, atol=1e-8
    )


def test_partial_least_squares_agrees_with_sklearn() -> None:
    X, Y = two_views()
    model = PLSSVD(n_components=4, scale=False).fit(X.numpy(), Y.numpy())
    x, y = (torch.from_numpy(part) for part in model.transform(X.numpy(), Y.numpy()))
    torch.testing.assert_close(generalized_eigenvalues(*cca_pencil(X, Y, c=1.0), 4), (x * y).sum(0) / (len(X) - 1))


def test_pencil_is_the_loss() -> None:
    X, Y = two_views()
    weights = normal(5, 2, seed=7), normal(4, 2, seed=8)
    U = torch.cat(weights) / 2**0.5
    A, B = cca_pencil(X, Y)
    inner = U.T @ B @ U
    torch.testing.assert_close(
        eckart_young([X @ weights[0], Y @ weights[1]]), -2 * (U.T @ A @ U).trace() + (inner @ inner).trace()
    )


def test_rank_deficient_columns_are_no_obstacle() -> None:
    X, Y = two_views()
    rho = canonical_correlations(X, Y)
    more = torch.cat((X, X[:, :2] + X[:, 1:3], torch.full((300, 1), 3.0)), dim=1)
    torch.testing.assert_close(canonical_correlations(more, Y), rho)
    torch.testing.assert_close(canonical_correlations(X, Y @ normal(4, 4, seed=9) + 2), rho)
    torch.testing.assert_close(
        canonical_correlations(X, X[:, :2] @ torch.ones(2, 3).double()), torch.tensor([1.0, 0, 0]).double()
    )
    assert canonical_correlations(torch.ones(5, 2), normal(5, 2)).equal(torch.zeros(2).double())
    with pytest.raises(ValueError, match="B must be positive definite"):
        ey_optimum(*cca_pencil(more, Y), 2)
    assert ey_optimum(*cca_pencil(more, Y, c=0.1), 2) < 0


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda A, B: generalized_eigenvalues(A, -B), "B must be positive definite, but its leading minor of order 1"),
        (lambda A, B: generalized_eigenvalues(A, B[:2, :2]), r"B must have the shape of A, \(3, 3\), but has \(2, 2\)"),
        (lambda A, B: generalized_eigenvalues(A.triu(), B), "A must be symmetric, but differs from its transpose by"),
        (lambda A, B: generalized_eigenvalues(A[:2], B), r"A must be floating point of shape \(p, p\)"),
        (lambda A, B: ey_optimum(A, B, 4), "k must be a whole number of at least 1 and at most 3, but is 4"),
        (lambda A, B: generalized_eigenvalues(A / 0, B), "A must be finite"),
        (lambda A, B: cca_pencil(A, B, c=1.5), r"c must lie in \[0, 1\], but is 1.5"),
        (lambda A, B: cca_pencil(A, B[:2]), "Y must have 3 rows, as X has, but has 2"),
        (lambda A, B: canonical_correlations(A[:1], B[:1]), r"X must be floating point of shape \(n, p\) with n >= 2"),
        (lambda A, B: canonical_correlations(A, B, k=9), "k must be a whole number"),
    ],
)
def test_bad_input_is_refused_by_name(call, sentence: str) -> None:
    A, B = pencil(3, 0)
    with pytest.raises(ValueError, match=sentence):
        call(A, B)
    with pytest.raises(TypeError, match=r"Y must be a torch\.Tensor, but is list"):
        canonical_correlations(A, [0.0])

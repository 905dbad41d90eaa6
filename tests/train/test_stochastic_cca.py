"""Stochastic CCA against the exact solutions of scipy's eigenproblem and scikit-learn; seeds; bad input."""

from __future__ import annotations

import pytest
import scipy.linalg
import torch
from sklearn.cross_decomposition import CCA, PLSSVD
from torch import Tensor

from lossbook.losses import eckart_young
from lossbook.theory import canonical_correlations, cca_pencil, ey_optimum
from lossbook.train import fit_stochastic_cca


def two_views(n: int = 400, p: int = 8, q: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Three shared directions of falling strength in noise, and a mean."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator)  # noqa: E731
    shared = draw(n, 3) * torch.tensor([3.0, 1.5, 0.8], dtype=torch.float64)
    mix = [torch.linalg.qr(draw(d, d)).Q[:3] for d in (p, q)]
    return shared @ mix[0] + draw(n, p) + 4, shared @ mix[1] + draw(n, q)


@pytest.mark.parametrize("c", [0.0, 0.1, 1.0])
def test_full_batch_reaches_the_exact_optimum(c: float) -> None:
    X, Y = two_views()
    k = 3
    found = fit_stochastic_cca(X, Y, k, c=c, batch_size=None, epochs=500, lr=0.05 if c < 1 else 0.2)
    A, B = cca_pencil(X, Y, c=c)
    values, vectors = scipy.linalg.eigh(A.numpy(), B.numpy())
    assert float(found.objective[-1]) == pytest.approx(-float((values[-k:] ** 2).sum()), rel=1e-6)
    # The subspace and, by the turn at the end, each direction in its order.
    exact = torch.from_numpy(vectors[:, ::-1].copy())[:, :k]
    U = torch.cat(found.weights)
    cosines = torch.nn.functional.cosine_similarity(U, exact, dim=0).abs()
    torch.testing.assert_close(cosines, torch.ones(k).double(), rtol=0, atol=1e-4)


def test_agrees_with_sklearn() -> None:
    X, Y = two_views()
    found = fit_stochastic_cca(X, Y, 2, batch_size=None, epochs=200, lr=0.1)
    peer = CCA(n_components=2, max_iter=5000, tol=1e-10).fit(X.numpy(), Y.numpy())
    for ours, theirs in zip(found.transform(X, Y), peer.transform(X.numpy(), Y.numpy()), strict=True):
        for i in range(2):
            pair = torch.stack((ours[:, i], torch.from_numpy(theirs[:, i].copy())))
            assert torch.corrcoef(pair)[0, 1].abs() > 0.9999
    assert float(found.captured[-1]) == pytest.approx(float(canonical_correlations(X, Y, k=2).sum()), rel=1e-6)
    pls = fit_stochastic_cca(X, Y, 2, c=1.0, batch_size=None, epochs=200, lr=0.1)
    svd = PLSSVD(n_components=2, scale=False).fit(X.numpy(), Y.numpy())
    direction = torch.nn.functional.normalize(pls.weights[0], dim=0)
    cosines = (direction * torch.from_numpy(svd.x_weights_)).sum(0).abs()
    torch.testing.assert_close(cosines, torch.ones(2).double(), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("optimizer", "independent"), [("adam", False), ("sgd", False), ("adam", True)])
def test_batches_capture_nearly_all(optimizer: str, independent: bool) -> None:
    X, Y = two_views(1000)
    lr = {"adam": 0.02, "sgd": 0.003}[optimizer]
    found = fit_stochastic_cca(X, Y, 3, optimizer=optimizer, independent=independent, epochs=30, lr=lr)
    best = canonical_correlations(X, Y, k=3).sum()
    assert found.captured.shape == (31,)
    assert found.captured[0] < 0.9 * best < 0.98 * best < found.captured[-1] <= best + 1e-9
    optimum = ey_optimum(*cca_pencil(X, Y), 3)
    assert optimum <= found.objective.min() and found.objective[-1] < 0.98 * optimum


def test_result_is_consistent_seeded_and_leaves_the_global_generator() -> None:
    X, Y = two_views(200)
    state = torch.get_rng_state()
    found = fit_stochastic_cca(X.float(), Y.float(), 2, epochs=3, seed=4)
    again = fit_stochastic_cca(X.float(), Y.float(), 2, epochs=3, seed=4)
    assert torch.get_rng_state().equal(state)
    assert found.weights[0].equal(again.weights[0]) and found.objective.equal(again.objective)
    assert not fit_stochastic_cca(X, Y, 2, epochs=3, seed=5).weights[0].equal(found.weights[0])
    x, y = found.transform(X, Y)
    assert x.shape == (200, 2) and x.dtype == torch.float64
    assert float(eckart_young([x, y])) == pytest.approx(float(found.objective[-1]), rel=1e-5)
    assert repr(found).startswith("StochasticCCA(8 + 6 columns, k=2, objective -")
    moments = (torch.cov(x.T) + torch.cov(y.T)) / 2
    assert moments[0, 1].abs() < 1e-5 and moments[0, 0] > moments[1, 1]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"k": 7}, "k must be a whole number of at least 1 and at most 6, but is 7"),
        ({"c": -0.1}, r"c must lie in \[0, 1\], but is -0.1"),
        ({"batch_size": 3, "k": 3}, "batch_size must be more than k = 3 rows, but is 3"),
        ({"lr": 0.0}, r"lr must lie in \(0, inf\), but is 0.0"),
        ({"optimizer": "lbfgs"}, "optimizer must be"),
        ({"schedule": "step"}, "schedule must be"),
        ({"epochs": 0}, "epochs must be a whole number of at least 1"),
        ({"Y": torch.zeros(3, 6)}, "Y must have 50 rows, as X has, but has 3"),
        ({"Y": torch.ones(50, 6)}, "the rank of X or Y within a batch is below k = 2: set c > 0 or a smaller k"),
        ({"X": torch.full((50, 8), torch.inf)}, "X must be finite"),
    ],
)
def test_bad_input_is_refused_by_name(change: dict, sentence: str) -> None:
    X, Y = two_views(50)
    with pytest.raises(ValueError, match=sentence):
        fit_stochastic_cca(**({"X": X, "Y": Y, "k": 2} | change))


def test_divergence_and_wrong_columns_are_named() -> None:
    X, Y = two_views(50)
    with pytest.raises(FloatingPointError, match="the loss is not finite after epoch"):
        fit_stochastic_cca(X, Y, 2, lr=1e3, optimizer="sgd")
    with pytest.raises(ValueError, match=r"Y must have 6 columns, but has shape \(50, 8\)"):
        fit_stochastic_cca(X, Y, 2, epochs=1).transform(X, X)

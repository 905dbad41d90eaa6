from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lossbook.theory import perceptron_bound
from lossbook.train import batch_perceptron, logistic_gd


def one_hard_point(n, dtype=torch.float64):
    """n - 1 copies of (1, 0) and one (-0.8, 0.6)."""
    return torch.tensor([[1.0, 0.0]] * (n - 1) + [[-0.8, 0.6]], dtype=dtype)


def separable(seed, n=60, d=8):
    generator = torch.Generator().manual_seed(seed)
    samples = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return samples * torch.sign(samples[:, :1])


def steps(path):
    return len(path.theta) - 1


@pytest.mark.parametrize("normalize", [False, True])
def test_steps_are_gradient_steps(normalize):
    Z = separable(0)
    path = logistic_gd(Z, lr=3.0, steps=4, normalize=normalize)
    theta = torch.zeros(8, dtype=torch.float64)
    for k in range(5):
        theta.requires_grad_(True)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(Z @ theta, torch.ones(60, dtype=torch.float64))
        (slope,) = torch.autograd.grad(loss, theta)
        torch.testing.assert_close(path.theta[k], theta.detach())
        torch.testing.assert_close(path.loss[k], loss.detach())
        weight = torch.sigmoid(-Z @ theta.detach()).mean() if normalize else 1.0
        theta = theta.detach() - 3.0 * slope / weight
    assert path.error[0] == 1, "at 0 every row is on the boundary, and that counts as an error"


def test_a_small_step_descends_to_the_loss_of_scikit_learn():
    """On data that nothing separates the loss has a minimum; a convex solver finds the same."""
    from sklearn.linear_model import LogisticRegression

    generator = torch.Generator().manual_seed(0)
    Z = torch.randn(200, 3, generator=generator, dtype=torch.float64) + 0.3
    path = logistic_gd(Z, lr=1.0, steps=2000)
    assert steps(path) == 2000
    assert (path.loss.diff() <= 1e-12).all()
    rows, labels = torch.cat([Z, -Z]).numpy(), np.repeat([1, 0], 200)
    peer = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10, max_iter=1000).fit(rows, labels)
    np.testing.assert_allclose(path.theta[-1], peer.coef_[0], atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_large_steps_are_the_batch_perceptron(seed):
    Z = separable(seed)
    perceptron = batch_perceptron(Z, steps=500)
    gd = logistic_gd(Z, lr=1e9, steps=500)
    assert steps(gd) == steps(perceptron)
    torch.testing.assert_close(gd.theta / 1e9, perceptron.theta, atol=1e-6, rtol=0)
    torch.testing.assert_close(gd.loss / 1e9, perceptron.loss, atol=1e-6, rtol=0)
    assert torch.equal(gd.error[1:], perceptron.error[1:])


def test_batch_perceptron_by_hand():
    """n = 4: v_1 = (3 - 0.8, 0.6)/8; then only the hard point is wrong, and each step adds a quarter of it."""
    path = batch_perceptron(one_hard_point(4), steps=100)
    first = torch.tensor([2.2, 0.6], dtype=torch.float64) / 8
    hard = torch.tensor([-0.8, 0.6], dtype=torch.float64) / 4
    torch.testing.assert_close(path.theta[:3], torch.stack([0 * first, first, first + hard]))
    torch.testing.assert_close(path.loss[1], (0.8 * 2.2 - 0.36) / 8 / 4 * torch.ones((), dtype=torch.float64))
    assert path.error[:2].tolist() == [1.0, 0.25]
    assert path.error[-1] == 0


def test_a_row_of_zeros_is_a_tie_for_ever():
    Z = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    path = batch_perceptron(Z, steps=5)
    assert steps(path) == 5
    assert path.theta[1:].tolist() == [[0.25, 0.0]] * 5
    assert (path.error[1:] == 0.5).all()


def test_gradient_descent_pays_for_the_crowd_and_the_normalised_step_does_not():
    slow = [steps(logistic_gd(one_hard_point(n), lr=1e4, steps=2000)) for n in (50, 200, 1000)]
    fast = [steps(logistic_gd(one_hard_point(n), lr=1e4, steps=2000, normalize=True)) for n in (50, 200, 1000)]
    assert slow == [21, 81, 401]
    assert fast == [2, 2, 2]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(2, 30), d=st.integers(1, 4))
def test_bounds_hold(seed, n, d):
    """Novikoff's bound for the normalised step, n times it for gradient descent, both at a very large γ."""
    Z = separable(seed, n, d)
    bound = perceptron_bound(Z).steps
    if bound > 300:
        return
    lr = 1e12
    assert steps(logistic_gd(Z, lr=lr, steps=400, normalize=True)) <= math.ceil(bound) + 1
    assert steps(logistic_gd(Z, lr=lr, steps=30_000)) <= n * bound + 1


def test_normalised_weights_survive_underflow():
    """With tol > 0 it steps on after separation, where every weight is exp(-5000) and their sum 0."""
    Z = torch.tensor([[1.0, 0.0], [1.0, 0.1]])
    path = logistic_gd(Z, lr=5e3, steps=5, normalize=True, tol=1e9)
    assert steps(path) == 5
    assert path.theta.isfinite().all()
    torch.testing.assert_close(path.theta[-1, 0], torch.tensor(25e3))


def test_inseparable_data_end_after_the_steps():
    Z = torch.tensor([[1.0], [-1.0]])
    for path in (logistic_gd(Z, lr=1e6, steps=7), batch_perceptron(Z, steps=7)):
        assert steps(path) == 7
        assert path.error[-1] > 0


def test_tol_asks_for_more_than_separation():
    Z = separable(0)
    path = logistic_gd(Z, lr=100.0, steps=5000, tol=5.0)
    assert (Z @ path.theta[-1]).min() > 5 >= (Z @ path.theta[-2]).min()


def test_float32_stays_float32():
    path = logistic_gd(one_hard_point(50, torch.float32), lr=1e6, steps=100)
    assert {part.dtype for part in path} == {torch.float32}
    assert all(part.isfinite().all() for part in path)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"Z": torch.ones(3)}, ValueError, r"Z must be float32 or float64 of shape \(n, d\), but is .* \(3,\)"),
        ({"Z": torch.ones(3, 2).long()}, ValueError, "Z must be float32 or float64"),
        ({"Z": torch.ones(0, 2)}, ValueError, "Z must be float32 or float64"),
        ({"Z": torch.tensor([[1.0, float("nan")]])}, ValueError, r"Z\[0, 1\] is nan"),
        ({"Z": [[1.0]]}, TypeError, "Z must be a torch.Tensor, but is list"),
        ({"lr": 0.0}, ValueError, "lr must lie in"),
        ({"lr": float("nan")}, ValueError, "lr must lie in"),
        ({"steps": -1}, ValueError, "steps must be a whole number"),
        ({"steps": 2.5}, ValueError, "steps must be a whole number"),
        ({"tol": -1.0}, ValueError, "tol must lie in"),
    ],
)
def test_bad_input_is_refused_by_name(change, error, message):
    arguments = {"Z": torch.ones(3, 2), "lr": 1.0, "steps": 3, **change}
    with pytest.raises(error, match=message):
        logistic_gd(arguments.pop("Z"), **arguments)
    if change.keys() <= {"Z", "steps"}:
        with pytest.raises(error, match=message):
            batch_perceptron(change.get("Z", torch.ones(3, 2)), steps=change.get("steps", 3))

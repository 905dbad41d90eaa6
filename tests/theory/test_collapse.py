"""Minimisers of the free-feature model: published numbers, closed forms, and what training finds by itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lossbook.theory import ce_minimizer, mse_singular_values


def minimise(parameters, objective, steps=400):
    """The smallest value that L-BFGS finds in float64."""
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=steps, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        value = objective()
        value.backward()
        return value

    optimizer.step(closure)
    return float(objective().detach())


def variables(generator, *shapes):
    return [(0.3 * torch.randn(s, generator=generator, dtype=torch.float64)).requires_grad_() for s in shapes]


def half_norms(*pairs):
    return sum(decay / 2 * value.square().sum() for decay, value in pairs)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("counts", [(8, 4, 2), (5, 5, 5)])
def test_mse_training_ends_there(generator, counts, depth):
    weight_decays, feature_decay, dim = [5e-3, 2e-3, 8e-3][:depth], 1e-3, 4
    y = torch.eye(3, dtype=torch.float64).repeat_interleave(torch.tensor(counts), dim=0).T
    n = y.shape[1]
    *layers, h = variables(generator, *[(dim, dim)] * (depth - 1), (3, dim), (dim, n))

    def product():
        return torch.linalg.multi_dot(layers[::-1]) if depth > 1 else layers[0]

    def objective():
        fit = (product() @ h - y).square().sum() / (2 * n)
        return fit + half_norms(*zip(weight_decays, layers, strict=True), (feature_decay, h))

    minimise([*layers, h], objective)
    s = mse_singular_values(counts, depth=depth, weight_decay=weight_decays, feature_decay=feature_decay)
    trained = torch.linalg.svdvals(layers[0].detach())[:3]
    np.testing.assert_allclose(trained, np.sort(s)[::-1], rtol=1e-5)
    c = weight_decays[0] ** (depth - 1) / np.prod(weight_decays[1:])
    trained = torch.linalg.svdvals(product().detach())[:3]
    np.testing.assert_allclose(trained, np.sort(c**0.5 * s**depth)[::-1], rtol=1e-5)


def test_one_layer_in_plain_form_and_minority_collapse():
    n, lw, lh = 100, 6**0.5 / 100, 6**0.5 / 100
    counts = np.array([70, 20, 8, 2])
    s = mse_singular_values(counts, weight_decay=lw, feature_decay=lh)
    np.testing.assert_allclose(s**2, np.maximum(np.sqrt(counts * lh / lw) - n * lh, 0), atol=1e-12)
    assert s[-1] == 0  # 2 ≤ N² λ_W λ_H = 6 < 8


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_beyond_the_threshold_zero_is_the_lower_minimum(depth):
    # Per-class loss 1/(x^M + 1) + r x on a fine grid, r a little to either side of the threshold.
    threshold = (depth - 1) ** ((depth - 1) / depth) / depth
    x = np.linspace(0, 20, 2_000_001)
    for factor in (0.98, 1.02):
        n, lh = 10, 1e-3
        lw = ((factor * threshold * 5 / (depth * n)) ** depth / (n * lh)) ** (1 / depth)  # makes r = factor · threshold
        best = x[(1 / (x**depth + 1) + factor * threshold * x).argmin()]
        s = mse_singular_values((5, 5), depth=depth, weight_decay=lw, feature_decay=lh)
        expected = math.sqrt(best * (n * lh) ** (1 / depth))  # equal decays: c = 1
        np.testing.assert_allclose(s, expected, rtol=1e-4)
        assert (best > 0) == (factor < 1)


def test_depth_one_needs_no_list():
    one = mse_singular_values([4, 3], weight_decay=[0.01], feature_decay=0.01)
    np.testing.assert_array_equal(one, mse_singular_values([4, 3], weight_decay=0.01, feature_decay=0.01))


@pytest.mark.parametrize("bias", [False, True])
def test_cross_entropy_training_ends_there(generator, bias):
    k, n, lw, lh, dim = 3, 4, 5e-3, 2e-3, 5
    target = torch.arange(k).repeat_interleave(n)
    w, h, b = variables(generator, (k, dim), (k * n, dim), (k,))

    def logits():
        return h @ w.T + (b if bias else 0)

    def objective():
        return torch.nn.functional.cross_entropy(logits(), target) + half_norms((lw, w), (lh, h))

    loss = minimise([w, h, b] if bias else [w, h], objective, steps=1000)
    solution = ce_minimizer(k, n, weight_decay=lw, feature_decay=lh)
    assert loss == pytest.approx(solution.loss, abs=1e-9)
    probability = logits().detach().softmax(dim=1).gather(1, target[:, None])
    np.testing.assert_allclose(probability, solution.true_probability, atol=1e-5)
    assert solution.true_probability == pytest.approx(1 - (k - 1) * math.sqrt(n * lw * lh), abs=1e-14)
    np.testing.assert_allclose(torch.linalg.svdvals(w.detach()), solution.weight_singular_values, atol=1e-4)
    means = h.detach().reshape(k, n, dim).mean(dim=1)
    np.testing.assert_allclose(torch.linalg.svdvals(means), solution.mean_singular_values, atol=1e-4)


def test_heavy_decay_leaves_nothing():
    solution = ce_minimizer(4, 25, weight_decay=0.05, feature_decay=0.05)  # κ = 1/4 = 1/K
    assert solution.tau == 0 and not solution.weight_singular_values.any() and not solution.mean_singular_values.any()
    assert solution.true_probability == 0.25
    assert solution.loss == pytest.approx(math.log(4), abs=1e-15)
    assert ce_minimizer(4, 25, weight_decay=0.0499, feature_decay=0.05).tau > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mse_singular_values([], weight_decay=1, feature_decay=1), "counts must be class sizes"),
        (lambda: mse_singular_values([3, 0], weight_decay=1, feature_decay=1), r"counts .* \[3.0, 0.0\]"),
        (lambda: mse_singular_values([3], depth=0, weight_decay=1, feature_decay=1), "depth must be at least 1"),
        (
            lambda: mse_singular_values([3], depth=2, weight_decay=[1], feature_decay=1),
            "weight_decay must be one number or 2",
        ),
        (lambda: mse_singular_values([3], weight_decay=0, feature_decay=1), "weight_decay must be above 0, but is 0"),
        (
            lambda: mse_singular_values([3], weight_decay=1, feature_decay=-1),
            "feature_decay must be above 0, but is -1",
        ),
        (lambda: ce_minimizer(1, 5, weight_decay=1, feature_decay=1), "num_classes must be at least 2"),
        (lambda: ce_minimizer(3, 0, weight_decay=1, feature_decay=1), "per_class must be at least 1"),
        (lambda: ce_minimizer(3, 5, weight_decay=float("nan"), feature_decay=1), "weight_decay must be above 0"),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()

"""Minimisers of the free-feature model: published numbers, closed forms, and what training finds by itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lossbook.theory import (
    ce_etf_ray,
    ce_minimizer,
    collapse_threshold,
    construct_minimizer,
    mse_minimizer,
    mse_singular_values,
    seli_grams,
)


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


def test_published_runs_of_the_deep_model():
    # Product singular values of trained models, float64, 3,000 steps of Adam, in the order of the classes.
    trained = {
        1: (1.4009, 1.1733, 0.9811, 0.8183),
        2: (1.5715, 1.2398, 0.9745, 0.7612),
        3: (1.6649, 1.2748, 0.9712, 0.7331),
    }
    for depth, values in trained.items():
        solution = mse_minimizer((40, 20, 10, 5), weight_decay=5e-3, feature_decay=5e-4, depth=depth)
        np.testing.assert_allclose(solution.product_singular_values, values, atol=5e-5)
    solution = mse_minimizer((70, 20, 8, 2), weight_decay=6**0.5 / 100, feature_decay=6**0.5 / 100)
    np.testing.assert_allclose(solution.product_singular_values, (2.4325, 1.4222, 0.6156, 0), atol=5e-5)


def test_one_layer_means_and_logits_in_plain_form():
    n, lw, lh = 75, 5e-3, 5e-4
    counts = np.array([40, 20, 10, 5])
    solution = mse_minimizer(counts, weight_decay=lw, feature_decay=lh)
    np.testing.assert_allclose(solution.mean_norms**2, np.sqrt(lw / (counts * lh)) - n * lw / counts, rtol=1e-12)
    np.testing.assert_allclose(solution.own_logits, 1 - n * np.sqrt(lw * lh / counts), rtol=1e-12)
    assert (np.diff(solution.product_singular_values) < 0).all() and (np.diff(solution.mean_norms) > 0).all()


def test_equal_decays_share_the_work_and_unequal_ones_balance():
    solution = mse_minimizer((9, 4), weight_decay=[1e-3, 4e-3, 2e-3], feature_decay=1e-3, depth=3)
    s = solution.layer_singular_values
    assert s.shape == (3, 2)
    np.testing.assert_allclose(np.array([1e-3, 4e-3, 2e-3])[:, None] * s**2, [1e-3 * s[0] ** 2] * 3, rtol=1e-12)
    np.testing.assert_allclose(s.prod(axis=0), solution.product_singular_values, rtol=1e-12)
    np.testing.assert_array_equal(
        s[0], mse_singular_values((9, 4), weight_decay=[1e-3, 4e-3, 2e-3], feature_decay=1e-3, depth=3)
    )


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_threshold_is_where_classes_vanish(depth):
    counts, lh = (30, 20, 7), 1e-3
    unit = collapse_threshold(
        57, weight_decay=1.0, feature_decay=lh, depth=depth
    )  # grows with the decay: all λ_j alike
    for factor, vanishes in ((1 + 1e-6, True), (1 - 1e-6, False)):
        decay = factor * 7 / unit
        solution = mse_minimizer(counts, weight_decay=decay, feature_decay=lh, depth=depth)
        assert (solution.x[2] == 0) == vanishes and (solution.x[:2] > 0).all()
        # The second minimum of the per-class cost has the same value there, so the loss does not jump.
        edge = solution.loss if vanishes else None
        assert edge is None or edge == pytest.approx(
            mse_minimizer(counts, weight_decay=decay * (1 - 2e-6), feature_decay=lh, depth=depth).loss, rel=1e-5
        )
        if not vanishes:
            assert solution.x[2] == pytest.approx((depth - 1) ** (1 / depth), abs=1e-3 if depth > 1 else 1e-5)
    assert collapse_threshold(100, weight_decay=6**0.5 / 100, feature_decay=6**0.5 / 100) == pytest.approx(6)


@pytest.mark.parametrize("depth", [1, 3])
def test_a_bias_with_equal_classes_makes_a_simplex(depth):
    k, n, decays = 5, 12, {"weight_decay": 4e-3, "feature_decay": 1e-3, "depth": depth}
    solution, free = mse_minimizer([n] * k, **decays, bias=True), mse_minimizer([n] * k, **decays)
    np.testing.assert_allclose(solution.x, [*free.x[1:], 0], rtol=1e-9)
    x, b = free.x[0], depth * k * n * (k * n * 1e-3 * 4e-3**depth) ** (1 / depth)
    assert solution.loss == pytest.approx((k - 1) / (2 * k * n) * (n / (x**depth + 1) + b * x), rel=1e-12)
    np.testing.assert_allclose(solution.mean_norms, free.mean_norms * ((k - 1) / k) ** 0.5, rtol=1e-9)
    np.testing.assert_allclose(solution.own_logits, free.own_logits * (1 - 1 / k) + 1 / k, rtol=1e-9)
    assert solution.loss < free.loss


def test_constructions_differ_by_a_rotation():
    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        return construct_minimizer((3, 2), 4, depth=2, weight_decay=1e-2, feature_decay=1e-2, generator=generator)

    a, b = draw(0), draw(1)
    assert a.features.shape == (5, 4) and [tuple(w.shape) for w in a.weights] == [(4, 4), (2, 4)] and a.bias is None
    assert not torch.allclose(a.features, b.features)
    torch.testing.assert_close(a.features @ a.features.T, b.features @ b.features.T)
    torch.testing.assert_close(a.weights[1] @ a.weights[0] @ a.features.T, b.weights[1] @ b.weights[0] @ b.features.T)


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_the_ray_has_its_lowest_point_there(depth):
    k, n, lh = 4, 5, 2e-4
    tau = np.linspace(1e-6, 20, 400_001)
    for lw in (2e-3, 100.0):  # the second collapses to zero
        ray = ce_etf_ray(k, n, depth=depth, weight_decay=lw, feature_decay=lh)
        gamma = (n * lh * lw**depth) ** (1 / (depth + 1))
        phi = np.log1p(3 * np.exp(-tau)) + 3 * (depth + 1) / 2 * gamma * tau ** (2 / (depth + 1))
        assert ray.loss <= min(phi.min(), math.log(k)) + 1e-12
        assert ray.loss == pytest.approx(min(phi.min(), math.log(k)), abs=1e-8)
        assert ray.tau == pytest.approx(tau[phi.argmin()] if phi.min() < math.log(k) else 0, abs=1e-4)
        assert (lw > 1) == (ray.tau == 0) == (not ray.layer_singular_values.any())
    published = {2: 0.028860, 3: 0.029282, 4: 0.030890}
    for m, loss in published.items():
        assert ce_etf_ray(4, 5, depth=m, weight_decay=2e-3, feature_decay=2e-4).loss == pytest.approx(loss, abs=1e-6)
    assert ce_etf_ray(10, 5, depth=2, weight_decay=2e-3, feature_decay=2e-4).loss == pytest.approx(0.086562, abs=1e-6)


def test_ray_compares_with_zero_where_both_are_minima():
    # The interior minimum exists before it is lower than log K: just past the tie, zero is taken.
    decays = np.geomspace(1e-3, 1, 400)
    taus = np.array([ce_etf_ray(4, 5, depth=3, weight_decay=d, feature_decay=1e-3).tau for d in decays])
    assert taus[0] > 0 and taus[-1] == 0
    jump = int((taus == 0).argmax())
    assert taus[jump - 1] > 1 and (np.diff(taus[:jump]) < 0).all() and not taus[jump:].any()
    assert ce_etf_ray(4, 5, depth=3, weight_decay=decays[jump], feature_decay=1e-3).loss == pytest.approx(math.log(4))


@pytest.mark.parametrize("counts", [(10, 10, 10), (40, 40, 4, 4), (100, 10, 1), (7, 3)])
def test_seli_is_the_cheapest_interpolation(counts):
    # Ẑ has the smallest nuclear norm among logits with all margins at least 1: its subgradient V Uᵀ is a price on the
    # margins, positive for the own class, not positive for the others, and each column sums to 0.
    k, n = len(counts), sum(counts)
    y = np.repeat(np.eye(k), counts, axis=1)
    v, size, u = np.linalg.svd(y - 1 / k, full_matrices=False)
    classifier, means = seli_grams(counts)
    np.testing.assert_allclose(classifier, (v * size) @ v.T, atol=1e-10 * n)
    np.testing.assert_allclose(y.T @ means @ y, (u.T * size) @ u, atol=1e-10)
    kept = size > 1e-9
    price = v[:, kept] @ u[kept]
    assert price[y == 1].min() > 0.01 and price[y == 0].max() < 1e-12
    np.testing.assert_allclose(price.sum(axis=0), 0, atol=1e-12)


def test_seli_of_equal_classes_is_a_simplex():
    for gram in seli_grams([6] * 4):
        np.testing.assert_allclose(gram / gram[0, 0], (4 * np.eye(4) - 1) / 3, atol=1e-12)


def test_small_decays_approach_seli():
    # Grams of the minimum of the convex form: cross-entropy + λ times the nuclear norm of the logits.
    counts, angle = (20, 20, 2), []
    goal = seli_grams(counts)[0]
    y = np.repeat(np.eye(3), counts, axis=1)
    for decay in (1e-2, 1e-3):
        z = torch.zeros(3, 42, dtype=torch.float64)
        for _ in range(300):  # proximal steps; the gradient is at most 1-Lipschitz
            step = z - (z.softmax(dim=0) - torch.as_tensor(y)) * 2
            u, s, v = torch.linalg.svd(step, full_matrices=False)
            z = (u * (s - 2 * 42 * decay / 6).clamp_min(0)) @ v
        u, s, _ = torch.linalg.svd(z, full_matrices=False)
        gram = ((u * s) @ u.T).numpy()
        angle.append(np.linalg.norm(gram / np.linalg.norm(gram) - goal / np.linalg.norm(goal)))
    assert angle[1] < 0.5 * angle[0] < 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mse_minimizer([3], weight_decay=1, feature_decay=1, bias=True), "counts must have 2 or more classes"),
        (lambda: seli_grams([3]), "counts must have 2 or more classes"),
        (lambda: collapse_threshold(0, weight_decay=1, feature_decay=1), "num_samples must be a whole number"),
        (lambda: collapse_threshold(5, weight_decay=1, feature_decay=0), "feature_decay must be above 0"),
        (lambda: ce_etf_ray(3, 5, weight_decay=[1], feature_decay=1, depth=2), "weight_decay must be one number or 2"),
        (lambda: ce_etf_ray(1, 5, weight_decay=1, feature_decay=1, depth=2), "num_classes must be at least 2"),
        (lambda: construct_minimizer((2, 2), 1, weight_decay=1, feature_decay=1), "dim must be at least 2 for 2"),
        (
            lambda: construct_minimizer((2, 2), 2, weight_decay=1, feature_decay=1, loss="hinge"),
            "loss must be 'mse' or 'ce', but is 'hinge'",
        ),
        (
            lambda: construct_minimizer((2, 3), 2, weight_decay=1, feature_decay=1, loss="ce"),
            r"counts must be equal for the cross-entropy, but are \[2, 3\]",
        ),
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

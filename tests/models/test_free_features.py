"""Free features: the objective by hand, at the constructed minimisers, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lossbook import metrics
from lossbook.models import FreeFeatures
from lossbook.theory import ce_etf_ray, ce_minimizer, construct_minimizer, mse_minimizer

DECAYS = {"weight_decay": [5e-3, 2e-3, 8e-3], "feature_decay": 5e-4}


def at_minimum(counts, dim, depth, bias, *, loss="mse", seed=0, **decays):
    """A model that stands where `construct_minimizer` says."""
    generator = torch.Generator().manual_seed(seed)
    model = FreeFeatures(counts, dim, depth, bias, **decays)
    values = construct_minimizer(counts, dim, depth=depth, bias=bias, loss=loss, generator=generator, **decays)
    with torch.no_grad():
        for w, value in zip(model.weights, values.weights, strict=True):
            w.copy_(value)
        model.features.copy_(values.features)
        if bias:
            model.bias.copy_(values.bias)
    return model


def gradient_norm(model, loss):
    value = model.objective(loss)
    return float(sum(g.norm() for g in torch.autograd.grad(value, list(model.parameters()))))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_objective_by_hand(depth, bias, generator):
    counts, decays = (3, 1, 4), DECAYS["weight_decay"][:depth]
    model = FreeFeatures(counts, 5, depth, bias, weight_decay=decays, feature_decay=0.02, generator=generator)
    if bias:
        with torch.no_grad():
            model.bias.copy_(torch.tensor([0.5, -1.0, 2.0]))
    layers, h = [w.detach().numpy() for w in model.weights], model.features.detach().numpy()
    x = [h]
    for w in layers:
        x.append(x[-1] @ w.T)
    z = x[-1] + ([0.5, -1.0, 2.0] if bias else 0)
    y = np.repeat(np.eye(3), counts, axis=0)
    price = sum(decay / 2 * (w**2).sum() for decay, w in zip(decays, layers, strict=True)) + 0.01 * (h**2).sum()
    assert float(model.objective("mse").detach()) == pytest.approx(((z - y) ** 2).sum() / 16 + price, rel=1e-12)
    cross_entropy = (np.log(np.exp(z).sum(axis=1)) - (z * y).sum(axis=1)).mean()
    assert float(model.objective(loss="ce").detach()) == pytest.approx(cross_entropy + price, rel=1e-12)
    np.testing.assert_allclose(model().detach(), z)
    np.testing.assert_array_equal(model.target, [0, 0, 0, 1, 2, 2, 2, 2])
    for found, expected in zip(model.layer_features(), x[:-1], strict=True):
        np.testing.assert_allclose(found.detach(), expected)


@pytest.mark.parametrize("loss", ["mse", "ce"])
def test_objective_has_the_right_gradient(loss, generator):
    model = FreeFeatures((2, 3), 3, 2, True, weight_decay=0.1, feature_decay=0.2, generator=generator)
    names, values = zip(*model.named_parameters(), strict=True)

    class Objective(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self):
            return self.model.objective(loss)

    def of(*parameters):
        state = {f"model.{name}": p for name, p in zip(names, parameters, strict=True)}
        return torch.func.functional_call(Objective(), state, ())

    torch.autograd.gradcheck(of, tuple(v.detach().clone().requires_grad_() for v in values))


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=2, max_size=5),
    st.integers(1, 4),
    st.booleans(),
    st.floats(-4, -1),
    st.floats(-4, -1),
    st.integers(0, 1000),
)
def test_mse_minimiser_is_stationary_and_has_the_loss(counts, depth, bias, log_weight, log_feature, seed):
    decays = {"weight_decay": [10**log_weight * (1 + j) for j in range(depth)], "feature_decay": 10**log_feature}
    model = at_minimum(counts, 6, depth, bias, seed=seed, **decays)
    solution = mse_minimizer(counts, depth=depth, bias=bias, **decays)
    objective = float(model.objective("mse").detach())
    assert objective == pytest.approx(solution.loss, rel=1e-12)
    assert gradient_norm(model, "mse") < 1e-10
    classes = len(counts)
    means = metrics.class_means(model.features.detach(), model.target)
    np.testing.assert_allclose(means.norm(dim=1), solution.mean_norms, atol=1e-12)
    np.testing.assert_allclose(
        model().detach().gather(1, model.target[:, None])[:, 0], solution.own_logits[model.target], atol=1e-12
    )
    found = torch.linalg.svdvals(model.product().detach())[:classes]
    np.testing.assert_allclose(found, np.sort(solution.product_singular_values)[::-1], atol=1e-11)
    for w, s in zip(model.weights, solution.layer_singular_values, strict=True):
        np.testing.assert_allclose(torch.linalg.svdvals(w.detach())[:classes], np.sort(s)[::-1], atol=1e-11)
    # No start and no neighbour is lower.
    generator = torch.Generator().manual_seed(seed)
    other = FreeFeatures(counts, 6, depth, bias, **decays, generator=generator)
    assert float(other.objective("mse").detach()) > objective
    with torch.no_grad():
        for p in model.parameters():
            p += 1e-3 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    assert float(model.objective("mse").detach()) > objective


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_ce_etf_is_stationary_and_has_the_loss(depth, bias):
    decays = {"weight_decay": DECAYS["weight_decay"][:depth], "feature_decay": 5e-4}
    model = at_minimum((7,) * 4, 3, depth, bias, loss="ce", **decays)  # K - 1 dimensions will do
    ray = ce_etf_ray(4, 7, depth=depth, **decays)
    assert float(model.objective("ce").detach()) == pytest.approx(ray.loss, rel=1e-13)
    assert gradient_norm(model, "ce") < 1e-10
    probability = model().detach().softmax(dim=1).gather(1, model.target[:, None])
    np.testing.assert_allclose(probability, ray.true_probability, rtol=1e-12)
    if depth == 1:
        one = ce_minimizer(4, 7, weight_decay=decays["weight_decay"][0], feature_decay=5e-4)
        assert (ray.tau, ray.loss) == pytest.approx((one.tau, one.loss), rel=1e-13)
        np.testing.assert_allclose(ray.layer_singular_values[0], one.weight_singular_values, rtol=1e-13)
        np.testing.assert_allclose(ray.mean_singular_values, one.mean_singular_values, rtol=1e-13)


@pytest.mark.parametrize("bias", [False, True])
def test_the_minimum_is_collapsed_in_every_layer(bias):
    counts, decays = ((6, 6, 6, 6) if bias else (12, 6, 3, 2)), DECAYS
    model = at_minimum(counts, 7, 3, bias, **decays)
    for m, h in enumerate(model.layer_features()):
        h = h.detach()
        assert metrics.nc1(h, model.target) == pytest.approx(0, abs=1e-20)
        means = metrics.class_means(h, model.target)
        head = torch.linalg.multi_dot([*list(model.weights)[m:][::-1], torch.eye(7, dtype=h.dtype)]).detach()
        if bias:
            assert metrics.nc2_etf(means) == pytest.approx(0, abs=1e-12)
            assert metrics.nc3_self_duality(h, model.target, head) == pytest.approx(0, abs=1e-12)
            assert metrics.nc3_etf(h, model.target, head) == pytest.approx(0, abs=1e-12)
        else:
            cosines = torch.nn.functional.normalize(means, dim=1) @ torch.nn.functional.normalize(head, dim=1).T
            torch.testing.assert_close(cosines, torch.eye(4, dtype=h.dtype), atol=1e-12, rtol=0)
    solution = mse_minimizer(counts, depth=3, bias=bias, **decays)
    if not bias:
        product = model.product().detach()
        assert metrics.nc2_frame(product, solution.product_singular_values**2) == pytest.approx(0, abs=1e-12)
        means = metrics.class_means(model.features.detach(), model.target)
        assert metrics.nc2_frame(means, solution.mean_norms**2) == pytest.approx(0, abs=1e-12)


def test_start_comes_from_the_generator():
    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        return FreeFeatures((50, 50), 40, **{**DECAYS, "weight_decay": 1e-3}, generator=generator, std=0.1)

    assert torch.equal(draw(0).features, draw(0).features) and not torch.equal(draw(0).features, draw(1).features)
    assert float(draw(0).features.detach().std()) == pytest.approx(0.1, rel=0.05)
    assert draw(0).features.dtype == torch.float64 and draw(0).bias is None


ONE = {"weight_decay": 1e-3, "feature_decay": 1e-3}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FreeFeatures([3], 4, **ONE), r"counts must have two or more classes, but are \[3\]"),
        (lambda: FreeFeatures([3, 0], 4, **ONE), r"counts\[1\] must be a whole number of at least 1, but is 0"),
        (lambda: FreeFeatures([3, 3], 0, **ONE), "dim must be a whole number of at least 1"),
        (lambda: FreeFeatures([3, 3], 4, 0, **ONE), "depth must be a whole number of at least 1"),
        (lambda: FreeFeatures([3, 3], 4, 2, weight_decay=[1], feature_decay=1), "weight_decay must be one number or 2"),
        (lambda: FreeFeatures([3, 3], 4, weight_decay=-1, feature_decay=1), "weight_decay must lie in"),
        (lambda: FreeFeatures([3, 3], 4, weight_decay=1, feature_decay=-1), "feature_decay must lie in"),
        (lambda: FreeFeatures([3, 3], 4, **ONE, std=0), "std must lie in"),
        (lambda: FreeFeatures([3, 3], 4, **ONE).objective("hinge"), "loss must be 'mse' or 'ce', but is 'hinge'"),
    ],
)
def test_bad_input_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()

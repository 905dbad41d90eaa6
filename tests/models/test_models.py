from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from lossbook.models import MLP, SmallCNN

NETWORKS = {
    "mlp": (lambda: MLP(64, (32, 16), 10), (1, 8, 8), 16),
    "linear_features": (lambda: MLP(64, (32,), 10, linear_features=True), (64,), 32),
    "cnn": (lambda: SmallCNN(1, 10, width=4, image_size=8), (1, 8, 8), 16),
    "cnn_odd": (lambda: SmallCNN(3, 5, width=2, image_size=13), (3, 13, 13), 8),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_head_reads_the_features(name, generator):
    make, shape, dim = NETWORKS[name]
    model, x = make(), torch.rand(7, *shape, generator=generator)
    features = model.features(x)
    assert features.shape == (7, dim)
    assert isinstance(model.head, nn.Linear)
    torch.testing.assert_close(model(x), features @ model.head.weight.T + model.head.bias)


@pytest.mark.parametrize("name", NETWORKS)
def test_stacked_networks_agree_with_single_ones(name, generator):
    make, shape, _ = NETWORKS[name]
    models, x = [make() for _ in range(3)], torch.rand(5, *shape, generator=generator)
    state, _ = stack_module_state(models)
    together = vmap(lambda weights: functional_call(models[0], weights, (x,)))(state)
    torch.testing.assert_close(together, torch.stack([model(x) for model in models]), atol=1e-5, rtol=1e-5)


def test_only_linear_features_may_be_negative(generator):
    x = torch.randn(50, 6, generator=generator)
    torch.manual_seed(0)
    assert MLP(6, (8,), 3).features(x).min() >= 0
    assert MLP(6, (8,), 3, linear_features=True).features(x).min() < 0


def test_a_mlp_is_its_formula(generator):
    model, x = MLP(6, (5, 4), 3), torch.randn(9, 2, 3, generator=generator)
    w1, b1, w2, b2, w, b = (p.detach() for p in model.parameters())
    hidden = ((x.reshape(9, 6) @ w1.T + b1).clamp(min=0) @ w2.T + b2).clamp(min=0)
    torch.testing.assert_close(model(x), hidden @ w.T + b)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MLP(0), "in_features must be a whole number of at least 1, but is 0"),
        (lambda: MLP(2.5), "in_features must be a whole number of at least 1, but is 2.5"),
        (lambda: MLP(4, 8), "hidden must list the width"),
        (lambda: MLP(4, ()), "hidden must list the width"),
        (lambda: MLP(4, (8, -1)), r"hidden\[1\] must be a whole number of at least 1, but is -1"),
        (lambda: MLP(4, (8,), 1), "num_classes must be a whole number of at least 2, but is 1"),
        (lambda: SmallCNN(0, 10, image_size=8), "in_channels must be a whole number of at least 1"),
        (lambda: SmallCNN(1, 10, width=0, image_size=8), "width must be a whole number of at least 1"),
        (lambda: SmallCNN(1, 10, image_size=3), "image_size must be a whole number of at least 4, but is 3"),
        (lambda: SmallCNN(1, True, image_size=8), "num_classes must be a whole number of at least 2, but is True"),
        (lambda: MLP(4)(torch.zeros(2, 5)), "x must have 4 entries an example, but has 5"),
        (lambda: SmallCNN(1, 10, image_size=8)(torch.zeros(2, 3, 8, 8)), r"x must have shape \(N, 1, 8, 8\)"),
    ],
)
def test_bad_sizes_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()

"""The fixed simplex classifier: its geometry, what trains, its place in a network, bad input."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from lossbook import metrics
from lossbook.layers import ETFClassifier
from lossbook.losses import cross_entropy
from lossbook.models import MLP
from lossbook.train import sweep


@pytest.mark.parametrize("learn_scale", [False, True])
def test_the_formula_and_what_trains(learn_scale, generator):
    layer = ETFClassifier(6, 4, scale=3.0, learn_scale=learn_scale)
    gram = 9 * (4 * torch.eye(4) - torch.ones(4, 4)) / 3
    torch.testing.assert_close(layer.weight @ layer.weight.T, gram, atol=1e-5, rtol=0)
    h = torch.randn(2, 5, 6, generator=generator)
    torch.testing.assert_close(layer(h), h @ layer.weight.T)
    assert [name for name, _ in layer.named_parameters()] == ["log_scale"] * learn_scale
    assert set(layer.state_dict()) == {"frame", "log_scale"}
    assert layer.weight.requires_grad == learn_scale and "scale=3" in repr(layer)


def test_the_scale_follows_its_gradient(generator):
    layer = ETFClassifier(3, 4, learn_scale=True).double()
    h = torch.randn(5, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0, 1, 2, 3, 0])

    def loss(h, log_scale):
        return cross_entropy(torch.func.functional_call(layer, {"log_scale": log_scale}, (h,)), target)

    torch.autograd.gradcheck(loss, (h, torch.tensor(0.3, dtype=torch.float64, requires_grad=True)))


def test_orientation_comes_from_the_global_generator():
    def draw(seed):
        torch.manual_seed(seed)
        return ETFClassifier(3, 4).frame

    assert torch.equal(draw(1), draw(1)) and not torch.allclose(draw(1), draw(2))


def test_the_best_unit_features_are_its_rows(generator):
    # Cross-entropy over features of length 1: log(1 + (K-1) exp(-s K/(K-1))) at the rows, lower nowhere.
    k, s = 4, 2.0
    layer = ETFClassifier(5, k, scale=s).double()
    target = torch.arange(k)
    best = math.log1p((k - 1) * math.exp(-s * k / (k - 1)))
    rows = torch.nn.functional.normalize(layer.frame, dim=1)
    assert cross_entropy(layer(rows), target).item() == pytest.approx(best, abs=1e-6)
    for _ in range(20):
        other = torch.nn.functional.normalize(rows + 0.3 * torch.randn(rows.shape, generator=generator), dim=1)
        assert cross_entropy(layer(other), target).item() > best


def test_a_network_with_it_trains_and_is_measured(generator):
    y = torch.arange(90) % 3
    x = 2 * torch.randn(3, 6, generator=generator)[y] + torch.randn(90, 6, generator=generator)
    data = SimpleNamespace(train=(x, y), val=(x, y))

    def make():
        model = MLP(6, (16, 4), 3, linear_features=True)
        model.head = ETFClassifier(4, 3)
        return model

    trained = sweep(make, data, {"seed": [0, 1]}, epochs=5, batch_size=None, lr=1e-2)
    assert (trained.table["train_loss"] < math.log(3)).all()
    head = trained.model(1).head
    report = metrics.collapse_report(trained.features(x)[1], y, head.weight, head.bias)
    assert report["nc2_etf_weight"] == pytest.approx(0, abs=1e-6) and report["nc1"] > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ETFClassifier(5, 1), "num_classes must be a whole number of at least 2, but is 1"),
        (lambda: ETFClassifier(2, 4), "dim must be a whole number of at least 3, but is 2"),
        (lambda: ETFClassifier(4, 4, scale=0), r"scale must lie in \(0, inf\), but is 0"),
        (lambda: ETFClassifier(4, 4)(torch.zeros(2, 5)), r"features must have shape \(..., 4\), but have shape \(2, 5"),
    ],
)
def test_bad_input_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()

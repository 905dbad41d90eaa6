"""Aggregation of quantiles: known weights, the order of levels, learning which model is right, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lossbook.losses import crossing_penalty, pinball
from lossbook.models import QuantileAggregator

KINDS = ["average", "coarse", "medium", "fine"]
LEARNED = KINDS[1:]
SHAPES = {"average": (3,), "coarse": (3,), "medium": (3, 5), "fine": (3, 5, 5)}
LEVELS = [0.1, 0.3, 0.5, 0.7, 0.9]


def base_predictions(generator, n=6):
    """Quantiles of three models in the order of their levels, (n, 3, 5)."""
    return torch.randn(n, 3, 5, generator=generator).sort(dim=2).values


def randomised(kind, in_features=None, seed=0):
    torch.manual_seed(seed)
    model = QuantileAggregator(kind, 3, 5, in_features=in_features, hidden=(8,))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return model


@pytest.mark.parametrize("in_features", [None, 4])
@pytest.mark.parametrize("kind", LEARNED)
def test_weights_are_on_the_simplex_and_the_sum_is_over_models(kind, in_features, generator):
    model, pred = randomised(kind, in_features), base_predictions(generator)
    x = None if in_features is None else torch.randn(6, in_features, generator=generator)
    w, found = model.weights(x), model(pred, x)
    assert w.shape == ((6,) if in_features else ()) + SHAPES[kind] and (w >= 0).all()
    for i in range(6):
        v = w[i] if in_features else w
        for level in range(5):
            if kind == "fine":
                total, want = v[:, :, level].sum(), (v[:, :, level] * pred[i]).sum()
            else:
                share = v if kind == "coarse" else v[:, level]
                total, want = share.sum(), share @ pred[i, :, level]
            torch.testing.assert_close(total, torch.tensor(1.0))
            torch.testing.assert_close(found[i, level], want)
    if in_features:
        assert (w[0] - w[1]).abs().max() > 1e-3, "local weights differ from row to row"


@pytest.mark.parametrize(("kind", "in_features"), [*((kind, None) for kind in KINDS), *((kind, 4) for kind in LEARNED)])
def test_all_start_from_equal_weights(kind, in_features, generator):
    pred = base_predictions(generator)
    model = QuantileAggregator(kind, 3, 5, in_features=in_features)
    found = model(pred, None if in_features is None else torch.randn(6, 4, generator=generator))
    want = pred.mean(dim=1) if kind != "fine" else pred.mean(dim=(1, 2))[:, None].expand(6, 5)
    torch.testing.assert_close(found, want)
    assert (kind == "average") == (not list(model.parameters()))


@pytest.mark.parametrize("kind", ["average", "coarse"])
def test_one_weight_a_model_keeps_the_order(kind, generator):
    model = randomised(kind) if kind == "coarse" else QuantileAggregator(kind, 3, 5)
    assert crossing_penalty(model(base_predictions(generator, n=200))) == 0


@pytest.mark.parametrize("kind", ["medium", "fine"])
def test_weights_for_each_level_may_cross(kind, generator):
    assert crossing_penalty(randomised(kind)(base_predictions(generator, n=200))) > 0


def fit(model, pred, y, x=None):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        pinball(model(pred, x), y, quantiles=LEVELS).backward()
        optimizer.step()
    return pinball(model(pred, x), y, quantiles=LEVELS).item()


def truth_and_two_impostors(generator, n=2000):
    """Standard normal outcomes; the second model knows their quantiles, the others are shifted by -1 and 1."""
    y = torch.randn(n, generator=generator)
    quantiles = torch.distributions.Normal(0, 1).icdf(torch.tensor(LEVELS))
    return y, torch.stack([quantiles - 1, quantiles, quantiles + 2]).expand(n, 3, 5)


@pytest.mark.parametrize("kind", ["coarse", "medium"])
def test_it_learns_whom_to_trust(kind, generator):
    y, pred = truth_and_two_impostors(generator)
    model = QuantileAggregator(kind, 3, 5)
    best = min(pinball(pred[:, j], y, quantiles=LEVELS).item() for j in range(3))
    assert fit(model, pred, y) < 1.005 * best
    if kind == "coarse":
        # Two impostors in proportion 2 to 1 make the truth too, so only their sum is determined.
        w = model.weights().tolist()
        assert abs(-w[0] + 2 * w[2]) < 0.1


def test_local_weights_learn_where_to_trust_whom(generator):
    """The first model is right for x < 0 and the second for x > 0: no weights that are the same everywhere do it."""
    n = 2000
    x = torch.rand(n, 1, generator=generator) * 2 - 1
    y = torch.randn(n, generator=generator)
    quantiles = torch.distributions.Normal(0, 1).icdf(torch.tensor(LEVELS))
    shift = torch.where(x[:, 0] < 0, 0.0, 3.0)
    pred = torch.stack([quantiles + shift[:, None], quantiles + 3 - shift[:, None]], dim=1)
    torch.manual_seed(0)
    loss = {
        width: fit(QuantileAggregator("coarse", 2, 5, in_features=width, hidden=(16,)), pred, y, x if width else None)
        for width in (None, 1)
    }
    ideal = pinball(quantiles.expand(n, 5), y, quantiles=LEVELS).item()
    assert loss[1] < 1.1 * ideal < 1.3 * ideal < loss[None]


def test_the_average_of_right_quantiles_is_right():
    pred = torch.tensor(np.arange(10.0).reshape(1, 2, 5))
    assert QuantileAggregator("average", 2, 5)(pred).tolist() == [[2.5, 3.5, 4.5, 5.5, 6.5]]


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: QuantileAggregator("deep", 3, 5), "kind must be one of average, coarse, medium, fine, but is 'deep'"),
        (lambda: QuantileAggregator("fine", 0, 5), "num_models must"),
        (lambda: QuantileAggregator("fine", 3, 0), "num_levels must"),
        (lambda: QuantileAggregator("average", 3, 5, in_features=2), "in_features must be None for the average"),
        (lambda: QuantileAggregator("fine", 3, 5, in_features=0), "in_features must"),
        (lambda: QuantileAggregator("fine", 3, 5, in_features=2, hidden=(0,)), r"hidden\[0\] must"),
        (
            lambda: QuantileAggregator("fine", 3, 5)(torch.zeros(2, 5, 3)),
            r"pred must have shape \(N, 3, 5\).*\(2, 5, 3\)",
        ),
        (lambda: QuantileAggregator("fine", 3, 5)(torch.zeros(2, 3, 5), torch.zeros(2, 1)), "x must be None"),
        (
            lambda: QuantileAggregator("fine", 3, 5, in_features=2)(torch.zeros(2, 3, 5)),
            r"x must have shape \(N, 2\), but is None",
        ),
        (
            lambda: QuantileAggregator("fine", 3, 5, in_features=2)(torch.zeros(2, 3, 5), torch.zeros(1, 2)),
            "x has 1 rows, but pred has 2",
        ),
    ],
)
def test_bad_input_is_refused_by_name(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()

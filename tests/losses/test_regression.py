"""The bag loss and the losses of quantiles: identities, ends, peers, extremes, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import mean_pinball_loss
from torch import Tensor
from torch.func import grad, vmap
from torch.nn.functional import binary_cross_entropy_with_logits

from lossbook.losses.regression import bag_loss, crossing_penalty, pinball


def bags(seed: int = 0, m: int = 4, rows: int = 13) -> tuple[Tensor, Tensor, Tensor]:
    """Predictions, shares in [0, 1] and shuffled bags of unequal size."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.cat([torch.arange(m), torch.randint(m, (rows - m,), generator=generator)])
    index = index[torch.randperm(rows, generator=generator)]
    pred = 2 * torch.randn(rows, dtype=torch.float64, generator=generator)
    return pred, torch.rand(m, dtype=torch.float64, generator=generator), index


@pytest.mark.parametrize("loss", ["mse", "bce"])
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), rho=st.floats(0, 1))
def test_bag_by_bag(loss: str, seed: int, rho: float) -> None:
    pred, response, index = bags(seed)
    want = []
    for a, y in enumerate(response):
        f = pred[index == a]
        if loss == "mse":
            bag, instance = (y - f.mean()) ** 2, ((y - f) ** 2).mean()
        else:
            h = f.sigmoid()
            bag = -y * h.mean().log() - (1 - y) * (1 - h.mean()).log()
            instance = binary_cross_entropy_with_logits(f, y.expand(len(f)))
        assert instance >= bag - 1e-12, "Jensen"
        want.append((1 - rho) * bag + rho * instance)
    rows = bag_loss(pred, response, index, rho=rho, loss=loss, reduction="none")
    torch.testing.assert_close(rows, torch.stack(want))
    torch.testing.assert_close(bag_loss(pred, response, index, rho=rho, loss=loss), rows.mean())
    torch.testing.assert_close(bag_loss(pred, response, index, rho=rho, loss=loss, reduction="sum"), rows.sum())


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), rho=st.floats(0, 1))
def test_the_difference_is_the_spread_within_bags(seed: int, rho: float) -> None:
    pred, response, index = bags(seed)
    spread = torch.stack([pred[index == a].var(correction=0) for a in range(4)])
    bag = bag_loss(pred, response, index, reduction="none")
    torch.testing.assert_close(bag_loss(pred, response, index, rho=rho, reduction="none"), bag + rho * spread)


def test_equal_bags_average_over_rows() -> None:
    pred, response, _ = bags()
    index = torch.arange(12) % 4
    want = (response[index] - pred[:12]).square().mean()
    torch.testing.assert_close(bag_loss(pred[:12], response, index, rho=1.0), want)


@pytest.mark.parametrize("loss", ["mse", "bce"])
def test_bags_of_one_row_do_not_know_rho(loss: str) -> None:
    pred, _, _ = bags()
    response, index = torch.rand(13, dtype=torch.float64), torch.randperm(13)
    values = [bag_loss(pred, response, index, rho=rho, loss=loss) for rho in (0.0, 0.4, 1.0)]
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(values[0], values[2])
    if loss == "bce":
        torch.testing.assert_close(values[0], binary_cross_entropy_with_logits(pred, response[index]))


@pytest.mark.parametrize("loss", ["mse", "bce"])
@pytest.mark.parametrize("rho", [0.0, 0.3, 1.0])
def test_gradcheck_vmap_and_compile(loss: str, rho: float) -> None:
    pred, response, index = bags()

    def value(f: Tensor, r: float | Tensor) -> Tensor:
        return bag_loss(f, response, index, rho=r, loss=loss)

    assert torch.autograd.gradcheck(lambda f: value(f, rho), pred.clone().requires_grad_())
    stacked, rhos = torch.stack([pred, 2 * pred]), torch.tensor([rho, 0.5], dtype=torch.float64)
    want = torch.stack([grad(value)(f, float(r)) for f, r in zip(stacked, rhos, strict=True)])
    torch.testing.assert_close(vmap(grad(value))(stacked, rhos), want)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(value, backend="aot_eager", fullgraph=True)(pred, rho), value(pred, rho))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hopeless_rows_keep_their_gradient(dtype: torch.dtype) -> None:
    """A bag whose logits all say 0 and whose response is 1: slope -1 for the row that is least wrong."""
    pred = torch.tensor([-1e4, -2e4, 1e4, 1e4], dtype=dtype, requires_grad=True)
    response, index = torch.tensor([1.0, 0.0]), torch.tensor([0, 0, 1, 1])
    value = bag_loss(pred, response, index, loss="bce", reduction="sum")
    (gradient,) = torch.autograd.grad(value, pred)
    assert value.dtype == dtype and value.isfinite()
    torch.testing.assert_close(gradient, torch.tensor([-1.0, 0.0, 0.5, 0.5], dtype=dtype))


GOOD = {"pred": torch.zeros(4), "bag_response": torch.tensor([0.5, 1.0]), "bag_index": torch.tensor([0, 1, 1, 0])}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"bag_index": torch.tensor([0, 0, 0, 0])}, "bag 1 has no row in bag_index"),
        ({"bag_index": torch.tensor([0, 1, 2, 0])}, "bag_index has bag 2, but there are 2 bags"),
        ({"bag_index": torch.tensor([0, 1, -1, 0])}, "bag_index has bag -1"),
        ({"bag_index": torch.tensor([0, 1])}, "bag_index must hold one integer for each of the 4 rows"),
        ({"bag_index": torch.tensor([0.0, 1.0, 1.0, 0.0])}, "bag_index must hold one integer"),
        ({"pred": torch.zeros(4, 1)}, r"pred must be floating point of shape \(N,\)"),
        ({"pred": torch.zeros(4, dtype=torch.int64)}, "pred must be floating point"),
        ({"pred": torch.zeros(0), "bag_index": torch.zeros(0, dtype=torch.int64)}, "pred must be .* not empty"),
        ({"pred": torch.tensor([0.0, float("nan"), 0.0, 0.0])}, r"pred\[1\] is nan"),
        ({"bag_response": torch.tensor([0.5, float("inf")])}, r"bag_response\[1\] is inf"),
        ({"bag_response": torch.tensor([0.5, 1.5]), "loss": "bce"}, r"bag_response\[1\] is 1.5"),
        ({"rho": 1.1}, r"rho must lie in \[0, 1\], but is 1.1"),
        ({"loss": "mae"}, "loss must be 'mse' or 'bce', but is 'mae'"),
        ({"reduction": "average"}, "reduction must be"),
    ],
)
def test_bad_input_is_refused_by_name(change: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        bag_loss(**{**GOOD, **change})


def test_not_a_tensor_is_refused() -> None:
    for name in GOOD:
        with pytest.raises(TypeError, match=rf"{name} must be a torch\.Tensor, but is list"):
            bag_loss(**{**GOOD, name: [0.0, 1.0]})


LEVELS = [0.1, 0.25, 0.5, 0.75, 0.9]


def quantiles(seed: int = 0, n: int = 7) -> tuple[Tensor, Tensor]:
    """Predicted quantiles that cross, and outcomes on both sides of them."""
    generator = torch.Generator().manual_seed(seed)
    pred = 2 * torch.randn(n, len(LEVELS), dtype=torch.float64, generator=generator)
    return pred, torch.randn(n, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("seed", range(3))
def test_pinball_is_scikit_learns(seed: int) -> None:
    pred, target = quantiles(seed)
    rows = pinball(pred, target, quantiles=LEVELS, reduction="none")
    for k, tau in enumerate(LEVELS):
        assert rows[:, k].mean().item() == pytest.approx(mean_pinball_loss(target, pred[:, k], alpha=tau))
    torch.testing.assert_close(pinball(pred, target, quantiles=LEVELS), rows.mean())
    torch.testing.assert_close(pinball(pred, target, quantiles=torch.tensor(LEVELS), reduction="sum"), rows.sum())


def test_pinball_by_hand() -> None:
    """Two too low costs 0.9 each unit at level 0.9, two too high 0.1; the median pays half either way."""
    pred, target = torch.tensor([[1.0, 1.0], [5.0, 5.0]]), torch.tensor([3.0, 3.0])
    want = torch.tensor([[1.8, 1.0], [0.2, 1.0]])
    torch.testing.assert_close(pinball(pred, target, quantiles=[0.9, 0.5], reduction="none"), want)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), tau=st.floats(0.05, 0.95))
def test_the_minimiser_of_the_pinball_loss_is_the_quantile(seed: int, tau: float) -> None:
    """Over constants, the least loss is at an order statistic: the one that NumPy's inverted CDF names."""
    y = torch.randn(25, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    loss = torch.stack([pinball(c.expand(25, 1), y, quantiles=[tau]) for c in y])
    best = float(np.quantile(y.numpy(), tau, method="inverted_cdf"))
    assert pinball(torch.full((25, 1), best, dtype=torch.float64), y, quantiles=[tau]) <= loss.min() + 1e-12
    # The slopes of the two sides have opposite signs there, so no constant between the samples is better.
    below, above = (y <= best).double().mean(), (y < best).double().mean()
    assert above <= tau + 1e-12 and below >= tau - 1e-12


def test_crossing_penalty_pair_by_pair() -> None:
    pred, _ = quantiles()
    margin = [0.0, 0.5, 1.0, 0.1]
    want = [sum(max(0.0, float(g[k] - g[k + 1]) + margin[k]) for k in range(4)) for g in pred]
    rows = crossing_penalty(pred, margin=margin, reduction="none")
    torch.testing.assert_close(rows, torch.tensor(want, dtype=torch.float64))
    torch.testing.assert_close(crossing_penalty(pred, margin=margin), rows.mean())
    torch.testing.assert_close(crossing_penalty(pred, margin=margin, reduction="sum"), rows.sum())


def test_crossing_penalty_is_zero_exactly_in_order() -> None:
    pred, _ = quantiles()
    ordered = pred.sort(dim=1).values
    assert crossing_penalty(ordered) == 0 and crossing_penalty(ordered[:, :1]) == 0
    assert (crossing_penalty(ordered.flip(1), reduction="none") > 0).all()
    gap = float((ordered[:, 1:] - ordered[:, :-1]).min())
    assert crossing_penalty(ordered, margin=0.99 * gap) == 0 < crossing_penalty(ordered, margin=1.01 * gap)


@pytest.mark.parametrize("loss", ["pinball", "crossing"])
def test_quantile_losses_gradcheck_vmap_and_compile(loss: str) -> None:
    pred, target = quantiles()

    def value(g: Tensor) -> Tensor:
        return pinball(g, target, quantiles=LEVELS) if loss == "pinball" else crossing_penalty(g, margin=0.3)

    assert torch.autograd.gradcheck(value, pred.clone().requires_grad_())
    stacked = torch.stack([pred, 2 * pred])
    torch.testing.assert_close(vmap(grad(value))(stacked), torch.stack([grad(value)(g) for g in stacked]))
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(value, backend="aot_eager", fullgraph=True)(pred), value(pred))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_quantile_losses_keep_the_dtype_and_stay_finite(dtype: torch.dtype) -> None:
    pred = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], dtype=dtype, requires_grad=True)
    for value in (pinball(pred, torch.zeros(2), quantiles=[0.1, 0.9]), crossing_penalty(pred, margin=1.0)):
        (gradient,) = torch.autograd.grad(value, pred)
        assert value.dtype == dtype and value.isfinite() and gradient.isfinite().all()


PREDICTED = {"pred": torch.zeros(3, 2), "target": torch.zeros(3), "quantiles": [0.1, 0.9]}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"pred": torch.zeros(3)}, r"pred must be floating point of shape \(N, m\)"),
        ({"pred": torch.zeros(3, 2, dtype=torch.int64)}, "pred must be floating point"),
        ({"pred": torch.zeros(0, 2), "target": torch.zeros(0)}, "pred must be .* not empty"),
        ({"pred": torch.tensor([[0.0, float("nan")]] * 3)}, r"pred\[0, 1\] is nan"),
        ({"target": torch.zeros(3, 1)}, r"target must be .* one number for each of the 3 rows of pred.*\(3, 1\)"),
        ({"target": torch.zeros(3, dtype=torch.int64)}, "target must be floating point"),
        ({"target": torch.tensor([0.0, float("inf"), 0.0])}, r"target\[1\] is inf"),
        ({"quantiles": [0.1, 0.5, 0.9]}, r"quantiles must hold a level for each of the 2 columns.*\(3,\)"),
        ({"quantiles": [0.1, 1.0]}, r"quantiles must lie strictly between 0 and 1, but quantiles\[1\] is 1"),
        ({"quantiles": [float("nan"), 0.9]}, r"quantiles\[0\] is nan"),
        ({"reduction": "average"}, "reduction must be"),
    ],
)
def test_pinball_refuses_by_name(change: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        pinball(**{**PREDICTED, **change})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"pred": torch.zeros(3)}, r"pred must be floating point of shape \(N, m\)"),
        ({"margin": -0.1}, "margin must be finite and at least 0, but is -0.1"),
        ({"margin": float("nan")}, "margin must be finite"),
        ({"margin": [0.1]}, "margin must be a number or hold one for each of the 2 pairs"),
        ({"reduction": "average"}, "reduction must be"),
    ],
)
def test_crossing_penalty_refuses_by_name(change: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        crossing_penalty(**{"pred": torch.zeros(3, 3), **change})


def test_quantile_losses_refuse_what_is_no_tensor() -> None:
    for name in ("pred", "target"):
        with pytest.raises(TypeError, match=rf"{name} must be a torch\.Tensor, but is list"):
            pinball(**{**PREDICTED, name: [0.0, 1.0]})
    with pytest.raises(TypeError, match=r"pred must be a torch\.Tensor, but is list"):
        crossing_penalty([[0.0, 1.0]])

"""Bias loss: weights by hand, limits, what counts for nothing, the running minimum, bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad, vmap

from lossbook.losses.surrogate import BiasLoss, bias_loss, bias_weights, cross_entropy

LOW, HIGH = 0.7, math.exp(0.3) - 0.3


def batch(n: int = 6, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, 4, dtype=torch.float64, generator=generator)
    scale = torch.rand(n, 1, 1, 1, dtype=torch.float64, generator=generator)
    features = scale * torch.randn(n, 3, 2, 2, dtype=torch.float64, generator=generator)
    return logits, torch.randint(4, (n,), generator=generator), features


def test_weights_by_hand() -> None:
    """Variances 0, 2 and 8 of two numbers a row (divided by D - 1 = 1), so u = 0, 1/4, 1."""
    features = torch.tensor([[1.0, 1.0], [1.0, -1.0], [2.0, -2.0]], dtype=torch.float64)
    z = bias_weights(features, alpha=0.4, beta=0.1)
    torch.testing.assert_close(z, torch.tensor([0.9, math.exp(0.1) - 0.1, math.exp(0.4) - 0.1], dtype=torch.float64))
    # without the first row, but with its variance 0 seen before: u = 2/6, 8/6
    z = bias_weights(features[1:], alpha=0.6, beta=0.0, normalize="global", running_min=0.0)
    torch.testing.assert_close(z, torch.tensor([0.2, 0.8], dtype=torch.float64).exp())


def test_variance_is_numpys() -> None:
    _, _, features = batch()
    v = np.var(features.numpy().reshape(6, -1), axis=1, ddof=1)
    want = np.exp(0.3 * (v - v.min()) / (v.max() - v.min())) - 0.3
    np.testing.assert_allclose(bias_weights(features).numpy(), want)


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 12), seed=st.integers(0, 10_000), shift=st.floats(-5, 5), scale=st.floats(0.1, 10))
def test_range_and_invariance(n: int, seed: int, shift: float, scale: float) -> None:
    """Local weights lie in [0.7, e^0.3 - 0.3], reach both ends, and ignore shift and scale of all features."""
    _, _, features = batch(n, seed)
    z = bias_weights(features)
    assert (z >= LOW - 1e-12).all() and (z <= HIGH + 1e-12).all()
    assert z.min().item() == pytest.approx(LOW)
    assert n == 1 or z.max().item() == pytest.approx(HIGH)
    torch.testing.assert_close(bias_weights(scale * features + shift), z, rtol=1e-6, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), alpha=st.floats(0, 2), beta=st.floats(0, 1))
def test_loss_is_the_weighted_cross_entropy(seed: int, alpha: float, beta: float) -> None:
    logits, target, features = batch(seed=seed)
    z = bias_weights(features, alpha=alpha, beta=beta)
    rows = bias_loss(logits, target, features, alpha=alpha, beta=beta, reduction="none")
    torch.testing.assert_close(rows, z * cross_entropy(logits, target, reduction="none"))
    torch.testing.assert_close(bias_loss(logits, target, features, alpha=alpha, beta=beta), rows.sum() / 6)
    torch.testing.assert_close(bias_loss(logits, target, features, alpha=alpha, beta=beta, reduction="sum"), rows.sum())


def test_limits() -> None:
    logits, target, features = batch()
    ce = cross_entropy(logits, target)
    torch.testing.assert_close(bias_loss(logits, target, features, alpha=0.0, beta=0.0), ce)
    torch.testing.assert_close(bias_loss(logits, target, features, alpha=0.0, beta=0.4), 0.6 * ce)
    for flat in (torch.ones(6, 3), features[:1].expand(6, -1, -1, -1)):
        torch.testing.assert_close(bias_loss(logits, target, flat), 0.7 * ce)
    torch.testing.assert_close(
        bias_loss(logits[:1], target[:1], features[:1]), 0.7 * cross_entropy(logits[:1], target[:1])
    )


def test_features_get_no_gradient() -> None:
    logits, target, features = batch()
    features.requires_grad_(True)
    logits.requires_grad_(True)
    bias_loss(logits, target, features).backward()
    assert features.grad is None and logits.grad is not None
    assert not bias_weights(features).requires_grad


def test_gradcheck() -> None:
    logits, target, features = batch()
    for reduction in ("none", "mean", "sum"):
        assert torch.autograd.gradcheck(
            lambda f, r=reduction: bias_loss(f, target, features, reduction=r), logits.clone().requires_grad_(True)
        )


def test_ignored_rows_count_for_nothing_and_classes_are_weighted() -> None:
    logits, target, features = batch(8)
    features[0] *= 100  # the largest variance, in a row that is ignored
    ignored = target.clone()
    ignored[::4] = -100
    kept = ignored != -100
    weight = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64)
    rows = bias_loss(logits, ignored, features, weight=weight, reduction="none")
    alone = bias_loss(logits[kept], target[kept], features[kept], reduction="none")
    torch.testing.assert_close(rows[kept], weight[target[kept]] * alone)
    assert (rows[~kept] == 0).all()
    torch.testing.assert_close(
        bias_loss(logits, ignored, features, weight=weight), rows.sum() / weight[target[kept]].sum()
    )
    with pytest.raises(ValueError, match="nothing to average"):
        bias_loss(logits, torch.full_like(target, -100), features)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtype_is_kept(dtype: torch.dtype) -> None:
    logits, target, features = batch()
    narrow, maps = logits.to(dtype), features.to(dtype)
    value = bias_loss(narrow, target, maps, reduction="none")
    assert value.dtype == dtype
    tolerance = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(
        value.double(),
        bias_loss(narrow.double(), target, maps.double(), reduction="none"),
        rtol=tolerance,
        atol=tolerance,
    )


def test_finite_at_extreme_logits_and_features() -> None:
    logits = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], requires_grad=True)
    value = bias_loss(logits, torch.tensor([1, 1]), torch.tensor([[1e4, -1e4], [1e-4, 0.0]]))
    (gradient,) = torch.autograd.grad(value, logits)
    assert value.isfinite() and gradient.isfinite().all()


def test_vmap_over_models_and_parameters_and_compile() -> None:
    logits, target, features = batch()
    stacked, maps = torch.stack([logits, 2 * logits]), torch.stack([features, features.flip(0)])
    got = vmap(grad(bias_loss), in_dims=(0, None, 0))(stacked, target, maps)
    torch.testing.assert_close(
        got, torch.stack([grad(bias_loss)(f, target, m) for f, m in zip(stacked, maps, strict=True)])
    )
    values = vmap(lambda a: bias_loss(logits, target, features, alpha=a))(torch.tensor([0.0, 1.0]).double())
    assert values[0].item() == pytest.approx(bias_loss(logits, target, features, alpha=0.0).item())
    assert values[1].item() == pytest.approx(bias_loss(logits, target, features, alpha=1.0).item())
    assert values[0] != values[1]
    torch._dynamo.reset()
    compiled = torch.compile(bias_loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(logits, target, features), bias_loss(logits, target, features))


def test_module_remembers_the_least_variance() -> None:
    loss = BiasLoss(alpha=0.5, beta=0.2)
    first, second = batch(seed=0), batch(seed=1)
    second = (*second[:2], 3 * second[2] + torch.linspace(-4, 4, 12).view(3, 2, 2))  # never as small as the first
    local = {"alpha": 0.5, "beta": 0.2}
    torch.testing.assert_close(loss(*first), bias_loss(*first, **local))
    least = first[2].flatten(1).var(dim=1).min()
    torch.testing.assert_close(loss.running_min.double(), least)
    assert second[2].flatten(1).var(dim=1).min() > least
    torch.testing.assert_close(loss(*second), bias_loss(*second, **local, normalize="global", running_min=least))
    assert loss(*second) > bias_loss(*second, **local)
    loss.eval()
    loss(first[0], first[1], 0 * first[2])
    torch.testing.assert_close(loss.running_min.double(), least)
    loss.train()
    loss(first[0], first[1], 0 * first[2])
    assert loss.running_min == 0


def test_module_sees_the_batch_it_weighs() -> None:
    """The minimum is taken before the weights, so no weight falls below 1 - beta."""
    loss = BiasLoss()
    big, small = batch(seed=0), batch(seed=1)
    loss(big[0], big[1], 100 * big[2])
    torch.testing.assert_close(loss(small[0], small[1], small[2]), bias_loss(*small))


def test_module_does_not_learn_from_ignored_rows_or_refused_batches() -> None:
    logits, target, features = batch()
    features[0] = 0
    target[0] = -100
    loss = BiasLoss()
    torch.testing.assert_close(loss(logits, target, features), bias_loss(logits, target, features))
    assert loss.running_min == features[1:].flatten(1).var(dim=1).min()
    kept = loss.running_min.clone()
    with pytest.raises(ValueError, match="target has label 9"):
        loss(logits, torch.full_like(target, 9), 0 * features)
    assert loss.running_min == kept


GOOD = dict(zip(("logits", "target", "features"), batch(3), strict=True))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"logits": torch.zeros(3)}, r"logits must have shape \(N, C\)"),
        ({"target": torch.tensor([0, 1, 9])}, "target has label 9, but logits have 4 classes"),
        ({"features": torch.zeros(3)}, r"features must be floating point of shape \(N, ...\)"),
        ({"features": torch.zeros(3, 1)}, "rows of at least 2 numbers"),
        ({"features": torch.zeros(0, 4)}, r"features must be floating point of shape \(N, ...\)"),
        ({"features": torch.zeros(2, 4)}, "a row for each of the 3 logits, but have 2"),
        ({"features": torch.zeros(3, 4, dtype=torch.int64)}, "features must be floating point"),
        ({"features": torch.full((3, 4), float("nan"))}, r"features\[0, 0\] is nan"),
        ({"alpha": -0.1}, r"alpha must lie in \[0, inf\)"),
        ({"running_min": -1.0}, r"running_min must lie in \[0, inf\]"),
        ({"beta": 1.1}, r"beta must lie in \[0, 1\]"),
        ({"normalize": "batch"}, "normalize must be 'local' or 'global', but is 'batch'"),
        ({"reduction": "average"}, "reduction must be"),
    ],
)
def test_bad_input_is_refused_by_name(change: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        bias_loss(**{**GOOD, **change})


def test_bad_input_of_the_rest() -> None:
    with pytest.raises(TypeError, match=r"features must be a torch\.Tensor, but is list"):
        bias_weights([[1.0, 2.0]])
    with pytest.raises(ValueError, match="beta must lie in"):
        BiasLoss(beta=-1.0)

"""The contract that every loss keeps. A new loss is one line in LOSSES."""

from __future__ import annotations

import shutil
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad, vmap

from lossbook import checks, losses


def smooth_adversarial(logits: Tensor, target: Tensor, **parameters: Any) -> Tensor:
    """With half of the logits as those of the moved input."""
    half = logits / 2 if isinstance(logits, Tensor) else logits
    return losses.smooth_adversarial_comp_sum(logits, half, target, **parameters)


def self_distillation(logits: Tensor, target: Tensor, *, alpha: Any = 0.3, **arguments: Any) -> Tensor:
    """With a past that found all classes equally likely."""
    past = torch.full_like(logits, 1 / max(logits.shape[-1], 1)) if isinstance(logits, Tensor) else logits
    return losses.pskd(logits, target, past, alpha=alpha, **arguments)


# name -> (loss, the parameter that a sweep would vary with two legal values, an illegal value of it)
LOSSES = {
    "cross_entropy": (losses.cross_entropy, None, None, None),
    "label_smoothing": (partial(losses.cross_entropy, label_smoothing=0.1), "label_smoothing", (0.0, 0.3), 1.1),
    "comp_sum": (losses.comp_sum, "tau", (1.0, 1.5), -0.1),
    "comp_sum_0": (partial(losses.comp_sum, tau=0.0), "tau", (0.0, 0.3), -1e-3),
    "comp_sum_0.5": (partial(losses.comp_sum, tau=0.5), "tau", (0.5, 0.9), float("nan")),
    "comp_sum_2": (partial(losses.comp_sum, tau=2.0), "tau", (1.0, 2.0), -1.0),
    "smooth_adversarial_comp_sum": (smooth_adversarial, "nu", (0.0, 1.0), -0.1),
    "generalized_cross_entropy": (losses.generalized_cross_entropy, "q", (0.1, 1.0), 0.0),
    "mae": (losses.mae, None, None, None),
    "z_loss": (losses.z_loss, "a", (1.0, 4.0), 0.0),
    "spherical_mse": (losses.spherical_mse, None, None, None),
    "log_taylor_softmax": (losses.log_taylor_softmax, None, None, None),
    "log_spherical_softmax": (losses.log_spherical_softmax, "eps", (0.01, 0.1), 0.0),
    "brier": (losses.brier, None, None, None),
    "correctness_aware": (losses.correctness_aware, "temperature", (1.0, 3.0), 0.0),
    "focal": (losses.focal, "gamma", (0.0, 3.0), -1.0),
    "focal_0.5": (partial(losses.focal, gamma=0.5), "gamma", (0.5, 1.0), float("inf") * -1),
    "focal_adaptive": (losses.focal_adaptive, "gamma", (0.0, 3.0), -1.0),
    "confidence_penalty": (losses.confidence_penalty, "beta", (0.0, 0.5), -0.1),
    "mmce_penalty": (losses.mmce_penalty, "beta", (0.0, 3.0), -0.1),
    "pskd": (self_distillation, "alpha", (0.1, 0.8), 1.1),
    "ldr_kl": (losses.ldr_kl, "lam", (0.5, 10.0), 0.0),
    "ldr_kl_normalized": (partial(losses.ldr_kl, normalize="softplus_mean"), "margin", (0.0, 2.0), -0.1),
    "aldr_kl": (losses.aldr_kl, "lam0", (1.0, 10.0), 0.0),
    "aldr_kl_softplus": (partial(losses.aldr_kl, normalize="softplus_l1"), "alpha", (1.5, 4.0), 1.0),
    "crammer_singer": (losses.crammer_singer, "margin", (0.0, 20.0), -0.5),
    "l2_svm": (losses.l2_svm, None, None, None),
}
# These grow exponentially in the margin and overflow at +-1e4, as their docstring says; inf is their true value there.
OVERFLOWING = {"comp_sum_0", "comp_sum_0.5"}

# The losses whose value can be negative, and those that read the level of the logits, not only their differences.
SIGNED: set[str] = {
    "confidence_penalty",
    "mmce_penalty",
    "ldr_kl",
    "ldr_kl_normalized",
    "aldr_kl",
    "aldr_kl_softplus",
}
LEVEL: set[str] = {
    "spherical_mse",
    "log_taylor_softmax",
    "log_spherical_softmax",
    "ldr_kl_normalized",
    "aldr_kl",
    "aldr_kl_softplus",
    "l2_svm",
}
# The losses with a detached part that moves with the logits: a finite difference sees it move, the gradient does not.
DETACHED: set[str] = {"aldr_kl", "aldr_kl_softplus"}
# The losses of a whole batch, whose rows read each other.
BATCHWISE: set[str] = {"mmce_penalty"}

every_loss = pytest.mark.parametrize("name", LOSSES)


def batch(n: int = 6, c: int = 5, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, c, dtype=torch.float64, generator=generator)
    return logits.to(dtype), torch.randint(c, (n,), generator=generator)


@every_loss
def test_gradcheck(name: str) -> None:
    loss = LOSSES[name][0]
    if name in DETACHED:
        pytest.skip("a part of it is detached")
    logits, target = batch()
    for reduction in ("none", "mean", "sum"):
        assert torch.autograd.gradcheck(
            lambda f, r=reduction: loss(f, target, reduction=r), logits.clone().requires_grad_(True)
        )


@every_loss
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtype_is_kept(name: str, dtype: torch.dtype) -> None:
    loss = LOSSES[name][0]
    logits, target = batch()
    # Rounding the logits to the narrow type is the input's error, not the loss's: compare on the rounded input.
    narrow = logits.to(dtype)
    value = loss(narrow, target, reduction="none")
    assert value.dtype == dtype
    expected = loss(narrow.double(), target, reduction="none")
    tolerance = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(value.double(), expected, rtol=tolerance, atol=tolerance)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_finite_at_extreme_logits(name: str, dtype: torch.dtype) -> None:
    """Logits of +-1e4 in every arrangement of winner and label: finite value, finite gradient."""
    loss = LOSSES[name][0]
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0], [1e4, 1e4, -1e4], [-1e4, -1e4, -1e4]], dtype=dtype)
    logits = logits.repeat(3, 1).requires_grad_(True)
    target = torch.arange(3).repeat_interleave(4)
    value = loss(logits, target, reduction="none")
    if name in OVERFLOWING:
        assert not value.isnan().any() and value.isinf().any()
        (gradient,) = torch.autograd.grad(value[value.isfinite()].sum(), logits)
        assert gradient[value.isfinite()].isfinite().all()
        return
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert value.isfinite().all()
    assert gradient.isfinite().all()


@every_loss
def test_reductions(name: str) -> None:
    loss = LOSSES[name][0]
    logits, target = batch()
    rows = loss(logits, target, reduction="none")
    assert rows.shape == target.shape
    assert name in SIGNED or (rows >= 0).all()
    torch.testing.assert_close(loss(logits, target, reduction="sum"), rows.sum())
    torch.testing.assert_close(loss(logits, target), rows.mean())


@every_loss
def test_rows_are_independent(name: str) -> None:
    """Row i of reduction="none" is the loss of row i alone."""
    loss = LOSSES[name][0]
    if name in BATCHWISE:
        pytest.skip("its rows read each other")
    logits, target = batch()
    alone = torch.stack([loss(logits[i : i + 1], target[i : i + 1]) for i in range(len(target))])
    torch.testing.assert_close(loss(logits, target, reduction="none"), alone)


@every_loss
def test_weight_and_ignore_index(name: str) -> None:
    loss = LOSSES[name][0]
    logits, target = batch(n=8)
    weight = torch.tensor([1.0, 2.0, 0.0, 0.5, 3.0], dtype=torch.float64)
    ignored = target.clone()
    ignored[::3] = -100
    kept = ignored != -100

    rows = loss(logits, ignored, weight=weight, reduction="none")
    assert (rows[~kept] == 0).all()
    torch.testing.assert_close(rows[kept], loss(logits[kept], target[kept], weight=weight, reduction="none"))
    torch.testing.assert_close(loss(logits, ignored, weight=weight), rows.sum() / weight[target[kept]].sum())
    # In label smoothing each term of the sum over classes carries its own class's weight, as in torch.
    if name != "label_smoothing" and name not in BATCHWISE:
        torch.testing.assert_close(
            loss(logits, target, weight=weight, reduction="none"),
            weight[target] * loss(logits, target, reduction="none"),
        )
    elsewhere = ignored.where(kept, 7777)
    torch.testing.assert_close(loss(logits, elsewhere, ignore_index=7777), loss(logits, ignored))

    logits.requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss(logits, ignored), logits)
    assert (gradient[~kept] == 0).all()


@every_loss
@settings(max_examples=25, deadline=None)
@given(order=st.permutations(range(5)), rows=st.permutations(range(6)), seed=st.integers(0, 10_000))
def test_permutation_equivariance(name: str, order: list[int], rows: list[int], seed: int) -> None:
    """Renaming the classes, or reordering the batch, changes nothing but the order of the answer."""
    loss = LOSSES[name][0]
    logits, target = batch(seed=seed)
    before = loss(logits, target, reduction="none")
    renamed = torch.tensor(order).argsort()[target]
    torch.testing.assert_close(loss(logits[:, order], renamed, reduction="none"), before)
    torch.testing.assert_close(loss(logits[rows], target[rows], reduction="none"), before[rows])


@every_loss
@settings(max_examples=25, deadline=None)
@given(shift=st.floats(-100, 100), seed=st.integers(0, 10_000))
def test_shift_invariance(name: str, shift: float, seed: int) -> None:
    """The losses read differences of logits only, but for those of LEVEL."""
    loss = LOSSES[name][0]
    if name in LEVEL:
        pytest.skip("it reads the level of the logits")
    logits, target = batch(seed=seed)
    torch.testing.assert_close(
        loss(logits + shift, target, reduction="none"), loss(logits, target, reduction="none"), rtol=1e-9, atol=1e-9
    )


@every_loss
def test_vmap_over_models(name: str) -> None:
    loss = LOSSES[name][0]
    logits, target = batch()
    stacked = torch.stack([logits, logits + 1, 2 * logits])
    got = vmap(grad(loss), in_dims=(0, None))(stacked, target)
    want = torch.stack([grad(loss)(f, target) for f in stacked])
    torch.testing.assert_close(got, want)


@every_loss
def test_vmap_over_the_parameter(name: str) -> None:
    loss, parameter, legal, _ = LOSSES[name]
    if parameter is None:
        pytest.skip("it has no parameter")
    logits, target = batch(n=32)

    def gradient(value: Tensor | float) -> Tensor:
        return grad(lambda f: loss(f, target, **{parameter: value}))(logits)

    got = vmap(gradient)(torch.tensor(legal, dtype=torch.float64))
    torch.testing.assert_close(got, torch.stack([gradient(value) for value in legal]))
    assert not torch.allclose(got[0], got[1]), "the parameter changes nothing"


@every_loss
def test_compiles_without_graph_breaks(name: str) -> None:
    torch._dynamo.reset()
    loss = LOSSES[name][0]
    logits, target = batch(dtype=torch.float32)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(logits, target), loss(logits, target))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
@every_loss
def test_compiles_with_inductor(name: str) -> None:
    torch._dynamo.reset()
    loss = LOSSES[name][0]
    logits, target = batch(dtype=torch.float32)
    torch.testing.assert_close(torch.compile(loss, fullgraph=True)(logits, target), loss(logits, target))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_cuda_equals_cpu(name: str, dtype: torch.dtype) -> None:
    loss = LOSSES[name][0]
    logits, target = batch(n=64, c=10, dtype=dtype)
    on_gpu = loss(logits.cuda(), target.cuda(), reduction="none").cpu()
    tolerance = 1e-5 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(on_gpu, loss(logits, target, reduction="none"), rtol=tolerance, atol=tolerance)
    with pytest.raises(ValueError, match="target has label 10, but logits have 10 classes"):
        loss(logits.cuda(), torch.full((64,), 10, device="cuda"))


GOOD_LOGITS, GOOD_TARGET = batch(n=4, c=3)


@every_loss
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"logits": GOOD_LOGITS[0]}, r"logits must have shape \(N, C\), but have shape \(3,\)"),
        ({"logits": GOOD_LOGITS[None]}, r"logits must have shape \(N, C\)"),
        ({"logits": GOOD_LOGITS.long()}, "logits must be floating point, but have dtype torch.int64"),
        ({"logits": GOOD_LOGITS[:0], "target": GOOD_TARGET[:0]}, r"logits are empty: shape \(0, 3\)"),
        ({"logits": GOOD_LOGITS[:, :0]}, r"logits are empty: shape \(4, 0\)"),
        ({"logits": GOOD_LOGITS.index_fill(1, torch.tensor(2), float("nan"))}, r"logits\[0, 2\] is nan"),
        ({"logits": GOOD_LOGITS.index_fill(0, torch.tensor(1), float("inf"))}, r"logits\[1, 0\] is inf"),
        ({"target": torch.tensor([0, 1, 2, 12])}, "target has label 12, but logits have 3 classes"),
        ({"target": torch.tensor([0, 1, 2, -1])}, "target has label -1"),
        ({"target": GOOD_TARGET[:2]}, r"target must have shape \(4,\)"),
        ({"target": GOOD_TARGET[:, None]}, r"target must have shape \(4,\)"),
        ({"target": GOOD_TARGET > 0}, "target must hold integer labels, but has dtype torch.bool"),
        ({"target": torch.full((4,), -100)}, "nothing to average: every target is ignored"),
        ({"weight": torch.ones(4)}, r"weight must have shape \(3,\)"),
        ({"weight": torch.tensor([1.0, -1.0, 1.0])}, "weight must be finite and not negative"),
        ({"weight": torch.zeros(3)}, "nothing to average"),
        ({"ignore_index": None}, "ignore_index must be an integer, but is None"),
        ({"reduction": "average"}, "reduction must be 'none', 'mean' or 'sum', but is 'average'"),
    ],
)
def test_bad_input_is_refused_by_name(name: str, change: dict, sentence: str) -> None:
    arguments = {"logits": GOOD_LOGITS, "target": GOOD_TARGET, **change}
    with pytest.raises(ValueError, match=sentence):
        LOSSES[name][0](arguments.pop("logits"), arguments.pop("target"), **arguments)


@every_loss
def test_not_a_tensor_is_refused(name: str) -> None:
    with pytest.raises(TypeError, match=r"logits must be a torch\.Tensor, but is list"):
        LOSSES[name][0]([[0.0, 1.0]], torch.tensor([0]))


@every_loss
def test_illegal_parameter_is_refused(name: str) -> None:
    loss, parameter, _, illegal = LOSSES[name]
    if parameter is None:
        with pytest.raises(TypeError):
            loss(GOOD_LOGITS, GOOD_TARGET, temperature=1.0)
        return
    for value in (illegal, torch.tensor(illegal), float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"{parameter} must lie in"):
            loss(GOOD_LOGITS, GOOD_TARGET, **{parameter: value})
    for value in (torch.ones(2), "2", None, np.array([1.0, 2.0])):
        with pytest.raises(ValueError, match=f"{parameter} must be a number or a 0-d tensor"):
            loss(GOOD_LOGITS, GOOD_TARGET, **{parameter: value})


@every_loss
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_labels_of_any_integer_dtype(name: str, dtype: torch.dtype) -> None:
    """Narrow labels and more classes than fit them; as a byte, 156 is -100, the ignore_index."""
    loss = LOSSES[name][0]
    logits, _ = batch(n=5, c=300)
    target = torch.tensor([0, 44, 100, 127, 156 if dtype != torch.int8 else 1])
    weight = torch.linspace(0.5, 2, 300, dtype=torch.float64)
    for arguments in ({}, {"weight": weight}, {"reduction": "none", "ignore_index": 44}):
        torch.testing.assert_close(loss(logits, target.to(dtype), **arguments), loss(logits, target, **arguments))


@every_loss
def test_float_target_is_refused_or_a_distribution(name: str) -> None:
    loss = LOSSES[name][0]
    with pytest.raises(ValueError, match="target"):
        loss(GOOD_LOGITS, torch.rand(4, 3) + 1)
    with pytest.raises(ValueError, match="target"):
        loss(GOOD_LOGITS, GOOD_TARGET.double())


def test_value_checks_can_be_switched_off() -> None:
    bad = GOOD_LOGITS.clone()
    bad[0, 0] = float("nan")
    with checks.values(False):
        assert losses.cross_entropy(bad, GOOD_TARGET).isnan()
        with pytest.raises(ValueError, match="logits must have shape"):
            losses.cross_entropy(bad[0], GOOD_TARGET)
    with pytest.raises(ValueError, match="must be finite"):
        losses.cross_entropy(bad, GOOD_TARGET)


def test_finite_but_overflowing_sum_is_accepted() -> None:
    """The quick finiteness test sums; finite logits whose sum overflows are still legal."""
    logits = torch.full((4, 3), torch.finfo(torch.float32).max / 4)
    assert losses.cross_entropy(logits, GOOD_TARGET).isfinite()


def test_infinity_is_named_and_a_number_has_no_index() -> None:
    with pytest.raises(ValueError, match=r"^a must lie in \(0, inf\), but is inf$"):
        checks.parameter("a", float("inf"), 0, open_low=True)
    with pytest.raises(ValueError, match=r"^b must lie in \(-inf, inf\), but is -inf$"):
        checks.parameter("b", float("-inf"), float("-inf"))
    checks.parameter("c", float("inf"), 0, infinite=True)
    with pytest.raises(ValueError, match=r"^d must be finite, but it is nan$"):
        checks.finite("d", torch.tensor(float("nan")))

"""The factored layer against the dense one: the same gradients and weights, without ever forming the outputs."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lossbook.layers import FactoredOutput

D, SIZE = 40, 6


def layer_of(num_classes: int = D, d: int = SIZE, seed: int = 0, **options) -> FactoredOutput:
    torch.manual_seed(seed)
    return FactoredOutput(d, num_classes, **{"dtype": torch.float64, **options})


def draw(m: int, k: int, num_classes: int = D, d: int = SIZE, seed: int = 0) -> tuple[Tensor, ...]:
    """H, k, g_a, g_q, g_s of a batch."""
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(m, d, dtype=torch.float64, generator=g)
    gradients = [torch.randn(shape, dtype=torch.float64, generator=g) for shape in ((m, k), (m,), (m,))]
    return hidden, torch.randint(num_classes, (m, k), generator=g), *gradients


def dense_step(
    weight: Tensor, hidden: Tensor, index: Tensor, g_a: Tensor, g_q: Tensor, g_s: Tensor, lr: float, decay=0.0
):
    """The new weight and the derivative in H, by autograd on all outputs."""
    w, h = weight.clone().requires_grad_(), hidden.clone().requires_grad_()
    o = h @ w.T
    value = (g_a * o.gather(1, index)).sum() + (g_q * o.square().sum(1)).sum() + (g_s * o.sum(1)).sum()
    grad_w, grad_h = torch.autograd.grad(value, (w, h))
    return weight - lr * (grad_w + decay * weight), grad_h


def test_statistics_are_those_of_the_outputs() -> None:
    layer = layer_of()
    hidden, index, *_ = draw(m=9, k=3)
    a, q, s = layer(hidden, index)
    o = hidden @ layer.weight().T
    torch.testing.assert_close(a, o.gather(1, index))
    torch.testing.assert_close(q, o.square().sum(dim=1))
    torch.testing.assert_close(s, o.sum(dim=1))


@settings(max_examples=40, deadline=None)
@given(
    m=st.integers(1, 12), k=st.integers(1, 4), num_classes=st.integers(1, 30), d=st.integers(1, 8),
    decay=st.sampled_from([0.0, 0.3]), lr=st.floats(1e-3, 0.02), seed=st.integers(0, 10_000),
)  # fmt: skip
def test_updates_are_those_of_the_dense_layer(
    m: int, k: int, num_classes: int, d: int, decay: float, lr: float, seed: int
) -> None:
    """Any derivatives, duplicate classes within and across rows, more rows than features and the reverse."""
    layer = layer_of(num_classes, d, seed, stabilize_every=3)
    weight = layer.weight()
    for step in range(5):
        hidden, index, *gradients = draw(m, k, num_classes, d, seed + step)
        layer(hidden, index)
        grad_hidden = layer.update(*gradients, lr, weight_decay=decay)
        weight, expected = dense_step(weight, hidden, index, *gradients, lr, decay)
        close = {"rtol": 1e-8, "atol": 1e-8 * max(1.0, expected.abs().max().item())}
        torch.testing.assert_close(grad_hidden, expected, **close)
        torch.testing.assert_close(layer.weight(), weight, **close)
    scale = max(1.0, weight.square().sum().item())
    torch.testing.assert_close(layer.Q, weight.T @ weight, rtol=1e-8, atol=1e-9 * scale)
    torch.testing.assert_close(layer.wbar, weight.sum(dim=0), rtol=1e-8, atol=1e-9 * scale)
    torch.testing.assert_close(layer.U @ layer.U_inv, torch.eye(d, dtype=torch.float64), rtol=0, atol=1e-9)
    assert layer.steps == 5


@pytest.mark.parametrize("nearness", [0.0, 1e-13, 1e-6, 1e-3, 0.1])
def test_a_step_that_flattens_a_direction(nearness: float) -> None:
    """2 lr g_q |h|^2 = 1 takes all of W along h away; U has no inverse then, and the step is exact all the same."""
    layer = layer_of()
    hidden, index, g_a, _, g_s = draw(m=1, k=1)
    lr = 0.25
    g_q = (1 - nearness) / (2 * lr * hidden.square().sum(dim=1))
    weight = layer.weight()
    layer(hidden, index)
    grad_hidden = layer.update(g_a, g_q, g_s, lr)
    expected, grad = dense_step(weight, hidden, index, g_a, g_q, g_s, lr)
    torch.testing.assert_close(layer.weight(), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(grad_hidden, grad)
    assert torch.linalg.cond(layer.U) < 20


def test_float32_rows_survive_a_long_training() -> None:
    """1,000 steps on one fixed set of rows: the directions of h shrink step by step, and U is stabilised in time."""
    layer, exact = layer_of(dtype=torch.float32), layer_of()
    exact.set_weight(layer.weight())
    for step in range(1000):
        hidden, index, *_ = draw(m=4, k=1, seed=step % 5)
        for each in (layer, exact):
            a, _, s = each(hidden, index)
            # The derivatives of (o_y - 1)^2 + 0.1 |o|^2 + 0.01 s^2
            each.update(2 * (a - 1), torch.full_like(s, 0.1), 0.02 * s, 0.01)
        assert torch.linalg.cond(layer.U) < 200
    error = (layer.weight() - exact.weight()).norm() / exact.weight().norm()
    assert error < 1e-5
    q_error = (layer.Q - layer.weight().double().T @ layer.weight().double()).norm() / layer.Q.norm()
    assert q_error < 1e-5


def test_stabilizing_changes_the_factors_and_not_their_product() -> None:
    layer = layer_of()
    sigma = torch.tensor([1e-3, 0.4, 0.6, 1.5, 2.5, 1e3], dtype=torch.float64)
    a, _ = torch.linalg.qr(torch.randn(SIZE, SIZE, dtype=torch.float64))
    b, _ = torch.linalg.qr(torch.randn(SIZE, SIZE, dtype=torch.float64))
    layer.U, layer.U_inv = (a * sigma) @ b, (b.T / sigma) @ a.T
    weight = layer.weight()
    assert layer.stabilize() == 4
    torch.testing.assert_close(layer.weight(), weight, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(torch.linalg.svdvals(layer.U), torch.tensor([1.5, 1, 1, 1, 1, 0.6], dtype=torch.float64))
    torch.testing.assert_close(layer.U @ layer.U_inv, torch.eye(SIZE, dtype=torch.float64))
    before = layer.V.clone()
    assert layer.stabilize() == 0 and torch.equal(layer.V, before)


class LargestAllocation(TorchDispatchMode):
    """Records the most bytes that any operation's result holds, tensors that exist already left out."""

    def __init__(self, *known: Tensor) -> None:
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in self.known:
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return result


def test_nothing_of_the_size_of_the_outputs_is_allocated() -> None:
    m, d, num_classes = 16, 32, 20_000
    layer = layer_of(num_classes, d, dtype=torch.float32)
    hidden, index, *gradients = draw(m, 1, num_classes, d)
    with LargestAllocation(*layer.buffers()) as seen:
        layer(hidden, index)
        layer.update(*gradients, 1e-3)
    assert 0 < seen.bytes <= d * d * 8
    with LargestAllocation(*layer.buffers()) as seen:
        layer.weight()
    assert seen.bytes == num_classes * d * 4


def snapshot(layer: FactoredOutput) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in layer.state_dict().items()}


GRAD_A, GRAD_Q, GRAD_S = torch.ones(3, 1), torch.ones(3), torch.ones(3)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"grad_a": torch.ones(3)}, r"grad_a must be floating point of shape \(3, 1\), but is torch.float32 of shape"),
        ({"grad_a": torch.ones(3, 2)}, r"grad_a must be floating point of shape \(3, 1\)"),
        ({"grad_q": torch.ones(2)}, r"grad_q must be floating point of shape \(3\)"),
        ({"grad_s": torch.ones(3).long()}, "grad_s must be floating point of shape .* but is torch.int64"),
        ({"grad_a": torch.tensor([[1.0], [float("nan")], [1.0]])}, r"grad_a\[1, 0\] is nan"),
        ({"grad_q": torch.tensor([1.0, 1.0, float("inf")])}, r"grad_q\[2\] is inf"),
        ({"lr": 0.0}, r"lr must lie in \(0, inf\), but is 0"),
        ({"lr": float("nan")}, r"lr must lie in \(0, inf\), but is nan"),
        ({"weight_decay": -0.1}, r"weight_decay must lie in \[0, inf\), but is -0.1"),
        ({"lr": 0.5, "weight_decay": 2.0}, "lr \\* weight_decay must be below 1, but is 1"),
        ({"lr": 1e200, "grad_q": 1e30 * torch.ones(3)}, "the step overflows in Q: lr 1e\\+200 is too large"),
    ],
)
def test_a_refused_update_leaves_the_layer_as_it_was(change: dict, sentence: str) -> None:
    layer = layer_of()
    hidden, index, *_ = draw(m=3, k=1)
    layer(hidden, index)
    before = snapshot(layer)
    arguments = {"grad_a": GRAD_A, "grad_q": GRAD_Q, "grad_s": GRAD_S, "lr": 1e-3, **change}
    with pytest.raises(ValueError, match=sentence):
        layer.update(**arguments)
    assert all(torch.equal(before[name], tensor) for name, tensor in layer.state_dict().items())
    layer.update(GRAD_A, GRAD_Q, GRAD_S, 1e-3)
    assert layer.steps == 1


def test_no_memory_for_the_step_leaves_the_layer_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = layer_of()
    hidden, index, *gradients = draw(m=3, k=1)
    layer(hidden, index)
    before = snapshot(layer)

    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("out of memory")

    with monkeypatch.context() as patch, pytest.raises(torch.OutOfMemoryError):
        patch.setattr(torch.linalg, "solve_ex", fail)
        layer.update(*gradients, 1e-3)
    assert all(torch.equal(before[name], tensor) for name, tensor in layer.state_dict().items())
    layer.update(*gradients, 1e-3)


@pytest.mark.parametrize("function", ["index_add_", "addmm_"])
def test_an_interrupt_while_writing_is_noticed(function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C between V and U: every further call says so, until a whole state is loaded."""
    layer = layer_of()
    hidden, index, *gradients = draw(m=3, k=1)
    layer.U *= 4
    layer.U_inv /= 4
    kept = snapshot(layer)

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    layer(hidden, index)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Tensor, function, interrupt)
        layer.update(*gradients, 1e-3)
        layer.stabilize()
    for use in (lambda: layer(hidden, index), layer.weight, layer.stabilize, layer.state_dict):
        with pytest.raises(RuntimeError, match="an interrupted step has left the layer between two states"):
            use()
    layer.load_state_dict(kept)
    layer(hidden, index)


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"hidden": [[1.0]]}, TypeError, "hidden must be a torch.Tensor, but is list"),
        ({"hidden": torch.ones(3, SIZE + 1)}, ValueError, rf"hidden must be floating point of shape \(m, {SIZE}\)"),
        ({"hidden": torch.ones(SIZE)}, ValueError, "hidden must be floating point of shape"),
        ({"hidden": torch.ones(3, SIZE).long()}, ValueError, "hidden must be .* but is torch.int64"),
        ({"hidden": torch.ones(0, SIZE)}, ValueError, "hidden must be floating point of shape"),
        ({"hidden": torch.full((3, SIZE), float("nan"))}, ValueError, r"hidden\[0, 0\] is nan"),
        ({"index": [0, 1, 2]}, TypeError, "index must be a torch.Tensor, but is list"),
        ({"index": torch.tensor([0, 1, 2])}, ValueError, r"index must have shape \(3, K\)"),
        ({"index": torch.zeros(2, 1).long()}, ValueError, r"index must have shape \(3, K\)"),
        ({"index": torch.zeros(3, 0).long()}, ValueError, r"index must have shape \(3, K\)"),
        ({"index": torch.zeros(3, 1)}, ValueError, "index must hold integer class ids, but has dtype torch.float32"),
        ({"index": torch.tensor([[0], [D], [1]])}, ValueError, f"index has class {D}, but the layer has {D} classes"),
        ({"index": torch.tensor([[0], [-1], [1]])}, ValueError, "index has class -1"),
    ],
)
def test_a_bad_batch_is_refused_by_name(change: dict, error: type, sentence: str) -> None:
    arguments = {"hidden": torch.ones(3, SIZE), "index": torch.zeros(3, 1).long(), **change}
    with pytest.raises(error, match=sentence):
        layer_of()(**arguments)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"d": 0}, "d must be .*at least 1, but is 0"),
        ({"num_classes": 2.5}, "num_classes must be a whole number.*, but is 2.5"),
        ({"stabilize_every": 0}, "stabilize_every must be .*at least 1"),
        ({"dtype": torch.float16}, "dtype must be torch.float32 or torch.float64, but is torch.float16"),
    ],
)
def test_a_bad_layer_is_refused_by_name(change: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        FactoredOutput(**{"d": 4, "num_classes": 10, **change})


def test_set_weight() -> None:
    layer = layer_of()
    hidden, index, *gradients = draw(m=3, k=1)
    layer(hidden, index)
    layer.update(*gradients, 1e-2)
    weight = torch.randn(D, SIZE)
    layer.set_weight(weight)
    torch.testing.assert_close(layer.weight(), weight.double())
    for bad, sentence in (
        (weight.T, "weight must be floating point of shape"),
        (weight * float("nan"), r"weight\[0, 0\]"),
    ):
        with pytest.raises(ValueError, match=sentence):
            layer.set_weight(bad)
    torch.testing.assert_close(layer.weight(), weight.double())


def test_update_needs_a_forward_pass_in_training_mode() -> None:
    layer = layer_of()
    hidden, index, *gradients = draw(m=3, k=1)
    layer.eval()
    layer(hidden, index)
    with pytest.raises(RuntimeError, match="update needs a forward pass in training mode before it"):
        layer.update(*gradients, 1e-3)
    layer.train()
    layer(hidden, index)
    layer.update(*gradients, 1e-3)
    with pytest.raises(RuntimeError, match="update needs a forward pass"):
        layer.update(*gradients, 1e-3)
    # A forward pass of the weights before must not be applied to those after.
    layer(hidden, index)
    layer.load_state_dict(layer_of(seed=1).state_dict())
    with pytest.raises(RuntimeError, match="update needs a forward pass"):
        layer.update(*gradients, 1e-3)


def test_state_dict_round_trip() -> None:
    """A layer restored after three steps makes the fourth and the fifth bit for bit, the stabilisation included."""
    first, batches = layer_of(stabilize_every=4), [draw(m=5, k=2, seed=i) for i in range(5)]

    def train(layer: FactoredOutput, part: list[tuple[Tensor, ...]]) -> None:
        for hidden, index, *gradients in part:
            layer(hidden, index)
            layer.update(*gradients, 0.02)

    train(first, batches[:3])
    second = layer_of(seed=1, stabilize_every=4)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    train(first, batches[3:])
    train(second, batches[3:])
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


def test_dtypes_stay() -> None:
    layer = layer_of(dtype=torch.float32)
    before = snapshot(layer)
    layer.half().double().to("cpu", torch.bfloat16)
    assert all(torch.equal(before[name], tensor) for name, tensor in layer.state_dict().items())
    hidden, index, *gradients = draw(m=3, k=1)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        a, q, s = layer(hidden.to(dtype), index.int())
        assert {a.dtype, q.dtype, s.dtype} == {torch.float64}
        assert layer.update(*gradients, 1e-3).dtype == dtype


def test_no_optimiser_sees_it() -> None:
    assert list(layer_of().parameters()) == []


def test_starts_as_a_linear_layer() -> None:
    weight = layer_of(num_classes=5000, d=25).weight()
    assert weight.abs().max() <= 1 / 5 and weight.std().item() == pytest.approx(1 / 5 / math.sqrt(3), rel=0.02)
    assert repr(layer_of()) == f"FactoredOutput({SIZE}, {D}, stabilize_every=100)"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_equals_cpu() -> None:
    here = layer_of(stabilize_every=3)
    there = copy.deepcopy(here).cuda()
    for step in range(5):
        hidden, index, *gradients = draw(m=8, k=2, seed=step)
        here(hidden, index)
        there(hidden.cuda(), index.cuda())
        here.update(*gradients, 0.02)
        there.update(*(gradient.cuda() for gradient in gradients), 0.02)
    torch.testing.assert_close(there.weight().cpu(), here.weight())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8])
def test_more_classes_than_the_index_dtype_holds(dtype: torch.dtype) -> None:
    layer, index = layer_of(num_classes=300), torch.tensor([[44], [100]])
    hidden = draw(m=2, k=1)[0]
    assert torch.equal(layer(hidden, index.to(dtype))[0], layer(hidden, index)[0])

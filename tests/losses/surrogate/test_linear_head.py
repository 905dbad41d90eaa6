"""linear_cross_entropy: the numbers of torch's dense form, whole and in tiles; its memory; bad input."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn.functional import cross_entropy, linear

from lossbook.book.bench.measure import one_thread, peak_mib
from lossbook.losses import _blocks, linear_cross_entropy

N, C, D = 11, 7, 5


@pytest.fixture(params=["written out", "in tiles"])
def how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "in tiles":
        monkeypatch.setattr(_blocks, "WRITTEN_OUT", 0)
        monkeypatch.setattr(_blocks, "TILE", 4)
    return request.param


def numbers(dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(0)
    x, w, b = (torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype) for shape in ((N, D), (C, D), (C,)))
    y = torch.randint(C, (N,), generator=g)
    y[3] = -100
    return x, w, b, y


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_value_and_gradients_are_those_of_the_dense_form(how, reduction, smoothing, weighted, biased):
    x, w, b, y = numbers()
    leaves = [v.clone().requires_grad_() for v in ((x, w, b) if biased else (x, w))]
    bias = leaves[2] if biased else None
    shared = {"weight": torch.rand(C, dtype=x.dtype) if weighted else None, "reduction": reduction}
    ours = linear_cross_entropy(*leaves[:2], y, linear_bias=bias, label_smoothing=smoothing, **shared)
    dense = cross_entropy(linear(*leaves[:2], bias), y, label_smoothing=smoothing, **shared)
    torch.testing.assert_close(ours, dense)
    pull = torch.arange(ours.numel(), dtype=x.dtype).view(ours.shape) + 1
    torch.testing.assert_close(torch.autograd.grad(ours, leaves, pull), torch.autograd.grad(dense, leaves, pull))


@pytest.mark.parametrize("ignore_index", [-100, 2])
def test_ignored_rows_have_no_part_in_it(how, ignore_index):
    x, w, b, y = numbers()
    y[[3, 7]] = ignore_index
    leaves = [v.clone().requires_grad_() for v in (x, w, b)]
    ours = linear_cross_entropy(*leaves[:2], y, linear_bias=leaves[2], ignore_index=ignore_index)
    kept = y != ignore_index
    few = cross_entropy(linear(leaves[0][kept], *leaves[1:]), y[kept])
    torch.testing.assert_close(ours, few)
    torch.testing.assert_close(torch.autograd.grad(ours, leaves), torch.autograd.grad(few, leaves))
    # With none left there is nothing to average, but a sum of nothing.
    for reduction in ("sum", "none"):
        none = linear_cross_entropy(
            *leaves[:2], torch.full_like(y, ignore_index), ignore_index=ignore_index, reduction=reduction
        )
        assert not none.any()
        assert not any(slope.any() for slope in torch.autograd.grad(none.sum(), leaves[:2]))


@pytest.mark.parametrize(
    "wanted", [(True, True, True), (True, False, False), (False, True, False), (False, False, True)]
)
def test_slopes_are_those_of_the_value(how, wanted):
    """gradcheck in float64, also where the features or the head are fixed."""
    leaves = [v.clone().requires_grad_(wants) for v, wants in zip(numbers()[:3], wanted, strict=True)]
    y, weight = numbers()[3], torch.rand(C, dtype=torch.float64) + 0.1
    assert torch.autograd.gradcheck(
        lambda x, w, b: linear_cross_entropy(x, w, y, linear_bias=b, weight=weight, label_smoothing=0.3), leaves
    )


def test_extreme_logits_and_half_precision(how):
    x, w, b, y = numbers()
    torch.testing.assert_close(
        linear_cross_entropy(1e4 * x, w, y, linear_bias=b), cross_entropy(linear(1e4 * x, w, b), y)
    )
    for dtype in (torch.float16, torch.bfloat16):
        low = numbers(dtype)
        found = linear_cross_entropy(low[0], low[1], y, linear_bias=low[2])
        assert found.dtype == dtype
        exact = cross_entropy(linear(low[0].float(), low[1].float(), low[2].float()), y)
        torch.testing.assert_close(found.float(), exact, rtol=1e-2, atol=0)
        leaves = [v.clone().requires_grad_() for v in low[:3]]
        slopes = torch.autograd.grad(linear_cross_entropy(*leaves[:2], y, linear_bias=leaves[2]), leaves)
        wide = [v.float().requires_grad_() for v in low[:3]]
        for slope, other in zip(slopes, torch.autograd.grad(cross_entropy(linear(*wide), y), wide), strict=True):
            assert slope.dtype == dtype
            torch.testing.assert_close(slope.float(), other, rtol=1e-2, atol=1e-3)


def test_mapped_over_heads_and_smoothings(how):
    x, w, b, y = numbers()
    heads, eps = torch.stack((w, w.flip(0), -w)), torch.tensor([0.0, 0.1, 0.5], dtype=x.dtype)

    def slope(head: Tensor, e: Tensor) -> Tensor:
        return grad(lambda h: linear_cross_entropy(x, h, y, linear_bias=b, label_smoothing=e))(head)

    expected = torch.stack([slope(head, e) for head, e in zip(heads, eps, strict=True)])
    torch.testing.assert_close(vmap(slope)(heads, eps), expected)


def test_second_derivatives_of_the_whole():
    x, w, b, y = numbers()
    leaves = [v[:4].clone().requires_grad_() for v in (x, w, b)]
    torch.autograd.gradgradcheck(
        lambda x, w, b: linear_cross_entropy(x, w, y[:4] % 4, linear_bias=b, label_smoothing=0.1), leaves
    )


def test_second_derivatives_in_tiles_are_refused_by_a_sentence(monkeypatch):
    monkeypatch.setattr(_blocks, "WRITTEN_OUT", 0)
    x, w, _, y = numbers()
    (slope,) = torch.autograd.grad(linear_cross_entropy(x.requires_grad_(), w, y), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="has first derivatives only"):
        torch.autograd.grad(slope.square().sum(), x)


def test_a_head_trains_as_with_the_dense_loss(how):
    """Ten steps of SGD on a linear layer reach the same weights."""
    x, _, _, y = numbers()
    ends = []
    for fused in (False, True):
        torch.manual_seed(0)
        layer = nn.Linear(D, C).double()
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
        for _ in range(10):
            optimizer.zero_grad()
            if fused:
                loss = linear_cross_entropy(x, layer.weight, y, linear_bias=layer.bias)
            else:
                loss = cross_entropy(layer(x), y)
            loss.backward()
            optimizer.step()
        ends.append(layer.weight.detach())
    torch.testing.assert_close(*ends)


def test_the_logits_are_never_held():
    """512 rows and 65,536 classes: the logits alone would take 128 MiB, the gradient of the head takes 32."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(512, 128, generator=g).requires_grad_()
    w = torch.randn(65_536, 128, generator=g).mul_(0.1).requires_grad_()
    b = torch.randn(65_536, generator=g).requires_grad_()
    y = torch.randint(65_536, (512,), generator=g)

    def slopes() -> tuple[Tensor, ...]:
        return torch.autograd.grad(linear_cross_entropy(x, w, y, linear_bias=b), (x, w, b))

    with one_thread():
        found = slopes()
        # The least of three: what the process did before may leave its allocator in pieces.
        extra = [peak_mib(slopes) for _ in range(3)]
    dense = torch.autograd.grad(cross_entropy(linear(x, w, b), y), (x, w, b))
    torch.testing.assert_close(found, dense, rtol=1e-3, atol=1e-7)
    if None not in extra:
        # One gradient and a few tiles: a second one, or a copy of the head, would be too much.
        assert min(extra) < 48


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"input": torch.ones(3)}, ValueError, r"input must be floating point of shape \(N, d\)"),
        ({"input": torch.ones(0, 2), "target": torch.ones(0).long()}, ValueError, r"but is .* of shape \(0, 2\)"),
        ({"input": [[1.0]]}, TypeError, "input must be a torch.Tensor, but is list"),
        ({"input": torch.ones(3, 4)}, ValueError, "input has 4 features a row, but linear_weight has 2"),
        ({"input": torch.full((3, 2), torch.nan)}, ValueError, "input must be finite"),
        ({"linear_weight": torch.ones(0, 2)}, ValueError, r"linear_weight must be floating point of shape \(C, d\)"),
        ({"linear_bias": torch.ones(4)}, ValueError, "linear_bias has 4 entries, but linear_weight has 5 rows"),
        ({"target": torch.tensor([0, 5, 1])}, ValueError, "target has label 5, but there are 5 classes"),
        ({"target": torch.tensor([0, -1, 1])}, ValueError, "target has label -1"),
        ({"target": torch.full((3,), -100)}, ValueError, "nothing to average: every target is ignored"),
        ({"weight": -torch.ones(5)}, ValueError, "weight must be finite and not negative"),
        ({"label_smoothing": 1.5}, ValueError, "label_smoothing"),
        ({"reduction": "median"}, ValueError, "reduction"),
    ],
)
def test_bad_input_is_refused_by_name(arguments, error, message):
    good = {"input": torch.ones(3, 2), "linear_weight": torch.ones(5, 2), "target": torch.tensor([0, 4, 1])}
    with pytest.raises(error, match=message):
        linear_cross_entropy(**{**good, **arguments})

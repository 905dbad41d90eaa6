"""align_gradients: the projection by hand, no conflict, two heads, what it protects, bad input."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lossbook.train import align_gradients


def linear_losses(a: list[float], *others: list[float]) -> tuple[Tensor, list[Tensor]]:
    """Losses with the gradients given, in two parameters."""
    p = torch.zeros(len(a), dtype=torch.float64, requires_grad=True)
    return p, [(torch.tensor(g, dtype=torch.float64) * p).sum() for g in (a, *others)]


def test_by_hand() -> None:
    p, losses = linear_losses([1.0, 0.0], [-2.0, 3.0])
    torch.testing.assert_close(align_gradients(losses, [p])[0], torch.tensor([1.0, 3.0], dtype=torch.float64))
    p, losses = linear_losses([1.0, 0.0], [2.0, 3.0], [-1.0, 1.0])
    torch.testing.assert_close(align_gradients(losses, [p])[0], torch.tensor([3.0, 4.0], dtype=torch.float64))
    # The first loss is the one protected.
    p, losses = linear_losses([-2.0, 3.0], [1.0, 0.0])
    torch.testing.assert_close(align_gradients(losses, [p])[0], torch.tensor([-2 + 9 / 13, 3 + 6 / 13]).double())
    # Nothing to protect, and one loss alone.
    p, losses = linear_losses([0.0, 0.0], [1.0, -1.0])
    torch.testing.assert_close(align_gradients(losses, [p])[0], torch.tensor([1.0, -1.0], dtype=torch.float64))
    p, losses = linear_losses([2.0, 5.0])
    torch.testing.assert_close(align_gradients(losses, [p])[0], torch.tensor([2.0, 5.0], dtype=torch.float64))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_second_never_undoes_the_first(seed: int) -> None:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    x, y = torch.randn(5, 4, dtype=torch.float64), torch.randn(2, 5, 2, dtype=torch.float64)
    losses = [(net(x) - target).square().mean() for target in y]
    params = list(net.parameters())
    first, second = (
        torch.cat([g.flatten() for g in torch.autograd.grad(loss, params, retain_graph=True)]) for loss in losses
    )
    aligned = torch.cat([g.flatten() for g in align_gradients(losses, net.parameters())])
    moved = aligned - first
    assert moved @ first >= -1e-12
    if first @ second >= 0:
        torch.testing.assert_close(aligned, first + second)
    else:
        assert abs(float(moved @ first)) < 1e-10 * float(first @ first + 1)
        torch.testing.assert_close(moved - second, -(first @ second) / (first @ first) * first)


def test_heads_of_one_loss_are_left_alone() -> None:
    """The projection is on the backbone, where both losses meet; each head gets its own gradient."""
    body, main, auxiliary = (torch.tensor([value], requires_grad=True) for value in (1.0, 2.0, -3.0))
    losses = [(body * main).sum(), (body * auxiliary).sum()]
    found = align_gradients(losses, [body, main, auxiliary])
    # On the body the gradients are 2 and -3: the second one is only conflict.
    assert [g.item() for g in found] == [2.0, 1.0, 1.0]
    assert [g.shape for g in found] == [(1,)] * 3 and not any(g.requires_grad for g in found)


def test_losses_without_a_common_parameter_are_added() -> None:
    a, b = torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)
    found = align_gradients([a.sum(), -b.sum()], [a, b])
    assert found[0].tolist() == [1, 1] and found[1].tolist() == [-1, -1, -1]


def _p() -> Tensor:
    return torch.ones(2, requires_grad=True)


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda p: align_gradients([], [p]), ValueError, "nothing to align: 0 losses and 1 params"),
        (lambda p: align_gradients([p.sum()], []), ValueError, "nothing to align: 1 losses and 0 params"),
        (lambda p: align_gradients([p.sum(), 1.0], [p]), TypeError, r"losses\[1\] must be a torch.Tensor"),
        (lambda p: align_gradients([2 * p], [p]), ValueError, r"losses\[0\] must be a scalar with a gradient"),
        (lambda p: align_gradients([p.detach().sum()], [p]), ValueError, r"losses\[0\] must be a scalar.*False"),
        (lambda p: align_gradients([p.sum()], [p, p.detach()]), ValueError, r"params\[1\] does not require"),
        (lambda p: align_gradients([p.sum()], [p, _p()]), ValueError, r"params\[1\] has no part in any"),
    ],
)
def test_bad_input_is_refused(call, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        call(_p())

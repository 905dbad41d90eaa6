"""`factored_step`: the losses of the spherical family, step for step the same as with all outputs."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from lossbook.layers import FactoredOutput
from lossbook.losses.surrogate import spherical
from lossbook.train import factored_step

LOSSES = {
    "z_loss": (spherical.z_loss, spherical.z_loss_from_stats, 2.0),
    "z_loss(a=5, b=2)": (
        partial(spherical.z_loss, a=5.0, b=2.0),
        partial(spherical.z_loss_from_stats, a=5.0, b=2.0),
        2.0,
    ),
    "spherical_mse": (spherical.spherical_mse, spherical.spherical_mse_from_stats, 0.03),
    "log_taylor_softmax": (spherical.log_taylor_softmax, spherical.log_taylor_softmax_from_stats, 0.5),
    "log_spherical_softmax": (
        partial(spherical.log_spherical_softmax, eps=0.1),
        partial(spherical.log_spherical_softmax_from_stats, eps=0.1),
        0.2,
    ),
}


def batch(m: int, d: int, labels: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rows whose last feature is the constant 1, a bias, and labels that come up several times."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(m, d, dtype=torch.float64, generator=generator)
    x[:, -1] = 1
    return x, torch.randint(labels, (m,), generator=generator)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
def test_twenty_steps_equal_the_dense_layer(name: str, weight_decay: float) -> None:
    """The network below is trained too, from the derivative that the step returns."""
    dense_loss, loss, lr = LOSSES[name]
    d, num_classes = 16, 500
    torch.manual_seed(0)
    layer = FactoredOutput(d, num_classes, stabilize_every=6, dtype=torch.float64)
    below = nn.Linear(d, d, dtype=torch.float64)
    weight = layer.weight().requires_grad_()
    dense_below = nn.Linear(d, d, dtype=torch.float64)
    dense_below.load_state_dict(below.state_dict())
    optimizer = torch.optim.SGD([weight], lr=lr, weight_decay=weight_decay)
    start = weight.detach().clone()
    for step in range(20):
        x, y = batch(24, d, 7, seed=step)
        hidden, dense_hidden = below(x).tanh(), dense_below(x).tanh()
        value, grad_hidden = factored_step(layer, hidden, y, loss, lr, weight_decay=weight_decay)
        hidden.backward(grad_hidden)
        optimizer.zero_grad()
        expected = dense_loss(dense_hidden @ weight.T, y)
        expected.backward()
        optimizer.step()
        torch.testing.assert_close(value, expected.detach())
        with torch.no_grad():
            for network in (below, dense_below):
                for p in network.parameters():
                    p -= 0.1 * p.grad
                    p.grad = None
    assert (weight.detach() - start).abs().max() > 1e-2, "the weights hardly moved"
    assert (layer.weight() - weight.detach()).abs().max() < 1e-9
    for p, q in zip(below.parameters(), dense_below.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-9)


def test_several_classes_a_row() -> None:
    """A loss of one's own: the label's output against two sampled ones and the mean of all."""
    d, num_classes, lr = 8, 60, 0.3
    torch.manual_seed(0)
    layer = FactoredOutput(d, num_classes, dtype=torch.float64)
    weight = layer.weight().requires_grad_()

    def contrast(a: Tensor, q: Tensor, s: Tensor, classes: int) -> Tensor:
        return (a[:, 1:].exp().sum(dim=1) - a[:, 0] + s / classes + 0.01 * q).mean()

    for step in range(20):
        hidden, _ = batch(10, d, 2, seed=step)
        target = torch.randint(6, (10, 3), generator=torch.Generator().manual_seed(step))
        value, _ = factored_step(layer, hidden, target, contrast, lr)
        o = hidden @ weight.T
        expected = contrast(o.gather(1, target), o.square().sum(1), o.sum(1), num_classes)
        (gradient,) = torch.autograd.grad(expected, weight)
        weight = (weight - lr * gradient).detach().requires_grad_()
        torch.testing.assert_close(value, expected.detach())
    assert (layer.weight() - weight.detach()).abs().max() < 1e-9


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"layer": nn.Linear(4, 9)}, TypeError, "layer must be a FactoredOutput, but is Linear"),
        ({"target": [0, 1, 2]}, TypeError, "target must be a torch.Tensor, but is list"),
        ({"target": torch.tensor([0, 1, 9])}, ValueError, "index has class 9, but the layer has 9 classes"),
        ({"target": torch.tensor(0)}, ValueError, "index must have shape"),
        ({"lr": -1.0}, ValueError, r"lr must lie in \(0, inf\)"),
        ({"loss": lambda a, q, s, n: a}, ValueError, r"loss must return a scalar tensor, but returns shape \(3,\)"),
        ({"loss": lambda a, q, s, n: 1.0}, ValueError, "loss must return a scalar tensor, but returns float"),
        ({"loss": lambda a, q, s, n: (a - a).sqrt().sum()}, ValueError, r"grad_a\[0, 0\] is nan"),
        ({"loss": lambda a, q, s, n: torch.ones(())}, ValueError, "loss must depend on its first three arguments"),
    ],
)
def test_what_is_refused_changes_nothing(change: dict, error: type, sentence: str) -> None:
    layer = FactoredOutput(4, 9)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    arguments = {
        "layer": layer,
        "hidden": torch.randn(3, 4),
        "target": torch.tensor([0, 1, 2]),
        "loss": spherical.z_loss_from_stats,
        "lr": 0.1,
        **change,
    }
    with pytest.raises(error, match=sentence):
        factored_step(**arguments)
    assert all(torch.equal(before[name], tensor) for name, tensor in layer.state_dict().items())


def test_a_layer_in_evaluation_mode_is_refused() -> None:
    layer = FactoredOutput(4, 9).eval()
    with pytest.raises(RuntimeError, match="update needs a forward pass in training mode"):
        factored_step(layer, torch.randn(3, 4), torch.tensor([0, 1, 2]), spherical.z_loss_from_stats, 0.1)

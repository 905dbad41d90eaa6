"""DualHead: which head is seen when, which loss reaches what, training by fit, bad input."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from lossbook.layers import DualHead
from lossbook.losses import binary_kl_norm, cross_entropy
from lossbook.train import fit


def model(auxiliary: str = "linear") -> DualHead:
    torch.manual_seed(0)
    return DualHead(nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.ReLU()), 5, 3, auxiliary)


def batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, teacher = torch.randn(20, 6, generator=generator), 4 * torch.randn(20, 3, generator=generator)
    return x, torch.arange(20) % 3, teacher


@pytest.mark.parametrize("auxiliary", ["linear", "mlp"])
def test_both_heads_in_training_the_main_one_in_evaluation(auxiliary: str) -> None:
    network, (x, _, _) = model(auxiliary), batch()
    main, other = network.train()(x)
    assert main.shape == other.shape == (20, 3)
    torch.testing.assert_close(main, network.head(network.features(x)))
    shown = network.eval()(x)
    torch.testing.assert_close(shown, main)
    torch.testing.assert_close(network.head(network.features(x)), shown)


def test_each_loss_reaches_its_own_head_and_the_backbone() -> None:
    network, (x, y, teacher) = model("mlp"), batch()
    main, other = network(x)
    for loss, own, foreign in (
        (cross_entropy(main, y), network.head, network.auxiliary),
        (binary_kl_norm(other, teacher), network.auxiliary, network.head),
    ):
        network.zero_grad()
        loss.backward(retain_graph=True)
        assert all(p.grad.any() for p in (*own.parameters(), *network.backbone.parameters()) if p.dim() == 2)
        assert all(p.grad is None or not p.grad.any() for p in foreign.parameters())


def test_fit_trains_both_and_measures_the_main_head() -> None:
    network, (x, y, teacher) = model(), batch()
    data = SimpleNamespace(train=(x, y), val=(x, y))
    before = network.auxiliary.weight.detach().clone()

    def dhkd(logits: Tensor | tuple[Tensor, Tensor], target: Tensor, index: Tensor | None = None) -> Tensor:
        if isinstance(logits, Tensor):
            return cross_entropy(logits, target)
        return cross_entropy(logits[0], target) + binary_kl_norm(logits[1], teacher[index])

    history = fit(network, data, dhkd, epochs=30, lr=0.02, device="cpu", progress=False)
    assert history.train_loss.iloc[-1] == pytest.approx(cross_entropy(network(x), y).item(), rel=1e-5)
    assert history.train_loss.iloc[-1] < history.train_loss.iloc[0]
    assert not torch.equal(network.auxiliary.weight, before)


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: DualHead(lambda x: x, 5, 3), TypeError, "backbone must be a torch.nn.Module, but is function"),
        (lambda: DualHead(nn.Identity(), 0, 3), ValueError, "dim must be a whole number"),
        (lambda: DualHead(nn.Identity(), 5, 1), ValueError, "num_classes must be a whole number"),
        (lambda: DualHead(nn.Identity(), 5, 3, "conv"), ValueError, "auxiliary must be 'linear' or 'mlp'"),
        (lambda: DualHead(nn.Identity(), 5, 3)(torch.ones(2, 4)), ValueError, r"shape \(N, 5\), but gives \(2, 4\)"),
    ],
)
def test_bad_input_is_refused(call, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        call()

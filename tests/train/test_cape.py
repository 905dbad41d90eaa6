"""CaPE's training: its schedule, its targets, what is kept, limits, bad input."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from lossbook.losses import cross_entropy
from lossbook.losses.calibration import cape_targets
from lossbook.models import MLP
from lossbook.train import cape, fit, fit_cape


def coins(n: int = 60) -> SimpleNamespace:
    """Outcomes with the chance sigmoid(x_0), in three dimensions."""
    generator = torch.Generator().manual_seed(3)

    def split(n: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(n, 3, generator=generator)
        return x, (torch.rand(n, generator=generator) < x[:, 0].sigmoid()).long()

    return SimpleNamespace(train=split(n), val=split(40))


def network() -> MLP:
    torch.manual_seed(0)
    return MLP(3, (8,), 2)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def event(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x).softmax(dim=1)[:, 1]


@pytest.mark.parametrize("interval", [0, 2])
def test_is_the_textbook_loop(interval: int) -> None:
    """Against a loop written out here: the schedule, and targets that hold for the whole of their epoch."""
    data, epochs = coins(), 5
    x, y = data.train
    model = network()
    optimizer, order = torch.optim.SGD(model.parameters(), 0.5), torch.Generator().manual_seed(4)
    states = []
    for epoch in range(epochs):
        target = y.float()
        if epoch in {0: (0, 1, 2, 3, 4), 2: (0, 3)}[interval]:
            target = cape_targets(event(model, x), y, n_bins=4)
        for batch in torch.randperm(len(x), generator=order).split(16):
            log_p, t = model(x[batch]).log_softmax(dim=1), target[batch]
            optimizer.zero_grad()
            (-(t * log_p[:, 1] + (1 - t) * log_p[:, 0]).mean()).backward()
            optimizer.step()
        with torch.no_grad():
            states.append((float(cross_entropy(model(data.val[0]), data.val[1])), weights(model)))

    ours, seen = network(), []
    settings = {"optimizer": "sgd", "momentum": 0.0, "lr": 0.5, "batch_size": 16, "seed": 4, "device": "cpu"}
    history = fit_cape(
        ours,
        data,
        interval=interval,
        n_bins=4,
        epochs=epochs,
        callback=lambda _, model: seen.append(weights(model)),
        **settings,
    )
    for found, (_, want) in zip(seen, states, strict=True):
        torch.testing.assert_close(found, want)
    torch.testing.assert_close(weights(ours), min(states, key=lambda state: state[0])[1])
    assert history["val_loss"].tolist() == pytest.approx([value for value, _ in states], rel=1e-5)
    schedule = ["cape"] * 5 if interval == 0 else ["cape", "outcomes", "outcomes", "cape", "outcomes"]
    assert history["targets"].tolist() == schedule


def test_the_best_epoch_is_kept_and_not_the_last() -> None:
    data, model, seen = coins(), network(), []
    settings = {"epochs": 30, "interval": 3, "lr": 0.05, "device": "cpu"}
    history = fit_cape(model, data, callback=lambda _, m: seen.append(weights(m)), **settings)
    best = int(history["val_loss"].argmin())
    assert best < 29
    assert torch.equal(weights(model), seen[best])
    assert not model.training


class Spy(nn.Module):
    """Two logits behind dropout and batch normalisation; notes the mode and whether gradients were on."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
        self.calls: list[tuple[int, bool, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append((len(x), self.training, torch.is_grad_enabled()))
        return self.net(x)


def test_probabilities_are_of_the_whole_split_in_evaluation_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data, asked = Spy(), coins(), []

    def spied(probs: Tensor, target: Tensor, **kwargs: object) -> Tensor:
        asked.append((model.calls[-1], probs.clone(), copy.deepcopy(model)))
        return cape_targets(probs, target, **kwargs)

    monkeypatch.setattr(cape, "cape_targets", spied)
    fit_cape(model, data, epochs=7, interval=2, batch_size=16, device="cpu")
    assert len(asked) == 3  # epochs 0, 3 and 6
    for (rows, training, gradient), probs, then in asked:
        assert (rows, training, gradient) == (60, False, False)
        assert not probs.requires_grad
        torch.testing.assert_close(probs, event(then, data.train[0]))
    assert any(training for _, training, _ in model.calls)


def test_as_many_bins_as_rows_are_the_outcomes() -> None:
    """B = N gives y back, so that every epoch is an ordinary one."""
    data, ours, plain, seen = coins(), network(), network(), []
    settings = {"epochs": 3, "batch_size": 16, "lr": 0.01, "seed": 2, "device": "cpu"}
    fit_cape(ours, data, interval=0, n_bins=60, callback=lambda _, m: seen.append(weights(m)), **settings)
    fit(plain, data, cross_entropy, **settings)
    torch.testing.assert_close(seen[-1], weights(plain))


def test_one_bin_pulls_everyone_to_the_base_rate() -> None:
    data, model = coins(), network()
    last = []
    settings = {"epochs": 200, "batch_size": None, "lr": 0.02, "device": "cpu"}
    fit_cape(model, data, interval=0, n_bins=1, callback=lambda _, m: last.append(event(m, data.train[0])), **settings)
    rate = data.train[1].double().mean().item()
    assert (last[0] - rate).abs().max() > 0.05
    assert (last[-1] - rate).abs().max() < 0.02


def test_a_kernel_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {}
    monkeypatch.setattr(cape, "cape_targets", lambda p, y, **kwargs: given.update(kwargs) or y.to(p.dtype))
    fit_cape(network(), coins(), kind="kde", sigma=0.05, window=7, epochs=1, device="cpu")
    assert given == {"kind": "kde", "n_bins": 10, "sigma": 0.05, "window": 7}


@pytest.mark.parametrize(
    "change, error, says",
    [
        ({"model": lambda x: x}, TypeError, "model must be a torch.nn.Module"),
        ({"model": MLP(3, (4,), 3)}, ValueError, r"must return logits \(N, 2\)"),
        ({"interval": -1}, ValueError, "interval"),
        ({"interval": 1.5}, ValueError, "interval"),
        ({"kind": "isotonic"}, ValueError, "kind must be"),
        ({"n_bins": 61}, ValueError, "n_bins must be at most"),
        ({"kind": "kde", "sigma": 0.0}, ValueError, "sigma"),
        ({"kind": "kde", "window": 0}, ValueError, "window"),
        ({"epochs": 0}, ValueError, "epochs"),
        ({"lr": -1.0}, ValueError, "lr"),
        ({"data": SimpleNamespace(train=coins().train)}, TypeError, "no .val"),
        (
            {"data": SimpleNamespace(train=(coins().train[0], coins().train[1] + 1), val=coins().val)},
            ValueError,
            "train.y has label 2",
        ),
        (
            {"data": SimpleNamespace(train=coins().train, val=(coins().val[0], coins().val[1] + 1))},
            ValueError,
            "val.y has label 2",
        ),
    ],
)
def test_bad_input(change: dict, error: type[Exception], says: str) -> None:
    arguments = {"model": network(), "data": coins(), "epochs": 1, "device": "cpu"} | change
    with pytest.raises(error, match=says):
        fit_cape(arguments.pop("model"), arguments.pop("data"), **arguments)

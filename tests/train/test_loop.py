from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lossbook import losses
from lossbook.models import MLP
from lossbook.train import Diverged, fit


def network(seed: int = 0, **kwargs) -> MLP:
    torch.manual_seed(seed)
    return MLP(6, (16,), 3, **kwargs)


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().cpu().flatten() for p in model.parameters()])


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_is_the_textbook_loop(blobs, name, schedule):
    """Against a loop written out here with torch's own optimiser and scheduler."""
    model, epochs, rows = network(), 3, 32
    x, y = blobs.train
    if name == "adam":
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=1e-3)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.8, weight_decay=1e-3)
    total = epochs * math.ceil(len(x) / rows)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
    order = torch.Generator().manual_seed(5)
    for _ in range(epochs):
        for batch in torch.randperm(len(x), generator=order).split(rows):
            optimizer.zero_grad()
            cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
            if schedule == "cosine":
                scheduler.step()

    ours = network()
    fit(
        ours,
        blobs,
        cross_entropy,
        epochs=epochs,
        batch_size=rows,
        lr=0.01,
        weight_decay=1e-3,
        momentum=0.8,
        optimizer=name,
        schedule=schedule,
        seed=5,
        device="cpu",
    )
    torch.testing.assert_close(weights(ours), weights(model), atol=1e-6, rtol=1e-5)


def test_history_is_measured_on_the_whole_splits_after_the_epoch(blobs):
    model = network()
    history = fit(model, blobs, cross_entropy, epochs=7, eval_every=3, lr=0.01, device="cpu")
    assert list(history["epoch"]) == [3, 6, 7]
    assert list(history.columns) == ["epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "seconds"]
    assert history["seconds"].is_monotonic_increasing
    last = history.iloc[-1]
    for split in ("train", "val"):
        x, y = getattr(blobs, split)
        assert last[f"{split}_loss"] == pytest.approx(cross_entropy(model(x), y).item(), rel=1e-5)
        assert last[f"{split}_accuracy"] == pytest.approx((model(x).argmax(1) == y).float().mean().item())
    assert last["train_accuracy"] > 0.6


def test_the_seed_alone_fixes_the_result(blobs):
    def train(seed: int, disturb: int) -> torch.Tensor:
        model = nn.Sequential(network(), nn.Dropout(0.3))
        torch.manual_seed(disturb)
        fit(model, blobs, cross_entropy, epochs=2, batch_size=32, seed=seed, device="cpu")
        return weights(model)

    assert torch.equal(train(1, disturb=10), train(1, disturb=11))
    assert not torch.equal(train(1, disturb=10), train(2, disturb=10))


def test_the_global_generator_is_left_alone(blobs):
    torch.manual_seed(3)
    expected = torch.rand(4)
    model = nn.Sequential(network(), nn.Dropout(0.3))
    torch.manual_seed(3)
    fit(model, blobs, cross_entropy, epochs=1, device="cpu")
    assert torch.equal(torch.rand(4), expected)


def test_penalty_sees_model_and_features(blobs):
    """With a full batch, one SGD step from known weights has a gradient in closed form."""
    model, reference = network(linear_features=True), network(linear_features=True)
    x, y = blobs.train
    features = reference.features(x)
    objective = cross_entropy(reference.head(features), y)
    objective = objective + 0.05 * reference.head.weight.square().sum() + 0.01 * features.square().sum()
    gradients = torch.autograd.grad(objective, list(reference.parameters()))
    fit(
        model,
        blobs,
        cross_entropy,
        penalty=lambda m, h: 0.05 * m.head.weight.square().sum() + 0.01 * h.square().sum(),
        optimizer="sgd",
        momentum=0.0,
        lr=0.001,
        epochs=1,
        batch_size=None,
        device="cpu",
    )
    for after, before, gradient in zip(model.parameters(), reference.parameters(), gradients, strict=True):
        torch.testing.assert_close(after.detach(), before.detach() - 0.001 * gradient)


def test_batch_norm_sees_training_batches_and_callback_sees_evaluation_mode(blobs):
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    seen = []
    fit(
        model,
        blobs,
        cross_entropy,
        epochs=2,
        batch_size=65,
        device="cpu",
        callback=lambda epoch, m: seen.append((epoch, m.training)),
    )
    assert seen == [(1, False), (2, False)]
    assert model[1].num_batches_tracked == 4


def test_divergence_names_epoch_and_step_and_keeps_the_history(blobs):
    calls = []

    def loss(logits, target):
        if logits.requires_grad:
            calls.append(1)
        value = cross_entropy(logits, target)
        return value * float("nan") if len(calls) == 5 + 2 else value  # 5 steps an epoch: epoch 2, step 2

    with pytest.raises(FloatingPointError, match="epoch 2, step 2") as caught:
        fit(network(), blobs, loss, epochs=3, batch_size=26, device="cpu")
    assert isinstance(caught.value, Diverged)
    assert (caught.value.epoch, caught.value.step) == (2, 2)
    assert list(caught.value.history["epoch"]) == [1]


def test_huge_learning_rate_diverges(blobs):
    with pytest.raises(Diverged):
        fit(network(), blobs, losses.brier, optimizer="sgd", lr=1e30, epochs=5, device="cpu")


def test_works_with_every_loss_of_the_package(blobs):
    for loss in (losses.cross_entropy, losses.comp_sum, losses.mae, losses.focal, losses.Criterion(losses.brier)):
        history = fit(network(), blobs, loss, epochs=4, lr=0.02, device="cpu")
        assert history["train_loss"].iloc[-1] < history["train_loss"].iloc[0]


BAD = {
    "epochs": (0, "epochs must be a whole number of at least 1, but is 0"),
    "batch_size": (-3, "batch_size must be a whole number of at least 1, but is -3"),
    "lr": (0.0, r"lr must lie in \(0, inf\), but is 0.0"),
    "weight_decay": (float("nan"), r"weight_decay must lie in \[0, inf\), but is nan"),
    "momentum": (1.0, r"momentum must lie in \[0, 1\), but is 1.0"),
    "optimizer": ("rmsprop", "optimizer must be one of 'adam', 'sgd', but is 'rmsprop'"),
    "schedule": ("linear", "schedule must be one of 'constant', 'cosine', but is 'linear'"),
    "seed": (-1, "seed must be a whole number of at least 0, but is -1"),
    "eval_every": (1.5, "eval_every must be a whole number of at least 1, but is 1.5"),
    "device": ("tpu9", "device must be 'auto' or a device of this machine, but is 'tpu9'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_settings_are_refused_by_name(blobs, name):
    value, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        fit(network(), blobs, cross_entropy, **{name: value})


def _data(x, y):
    return SimpleNamespace(train=(x, y), val=(x, y))


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (SimpleNamespace(train=(torch.zeros(3, 6), torch.zeros(3).long())), TypeError, "has no .val"),
        (_data(np.zeros((3, 6)), torch.zeros(3).long()), TypeError, "train.x must be a torch.Tensor, but is ndarray"),
        (_data(torch.zeros(3, 6).long(), torch.zeros(3).long()), ValueError, "train.x must be floating point"),
        (_data(torch.zeros(3, 6), torch.zeros(4).long()), ValueError, r"train.y must be int64 of shape \(3,\)"),
        (_data(torch.zeros(3, 6), torch.zeros(3)), ValueError, "train.y must be int64"),
        (_data(torch.zeros(0, 6), torch.zeros(0).long()), ValueError, "train has no examples"),
        (_data(torch.full((3, 6), torch.inf), torch.zeros(3).long()), ValueError, r"train.x must be finite"),
        (_data(torch.zeros(3, 6), torch.tensor([0, 1, 3])), ValueError, "train.y has label 3, but the model has 3"),
        (_data(torch.zeros(3, 6), torch.tensor([0, 1, -1])), ValueError, "train.y has label -1"),
    ],
)
def test_bad_data_is_refused_by_name(data, error, message):
    with pytest.raises(error, match=message):
        fit(network(), data, cross_entropy, device="cpu")


def test_bad_model_loss_and_penalty_are_refused_by_name(blobs):
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, but is function"):
        fit(network, blobs, cross_entropy)
    with pytest.raises(TypeError, match="loss must be a function, but is str"):
        fit(network(), blobs, "cross_entropy")
    with pytest.raises(ValueError, match="loss must return a scalar"):
        fit(network(), blobs, lambda z, y: cross_entropy(z, y, reduction="none"))
    with pytest.raises(ValueError, match="penalty must return a scalar"):
        fit(network(), blobs, cross_entropy, penalty=lambda m, h: h)
    with pytest.raises(TypeError, match=r"a penalty needs a model with .features\(x\) and .head"):
        fit(nn.Linear(6, 3), blobs, cross_entropy, penalty=lambda m, h: h.sum())
    with pytest.raises(ValueError, match="the model must return logits"):
        fit(nn.Flatten(0), blobs, cross_entropy)
    frozen = network().requires_grad_(False)
    with pytest.raises(ValueError, match="model has no parameter that trains"):
        fit(frozen, blobs, cross_entropy)


# ------------------------------------------------------------------------------------------------------- checkpoints
# Killed, starved and damaged ones: tests/faults.


def run(blobs, path, **changes):
    model = nn.Sequential(network(), nn.Dropout(0.2))
    settings = {"epochs": 6, "batch_size": 32, "schedule": "cosine", "device": "cpu", **changes}
    history = fit(model, blobs, settings.pop("loss", cross_entropy), checkpoint=path, **settings)
    return weights(model), history


class Stop(Exception):
    pass


def stop_after(epoch: int):
    def callback(now, _):
        if now == epoch:
            raise Stop

    return callback


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_stopped_run_goes_on_bit_for_bit(blobs, tmp_path, optimizer):
    expected, full = run(blobs, None, optimizer=optimizer)
    path = tmp_path / "new folder" / "run.pt"
    with pytest.raises(Stop):
        run(blobs, path, optimizer=optimizer, callback=stop_after(4))
    seen = []
    resumed, history = run(blobs, path, optimizer=optimizer, callback=lambda epoch, _: seen.append(epoch))
    assert seen == [4, 5, 6]  # epoch 4 was stopped before it was written
    assert torch.equal(resumed, expected)
    assert history.drop(columns="seconds").equals(full.drop(columns="seconds"))
    again, _ = run(blobs, path, optimizer=optimizer, callback=lambda *_: pytest.fail("trained again"))
    assert torch.equal(again, expected)


class Margin(nn.Module):
    """A loss whose margin shows only in training."""

    def __init__(self, margin):
        super().__init__()
        self.margin = margin

    def forward(self, logits, target):
        return cross_entropy(logits, target) * (1 + self.margin * self.training)


def test_a_checkpoint_knows_what_does_not_show_at_the_start(blobs, tmp_path):
    def train(p=0.1, margin=0.1, weight=1e-6):
        model = network()
        model.body.append(nn.Dropout(p))
        penalty = lambda model, features: weight * features.square().mean()  # noqa: E731
        fit(model, blobs, Margin(margin), penalty=penalty, epochs=1, device="cpu", checkpoint=tmp_path / "run.pt")

    train()
    for change, name in [({"p": 0.2}, "model"), ({"margin": 0.2}, "loss"), ({"weight": 2e-6}, "penalty at the start")]:
        with pytest.raises(ValueError, match=f"another run: {name} was"):
            train(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.5}, "lr was 0.001, is 0.5"),
        ({"epochs": 9}, "epochs was 6, is 9"),
        ({"seed": 4}, "seed was 0, is 4"),
        ({"loss": losses.mae}, "loss at the start was"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(blobs, tmp_path, change, message):
    path = tmp_path / "run.pt"
    run(blobs, path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=f"belongs to another run: {message}"):
        run(blobs, path, **change)
    assert path.read_bytes() == before


def test_other_data_or_initial_weights_are_refused(blobs, tmp_path):
    path = tmp_path / "run.pt"
    fit(network(0), blobs, cross_entropy, epochs=1, checkpoint=path, device="cpu")
    with pytest.raises(ValueError, match="initial weights was"):
        fit(network(1), blobs, cross_entropy, epochs=1, checkpoint=path, device="cpu")
    x, y = blobs.val
    blobs.val = (x.flip(0), y)
    with pytest.raises(ValueError, match="data was"):
        fit(network(0), blobs, cross_entropy, epochs=1, checkpoint=path, device="cpu")


def test_a_checkpoint_with_code_in_it_is_not_run(blobs, tmp_path):
    path, mark = tmp_path / "run.pt", tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (mark.touch, ())

    torch.save({"run": Evil()}, path)
    with pytest.raises(ValueError, match="is no checkpoint of fit: choose another file"):
        run(blobs, path)
    assert not mark.exists()


def test_a_folder_is_refused_as_checkpoint(blobs, tmp_path):
    with pytest.raises(ValueError, match="checkpoint must be a file"):
        run(blobs, tmp_path)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_the_gpu_trains_like_the_cpu(blobs):
    results = []
    for device in ("cpu", "cuda"):
        model = network()
        fit(model, blobs, cross_entropy, epochs=3, batch_size=32, device=device)
        assert next(model.parameters()).device.type == device
        results.append(weights(model))
    torch.testing.assert_close(*results, atol=1e-4, rtol=1e-4)


def test_a_stateful_loss_goes_on_from_its_checkpoint(blobs, tmp_path):
    class Seen(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(len(blobs.train[0])))

        def forward(self, logits, target, index=None):
            if index is not None:
                self.seen[index] += 1
            return torch.nn.functional.cross_entropy(logits, target)

    whole, first, second = Seen(), Seen(), Seen()
    arguments = {"batch_size": 50, "device": "cpu", "checkpoint": tmp_path / "run.pt"}

    def model():
        torch.manual_seed(0)
        return torch.nn.Linear(6, 3)

    fit(model(), blobs, whole, epochs=4, batch_size=50, device="cpu")

    class Stop(Exception):
        pass

    def stop(epoch, model):
        if epoch == 3:
            raise Stop

    with pytest.raises(Stop):
        fit(model(), blobs, first, epochs=4, callback=stop, **arguments)
    fit(model(), blobs, second, epochs=4, **arguments)
    assert torch.equal(second.seen, whole.seen)
    assert (second.seen == 4).all()

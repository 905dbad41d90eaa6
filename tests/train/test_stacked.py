from __future__ import annotations

import functools
import itertools
import shutil
import warnings
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lossbook import losses
from lossbook.models import MLP, SmallCNN
from lossbook.train import fit, sweep

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")]),
]
# Several losses, seeds, learning rates, decays and loss parameters in one grid.
MIXED = [
    *({"loss": losses.comp_sum, "tau": tau, "seed": seed} for tau in (0.5, 1, 1.7) for seed in (0, 4)),
    {"loss": losses.generalized_cross_entropy, "q": 0.6, "lr": 0.02},
    {"loss": losses.mae, "weight_decay": 0.01},
    {"loss": losses.crammer_singer, "seed": 2},
    {"loss": losses.Criterion(losses.focal, gamma=1.5), "seed": 3},
    {"loss": losses.cross_entropy, "label_smoothing": 0.1, "label_noise": 0.3},
    {"lr": 0.005, "seed": 9},
]


def mlp() -> MLP:
    return MLP(6, (16,), 3)


def both(make, data, grid, **settings):
    settings = {"epochs": 4, "batch_size": 32, "lr": 0.01, "loss": cross_entropy, "device": "cpu", **settings}
    return [sweep(make, data, grid, method=method, **settings) for method in ("vmap", "loop")]


def agree(vmap, loop, x, atol=1e-4):
    assert (vmap.method, loop.method) == ("vmap", "loop")
    torch.testing.assert_close(vmap.logits(x), loop.logits(x), atol=atol, rtol=1e-4)
    for name in ("table", "history"):
        pd.testing.assert_frame_equal(getattr(vmap, name), getattr(loop, name), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_vmap_is_the_loop(blobs, optimizer, schedule, device):
    vmap, loop = both(mlp, blobs, MIXED, optimizer=optimizer, schedule=schedule, device=device)
    agree(vmap, loop, blobs.test[0])
    spread = vmap.logits(blobs.test[0]).std(0).mean()
    assert spread > 0.1  # the configurations differ, so that agreement says something


def test_momentum_and_frozen_weights(blobs):
    def make():
        model = mlp()
        model.head.weight.requires_grad_(False)
        return model

    grid = {"momentum": [0.0, 0.5, 0.95], "seed": [0, 1], "weight_decay": [0.0, 0.1]}
    vmap, loop = both(make, blobs, grid, optimizer="sgd")
    agree(vmap, loop, blobs.test[0])
    torch.manual_seed(1)
    assert torch.equal(vmap.model(2).head.weight, make().head.weight)  # row 2 is momentum 0, seed 1


@pytest.mark.parametrize("rows", [None, 1000, 43])
def test_full_and_uneven_batches_with_a_penalty(blobs, rows):
    def penalty(model, features):
        return 5e-3 * model.head.weight.square().sum() + 5e-4 * features.square().sum()

    vmap, loop = both(
        lambda: MLP(6, (8, 5), 3, linear_features=True),
        blobs,
        {"seed": [0, 1, 2], "lr": [0.003, 0.02]},
        batch_size=rows,
        penalty=penalty,
        schedule="cosine",
        epochs=6,
        eval_every=4,
    )
    agree(vmap, loop, blobs.test[0])
    assert sorted(set(vmap.history["epoch"])) == [4, 6]
    plain = both(lambda: MLP(6, (8, 5), 3, linear_features=True), blobs, {"seed": [0, 1]}, epochs=6, batch_size=rows)[0]
    assert not torch.allclose(plain.logits(blobs.test[0])[0], vmap.logits(blobs.test[0])[0], atol=1e-3)


def test_images_and_convolutions(generator):
    x, y = torch.rand(60, 1, 8, 8, generator=generator), torch.arange(60) % 4
    data = SimpleNamespace(train=(x, y), val=(x, y))
    vmap, loop = both(lambda: SmallCNN(1, 4, width=4, image_size=8), data, {"seed": [0, 1]}, batch_size=16)
    agree(vmap, loop, x)
    assert "test_loss" not in vmap.table


def test_each_configuration_is_what_fit_makes_of_it(blobs):
    """Not only through the loop of sweep itself: the seeded network, then fit, written out."""
    result = sweep(mlp, blobs, {"seed": [3, 8], "tau": [1.0, 1.5]}, loss=losses.comp_sum, epochs=3, device="cpu")
    torch.manual_seed(8)
    model = mlp()
    history = fit(model, blobs, functools.partial(losses.comp_sum, tau=1.5), epochs=3, seed=8, device="cpu")
    x, y = blobs.test
    torch.testing.assert_close(result.logits(x)[3], model(x).detach(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(result.features(x)[3], model.features(x).detach(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(result.model(3)(x), result.logits(x)[3])
    row = result.table.iloc[3]
    assert (row["seed"], row["tau"]) == (8, 1.5)
    assert row["val_accuracy"] == pytest.approx(history["val_accuracy"].iloc[-1])
    assert row["test_accuracy"] == pytest.approx((model(x).argmax(1) == y).double().mean().item())
    own = result.history[result.history["configuration"] == 3]
    assert own["train_loss"].tolist() == pytest.approx(history["train_loss"].tolist(), rel=1e-4)
    assert len(result) == 4
    assert repr(result).startswith("SweepResult(4 configurations, method='vmap'")


def test_chunks_change_nothing(blobs):
    whole = sweep(mlp, blobs, MIXED, loss=cross_entropy, epochs=2, device="cpu", method="vmap")
    parts = sweep(mlp, blobs, MIXED, loss=cross_entropy, epochs=2, device="cpu", method="vmap", chunk=5)
    torch.testing.assert_close(whole.logits(blobs.test[0]), parts.logits(blobs.test[0]), atol=1e-5, rtol=1e-5)
    pd.testing.assert_frame_equal(whole.history, parts.history, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("settings", [{"method": "vmap"}, {"method": "vmap", "chunk": 5}, {"method": "loop"}])
def test_kept_networks_are_those_of_a_run_that_ends_there(blobs, settings):
    grid = {"seed": [0, 1], "loss": [losses.mae, losses.cross_entropy], "lr": [0.003, 0.02]}
    settings = {"device": "cpu", "batch_size": 32, **settings}
    x = blobs.test[0]
    result = sweep(mlp, blobs, grid, epochs=5, keep=[5, 2], **settings)
    assert list(result.kept) == [2, 5]
    short = sweep(mlp, blobs, grid, epochs=2, **settings)
    for kept, expected in ((result.kept[2], short), (result.kept[5], result)):
        torch.testing.assert_close(kept.logits(x), expected.logits(x), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(kept.features(x), expected.features(x), atol=1e-5, rtol=1e-5)
    assert len(result.kept[2]) == 8 and not short.kept
    with torch.no_grad():
        torch.testing.assert_close(result.kept[2].model(3)(x), short.logits(x)[3], atol=1e-5, rtol=1e-5)
    assert (result.kept[2].logits(x) - result.logits(x)).abs().mean() > 0.05


@pytest.mark.parametrize("method", ["vmap", "loop"])
def test_kept_weights_are_nan_from_the_divergence_on(blobs, method):
    def fuse(logits, target, *, limit=1e30):
        return cross_entropy(logits, target) / (logits.abs().amax() < limit)  # x/0 once a logit is too large

    grid = [{"limit": 1e30}, {"limit": 3.7}]
    result = sweep(
        mlp, blobs, grid, loss=fuse, lr=0.01, epochs=6, keep=range(1, 7), batch_size=32, device="cpu", method=method
    )
    diverged = result.table.loc[1, "diverged"]
    assert 1 < diverged < 7  # else nothing is tested here
    nans = {epoch: networks.logits(blobs.test[0]).isnan().all(2).all(1) for epoch, networks in result.kept.items()}
    assert [bool(nan[1]) for nan in nans.values()] == [epoch >= diverged for epoch in nans]
    assert not any(nan[0] for nan in nans.values())


@pytest.mark.parametrize(
    ("keep", "message"), [([4], "keep asks for epoch 4, but there are 3"), ([0], "keep must be"), ([1.5], "keep must")]
)
def test_epochs_that_cannot_be_kept_are_refused(blobs, keep, message):
    with pytest.raises(ValueError, match=message):
        sweep(mlp, blobs, {"seed": [0]}, epochs=3, keep=keep)


def test_memory_bounds_the_chunk(blobs, monkeypatch):
    from lossbook.train import stacked

    sizes = []
    original = stacked.Stack.__init__
    monkeypatch.setattr(stacked, "_CPU_BYTES", 100_000)
    monkeypatch.setattr(
        stacked.Stack,
        "__init__",
        lambda self, job, members: (sizes.append(len(members)), original(self, job, members))[1],
    )
    sweep(mlp, blobs, {"seed": range(30)}, epochs=1, device="cpu", method="vmap")
    assert 1 < max(sizes) < 30
    assert sum(sizes[1:]) == 30  # the first one is the trial step


@pytest.mark.parametrize("method", ["vmap", "loop"])
def test_a_diverged_configuration_does_not_disturb_the_others(blobs, method):
    def fragile(logits, target, *, scale=1.0):
        return cross_entropy(logits * scale, target)

    grid = [{"lr": 0.05}, {"lr": 1e30}, {"lr": 0.05, "seed": 1}]
    settings = {"loss": fragile, "epochs": 6, "batch_size": 32, "optimizer": "sgd", "device": "cpu", "method": method}
    result = sweep(mlp, blobs, grid, **settings)
    assert result.table["diverged"].isna().tolist() == [True, False, True]
    assert result.table.loc[1, "diverged"] <= 2
    assert result.table.loc[1, ["train_loss", "val_accuracy", "test_loss", "test_accuracy"]].isna().all()
    assert result.table.loc[[0, 2]].drop(columns="diverged").notna().all(axis=None)
    x = blobs.test[0]
    assert result.logits(x)[1].isnan().all()
    healthy = sweep(mlp, blobs, [grid[0], grid[2]], **settings)
    torch.testing.assert_close(result.logits(x)[[0, 2]], healthy.logits(x), atol=1e-5, rtol=1e-5)
    assert (result.history["configuration"] == 1).sum() == result.table.loc[1, "diverged"] - 1
    assert len(result.history) == 12 + result.table.loc[1, "diverged"] - 1


@pytest.mark.parametrize("method", ["vmap", "loop"])
def test_label_noise_flips_training_labels_only(blobs, method):
    from lossbook.data import flip_labels

    settings = {"epochs": 1, "lr": 1e-12, "device": "cpu", "method": method, "loss": cross_entropy}
    result = sweep(mlp, blobs, {"seed": [5], "label_noise": [0.0, 0.4]}, **settings)
    clean, noisy = (result.table.iloc[i] for i in range(2))
    assert clean["val_loss"] == pytest.approx(noisy["val_loss"])
    flipped = flip_labels(blobs.train[1], 0.4, 3, seed=5)[0]
    expected = cross_entropy(result.logits(blobs.train[0])[1], flipped).item()
    assert noisy["train_loss"] == pytest.approx(expected, rel=1e-4)
    assert noisy["train_loss"] != pytest.approx(clean["train_loss"], rel=1e-3)


def branching(logits, target):
    return cross_entropy(logits, target) if logits.sum() > -1e9 else logits.sum()


@pytest.mark.parametrize(
    ("make", "loss", "reason"),
    [
        (
            lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)),
            cross_entropy,
            "running statistics",
        ),
        (lambda: nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.1), nn.Linear(8, 3)), cross_entropy, "vmap refuses"),
        (mlp, branching, "vmap refuses branching"),
    ],
)
def test_what_vmap_cannot_train_goes_through_the_loop_and_says_so(blobs, make, loss, reason):
    with pytest.warns(UserWarning, match=reason) as caught:
        result = sweep(make, blobs, {"seed": [0, 1]}, loss=loss, epochs=2, device="cpu")
    assert len(caught) == 1
    assert result.method == "loop"
    torch.manual_seed(1)
    model = make()
    fit(model, blobs, loss, epochs=2, seed=1, device="cpu")
    torch.testing.assert_close(result.logits(blobs.test[0])[1], model(blobs.test[0]).detach())
    with pytest.raises(ValueError, match=f"method='vmap' is not possible here: .*{reason}"):
        sweep(make, blobs, {"seed": [0, 1]}, loss=loss, epochs=2, device="cpu", method="vmap")


def test_one_configuration_takes_the_loop_quietly(blobs):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sweep(mlp, blobs, {"seed": [0]}, epochs=1, device="cpu").method == "loop"
        assert sweep(mlp, blobs, {"seed": [0, 1]}, epochs=1, device="cpu").method == "vmap"


def test_arguments_that_are_no_numbers_stay_as_they_are(blobs):
    def loss(logits, target, *, kind="plain", power=1.0):
        value = cross_entropy(logits, target)
        return value**power if kind == "plain" else 2 * value

    vmap, loop = both(mlp, blobs, {"kind": ["plain", "twice"], "power": [1, 2]}, loss=loss, optimizer="sgd")
    agree(vmap, loop, blobs.test[0])


def test_the_global_generator_is_left_alone(blobs):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    sweep(mlp, blobs, {"seed": [0, 1]}, epochs=1, device="cpu").model(0)
    assert torch.equal(torch.rand(4), expected)


def test_the_table_fills_in_what_a_row_leaves_to_the_arguments(blobs):
    grid = [{"lr": 0.02}, {"seed": 4, "loss": losses.mae}]
    table = sweep(mlp, blobs, grid, loss=losses.brier, lr=0.5, seed=2, epochs=1, device="cpu").table
    assert list(table.columns[:3]) == ["lr", "seed", "loss"]
    assert table.iloc[:, :3].values.tolist() == [[0.02, 2, "brier"], [0.5, 4, "mae"]]


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({}, None),
        ([], "grid must be a dict of lists or a list of dicts"),
        ("seed", "grid must be a dict of lists or a list of dicts"),
        ({"seed": 3}, r"grid\['seed'\] must be a list of one or more values, but is 3"),
        ({"seed": []}, r"grid\['seed'\] must be a list"),
        ({"seed": [-1]}, "seed must be a whole number of at least 0, but is -1"),
        ({"lr": [0.1, -0.1]}, r"lr must lie in \(0, inf\), but is -0.1"),
        ({"label_noise": [1.5]}, r"label_noise must lie in \[0, 1\), but is 1.5"),
        ({"momentum": [0.5]}, "the grid has momentum, but optimizer is 'adam'"),
        ({"epochs": [1, 2]}, "the grid cannot vary 'epochs': give it to sweep itself"),
        ({"tau": [1.0]}, "the grid has 'tau', but the loss mae takes"),
        ({"loss": [losses.comp_sum], "tau": [1.0, -1.0]}, "tau must lie in"),
        ({"loss": [losses.comp_sum], "gamma": [1.0]}, "the grid has 'gamma', but the loss comp_sum takes tau"),
    ],
)
def test_bad_grids_are_refused_by_name(blobs, grid, message):
    if message is None:
        assert len(sweep(mlp, blobs, grid, epochs=1, device="cpu")) == 1  # no keys: one configuration
        return
    with pytest.raises(ValueError, match=message):
        sweep(mlp, blobs, grid, loss=losses.mae, epochs=1, device="cpu")


def test_bad_arguments_are_refused_by_name(blobs):
    with pytest.raises(ValueError, match="method must be one of 'auto', 'vmap', 'loop', but is 'fast'"):
        sweep(mlp, blobs, {"seed": [0]}, method="fast")
    with pytest.raises(ValueError, match="chunk must be a whole number of at least 1, but is 0"):
        sweep(mlp, blobs, {"seed": [0]}, chunk=0)
    with pytest.raises(TypeError, match="make_model must be a function, but is str"):
        sweep("mlp", blobs, {"seed": [0]})
    with pytest.raises(TypeError, match=r"make_model must return a torch.nn.Module, but returns int"):
        sweep(lambda: 3, blobs, {"seed": [0]})
    one = mlp()
    with pytest.raises(ValueError, match="make_model must build a new network each time"):
        sweep(lambda: one, blobs, {"seed": [0, 1]})
    widths = itertools.count(4)
    with pytest.raises(ValueError, match="make_model must build one architecture"):
        sweep(lambda: MLP(6, (next(widths),), 3), blobs, {"seed": [0, 1]})
    with pytest.raises(ValueError, match=r"test.y has label 7, but the model has 3 logits"):
        x, y = blobs.test
        data = SimpleNamespace(train=blobs.train, val=blobs.val, test=(x, y.clone().fill_(7)))
        sweep(mlp, data, {"seed": [0, 1]}, device="cpu")
    result = sweep(mlp, blobs, {"seed": [0, 1]}, epochs=1, device="cpu")
    with pytest.raises(IndexError, match="configuration 2 of 2"):
        result.model(2)
    with pytest.raises(TypeError, match=r"x must be a torch.Tensor"):
        result.logits([[0.0] * 6])


@pytest.mark.slow
def test_sweep_collapses_the_digits_as_the_recipe_says():
    """Full batch, penalties on head and features: the true-class probability approaches 1 - (K-1) sqrt(n lw lh)."""
    from lossbook.data import load

    data = load("digits")
    x, y = data.train.x[:500], data.train.y[:500]
    weight_decay, feature_decay = 5e-3, 5e-5

    def penalty(model, features):
        return weight_decay / 2 * model.head.weight.square().sum() + feature_decay / 2 * features.square().sum()

    result = sweep(
        lambda: MLP(64, (128, 32), 10, linear_features=True),
        SimpleNamespace(train=(x, y), val=(x, y)),
        {"seed": [0, 1]},
        loss=losses.cross_entropy,
        penalty=penalty,
        epochs=600,
        lr=3e-3,
        batch_size=None,
        schedule="cosine",
        eval_every=600,
        device="cpu",
    )
    probability = result.logits(x).softmax(2).gather(2, y.expand(2, -1).unsqueeze(2)).mean((1, 2))
    theory = 1 - 9 * (50 * weight_decay * feature_decay) ** 0.5
    assert probability.tolist() == pytest.approx([theory, theory], abs=0.03)


def spread_of_features(logits, target, features):
    """A loss that reads features: cross-entropy, each row weighted by the spread of its features."""
    rows = cross_entropy(logits, target, reduction="none")
    return (features.detach().std(1) * rows).mean()


def test_a_loss_may_read_features(blobs):
    grid = {"seed": [0, 1], "loss": [spread_of_features, cross_entropy]}
    stacked = sweep(mlp, blobs, grid, epochs=3, device="cpu", method="vmap")
    looped = sweep(mlp, blobs, grid, epochs=3, device="cpu", method="loop")
    torch.testing.assert_close(stacked.logits(blobs.test[0]), looped.logits(blobs.test[0]), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(stacked.logits(blobs.test[0])[0], stacked.logits(blobs.test[0])[1], atol=1e-3)
    with pytest.raises(TypeError, match=r"a loss that reads features needs a model with \.features"):
        sweep(lambda: nn.Linear(6, 3), blobs, {"seed": [0, 1]}, loss=spread_of_features, device="cpu")


class Remembers(nn.Module):
    """A loss with a memory for each training row."""

    def __init__(self, rows):
        super().__init__()
        self.register_buffer("seen", torch.zeros(rows, dtype=torch.int64))

    def forward(self, logits, target, index=None):
        assert self.training == (index is not None)
        if index is not None:
            self.seen[index] += 1
        return cross_entropy(logits, target)


@pytest.mark.parametrize("batch_size", [None, 50])
def test_a_loss_may_remember_the_training_rows(blobs, batch_size):
    loss = Remembers(len(blobs.train[0]))
    fit(mlp(), blobs, loss, epochs=3, batch_size=batch_size, device="cpu")
    assert (loss.seen == 3).all()
    fresh = Remembers(len(blobs.train[0]))
    with pytest.warns(UserWarning, match="keeps a state"):
        result = sweep(mlp, blobs, {"seed": [0, 1]}, loss=fresh, epochs=1, device="cpu", batch_size=batch_size)
    assert result.method == "loop"
    assert (fresh.seen == 0).all(), "every configuration has its own copy"


class Softer(nn.Module):
    """A loss that keeps nothing, but differs between training and evaluation."""

    def forward(self, logits, target):
        return cross_entropy(logits, target, label_smoothing=0.5 if self.training else 0.0)


def test_a_loss_trains_in_training_mode(blobs):
    grid = {"seed": [0, 1]}
    table, expected = (
        sweep(mlp, blobs, grid, loss=Softer(), epochs=5, lr=1e-2, device="cpu", method=m).table
        for m in ("vmap", "loop")
    )
    torch.testing.assert_close(torch.tensor(table.train_loss), torch.tensor(expected.train_loss), atol=1e-4, rtol=1e-4)
    plain = sweep(mlp, blobs, grid, loss=cross_entropy, epochs=5, lr=1e-2, device="cpu").table
    assert (table.train_loss > 1.05 * plain.train_loss).all()


def test_a_loss_for_too_few_rows_is_refused(blobs):
    loss, rows = losses.surrogate.ALDRLoss(3), len(blobs.train[0])
    with pytest.raises(ValueError, match=rf"index must lie in \[0, 3\), num_samples, but holds {rows - 1}"):
        fit(mlp(), blobs, loss, epochs=1, device="cpu")
    assert (loss.lam == 1).all()


class Counts(nn.Module):
    """A loss with a buffer that training changes, without asking for the rows."""

    def __init__(self):
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, logits, target):
        if self.training:
            self.steps = self.steps + 1
        return cross_entropy(logits, target) * (1 + 0 * self.steps)


def test_a_loss_with_a_state_begins_anew_in_every_configuration(blobs):
    loss = Counts()
    with pytest.warns(UserWarning, match="keeps a state"):
        sweep(mlp, blobs, {"seed": [0, 1]}, loss=loss, epochs=1, device="cpu")
    assert loss.steps == 0
    fit(mlp(), blobs, loss, epochs=2, batch_size=None, device="cpu")
    assert loss.steps == 2


def test_arguments_that_look_the_same_in_print_are_told_apart(blobs):
    def weighted(logits, target, *, weight):
        return cross_entropy(logits, target) * weight.mean()

    weights = [torch.ones(1200), torch.ones(1200).index_fill(0, torch.tensor([600]), 1e4)]
    settings = {"loss": weighted, "epochs": 2, "device": "cpu"}
    vmap, loop = (sweep(mlp, blobs, {"weight": weights}, method=method, **settings) for method in ("vmap", "loop"))
    assert vmap.table.train_loss[1] > 5 * vmap.table.train_loss[0]
    torch.testing.assert_close(vmap.logits(blobs.test[0]), loop.logits(blobs.test[0]), atol=1e-4, rtol=1e-4)


def test_a_loss_that_draws_draws_for_each_configuration_and_repeats_with_the_seed(blobs):
    def noisy(logits, target):
        return (cross_entropy(logits, target, reduction="none") * torch.rand(len(target))).mean()

    def logits():
        return sweep(mlp, blobs, {"lr": [0.01, 0.01]}, loss=noisy, epochs=2, device="cpu", method="vmap").logits(
            blobs.test[0]
        )

    first = logits()
    assert not torch.allclose(first[0], first[1])
    torch.testing.assert_close(logits(), first)


def test_data_without_a_split_are_refused_by_name(blobs):
    with pytest.raises(TypeError, match=r"data must have the splits .train and .val, but SimpleNamespace has no .val"):
        sweep(mlp, SimpleNamespace(train=blobs.train), {"seed": [0, 1]})


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="no compiler")
def test_a_compiled_step_is_the_step(blobs, monkeypatch):
    """Two chunks with other numbers, weights and labels share what is compiled for a full and for the last batch."""
    from lossbook.train import _stack

    def penalty(model, features):
        return 1e-3 * features.square().sum() + 1e-3 * model.head.weight.square().sum()

    compiled = []
    original = _stack._compiled
    monkeypatch.setattr(_stack, "_compiled", lambda *given: compiled.append(original(*given)) or compiled[-1])
    settings = {"penalty": penalty, "epochs": 3, "batch_size": 32, "lr": 0.01, "device": "cpu", "method": "vmap"}
    grid = {"tau": [0.5, 1.0, 1.5, 2.0], "label_noise": [0.0, 0.2]}
    plain, fast = (
        sweep(mlp, blobs, grid, loss=losses.comp_sum, chunk=4, compile=compile, **settings) for compile in (False, True)
    )
    assert len(compiled) == 2
    torch.testing.assert_close(fast.logits(blobs.test[0]), plain.logits(blobs.test[0]), atol=1e-4, rtol=1e-4)
    pd.testing.assert_frame_equal(fast.history, plain.history, atol=1e-4, rtol=1e-4)


def test_a_step_that_cannot_be_compiled_is_plain(blobs, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("no C++ compiler\nwas found")

    settings = {"epochs": 2, "batch_size": 32, "device": "cpu", "method": "vmap"}
    plain = sweep(mlp, blobs, {"seed": [0, 1]}, **settings)
    monkeypatch.setattr(torch, "compile", fails)
    with pytest.warns(UserWarning, match=r"without torch.compile, which fails \(no C\+\+ compiler was found\)") as said:
        result = sweep(mlp, blobs, {"seed": [0, 1]}, compile=True, **settings)
    assert len(said) == 1
    pd.testing.assert_frame_equal(result.table, plain.table, check_exact=True)


def tiny():
    return MLP(6, (4,), 3)


@pytest.mark.slow
def test_a_thousand_networks(blobs):
    grid = {"seed": range(125), "lr": [0.003, 0.02], "tau": [0.5, 1.0, 1.5, 2.0]}
    data = SimpleNamespace(train=blobs.train, val=blobs.val)
    result = sweep(
        tiny, data, grid, loss=losses.comp_sum, epochs=2, batch_size=64, eval_every=2, device="cpu", method="vmap"
    )
    assert len(result) == 1000
    for i in (0, 509, 999):
        row = result.table.iloc[i]
        torch.manual_seed(int(row.seed))
        model = tiny()
        loss = functools.partial(losses.comp_sum, tau=row.tau)
        fit(model, blobs, loss, epochs=2, batch_size=64, lr=row.lr, seed=int(row.seed), device="cpu")
        logits = model(blobs.test[0]).detach()
        assert logits.std() > 0.05
        torch.testing.assert_close(result.model(i)(blobs.test[0]).detach(), logits, atol=1e-5, rtol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_a_thousand_networks_on_a_gpu_are_those_of_the_cpu(blobs):
    grid = {"seed": range(250), "lr": [0.003, 0.02], "loss": [losses.mae, losses.cross_entropy]}
    cpu, cuda = (
        sweep(tiny, blobs, grid, epochs=4, batch_size=64, device=device, method="vmap") for device in ("cpu", "cuda")
    )
    torch.testing.assert_close(cuda.logits(blobs.test[0]), cpu.logits(blobs.test[0]), atol=1e-3, rtol=1e-3)
    pd.testing.assert_frame_equal(cuda.table, cpu.table, atol=1e-3, rtol=1e-3)


def out_of_memory():
    """What torch raises on the CPU, had by asking for more than any machine has."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    return caught.value


@pytest.mark.parametrize("error", [out_of_memory(), torch.OutOfMemoryError("CUDA out of memory."), MemoryError()])
def test_a_chunk_that_does_not_fit_the_memory_is_trained_in_halves(blobs, monkeypatch, error):
    from lossbook.train import stacked

    settings = {"loss": cross_entropy, "epochs": 3, "batch_size": 32, "device": "cpu", "method": "vmap"}
    expected = sweep(mlp, blobs, MIXED, **settings)
    original, limit, steps = stacked.Stack.gradient, 4, []

    def gradient(self, x, target):
        steps.append(len(self.configs))
        if len(self.configs) > limit and steps.count(len(self.configs)) == 4:
            raise error
        return original(self, x, target)

    monkeypatch.setattr(stacked.Stack, "gradient", gradient)
    with pytest.warns(UserWarning, match="networks at once do not fit the memory") as caught:
        result = sweep(mlp, blobs, MIXED, **settings)
    assert [str(warning.message).split()[0] for warning in caught] == ["12", "6"]
    torch.testing.assert_close(result.logits(blobs.test[0]), expected.logits(blobs.test[0]), atol=1e-5, rtol=1e-5)
    pd.testing.assert_frame_equal(result.table, expected.table, atol=1e-5, rtol=1e-5)


def test_one_network_that_does_not_fit_the_memory_says_what_to_do(blobs, monkeypatch):
    from lossbook.train import stacked

    def gradient(self, x, target):
        raise error

    monkeypatch.setattr(stacked, "_refusal", lambda job: None)
    monkeypatch.setattr(stacked.Stack, "gradient", gradient)
    error = torch.OutOfMemoryError("CUDA out of memory.")
    with pytest.raises(MemoryError, match="try a smaller batch_size"), pytest.warns(UserWarning, match="chunk=1"):
        sweep(mlp, blobs, {"seed": [0, 1]}, epochs=1, device="cpu")
    error = RuntimeError("another fault")
    with pytest.raises(RuntimeError, match="another fault"):
        sweep(mlp, blobs, {"seed": [0, 1]}, epochs=1, device="cpu")

"""A sweep that keeps what it has trained in a folder."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

from lossbook import _files
from lossbook.losses import comp_sum, cross_entropy
from lossbook.models import MLP
from lossbook.train import parts, stacked, sweep

GRID = {"loss": [cross_entropy, comp_sum], "lr": [1e-3, 1e30], "seed": [0, 1, 2]}


def mlp() -> nn.Module:
    return MLP(6, (5,), 3)


def with_batch_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))


def train(data: Any, grid: Any = GRID, make: Callable[[], nn.Module] = mlp, **more: Any) -> Any:
    return sweep(make, data, grid, **{"epochs": 3, "chunk": 5, "keep": [1], "device": "cpu", "progress": False} | more)


def assert_same(a: Any, b: Any) -> None:
    pd.testing.assert_frame_equal(a.table, b.table, check_exact=True)
    pd.testing.assert_frame_equal(a.history, b.history, check_exact=True)
    assert len(a) == len(b)
    for one, other in ((a, b), (a.kept[1], b.kept[1])):
        for i in range(len(a)):
            for name, value in one.weights(i).items():
                torch.testing.assert_close(value, other.weights(i)[name], rtol=0, atol=0, equal_nan=True)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the chunks that are trained; the probe of vmap does not count."""
    sizes: list[int] = []
    for name, rows in (("_vmap", len), ("_loop", lambda i: 1)):
        original = getattr(stacked, name)

        def counted(job: Any, which: Any, *rest: Any, original: Any = original, rows: Any = rows) -> Any:
            sizes.append(rows(which))
            return original(job, which, *rest)

        monkeypatch.setattr(stacked, name, counted)
    return sizes


class Stop(Exception):
    pass


def stopped_after(chunks: int, monkeypatch: pytest.MonkeyPatch, run: Callable[[], Any]) -> None:
    """Run, and stop when so many chunks are kept."""
    left = chunks
    add = parts.Folder.add

    def counted(self: Any, part: Any) -> None:
        nonlocal left
        if left == 0:
            raise Stop
        left -= 1
        add(self, part)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(parts.Folder, "add", counted)
        run()


@pytest.mark.parametrize("make", [mlp, with_batch_norm])
@pytest.mark.filterwarnings("ignore:sweep trains one configuration after the other")
def test_a_stopped_sweep_goes_on_bit_for_bit(blobs, tmp_path, monkeypatch, trained, make):
    whole = train(blobs, make=make)
    stopped_after(2, monkeypatch, lambda: train(blobs, make=make, checkpoint=tmp_path))
    before = trained.copy()
    again = train(blobs, make=make, checkpoint=tmp_path)
    assert_same(whole, again)
    assert again.method == whole.method
    kept = 10 if make is mlp else 2
    assert sum(trained) - sum(before) == 12 - kept
    trained.clear()
    assert_same(whole, train(blobs, make=make, checkpoint=tmp_path))
    assert not trained


def test_a_grid_may_grow(blobs, tmp_path, trained):
    train(blobs, checkpoint=tmp_path)
    trained.clear()
    grown = {**GRID, "seed": [5, 0, 1, 2]}
    result = train(blobs, grown, checkpoint=tmp_path, chunk=None)
    assert trained == [4]
    whole = train(blobs, grown)
    pd.testing.assert_frame_equal(result.table, whole.table, rtol=1e-4)
    pd.testing.assert_frame_equal(result.history, whole.history, rtol=1e-4)


def test_the_same_row_twice(blobs, tmp_path, trained):
    rows = [{"seed": 0}, {"seed": 1}, {"seed": 0}]
    whole = train(blobs, rows)
    trained.clear()
    assert_same(whole, train(blobs, rows, checkpoint=tmp_path))
    assert_same(whole, train(blobs, rows, checkpoint=tmp_path))
    assert trained == [3]


def other(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return cross_entropy(logits, target)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 2),
        ("batch_size", 7),
        ("weight_decay", 0.1),
        ("schedule", "cosine"),
        ("keep", [2]),
        ("seed", 1),
        ("loss", other),
        ("penalty", lambda model, h: h.square().mean()),
    ],
)
def test_what_was_trained_otherwise_is_trained_anew(blobs, tmp_path, trained, name, value):
    rows = [{"lr": 1e-3}, {"lr": 1e-2}]
    train(blobs, rows, checkpoint=tmp_path)
    trained.clear()
    train(blobs, rows, checkpoint=tmp_path, **{name: value})
    assert trained == [2]


def test_other_data_weights_or_code_are_trained_anew(blobs, tmp_path, trained):
    rows = [{"lr": 1e-3}, {"lr": 1e-2}]

    def same_name(factor: float) -> Callable[..., torch.Tensor]:
        def loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return factor * cross_entropy(logits, target)

        return loss

    train(blobs, rows, checkpoint=tmp_path, loss=same_name(1.0))
    trained.clear()
    train(blobs, rows, checkpoint=tmp_path, loss=same_name(1.1))
    x, y = blobs.val
    data = SimpleNamespace(train=blobs.train, val=(x + 1, y), test=blobs.test)
    train(data, rows, checkpoint=tmp_path, loss=same_name(1.0))
    train(blobs, rows, lambda: MLP(6, (4,), 3), checkpoint=tmp_path, loss=same_name(1.0))
    assert trained == [2, 2, 2]
    train(blobs, rows, checkpoint=tmp_path, loss=same_name(1.0))
    assert trained == [2, 2, 2]


class Margin(nn.Module):
    """A loss whose margin shows only in training."""

    def __init__(self, margin: float) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return cross_entropy(logits, target) * (1 + self.margin * self.training)


def floored(floor: float) -> Callable[..., torch.Tensor]:
    return lambda logits, target: cross_entropy(logits, target).clamp(min=floor)


def shrinking(weight: float) -> Callable[..., torch.Tensor]:
    return lambda model, features: weight * features.square().mean()


def with_dropout(p: float) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(6, 5), nn.Dropout(p), nn.Linear(5, 3))


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ({}, {"penalty": shrinking(1e-6)}),
        ({"penalty": shrinking(1e-6)}, {"penalty": shrinking(2e-6)}),
        ({"loss": Margin(0.1)}, {"loss": Margin(0.2)}),
        ({"loss": floored(0.1)}, {"loss": floored(0.2)}),
        ({"make": with_dropout(0.1)}, {"make": with_dropout(0.2)}),
    ],
)
@pytest.mark.filterwarnings("ignore:sweep trains one configuration after the other")
def test_what_does_not_show_at_the_start_tells_configurations_apart(blobs, tmp_path, trained, before, now):
    rows = [{"lr": 1e-3}, {"lr": 1e-2}]
    train(blobs, rows, checkpoint=tmp_path, **before)
    trained.clear()
    train(blobs, rows, checkpoint=tmp_path, **before)
    assert not trained
    train(blobs, rows, checkpoint=tmp_path, **now)
    assert sum(trained) == 2


def noisy(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (cross_entropy(logits, target, reduction="none") * torch.rand(len(target))).mean()


def test_a_loss_that_draws_is_found_again_and_leaves_the_generator_alone(blobs, tmp_path, monkeypatch, trained):
    rows = [{"seed": seed} for seed in range(6)]
    before = torch.get_rng_state()
    whole = train(blobs, rows, loss=noisy, chunk=2)
    stopped_after(2, monkeypatch, lambda: train(blobs, rows, loss=noisy, chunk=2, checkpoint=tmp_path))
    trained.clear()
    assert_same(whole, train(blobs, rows, loss=noisy, chunk=2, checkpoint=tmp_path, method="vmap"))
    assert trained == [2]
    assert torch.equal(torch.get_rng_state(), before)


def test_ctrl_c_keeps_what_is_trained_and_holds_nothing(blobs, tmp_path, monkeypatch, trained):
    original = parts.Folder.add

    def interrupted(self: Any, part: Any) -> None:
        original(self, part)
        raise KeyboardInterrupt

    before = torch.get_rng_state()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(parts.Folder, "add", interrupted)
        train(blobs, checkpoint=tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    whole = train(blobs)
    trained.clear()
    assert_same(whole, train(blobs, checkpoint=tmp_path))
    assert trained == [5, 2]


def test_another_writer_in_the_folder_or_below_is_left_alone(blobs, tmp_path):
    below = tmp_path / "below"
    below.mkdir()
    for name in ("run.pt", "0.part"):
        (below / f".{name}.1.lossbook-part").touch()
        (tmp_path / f".{name}.1.lossbook-part").touch()
    train(blobs, {"seed": [0]}, checkpoint=tmp_path)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.lossbook-part")}
    assert left == {".run.pt.1.lossbook-part", "below/.run.pt.1.lossbook-part", "below/.0.part.1.lossbook-part"}


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_part_is_named_and_trained_again(blobs, tmp_path, trained, damage):
    whole = train(blobs, checkpoint=tmp_path)
    trained.clear()
    victim = sorted(tmp_path.glob("*.part"))[1]
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes({"cut": content[:-9], "flip": content, "empty": b""}[damage])
    with pytest.warns(UserWarning, match=f"{victim.name} is damaged: what it held is trained again"):
        again = train(blobs, checkpoint=tmp_path)
    assert len(trained) == 1
    assert_same(whole, again)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(whole, train(blobs, checkpoint=tmp_path))  # it is whole again


def test_a_full_disk_costs_the_part_and_not_the_training(blobs, tmp_path, monkeypatch):
    whole = train(blobs)

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch, pytest.warns(UserWarning, match="No space left on device"):
        patch.setattr(_files, "write_atomically", full)
        assert_same(whole, train(blobs, checkpoint=tmp_path))
    assert not list(tmp_path.glob("*.part"))
    assert_same(whole, train(blobs, checkpoint=tmp_path))


def test_folders_that_are_refused(blobs, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="checkpoint must be a folder to write to"):
        train(blobs, checkpoint=tmp_path / "file")
    train(blobs, {"seed": [0]}, checkpoint=tmp_path / "new" / "folder")
    with (
        _files.locked(tmp_path / "new" / "folder" / ".lock"),
        pytest.raises(ValueError, match="another sweep is writing to .*folder: wait for it"),
    ):
        train(blobs, {"seed": [0]}, checkpoint=tmp_path / "new" / "folder")

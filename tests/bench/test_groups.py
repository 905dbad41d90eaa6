"""The groups of the bench at sizes of a moment: every row is there, and ours and the peer compute the same number."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from lossbook import losses
from lossbook.book.bench import GROUPS, Measurement
from lossbook.book.bench.measure import Ceiling

CPU = torch.device("cpu")
# Group -> the module, and the sizes that are made small in it.
SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "losses": ("objectives", {"SIZE": (64, 10), "BATCHES": (16, 32), "LARGEST_NT_XENT": 16, "CALLS": 1}),
    "calibration": ("calibration", {"SIZES": {10: 400, 100: 400}}),
    "auc": ("auc", {"FEW": 50, "MANY": 200}),
    "head": ("heads", {"CLASSES": (300, 500), "BATCH": 16}),
    "z-loss": ("spherical", {"CLASSES": {50: None, 100: 1.0}, "BATCH": 8, "WIDTH": 16, "STEPS": 2}),
    "contrastive": ("contrastive", {"MANY": 64, "FEW": 32}),
    "sweep": ("training", {"SIZES": {1: (1, None), 2: (1, 1.0)}}),
}


def module(name: str) -> Any:
    return importlib.import_module(f"lossbook.book.bench.{name}")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Iterator[Measurement]]:
    def run(group: str) -> Iterator[Measurement]:
        # Measured once, the ceilings of a machine take seconds.
        monkeypatch.setattr(module("measure"), "ceiling", lambda device: Ceiling(1e12, 1e12, 1, "float32"))
        name, sizes = SMALL[group]
        for key, value in sizes.items():
            assert hasattr(module(name), key)
            monkeypatch.setattr(module(name), key, value)
        return GROUPS[group](1, CPU)

    return run


@pytest.mark.parametrize("group", SMALL)
def test_every_row_is_measured(group: str, small: Callable[[str], Iterator[Measurement]]) -> None:
    threads = torch.get_num_threads()
    rows = list(small(group))
    assert len({(row.name, row.peer_name) for row in rows}) == len(rows) >= 2
    for row in rows:
        assert row.ours > 0 and row.peer > 0 and row.ratio > 0
        assert row.device == "cpu" and len(row.samples) == 1
        assert row.memory is None or min(row.memory) >= 0
        assert row.ceiling is None or row.ceiling > 0
    assert torch.get_num_threads() == threads


def test_every_exported_loss_of_logits_is_measured() -> None:
    """Those of the contract, whatever else they need; each is a function of logits and target alone by then."""
    logits = torch.randn(8, 5, requires_grad=True)
    families = module("objectives").logit_losses(logits)
    found = {title.split(",")[0] for family in families.values() for title in family}
    assert {"cross_entropy", "z_loss", "mmce_penalty", "pskd", "bias_loss", "smooth_adversarial_comp_sum"} <= found
    assert found <= set(losses.__all__)
    for family in families.values():
        for title, loss in family.items():
            value = loss(logits=logits, target=torch.arange(8) % 5)
            assert value.shape == () and torch.autograd.grad(value, logits)[0].isfinite().all(), title


def same(pair: Any) -> None:
    ours, peer = pair.ours(), pair.peer()
    torch.testing.assert_close(ours, peer, rtol=1e-5, atol=1e-6)
    gradients = (torch.autograd.grad(value, pair.leaves) for value in (ours, peer))
    for left, right in zip(*gradients, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-6)


def test_torch_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module("objectives"), "SIZE", (64, 10))
    pairs = module("objectives").torch_counterparts(CPU)
    assert len(pairs) == 8
    for pair in pairs.values():
        same(pair)


def test_pytorch_metric_learning_computes_the_same() -> None:
    pytest.importorskip("pytorch_metric_learning")
    pairs = module("objectives").library_counterparts(32, CPU)
    assert len(pairs) == 5
    for pair in pairs.values():
        same(pair)


@pytest.mark.parametrize("num_classes", [10, 100])
def test_the_libraries_compute_the_same_calibration(num_classes: int) -> None:
    probs, target = module("calibration").predictions(1_000, num_classes, CPU)
    cases = list(module("calibration").cases(probs, target))
    assert {case.peer_name for case in cases} >= {"torchmetrics"}
    assert len(cases) >= (4 if num_classes == 10 else 1)
    for case in cases:
        assert float(case.ours()) == pytest.approx(float(case.peer()), abs=1e-6), case.name


def test_predictions_fit_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine with 10 kB to spare, the rows are fewer, and their number is in the name."""
    import psutil

    free = psutil.virtual_memory()._replace(available=10_000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    monkeypatch.setattr(module("calibration"), "SIZES", {10: 1_000_000})
    first = next(GROUPS["calibration"](1, CPU))
    assert first.name == "ECE of 100 × 10"

"""The stop-watch: pairs, peaks of memory, and the fraction of what the machine can do."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lossbook.book.bench import measure
from lossbook.book.bench.measure import (
    Ceiling,
    Work,
    ceiling,
    compare,
    one_thread,
    peak_mib,
    promised,
    seconds,
    summarise,
)


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which everything takes half a second, and whose ceilings are not known yet."""
    monkeypatch.setattr(measure, "ceilings", {})
    monkeypatch.setattr(measure, "seconds", lambda function, device="cpu": 0.5)


def test_the_ratio_is_taken_pair_by_pair() -> None:
    # A machine that slows down fourfold half-way: the ratio of each pair still is 2.
    row = summarise("x", "peer", [(1.0, 2.0), (1.0, 2.0), (4.0, 8.0)])
    assert (row.ratio, row.low, row.high) == (2.0, 2.0, 2.0)
    assert (row.ours, row.peer) == (1.0, 2.0)
    assert row.samples == ((1.0, 2.0), (1.0, 2.0), (4.0, 8.0))


def test_one_disturbed_pair_does_not_move_the_ratio() -> None:
    row = summarise("x", "peer", [(1.0, 3.0), (10.0, 3.0), (1.0, 3.5)])
    assert (row.ratio, row.low, row.high) == (3.0, 0.3, 3.5)


def test_compare_times_both_in_turn_after_a_warm_up_of_each() -> None:
    calls: list[str] = []

    def call(name: str, pause: float) -> Callable[[], None]:
        return lambda: (calls.append(name), time.sleep(pause))[1]

    row = compare("sleep", "longer sleep", call("a", 0.02), call("b", 0.1), repeats=3)
    assert calls == ["a", "b"] * 4
    assert 2 < row.ratio < 6
    assert row.memory is None
    assert row.ceiling is None


@pytest.mark.parametrize(("at_least", "kept"), [(None, True), (2.0, True), (2.1, False)])
def test_a_promise_is_kept_or_broken(at_least: float | None, kept: bool) -> None:
    assert summarise("x", "peer", [(1.0, 2.0)], at_least=at_least).kept is kept


@pytest.mark.parametrize(("at_least", "words"), [(40.0, "≥ 40"), (1.5, "≥ 1.5"), (2 / 3, "≥ 2/3"), (1 / 12, "≥ 1/12")])
def test_a_promise_not_to_be_slower_than_so_is_a_fraction(at_least: float, words: str) -> None:
    assert promised(at_least) == words


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="this system does not tell the peak of memory")
def test_the_peak_is_what_a_call_takes_for_a_while() -> None:
    def take(mib: int) -> Callable[[], Any]:
        return lambda: torch.ones(mib, 2**18).sum()

    row = compare("little", "much", take(40), take(160), 1, memory=True)
    assert row.memory is not None
    assert row.memory == (pytest.approx(40, abs=8), pytest.approx(160, abs=8))


def test_no_memory_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, text: str) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "write_text", refuse)
    assert peak_mib(lambda: None) is None
    assert compare("x", "peer", lambda: time.sleep(0.001), lambda: None, 1, memory=True).memory is None


def test_a_ceiling_counts_reads_and_writes_and_two_operations_a_product(steady: None) -> None:
    found = ceiling("cpu")
    assert found.bandwidth == 2 * 256 * 2**20 / 0.5
    assert found.flops == 2 * 2048**3 / 0.5
    assert found.threads == torch.get_num_threads()
    assert found.precision == "float32"


def test_a_ceiling_is_measured_once_a_number_of_threads(steady: None, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        first = ceiling("cpu")
        with one_thread():
            assert ceiling("cpu") is not first
        assert torch.get_num_threads() == 2
        assert ceiling("cpu") is first
    finally:
        torch.set_num_threads(before)
    assert list(measure.ceilings) == ["cpu, 2 threads", "cpu, 1 thread"]


def test_the_tighter_bound_counts() -> None:
    ceiling = Ceiling(bandwidth=100.0, flops=1000.0, threads=1, precision="float32")
    assert ceiling.fraction(Work(bytes=50.0), seconds=1.0) == 0.5
    assert ceiling.fraction(Work(bytes=50.0, flops=800.0), seconds=2.0) == 0.4


@pytest.mark.slow
def test_a_copy_and_a_product_come_near_the_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "ceilings", {})
    a, b = torch.ones(2, 64 * 2**20)
    x = torch.randn(1024, 1024)
    limit = ceiling("cpu")
    copy = limit.fraction(Work(bytes=2 * a.nbytes), min(seconds(lambda: b.copy_(a)) for _ in range(5)))
    product = limit.fraction(Work(flops=2 * 1024**3), min(seconds(lambda: x @ x) for _ in range(5)))
    # 1 on a machine with nothing else to do; neighbours may slow either down.
    assert 0.2 < copy < 4
    assert 0.2 < product < 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_work_is_waited_for_and_its_memory_counted() -> None:
    a = torch.randn(8192, 8192, device="cuda")
    work = Work(flops=2 * 8192**3)
    row = compare("a product", "two", lambda: a @ a, lambda: a @ a @ a, 3, device="cuda", memory=True, work=work)
    assert row.device == "cuda"
    assert 1.5 < row.ratio < 2.5
    assert row.memory is not None
    assert row.memory[0] == pytest.approx(256, abs=64)
    assert row.ceiling is not None
    assert 0.5 < row.ceiling < 1.2

"""sweep on a Dask cluster of real processes on loopback: the same table, also when a worker is killed on the way."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator

import pandas as pd
import pytest
import torch
from torch import nn

from lossbook.data import load
from lossbook.losses import comp_sum, cross_entropy
from lossbook.train import sweep
from lossbook.train.cluster import in_pieces, piece_size

distributed = pytest.importorskip("distributed")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("cluster")]

GRID = {"loss": [cross_entropy, comp_sum], "lr": [1e-3, 1e-2, 1e30], "seed": [0, 1, 2, 3]}


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))


@pytest.fixture(scope="module", autouse=True)
def functions_of_this_module() -> Iterator[None]:
    """The workers do not have this module: what it defines travels to them as code."""
    import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def trained(digits, **more):
    return sweep(network, digits, GRID, epochs=4, keep=[2], progress=False, **more)


def test_the_same_result_as_on_one_machine(cluster, digits) -> None:
    here, there = trained(digits), trained(digits, client=cluster.client, chunk=5)
    pd.testing.assert_frame_equal(here.table, there.table, rtol=1e-4)
    pd.testing.assert_frame_equal(here.history, there.history, rtol=1e-4)
    assert here.table.diverged.notna().sum() == 8
    x = digits.test.x[:50]
    torch.testing.assert_close(here.logits(x), there.logits(x), rtol=1e-3, atol=1e-4, equal_nan=True)
    torch.testing.assert_close(here.kept[2].logits(x), there.kept[2].logits(x), rtol=1e-3, atol=1e-4, equal_nan=True)


def test_a_killed_worker_changes_nothing(cluster, digits) -> None:
    """Two workers; one is killed as soon as it computes. Its chunk is trained again by the other."""
    whole = trained(digits, client=cluster.client, chunk=3)
    victim = cluster.worker()
    (address,) = (name for name, pid in cluster.client.run(os.getpid).items() if pid == victim.pid)
    killed = threading.Event()

    def kill() -> None:
        cluster.until(lambda: cluster.client.processing().get(address))
        time.sleep(0.2)
        os.kill(victim.pid, signal.SIGKILL)
        killed.set()

    thread = threading.Thread(target=kill)
    thread.start()
    after = trained(digits, client=cluster.client, chunk=3)
    thread.join()
    assert killed.is_set() and victim.wait() == -signal.SIGKILL
    pd.testing.assert_frame_equal(whole.table, after.table, check_exact=True)
    pd.testing.assert_frame_equal(whole.history, after.history, check_exact=True)


def test_what_is_kept_in_a_folder_is_not_trained_again(cluster, digits, tmp_path) -> None:
    whole = trained(digits, client=cluster.client, chunk=3, checkpoint=tmp_path)
    parts = sorted(tmp_path.glob("*.part"))
    assert len(parts) == 8
    ages = {path: path.stat().st_mtime_ns for path in parts}
    parts[0].unlink()
    parts[5].unlink()
    for client in (cluster.client, None):
        again = trained(digits, client=client, chunk=3, checkpoint=tmp_path)
        pd.testing.assert_frame_equal(whole.table, again.table, check_exact=True)
        pd.testing.assert_frame_equal(whole.history, again.history, check_exact=True)
    now = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.part")}
    assert now.keys() == ages.keys()
    assert {path for path in parts if now[path] != ages[path]} == {parts[0], parts[5]}


def reciprocals(one: int, numbers: list[int]) -> list[float]:
    return [one / number for number in numbers]


def slowly(_: None, numbers: list[int]) -> list[int]:
    time.sleep(1.5)
    return numbers


def test_when_all_workers_are_gone_it_says_so_and_goes_on_with_the_next(cluster, caplog) -> None:
    seen: list[tuple[set[int], int]] = []
    gone, come = threading.Event(), threading.Event()

    def kill_all() -> None:
        cluster.until(lambda: any(running for running, _ in seen))
        for pid in cluster.client.run(os.getpid).values():
            os.kill(pid, signal.SIGKILL)
        cluster.until(lambda: any(not workers for _, workers in seen))
        gone.set()
        cluster.worker()
        come.set()

    thread = threading.Thread(target=kill_all)
    thread.start()
    watched = in_pieces(cluster.client, slowly, None, [1, 2, 3], 1, lambda *state: seen.append(state))
    found = {i: future.result() for i, future in watched}
    thread.join()
    assert found == {0: [1], 1: [2], 2: [3]} and gone.is_set() and come.is_set()
    assert [record.getMessage() for record in caplog.records if record.name.startswith("lossbook")] == [
        "no workers left: waiting for one"
    ]
    # Whoever looks sees no more pieces at work than there are workers, then none, then each of those left.
    assert all(len(running) <= workers for running, workers in seen)
    first = next(i for i, (_, workers) in enumerate(seen) if not workers)
    assert set().union(*(running for running, _ in seen[first:])) == {0, 1, 2}


def when(_: None, numbers: list[int]) -> float:
    time.sleep(0.02)
    return time.monotonic()


def test_pieces_are_begun_in_their_order(cluster) -> None:
    ended = {i: future.result() for i, future in in_pieces(cluster.client, when, None, list(range(12)), 1)}
    assert sorted(ended, key=ended.__getitem__) == list(range(12))


def test_what_a_worker_raises_is_raised_here(cluster, digits) -> None:
    with pytest.raises(ValueError, match=r"the model has 3 logits"):
        sweep(
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), digits, GRID, client=cluster.client, progress=False
        )
    ended = {i: future.exception() for i, future in in_pieces(cluster.client, reciprocals, 1, [2, 0, 4], 1)}
    assert ended[0] is None and isinstance(ended[1], ZeroDivisionError) and ended[2] is None
    assert piece_size(cluster.client, 24) == 6


def test_clients_that_are_none(cluster, digits) -> None:
    with pytest.raises(TypeError, match=r"client must be a distributed.Client, but is str"):
        trained(digits, client="tcp://127.0.0.1:8786")
    closed = distributed.Client(cluster.client.scheduler.address)
    closed.close()
    with pytest.raises(ValueError, match="client is closed"):
        trained(digits, client=closed)

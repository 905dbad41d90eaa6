"""The streaming metrics of parts that different processes have seen: the value of the whole, each part counted once."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import sys
import textwrap
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torchmetrics import Metric

from lossbook import metrics
from lossbook.metrics import streaming

distributed = pytest.importorskip("distributed")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("cluster")]

K, D = 4, 3
# Rows of the batches of each part: nothing at all, one row, thousands.
PARTS = [[1], [], [4000, 3000], [2, 1, 5], [60], [17] * 5, [500], [3], [], [250, 1], [33], [900]]
Batch = tuple[Tensor, Tensor, Tensor]


def batches(part: int) -> list[Batch]:
    """probabilities (n, K), labels (n,), features (n, D) of each batch"""
    generator = torch.Generator().manual_seed(part)
    made = []
    for n in PARTS[part]:
        logits = 2 * torch.randn(n, K, generator=generator, dtype=torch.float64)
        target = torch.where(
            torch.rand(n, generator=generator) < 0.6, logits.argmax(1), torch.randint(K, (n,), generator=generator)
        )
        noise = torch.randn(n, D, generator=generator, dtype=torch.float64)
        made.append((logits.softmax(1), target, 100 + torch.eye(K, D, dtype=torch.float64)[target] + 0.3 * noise))
    return made


def together(parts: Iterable[int]) -> Batch:
    probs, target, features = zip(*(batch for part in parts for batch in batches(part)), strict=True)
    return torch.cat(probs), torch.cat(target), torch.cat(features)


def head() -> Tensor:
    return torch.randn(K, D, generator=torch.Generator().manual_seed(99), dtype=torch.float64)


def everything() -> dict[str, Metric]:
    """One of each streaming class."""
    means = torch.eye(K, D, dtype=torch.float64) + 100
    return {
        "Accuracy": metrics.Accuracy(),
        "AverageCalibrationError": metrics.AverageCalibrationError(),
        "BrierDecomposition": metrics.BrierDecomposition(),
        "BrierScore": metrics.BrierScore(),
        "CalibrationError": metrics.CalibrationError(),
        "ClasswiseCalibrationError": metrics.ClasswiseCalibrationError(K),
        "MaximumCalibrationError": metrics.MaximumCalibrationError(),
        "NearestMeanDisagreement": metrics.NearestMeanDisagreement(means, head()),
        "NegativeLogLikelihood": metrics.NegativeLogLikelihood(),
        "NeuralCollapse": metrics.NeuralCollapse(K, D),
        "SmoothCalibrationError": metrics.SmoothCalibrationError(),
        "TopLabelCalibrationError": metrics.TopLabelCalibrationError(K),
    }


def feed(found: dict[str, Metric], part: list[Batch]) -> dict[str, Metric]:
    for probs, target, features in part:
        for name, metric in found.items():
            if name == "NeuralCollapse":
                metric.update(features, target)
            elif name == "NearestMeanDisagreement":
                metric.update(features)
            elif name == "BrierDecomposition":
                metric.update(probs.max(1).values, probs.argmax(1) == target)
            else:
                metric.update(probs, target)
    return found


def check(found: dict[str, Metric], parts: range) -> None:
    """Each is what the function says of all rows at once."""
    probs, target, features = together(parts)
    expected: dict[str, Any] = {
        "AverageCalibrationError": metrics.average_calibration_error(probs, target),
        "BrierDecomposition": metrics.brier_decomposition(probs.max(1).values, probs.argmax(1) == target)._asdict(),
        "BrierScore": metrics.brier_score(probs, target),
        "CalibrationError": metrics.expected_calibration_error(probs, target),
        "ClasswiseCalibrationError": metrics.classwise_calibration_error(probs, target),
        "MaximumCalibrationError": metrics.maximum_calibration_error(probs, target),
        "NegativeLogLikelihood": metrics.negative_log_likelihood(probs, target),
        "TopLabelCalibrationError": metrics.top_label_calibration_error(probs, target),
    }
    for name, value in expected.items():
        computed = found[name].compute()
        assert found[name].metric_state[next(iter(found[name].metric_state))].dtype == torch.float64
        assert computed == pytest.approx(value, rel=1e-12, abs=1e-14), name
    # Counts are exact.
    assert float(found["Accuracy"].compute()) == metrics.accuracy(probs, target)
    assert found["CalibrationError"].reliability().count.sum() == len(target)
    known = feed({"NearestMeanDisagreement": everything()["NearestMeanDisagreement"]}, [(probs, target, features)])
    assert found["NearestMeanDisagreement"].compute() == known["NearestMeanDisagreement"].compute() > 0
    # The scatter is added up about the means, and the smooth error is found by bisection on a grid.
    collapse = found["NeuralCollapse"].report(head())
    assert collapse == pytest.approx(
        {k: v for k, v in metrics.collapse_report(features, target, head()).items() if k != "nc4"}, rel=1e-9
    )
    assert float(found["SmoothCalibrationError"].compute()) == pytest.approx(
        metrics.smooth_calibration_error(probs, target), abs=2e-5
    )


@pytest.fixture(scope="module", autouse=True)
def functions_of_this_module() -> Iterator[None]:
    """The workers do not have this module: what it defines travels to them as code."""
    import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def measured(part: int, log: str, seconds: float) -> dict[str, Metric]:
    time.sleep(seconds)
    with open(log, "a") as lines:
        fcntl.flock(lines, fcntl.LOCK_EX)
        lines.write(f"{part}\n")
    return feed(everything(), batches(part))


def merged(client, log: Path, seconds: float) -> dict[str, Metric]:
    whole = everything()
    tasks = client.map(measured, range(len(PARTS)), log=str(log), seconds=seconds, pure=False)
    for _, part in distributed.as_completed(tasks, with_results=True, timeout=120):
        for name, metric in part.items():
            whole[name].merge_state(metric)
    return whole


def test_every_streaming_class_is_here() -> None:
    names = {
        name for name, x in vars(streaming).items() if isinstance(x, type) and issubclass(x, Metric) and x is not Metric
    }
    assert {name for name in names if not name.startswith("_")} == set(everything())


def test_parts_of_two_workers_one_of_which_is_killed(cluster, tmp_path: Path) -> None:
    """It is killed while it computes a part and holds others that it has done: all of these are done again."""
    log = tmp_path / "log"
    victim = cluster.worker()
    check(merged(cluster.client, tmp_path / "undisturbed", seconds=0.0), range(len(PARTS)))
    (address,) = (name for name, pid in cluster.client.run(os.getpid).items() if pid == victim.pid)

    def kill() -> None:
        cluster.until(lambda: cluster.client.has_what().get(address) and cluster.client.processing().get(address))
        os.kill(victim.pid, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    whole = merged(cluster.client, log, seconds=0.3)
    thread.join()
    assert victim.wait() == -signal.SIGKILL
    done = log.read_text().split()
    assert sorted(map(int, set(done))) == list(range(len(PARTS))) and len(done) > len(PARTS)
    check(whole, range(len(PARTS)))


def test_the_lines_of_the_docstring(cluster) -> None:
    code = "\n".join(line for line in streaming.__doc__.splitlines() if line.startswith("    "))
    parts = [[(probs, target) for probs, target, _ in batches(part)] for part in range(len(PARTS))]
    names = {"__name__": "__main__", "CalibrationError": metrics.CalibrationError, "client": cluster.client}
    names |= {"as_completed": distributed.as_completed, "parts": parts}
    exec(textwrap.dedent(code), names)
    expected = metrics.expected_calibration_error(*together(range(len(PARTS)))[:2])
    assert float(names["whole"].compute()) == pytest.approx(expected, rel=1e-12)


# torch.distributed: `compute` gathers by itself.


def one_of_two(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        found = everything()
        try:
            found["NeuralCollapse"].compute()
        except ValueError as error:
            assert "class 0 has no samples" in str(error)
        # Rank 1 has seen nothing yet at the first look, and its few parts at the second.
        for parts, end in ([range(6), range(0)], 6), ([range(6, 9), range(9, 12)], 12):
            for part in parts[rank]:
                feed(found, batches(part))
            check(found, range(end))
            if rank == 0 and end == 12:
                assert found["CalibrationError"].sums[0].sum() < sum(sum(rows) for rows in PARTS), "not put back"
        probs, target, _ = together(range(12))
        whole = metrics.reliability_bins(probs.max(1).values, probs.argmax(1) == target)
        torch.testing.assert_close(found["CalibrationError"].reliability().count, whole.count)
        torch.save(
            {
                "values": {name: metric.compute() for name, metric in found.items()},
                "means": found["NeuralCollapse"].means,
                "singular": found["NeuralCollapse"].singular_values,
            },
            Path(folder) / f"{rank}.pt",
        )
    finally:
        dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_two_processes_say_the_same(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(one_of_two, args=(port, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    _, target, features = together(range(12))
    torch.testing.assert_close(first["means"], metrics.class_means(features, target), rtol=1e-12, atol=0)
    torch.testing.assert_close(first["singular"], torch.linalg.svdvals(features), rtol=1e-9, atol=0)

"""`fit` and `sweep` with a checkpoint, killed and starved: both end as if nothing had happened."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="processes are forked")]

Start = Callable[..., BaseProcess]
Fault = Callable[[str, int, int], None]
SIZES = {"fit": 12, "sweep": 8}


def end(child: BaseProcess, log: Path) -> None:
    child.join(120)
    assert child.exitcode == 0, log.read_text()


def result(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "result.pt", weights_only=True)


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    # repr: NaN, which marks what has not diverged, is equal to itself.
    tensors = all(torch.equal(a["state"][name], b["state"][name]) for name in a["state"])
    return a["state"].keys() == b["state"].keys() and tensors and repr(a["table"]) == repr(b["table"])


undisturbed: dict[tuple[str, int], dict[str, Any]] = {}


def whole(start: Start, kind: str, folder: Path, size: int | None = None) -> dict[str, Any]:
    """What an undisturbed training ends with."""
    size = size or SIZES[kind]
    if (kind, size) not in undisturbed:
        end(start("train.py", kind, folder / "whole", size), folder / "log")
        undisturbed[kind, size] = result(folder / "whole")
    return undisturbed[kind, size]


class Kept:
    """What a training has reported as finished in its folder; `lost` counts what of it is gone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.parts: dict[str, int] = {}

    def lost(self) -> int:
        """To be asked after each end of a process."""
        parts = {path.name: path.stat().st_mtime_ns for path in self.folder.glob("parts/*.part")}
        # A part that was there and is there no longer, or has been written anew: it was trained twice.
        lost = sum(parts.get(name) != written for name, written in self.parts.items())
        self.parts = parts
        reported = self.folder / "reported"
        if reported.exists() and (epochs := reported.read_text().split()):
            # An epoch is noted before its checkpoint is written, so that the one before is safe.
            checkpoint = self.folder / "run.pt"
            reached = torch.load(checkpoint, weights_only=True)["epoch"] if checkpoint.exists() else 0
            lost += max(int(epochs[-1]) - 1 - reached, 0)
        return lost


@pytest.mark.parametrize("kind", SIZES)
def test_killed_at_random_moments(
    kind: str, start: Start, tmp_path: Path, moments: Iterator[float], kills: int, fault: Fault
) -> None:
    begun = time.monotonic()
    end(start("train.py", kind, tmp_path / "whole", SIZES[kind]), tmp_path / "log")
    life = time.monotonic() - begun
    killed, lost, rounds = 0, 0, 0
    while killed < kills:
        folder = tmp_path / f"round-{rounds}"
        kept, rounds = Kept(folder), rounds + 1
        while not (folder / "result.pt").exists():
            child = start("train.py", kind, folder, SIZES[kind])
            if killed < kills:
                child.join(next(moments) * life)
            else:
                child.join(120)
            if child.exitcode is None:
                child.kill()
                child.join()
                killed += 1
            else:
                assert child.exitcode == 0, (tmp_path / "log").read_text()
            lost += kept.lost()
        assert same(result(folder), result(tmp_path / "whole"))
    fault(f"{kind}: SIGKILL at a random moment", killed, lost)


@pytest.mark.parametrize("kind", SIZES)
def test_killed_between_the_steps_of_a_write(kind: str, start: Start, tmp_path: Path, fault: Fault) -> None:
    point, lost = 0, 0
    while True:
        folder = tmp_path / f"point-{point}"
        kept = Kept(folder)
        child = start("train.py", kind, folder, 2, hit=f"import steps; steps.die_at({point})")
        child.join(120)
        if child.exitcode == 0:
            break
        assert child.exitcode == -9, (tmp_path / "log").read_text()
        lost += kept.lost()
        end(start("train.py", kind, folder, 2), tmp_path / "log")
        lost += kept.lost()
        assert same(result(folder), whole(start, kind, tmp_path, 2))
        assert not list(folder.rglob("*.lossbook-part"))
        point += 1
    assert point >= 6
    fault(f"{kind}: SIGKILL between the steps of a write", point, lost)


@pytest.mark.parametrize("kind", SIZES)
def test_a_full_disk_costs_what_it_refuses_and_not_the_training(
    kind: str, start: Start, disk: Any, tmp_path: Path, fault: Fault
) -> None:
    log, size = tmp_path / "log", SIZES[kind]
    full = tmp_path / "full.log"
    end(start("train.py", kind, tmp_path / "full", size, disk.folder, hit=disk.hit, log=full), full)
    assert re.search(
        r"could not be written.*\((No space left on device|File too large)\); training goes on", full.read_text()
    )
    lost = not same(result(tmp_path / "full"), whole(start, kind, tmp_path))
    assert not list(disk.seen.rglob("*.lossbook-part"))
    kept = {path.name: path.read_bytes() for path in disk.seen.rglob("*.p*t")}
    disk.grow()
    end(start("train.py", kind, tmp_path / "room", size, disk.folder, hit=disk.hit), log)
    lost += not same(result(tmp_path / "room"), whole(start, kind, tmp_path))
    lost += sum(
        (disk.seen / "parts" / name).read_bytes() != content for name, content in kept.items() if kind == "sweep"
    )
    assert len(list(disk.seen.rglob("*.p*t"))) == (size if kind == "sweep" else 1)
    fault(f"{kind}: full disk", 1, lost)


@pytest.mark.parametrize("kind", SIZES)
def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_trained(
    kind: str, start: Start, disk: Any, tmp_path: Path, fault: Fault
) -> None:
    disk.grow()
    end(start("train.py", kind, tmp_path / "first", 2, disk.folder, hit=disk.hit), tmp_path / "log")
    kept = {path.name: path.read_bytes() for path in disk.seen.rglob("*.p*t")}
    disk.protect()
    log = tmp_path / "refused.log"
    child = start("train.py", kind, tmp_path / "second", 3, disk.folder, hit=disk.hit, log=log)
    child.join(120)
    assert child.exitcode == 1
    assert re.match(r"ValueError: checkpoint .*disk.*Read-only file system", log.read_text().splitlines()[-1])
    reported = tmp_path / "second/reported"
    assert not reported.exists() or not reported.read_text()
    lost = kept != {path.name: path.read_bytes() for path in disk.seen.rglob("*.p*t")}
    fault(f"{kind}: read-only folder", 1, lost)


def test_no_memory_for_a_checkpoint_costs_the_checkpoint(start: Start, tmp_path: Path, fault: Fault) -> None:
    end(start("starved.py", tmp_path), tmp_path / "log")
    warned = (tmp_path / "log").read_text()
    assert "starved.pt could not be written (out of memory); training goes on without it" in warned
    whole, starved = (torch.load(tmp_path / f"{name}-result.pt") for name in ("whole", "starved"))
    lost = not all(torch.equal(whole[name], starved[name]) for name in whole)
    lost += torch.load(tmp_path / "starved.pt", weights_only=True)["epoch"] != 3
    fault("fit: no memory for the checkpoint", 1, lost)


@pytest.mark.parametrize("kind", SIZES)
def test_a_second_training_in_the_same_place_is_refused(kind: str, start: Start, tmp_path: Path, fault: Fault) -> None:
    size = SIZES[kind]
    first = start("train.py", kind, tmp_path / "first", size, tmp_path / "kept", hit="import steps; steps.wait_at(2)")
    waits = Path(f"/proc/{first.pid}/status")
    while "T (stopped)" not in waits.read_text():
        assert first.exitcode is None, (tmp_path / "log").read_text()
        time.sleep(0.02)
    log = tmp_path / "second.log"
    second = start("train.py", kind, tmp_path / "second", size, tmp_path / "kept", log=log)
    second.join(120)
    assert second.exitcode == 1
    assert re.match(
        "ValueError: another (process|sweep) .*kept.*: wait for it, or choose another", log.read_text().splitlines()[-1]
    )
    os.kill(first.pid, signal.SIGCONT)
    end(first, tmp_path / "log")
    lost = not same(result(tmp_path / "first"), whole(start, kind, tmp_path))
    fault(f"{kind}: two at once", 1, lost)


@pytest.mark.parametrize("kind", SIZES)
def test_a_clock_that_goes_backwards(
    kind: str, start: Start, backwards: dict[str, str], children: Path, tmp_path: Path, fault: Fault
) -> None:
    log, folder = tmp_path / "log", tmp_path / "killed"
    killed = start("train.py", kind, folder, SIZES[kind], hit="import steps; steps.die_at(6)")
    killed.join(120)
    assert killed.exitcode == -9, log.read_text()
    command = [sys.executable, children / "train.py", kind, folder, str(SIZES[kind])]
    subprocess.run(command, env={**os.environ, **backwards}, check=True)
    if kind == "fit":
        seconds = [row["seconds"] for row in torch.load(folder / "run.pt", weights_only=True)["history"]]
        assert seconds == sorted(seconds) and seconds[0] > 0
    lost = not same(result(folder), whole(start, kind, tmp_path))
    fault(f"{kind}: clock going backwards", 1, lost)

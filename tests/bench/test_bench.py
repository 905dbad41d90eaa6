"""The bench: its groups, what it writes, and what the command says and returns."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from lossbook.book.bench import GROUPS, Measurement, NotHere, book, run_bench, summarise, write_json
from lossbook.book.bench.measure import Ceiling
from lossbook.book.cli import _main
from lossbook.book.runner import Result, RunError


def quick(repeats: int, device: torch.device) -> Iterator[Measurement]:
    yield summarise("a thing", "a peer", [(0.5, 1.0)] * repeats, device=device, at_least=1.5, memory=(1.0, 20.0))
    yield summarise("another", "a peer", [(0.5, 0.4)] * repeats, "a note")


def slow(repeats: int, device: torch.device) -> Iterator[Measurement]:
    yield summarise("a third", "a floor", [(0.5, 0.6)] * repeats, at_least=1.3)


def elsewhere(repeats: int, device: torch.device) -> Iterator[Measurement]:
    raise NotHere("it needs two moons")
    yield


def without_library(repeats: int, device: torch.device) -> Iterator[Measurement]:
    import lossbook_has_no_such_peer

    yield lossbook_has_no_such_peer.row


Groups = dict[str, Callable[[int, torch.device], Iterator[Measurement]]]


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> Groups:
    """A bench of these four groups."""
    groups = {"quick": quick, "moons": elsewhere, "library": without_library, "slow": slow}
    monkeypatch.setattr("lossbook.book.bench.GROUPS", groups)
    return groups


def test_a_row_knows_its_group_and_its_repeats(groups: Groups) -> None:
    rows = list(run_bench(["slow", "quick"], repeats=2, device="cpu"))
    assert [(row.group, row.name, len(row.samples)) for row in rows] == [
        ("slow", "a third", 2), ("quick", "a thing", 2), ("quick", "another", 2),
    ]  # fmt: skip


def test_what_is_not_here_is_left_out_with_a_sentence(groups: Groups) -> None:
    said: list[str] = []
    assert [row.group for row in run_bench(device="cpu", say=said.append)] == ["quick", "quick", "slow"]
    assert said == [
        "moons is left out: it needs two moons",
        "library is left out: it needs lossbook_has_no_such_peer; `pip install lossbook[bench]` installs it",
    ]


def test_a_module_of_ours_that_is_missing_is_a_mistake(groups: Groups) -> None:
    groups["quick"] = lambda repeats, device: __import__("lossbook.nowhere")
    with pytest.raises(ModuleNotFoundError, match=r"lossbook\.nowhere"):
        list(run_bench(["quick"], device="cpu"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"names": ["speed"]}, "no benchmark is called 'speed'; there are import, overhead"),
        ({"repeats": 0}, "repeats must be at least 1, but is 0"),
        ({"device": "tpu"}, "device must be 'auto' or a device of this machine, but is 'tpu'"),
        ({"device": "meta"}, "device must be the CPU or a CUDA device, but is 'meta'"),
    ],
)
def test_bad_arguments_are_refused_at_once(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_bench(**arguments)  # type: ignore[arg-type]


def test_the_file_holds_machine_ceilings_and_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lossbook.book.bench.ceilings", {"cpu, 1 thread": Ceiling(1e10, 1e11, 1, "float32")})
    rows = [summarise(name, "peer", [(1.0, 2.0)]) for name in ("a", "b")]
    write_json(rows, tmp_path / "bench.json")
    report = json.loads((tmp_path / "bench.json").read_text())
    assert list(report) == ["machine", "ceilings", "measurements"]
    assert list(report["machine"]) == [
        "processor", "cores", "memory", "threads", "python", "torch", "lossbook", "device",
    ]  # fmt: skip
    assert all(report["machine"].values())
    assert report["machine"]["threads"] == torch.get_num_threads()
    assert report["ceilings"]["cpu, 1 thread"]["bandwidth"] == 1e10
    assert [(row["name"], row["ratio"], row["samples"]) for row in report["measurements"]] == [
        ("a", 2.0, [[1.0, 2.0]]), ("b", 2.0, [[1.0, 2.0]]),
    ]  # fmt: skip


def test_a_file_that_cannot_be_written_whole_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bench.json"
    path.write_text("before")

    def refuse(*_: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(OSError):
        write_json([summarise("a", "peer", [(1.0, 2.0)])], path)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("bench.json", "before")]


def test_the_command_prints_a_table_and_writes_the_file(
    groups: Groups, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bench.json"
    assert _main(["bench", "quick", "--device", "cpu", "--repeats", "2", "--json", str(path)]) == 0
    *head, first, second, third, fourth = (
        line.split() for line in capsys.readouterr().out.splitlines() if line.strip()
    )
    assert "quick" in head[-2]
    assert first == ["a", "thing", "0.5", "s", "2.00", "≥", "1.5", "✓", "1"]
    assert second == ["against", "a", "peer", "1", "s", "(2.00", "to", "2.00)", "20"]
    assert third == ["another", "0.5", "s", "0.80"]
    assert fourth == ["against", "a", "peer;", "a", "note", "0.4", "s", "(0.80", "to", "0.80)"]
    assert [len(row["samples"]) for row in json.loads(path.read_text())["measurements"]] == [2, 2]


def test_a_broken_promise_is_named_and_ends_with_status_1(groups: Groups, capsys: pytest.CaptureFixture[str]) -> None:
    assert _main(["bench", "--device", "cpu"]) == 1
    out, err = capsys.readouterr()
    assert "≥ 1.3 ✗" in out
    assert err.splitlines()[-1] == "lossbook: a third is 1.20 times as fast as a floor; promised is ≥ 1.3"
    assert "lossbook: moons is left out: it needs two moons" in err.splitlines()


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(
    groups: Groups, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    groups["slow"] = lambda repeats, device: pytest.fail("measured")
    assert _main(["bench", "slow", "--device", "cpu", "--json", str(tmp_path)]) == 1
    assert str(tmp_path) in capsys.readouterr().err


def test_the_help_names_every_group(capsys: pytest.CaptureFixture[str]) -> None:
    assert _main(["bench", "--help"]) == 0
    words = set(capsys.readouterr().out.replace(",", " ").replace(";", " ").split())
    assert [name for name in GROUPS if name not in words] == []


def test_a_stopped_bench_keeps_what_it_has(groups: Groups, tmp_path: Path) -> None:
    def stopped(repeats: int, device: torch.device) -> Iterator[Measurement]:
        yield from slow(repeats, device)
        raise KeyboardInterrupt

    groups["slow"] = stopped
    path = tmp_path / "bench.json"
    assert _main(["bench", "--device", "cpu", "--json", str(path)]) == 130
    assert [row["name"] for row in json.loads(path.read_text())["measurements"]] == ["a thing", "another", "a third"]


def test_the_book_is_timed_with_two_workers_against_one(
    repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[int] = []
    outcome = Result(Path("a.ipynb"), "ok", Path("x"), 1.0, 0.5)

    def run(paths: object, *, workers: int, out: str, **_: object) -> list[Result]:
        assert paths == book.NOTEBOOKS
        assert list(Path(out).iterdir()) == []
        calls.append(workers)
        return [outcome]

    monkeypatch.setattr("lossbook.book.runner.run_notebooks", run)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotHere, match="change to the book's folder"):
        list(book.workers(2, torch.device("cpu")))
    monkeypatch.chdir(repository)
    (row,) = book.workers(2, torch.device("cpu"))
    assert calls == [2, 1, 2, 1]
    assert len(row.samples) == 2
    outcome = Result(Path("a.ipynb"), "failed", None, 1.0, 0.5, "a reason")
    with pytest.raises(RunError, match=r"a\.ipynb failed: a reason"):
        list(book.workers(1, torch.device("cpu")))


def test_the_bench_is_not_imported_with_the_command_line() -> None:
    code = "import sys, lossbook.book.cli; sys.exit('lossbook.book.bench' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

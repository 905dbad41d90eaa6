"""The runner against every way in which a run goes wrong, with real kernels."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest

from lossbook import _files
from lossbook.book import _jobs, prewarm, runner
from lossbook.book.runner import Result, RunError, clean, run_notebooks

pytestmark = pytest.mark.slow  # real kernels

OUT = Path("build/notebooks")


def text_of(path: Path) -> str:
    """Everything that a notebook's cells printed."""
    cells = nbformat.read(path, as_version=4).cells
    return "".join(output.get("text", "") for cell in cells for output in cell.get("outputs", []))


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.name.endswith(_files._TEMPORARY)]


def run(*paths: Path, **arguments: Any) -> list[Result]:
    return run_notebooks(list(paths) or None, **{"progress": False, **arguments})


def status(results: list[Result]) -> list[str]:
    return [result.status for result in results]


# Running


def test_notebooks_run_in_their_own_folder_and_land_under_the_same_path(book: Path, tools: SimpleNamespace) -> None:
    tools.write(book / "notebooks/01-part/01-topic.ipynb", "import os; print(os.getcwd())")
    tools.write(book / "notebooks/00-start.ipynb", "import os; print(os.environ['LOSSBOOK_STATIC'])")
    start, topic = run()
    assert status([start, topic]) == ["ok", "ok"]
    assert start.executed == book / OUT / "00-start.ipynb"
    assert text_of(start.executed) == "1\n"
    assert topic.executed == book / OUT / "01-part/01-topic.ipynb"
    assert text_of(topic.executed) == f"{book / 'notebooks/01-part'}\n"
    assert not leftovers(book)


@pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux only")
def test_the_overhead_is_under_four_seconds(book: Path, tools: SimpleNamespace) -> None:
    imports = "import torch, numpy, pandas, matplotlib.pyplot, seaborn\nfrom lossbook import losses, metrics, viz"
    tools.write(book / "notebooks/imports.ipynb", imports)
    (result,) = run()
    assert 0 < result.overhead < result.seconds < 4


@pytest.mark.slow
def test_several_kernels_get_one_thread_each_and_one_gets_all(book: Path, tools: SimpleNamespace) -> None:
    import joblib

    code = "import torch, os; print(torch.get_num_threads(), os.environ['OMP_NUM_THREADS'])"
    paths = [tools.write(book / f"notebooks/{name}.ipynb", code) for name in "ab"]
    assert {text_of(result.executed) for result in run(workers=2)} == {"1 1\n"}
    cores = joblib.cpu_count()
    (alone,) = run(paths[0], force=True)
    assert alone.executed is not None
    assert text_of(alone.executed) == f"{cores} {cores}\n"


def test_what_a_cell_prints_is_one_output(book: Path, tools: SimpleNamespace) -> None:
    code = "import sys, time\nfor i in range(3):\n    print(i)\n    sys.stdout.flush()\n    time.sleep(0.3)"
    tools.write(book / "notebooks/a.ipynb", code)
    (result,) = run()
    assert result.executed is not None
    assert [
        len(cell.outputs) for cell in nbformat.read(result.executed, as_version=4).cells if cell.source == code
    ] == [1]
    assert text_of(result.executed) == "0\n1\n2\n"


# Parameters


def test_profile_device_and_parameters_reach_the_notebook(book: Path, tools: SimpleNamespace) -> None:
    tools.write(book / "notebooks/a.ipynb", "print(profile, seed, device)")
    (result,) = run(profile="full", device="cpu", parameters={"seed": 7})
    assert result.executed is not None
    assert text_of(result.executed) == "full 7 cpu\n"
    tags = [cell.metadata.get("tags", []) for cell in nbformat.read(result.executed, as_version=4).cells]
    assert tags[2] == ["injected-parameters"]


def test_an_ordinary_run_shows_the_notebook_as_it_is_written(book: Path, tools: SimpleNamespace) -> None:
    path = tools.write(book / "notebooks/a.ipynb", "print(profile, seed, device)")
    (result,) = run(parameters={"seed": 0})
    assert result.executed is not None
    before, after = (nbformat.read(p, as_version=4) for p in (path, result.executed))
    assert [cell.source for cell in before.cells] == [cell.source for cell in after.cells]
    assert text_of(result.executed) == "quick 0 auto\n"


def test_a_notebook_without_parameters_runs(book: Path, tools: SimpleNamespace) -> None:
    tools.write(book / "notebooks/a.ipynb", "print(1)", parameters=None)
    assert status(run(profile="full", device="cpu")) == ["ok"]


def test_an_unknown_parameter_is_an_error(book: Path, tools: SimpleNamespace) -> None:
    tools.write(book / "notebooks/a.ipynb", "print(1)")
    with pytest.raises(RunError, match=r"^a.ipynb has no parameter 'sede'; it has profile, seed, device$"):
        run(parameters={"sede": 1})


# What is not run again


@pytest.fixture
def counted(book: Path, tools: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """A notebook that counts how often it has run, in a file beside it; the package counts as unchanged."""
    monkeypatch.setattr(_jobs, "surroundings", lambda device: "here")
    count = "open('count', 'a').write('x')"
    tools.write(book / "notebooks/a.ipynb", count)
    return lambda: len((book / "notebooks/count").read_text())


def test_what_has_not_changed_is_not_run_again(book: Path, counted: Callable[[], int]) -> None:
    (first,), (second,) = run(), run()
    assert (first.status, second.status) == ("ok", "cached")
    assert (first.executed, first.seconds, first.overhead) == (second.executed, second.seconds, second.overhead)
    assert counted() == 1
    assert status(run(force=True)) == ["ok"]
    assert counted() == 2


def test_outputs_in_the_source_change_nothing(book: Path, counted: Callable[[], int]) -> None:
    run()
    path = book / "notebooks/a.ipynb"
    nb = nbformat.read(path, as_version=4)
    nb.cells[1].outputs = [nbformat.v4.new_output("stream", text="old")]
    nbformat.write(nb, path)
    assert status(run()) == ["cached"]


def test_a_changed_cell_runs_again(book: Path, tools: SimpleNamespace, counted: Callable[[], int]) -> None:
    run()
    tools.write(book / "notebooks/a.ipynb", "open('count', 'a').write('y')")
    assert status(run()) == ["ok"]
    assert counted() == 2


def key_of(path: Path, here: str = "here", **parameters: Any) -> str:
    return _jobs.prepare(path, Path("a.ipynb"), Path("out"), {"profile": "quick"}, parameters, here).key


def test_the_key_depends_on_everything_that_decides_the_result(book: Path, tools: SimpleNamespace) -> None:
    path = tools.write(book / "a.ipynb", "print(1)")
    nb = nbformat.read(path, as_version=4)
    keys = [key_of(path), key_of(path, seed=1), key_of(path, here="elsewhere")]
    nb.cells[2].metadata["tags"] = ["hide-input"]
    nbformat.write(nb, path)
    keys.append(key_of(path))
    nb.cells[2].source += " "
    nbformat.write(nb, path)
    keys.append(key_of(path))
    nb.cells[2].outputs = [nbformat.v4.new_output("stream", text="an output")]
    nbformat.write(nb, path)
    assert key_of(path) == keys[-1]
    assert key_of(path, seed=0) == keys[-1]  # the notebook's own value
    assert len(set(keys)) == 5


def test_the_surroundings_are_package_versions_and_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tools: SimpleNamespace
) -> None:
    import torch

    module = tmp_path / "lossbook/book/_jobs.py"
    module.parent.mkdir(parents=True)
    module.write_text("x = 1")
    monkeypatch.setattr(_jobs, "__file__", str(module))
    seen = [_jobs.surroundings("auto"), _jobs.surroundings("other")]
    module.write_text("x = 2")
    seen.append(_jobs.surroundings("auto"))
    (module.parent / "catalog.toml").write_text("")
    seen.append(_jobs.surroundings("auto"))
    (module.parent / "__pycache__").mkdir()
    (module.parent / "__pycache__/x.pyc").write_text("")
    assert _jobs.surroundings("auto") == seen[-1]
    monkeypatch.setattr("importlib.metadata.version", lambda name: "9.9")
    seen.append(_jobs.surroundings("auto"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: not seen[0].endswith("cuda"))
    seen.append(_jobs.surroundings("auto"))
    assert len(set(seen)) == 6


@pytest.mark.parametrize("damage", ["executed", "gone", "record", "empty record"])
def test_a_damaged_result_is_made_again_and_said_so(
    damage: str, book: Path, counted: Callable[[], int], caplog: pytest.LogCaptureFixture
) -> None:
    run()
    executed, record = book / OUT / "a.ipynb", book / OUT / "a.json"
    good = executed.read_bytes()
    if damage == "executed":
        executed.write_bytes(good[:-20])
    elif damage == "gone":
        executed.unlink()
    else:
        record.write_bytes(record.read_bytes()[:30] if damage == "record" else b"")
    assert status(run()) == ["ok"]
    assert counted() == 2
    assert [r.getMessage() for r in caplog.records] == ["a.ipynb runs again: its last result is damaged"]
    assert status(run()) == ["cached"]
    assert nbformat.read(executed, as_version=4).cells[1].source == nbformat.reads(good, as_version=4).cells[1].source


def test_a_record_that_was_never_finished_is_no_record(book: Path, counted: Callable[[], int]) -> None:
    run()
    (book / OUT / "a.json").unlink()
    assert status(run()) == ["ok"]
    assert counted() == 2


# Failures


def test_an_exception_is_reported_and_the_last_good_result_stays(book: Path, tools: SimpleNamespace) -> None:
    path = book / "notebooks/a.ipynb"
    tools.write(path, "print('good')")
    tools.write(book / "notebooks/b.ipynb", "print('good')")
    run()
    tools.write(path, "x = 1", "raise ValueError('first line\\nsecond line')", "print('never')")
    tools.write(book / "notebooks/b.ipynb", "print('better')")
    a, b = run()
    assert (a.status, b.status) == ("failed", "ok")
    assert a.error == "cell 4 (In [3]): ValueError: first line"
    assert a.executed == book / OUT / "a.failed.ipynb"
    outputs = [output for cell in nbformat.read(a.executed, as_version=4).cells for output in cell.get("outputs", [])]
    assert [output.ename for output in outputs] == ["ValueError"]
    assert text_of(book / OUT / "a.ipynb") == "good\n"
    assert b.executed is not None
    assert text_of(b.executed) == "better\n"


def test_a_failure_runs_again_and_then_leaves_no_trace(book: Path, tools: SimpleNamespace) -> None:
    tools.write(book / "notebooks/a.ipynb", "assert os.path.exists('cure')", parameters="import os")
    assert status(run()) == ["failed"]
    (book / "notebooks/cure").touch()
    assert status(run()) == ["ok"]
    assert sorted(path.name for path in (book / OUT).iterdir()) == [".lock", "a.ipynb", "a.json"]


def test_a_cell_is_counted_as_in_the_source(book: Path, tools: SimpleNamespace) -> None:
    tools.write(book / "notebooks/a.ipynb", "1 / 0")
    (result,) = run(parameters={"seed": 5})
    assert result.error == "cell 3 (In [3]): ZeroDivisionError: division by zero"


def test_a_kernel_that_kills_itself_fails_within_ten_seconds(book: Path, tools: SimpleNamespace) -> None:
    tools.write(book / "notebooks/a.ipynb", tools.PID, "import signal; os.kill(os.getpid(), signal.SIGKILL)")
    tools.write(book / "notebooks/b.ipynb", "print(1)")
    a, b = run()
    assert (a.status, b.status) == ("failed", "ok")
    assert a.error == "cell 4 (In [3]): the kernel was killed (SIGKILL, by hand or for lack of memory)"
    assert a.seconds < 10
    assert not tools.is_running(tools.kernel_pid(book / "notebooks"))


def test_a_kernel_that_exits_fails(book: Path, tools: SimpleNamespace) -> None:
    tools.write(book / "notebooks/a.ipynb", "import os; os._exit(3)")
    (result,) = run()
    assert result.error == "cell 3 (In [2]): the kernel died with exit status 3"


def test_a_kernel_killed_from_outside_fails_within_ten_seconds(book: Path, tools: SimpleNamespace) -> None:
    tools.write(book / "notebooks/a.ipynb", tools.PID, "import time; time.sleep(100)")
    killed = []

    def kill() -> None:
        pid = tools.kernel_pid(book / "notebooks")
        time.sleep(0.3)
        os.kill(pid, signal.SIGKILL)
        killed.append(time.monotonic())

    killer = threading.Thread(target=kill)
    killer.start()
    (result,) = run()
    killer.join()
    assert time.monotonic() - killed[0] < 10
    assert result.error == "cell 4 (In [3]): the kernel was killed (SIGKILL, by hand or for lack of memory)"


def test_a_kernel_killed_before_its_first_cell_fails_within_ten_seconds(
    book: Path, tools: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = prewarm.ForkProvisioner.launch_kernel

    async def launch_and_kill(self: Any, command: list[str], **arguments: Any) -> Any:
        info = await launch(self, command, **arguments)
        self.process.kill()
        return info

    monkeypatch.setattr(prewarm.ForkProvisioner, "launch_kernel", launch_and_kill)
    tools.write(book / "notebooks/a.ipynb", "print(1)")
    (result,) = run()
    assert result.error == "before the first cell: the kernel was killed (SIGKILL, by hand or for lack of memory)"
    assert result.executed is None
    assert result.seconds < 10


def test_a_thread_that_hangs_on_a_dead_kernel_is_left_behind(
    book: Path, tools: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    hang, execute = threading.Event(), runner._execute

    def execute_or_hang(job: _jobs.Job, environment: dict[str, str], folder: Path | None) -> None:
        if job.rel.name == "a.ipynb":
            job.kernel = SimpleNamespace(poll=lambda: -9, pid=0)
            hang.wait()
        else:
            execute(job, environment, folder)

    monkeypatch.setattr(runner, "_execute", execute_or_hang)
    monkeypatch.setattr(runner, "_GRACE_S", 0.5)
    for name in "ab":
        tools.write(book / f"notebooks/{name}.ipynb", "print(1)")
    results = run()
    hang.set()
    assert status(results) == ["failed", "ok"]
    assert results[0].error == "before the first cell: the kernel was killed (SIGKILL, by hand or for lack of memory)"


@pytest.mark.slow
def test_the_time_limit_is_for_the_whole_notebook(book: Path, tools: SimpleNamespace) -> None:
    tools.write(book / "notebooks/a.ipynb", tools.PID, *["import time; time.sleep(0.5)"] * 20)
    (result,) = run(timeout=3)
    assert result.error is not None
    assert re.fullmatch(r"cell \d+ \(In \[\d+\]\): stopped after 3 s, the time limit", result.error)
    assert result.seconds < 8
    assert not tools.is_running(tools.kernel_pid(book / "notebooks"))


@pytest.mark.slow
def test_a_kernel_that_is_only_stopped_runs_into_the_time_limit(book: Path, tools: SimpleNamespace) -> None:
    tools.write(book / "notebooks/a.ipynb", "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)")
    (result,) = run(timeout=3)
    assert result.error == "cell 3 (In [2]): stopped after 3 s, the time limit"


# The run itself is stopped


COMMAND = [sys.executable, "-m", "lossbook.book.cli", "run"]


def start_run(book: Path, **environment: str) -> subprocess.Popen[str]:
    # What a killed run cannot clear away is cleared away with the test's own folder.
    environment = {**os.environ, "TMPDIR": str(book), **environment}
    return subprocess.Popen(
        COMMAND,
        cwd=book,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        # Tests that a shell started in the background inherit that Ctrl-C is ignored; the run is to hear it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.fixture
def half_done(book: Path, tools: SimpleNamespace) -> Path:
    """A book whose first notebook is finished at once, and whose second runs for ever."""
    tools.write(book / "notebooks/a.ipynb", "print(1)")
    tools.write(book / "notebooks/long/b.ipynb", tools.PID, "import time; time.sleep(0 if seed else 1000)")
    return book


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_kills_its_kernels_and_goes_on_next_time(
    signum: int, code: int, half_done: Path, tools: SimpleNamespace
) -> None:
    process = start_run(half_done)
    kernel = tools.kernel_pid(half_done / "notebooks/long")
    tools.wait_for((half_done / OUT / "a.json").exists)
    process.send_signal(signum)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == code
    name = signal.Signals(signum).name
    assert errors.splitlines()[-1] == (
        f"lossbook: interrupted by {name}; 1 finished and kept, and the same command goes on from there"
    )
    assert "Traceback" not in errors
    tools.wait_for(lambda: not tools.is_running(kernel))
    assert sorted(p.name for p in (half_done / OUT).rglob("*") if p.is_file()) == [".lock", "a.ipynb", "a.json"]
    assert status(run(parameters={"seed": 0}, timeout=2)) == ["cached", "failed"]


@pytest.mark.slow
def test_a_killed_run_takes_its_kernels_with_it_and_leaves_no_lock(half_done: Path, tools: SimpleNamespace) -> None:
    process = start_run(half_done)
    kernel = tools.kernel_pid(half_done / "notebooks/long")
    tools.wait_for((half_done / OUT / "a.json").exists)
    process.kill()
    process.communicate()
    tools.wait_for(lambda: not tools.is_running(kernel))
    half_written = half_done / OUT / f".b.ipynb.1{_files._TEMPORARY}"
    half_written.write_text("{")
    assert status(run(half_done / "notebooks/a.ipynb")) == ["cached"]
    assert not half_written.exists()


@pytest.mark.slow
def test_kernels_that_start_cold_die_with_a_killed_run_too(half_done: Path, tools: SimpleNamespace) -> None:
    process = start_run(half_done, LOSSBOOK_ZYGOTE="/no/such/socket")
    kernel = tools.kernel_pid(half_done / "notebooks/long")
    process.kill()
    _, errors = process.communicate()
    assert "kernels start cold: there is no zygote at /no/such/socket" in errors
    tools.wait_for(lambda: not tools.is_running(kernel))


def test_a_second_run_in_the_same_folder_is_refused(book: Path, tools: SimpleNamespace) -> None:
    tools.write(book / "notebooks/a.ipynb", "print(1)")
    with (
        _jobs.locked(book / OUT),
        pytest.raises(RunError, match=r"^another run is writing to .*: wait for it, or choose another folder"),
    ):
        run()
    assert status(run()) == ["ok"]


# The disk


def test_a_folder_that_cannot_be_made_is_one_sentence(book: Path, tools: SimpleNamespace) -> None:
    tools.write(book / "notebooks/a.ipynb", "print(1)")
    (book / "file").touch()
    with pytest.raises(RunError, match=r"^cannot write .*file/below: Not a directory$"):
        run(out="file/below")


def test_a_full_disk_ends_the_run_in_one_sentence(
    book: Path, tools: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    tools.write(book / "notebooks/a.ipynb", "print(1)")
    tools.write(book / "notebooks/long/b.ipynb", tools.PID, "import time; time.sleep(1000)")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"^cannot write .*a.ipynb: No space left on device$"):
        run(workers=2)
    if (book / "notebooks/long/pid").exists():
        tools.wait_for(lambda: not tools.is_running(tools.kernel_pid(book / "notebooks/long")))
    assert [path.name for path in (book / OUT).rglob("*") if path.is_file()] == [".lock"]


# Back into the source


def test_in_place_writes_the_cleaned_execution_to_the_source(book: Path, tools: SimpleNamespace) -> None:
    path = tools.write(book / "notebooks/a.ipynb", "print(device)", "1 + 1")
    assert status(run(in_place=True, device="cpu")) == ["ok"]
    first = path.read_bytes()
    nb = nbformat.reads(first, as_version=4)
    assert [cell.source for cell in nb.cells] == ["# Title", tools.PARAMETERS, "print(device)", "1 + 1"]
    assert [cell.id for cell in nb.cells] == ["title", "cell-0", "cell-1", "cell-2"]
    assert text_of(path) == "cpu\n"
    assert "papermill" not in path.read_text()
    assert status(run(in_place=True, device="cpu", force=True)) == ["ok"]
    assert path.read_bytes() == first


def test_in_place_does_not_overwrite_what_was_edited_meanwhile(book: Path, tools: SimpleNamespace) -> None:
    edit = "from pathlib import Path; p = Path('a.ipynb'); _ = p.write_text(p.read_text().replace('Title', 'Edited'))"
    path = tools.write(book / "notebooks/a.ipynb", edit)
    (result,) = run(in_place=True)
    assert result.status == "failed"
    assert result.error == "it was edited while it ran, so the result was not written back"
    assert "Edited" in path.read_text()


def test_in_place_is_for_the_committed_form(book: Path) -> None:
    for arguments in ({"profile": "full"}, {"parameters": {"seed": 1}}):
        with pytest.raises(ValueError, match="^in_place writes the committed form"):
            run(in_place=True, **arguments)


def test_clean_takes_what_changes_from_run_to_run_and_nothing_else() -> None:
    v4 = nbformat.v4
    view = "application/vnd.jupyter.widget-view+json"
    widget = v4.new_output("display_data", {view: {"model_id": "1"}, "text/plain": "a slider"})
    cell = v4.new_code_cell("x", outputs=[v4.new_output("stream", text="kept"), widget], execution_count=3)
    volatile = {"papermill": {"duration": 1}, "execution": {"iopub.status.idle": "2026-01-01T00:00:00Z"}}
    cell.metadata = nbformat.from_dict({**volatile, "tags": ["kept"]})
    spec = {"name": "python3", "display_name": "Python 3"}
    nb = v4.new_notebook(cells=[cell], metadata={"papermill": {}, "widgets": {}, "kernelspec": spec})
    nb.metadata["language_info"] = {"name": "python", "version": "3.11.7"}
    before = json.dumps(nb)
    cleaned = clean(nb)
    assert json.dumps(nb) == before
    assert cleaned.metadata == {"kernelspec": spec, "language_info": {"name": "python"}}
    assert cleaned.cells[0].metadata == {"tags": ["kept"]}
    assert cleaned.cells[0].outputs[0].text == "kept"
    assert cleaned.cells[0].outputs[1].data == {"text/plain": "a slider"}
    assert (cleaned.cells[0].id, cleaned.cells[0].execution_count) == (cell.id, 3)
    assert clean(cleaned) == cleaned


# What is said


def test_each_end_is_a_line_where_there_is_no_terminal(
    book: Path, tools: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    tools.write(book / "notebooks/a.ipynb", "print(1)")
    run()
    tools.write(book / "notebooks/b.ipynb", "1 / 0")
    run(progress=True, workers=1)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "[1/2] a.ipynb: unchanged"
    assert re.fullmatch(
        r"\[2/2\] b.ipynb: failed in cell 3 \(In \[2\]\): ZeroDivisionError: division by zero", lines[-1]
    )


def test_a_terminal_gets_bars(book: Path, tools: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for name in "ab":
        tools.write(book / f"notebooks/{name}.ipynb", "import time; time.sleep(0.5)")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    run(progress=True, workers=1)
    shown = terminal.getvalue()
    assert "a.ipynb" in shown
    assert "2/3" in shown  # the last of three cells runs, two are done
    assert re.search(r"about \d s left", shown)


# Bad arguments


def test_bad_arguments_are_refused(book: Path, tools: SimpleNamespace) -> None:
    path = tools.write(book / "notebooks/a.ipynb", "print(1)")
    with pytest.raises(ValueError, match=r"^profile must be one of quick, full, not 'fast'$"):
        run(profile="fast")
    with pytest.raises(ValueError, match=r"^workers must be at least 1, not 0$"):
        run(workers=0)
    with pytest.raises(ValueError, match=r"^timeout must be a positive number of seconds, not nan$"):
        run(timeout=float("nan"))
    with pytest.raises(RunError, match=r"^there is no notebook nowhere.ipynb$"):
        run(Path("nowhere.ipynb"))
    with pytest.raises(RunError, match=r"^there is no folder elsewhere here"):
        run(root="elsewhere")
    with pytest.raises(RunError, match=r"holds the notebooks themselves"):
        run(out="notebooks")
    (book / "empty").mkdir()
    with pytest.raises(RunError, match=r"^there are no notebooks in empty$"):
        run(Path("empty"))
    other = tools.write(book / "other/a.ipynb", "print(1)")
    with pytest.raises(RunError, match=r"would both be written to a.ipynb"):
        run(path, other)
    path.write_bytes(b"\xff{}")
    with pytest.raises(RunError, match=r"a.ipynb is not a notebook"):
        run()


def test_hidden_folders_hold_no_notebooks(book: Path, tools: SimpleNamespace) -> None:
    tools.write(book / "notebooks/a.ipynb", "print(1)")
    tools.write(book / "notebooks/.ipynb_checkpoints/a-checkpoint.ipynb", "1 / 0")
    assert [result.notebook.name for result in run()] == ["a.ipynb"]

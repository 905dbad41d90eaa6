"""Files of results that are damaged by chance: made again and said so, and never taken for good."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from lossbook.book import _jobs
from lossbook.train import checkpoint, fit, sweep
from lossbook.train.parts import Folder

Fault = Callable[[str, int, int], None]
Damage = Callable[[bytes], bytes]

# The fixtures hold nothing that an example changes for the next.
many = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def damages(draw: st.DrawFn) -> Damage:
    """A flipped bit, a cut, a block of zeros (what a crashed machine leaves), or something else altogether."""
    kind, where, bit = (
        draw(st.sampled_from(["flip", "cut", "zero", "other"])),
        draw(st.floats(0, 1)),
        draw(st.integers(0, 7)),
    )
    other = draw(st.sampled_from([b"", b"{}", b"[]", b"null", b"text\n" * 50]) | st.binary(max_size=200))

    def damage(content: bytes) -> bytes:
        at = int(where * (len(content) - 1))
        if kind == "flip":
            return content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]
        if kind == "zero":
            return content[:at] + bytes(len(content[at : at + 512])) + content[at + 512 :]
        return content[:at] if kind == "cut" else other

    return damage


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], _jobs.Job]:
    """A notebook with a result; each call reads it as the next run does."""
    import nbformat

    folder = tmp_path_factory.mktemp("book")
    cells = [nbformat.v4.new_code_cell("print(1)", outputs=[nbformat.v4.new_output("stream", text="1\n")], id="a")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "a.ipynb")

    def prepare() -> _jobs.Job:
        return _jobs.prepare(folder / "a.ipynb", Path("a.ipynb"), folder / "out", {}, {}, "here")

    job = prepare()
    job.started = time.monotonic()
    _jobs.finish(job)
    return prepare


def test_damaged_results_of_a_run(
    finished: Callable[[], _jobs.Job], caplog: pytest.LogCaptureFixture, fault: Fault
) -> None:
    tried, lost, job = 0, 0, finished()
    whole = {path: path.read_bytes() for path in (job.executed, job.record)}
    before = _jobs.cached(job)
    assert before is not None

    @many
    @given(damage=damages(), which=st.integers(0, 1))
    def check(damage: Damage, which: int) -> None:
        nonlocal tried, lost
        path = (job.executed, job.record)[which]
        path.write_bytes(damage(whole[path]))
        changed = path.read_bytes() != whole[path]
        caplog.clear()
        after = _jobs.cached(finished())
        path.write_bytes(whole[path])
        tried += changed
        if after is None:
            lost += not changed or "a.ipynb runs again: its last result is damaged" not in caplog.messages
        else:
            # A line break instead of a space says the same.
            lost += after != before or (changed and path == job.executed)

    check()
    fault("run: damaged result or record", tried, lost)


def test_damaged_checkpoints_of_fit(tmp_path: Path, fault: Fault) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 6, generator=generator), torch.arange(60) % 3
    path, aside, tried, lost = tmp_path / "run.pt", tmp_path / "run.pt.damaged", 0, 0

    def train(epochs: int) -> nn.Module:
        torch.manual_seed(0)
        model = nn.Linear(6, 3)
        data = type("Data", (), {"train": (x, y), "val": (x, y)})
        fit(model, data, nn.functional.cross_entropy, epochs=epochs, device="cpu", checkpoint=path)
        return model

    good = train(2)
    whole = path.read_bytes()
    content = torch.load(path, weights_only=True)

    @many
    @given(damage=damages())
    def check(damage: Damage) -> None:
        nonlocal tried, lost
        path.write_bytes(damage(whole))
        changed = path.read_bytes() != whole
        tried += changed
        aside.unlink(missing_ok=True)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            read = checkpoint.read(path, content["run"])
        if read is None:
            said = f"checkpoint {path} is damaged: it is kept as run.pt.damaged, and training starts anew"
            lost += not changed or [str(w.message) for w in caught] != [said] or path.exists() or not aside.exists()
        else:
            lost += not same(read, content)

    check()
    path.write_bytes(whole[:-100])
    with pytest.warns(UserWarning, match="is damaged"):
        again = train(2)
    lost += not torch.equal(again.weight, good.weight)
    fault("fit: damaged checkpoint", tried + 1, lost)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return a == b


def test_damaged_parts_of_a_sweep(tmp_path: Path, fault: Fault) -> None:
    """That they are trained again is in the tests of `lossbook.train.parts`."""
    x, y = torch.randn(60, 6, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 3
    data = type("Data", (), {"train": (x, y), "val": (x, y)})
    sweep(lambda: nn.Linear(6, 3), data, {"seed": [0]}, epochs=1, device="cpu", checkpoint=tmp_path)
    (path,), tried, lost = tmp_path.glob("*.part"), 0, 0
    whole = path.read_bytes()

    @many
    @given(damage=damages())
    def check(damage: Damage) -> None:
        nonlocal tried, lost
        path.write_bytes(damage(whole))
        changed = path.read_bytes() != whole
        tried += changed
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            list(Folder(tmp_path, []).parts())
        said = [f"{path} is damaged: what it held is trained again"] if changed else []
        lost += [str(w.message) for w in caught] != said

    check()
    fault("sweep: damaged part", tried, lost)

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lossbook import _files


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    _files.write_atomically(path, "old\n")
    with pytest.raises(UnicodeEncodeError):
        _files.write_atomically(path, "new \ud800")
    assert path.read_text() == "old\n"
    assert os.listdir(tmp_path) == ["file"]


def test_bytes_and_text_arrive_as_they_are(tmp_path: Path) -> None:
    _files.write_atomically(tmp_path / "new/folder/text", "ä\n")
    _files.write_atomically(tmp_path / "new/bytes", b"\r\n\0")
    assert (tmp_path / "new/folder/text").read_bytes() == "ä\n".encode()
    assert (tmp_path / "new/bytes").read_bytes() == b"\r\n\0"


def test_a_full_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*/file'$") as caught:
        _files.write_atomically(tmp_path / "file", "new")
    assert caught.value.filename == str(tmp_path / "file")
    assert os.listdir(tmp_path) == []


def test_leftovers_are_cleared_by_name(tmp_path: Path) -> None:
    names = [f".{name}.17{_files._TEMPORARY}" for name in ("a[1]", "b")] + [f".below/.c.17{_files._TEMPORARY}"]
    (tmp_path / ".below").mkdir()
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "a").touch()
    _files.clear_leftovers(tmp_path, "a[[]1]")
    assert sorted(os.listdir(tmp_path)) == sorted([names[1], ".below", "a"])
    _files.clear_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".below", "a"]
    assert not os.listdir(tmp_path / ".below")


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")

    def refused(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refused)
    with (
        pytest.warns(UserWarning, match="cannot be locked here: let one process at a time"),
        _files.locked(tmp_path / ".lock"),
    ):
        pass


def test_a_lock_is_for_one_process_and_ends_with_it(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    code = f"import pathlib, sys\nfrom lossbook import _files\nwith _files.locked(pathlib.Path({str(path)!r})):\n"
    code += "    print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        with pytest.raises(BlockingIOError), _files.locked(path):
            pass
        process.kill()
    with _files.locked(path):
        pass

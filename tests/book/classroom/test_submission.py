"""What students hand in, and under which names and where; no kernel runs here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from nbformat import v4, writes

from lossbook.book._jobs import RunError
from lossbook.book.classroom.submission import locate, plain, read, students

REL = Path("01-part/01-topic.ipynb")


def test_messages_are_one_plain_line() -> None:
    assert plain("\x1b[31mred\x1b[0m\nand\tmore\x07") == "red and more"
    assert plain("=HYPERLINK(1)") == "'=HYPERLINK(1)"
    assert len(plain("x" * 10_000)) == 300


def test_names_that_are_not_utf8_stay_apart(tmp_path: Path) -> None:
    for name in (b"Jos\xe9", b"Jos\xe8", b"ada", b"Ada"):
        try:
            os.mkdir(os.fsencode(tmp_path) + b"/" + name)
        except OSError:
            pytest.skip("this file system takes no such names")
    assert list(students(tmp_path, [REL])) == ["Ada", "Jos\\xe8", "Jos\\xe9", "ada"]


def test_two_students_of_one_name_are_refused(tmp_path: Path) -> None:
    for name in ("a b", "a\tb"):
        (tmp_path / name).mkdir()
    with pytest.raises(RunError, match="would both be the student 'a b': rename one"):
        students(tmp_path, [REL])


def test_two_files_in_other_places_are_not_guessed_between(tmp_path: Path) -> None:
    for place in ("mine", "backup", ".hidden"):
        (tmp_path / place).mkdir()
        (tmp_path / place / REL.name).write_text(writes(v4.new_notebook(cells=[v4.new_code_cell("x = 1")])))
    found = locate(tmp_path, REL)
    assert read(found, tmp_path) == "2 files have the notebook's name, and none is where it was released"
    assert read([found[0]], tmp_path) == [("", "x = 1")]


def test_a_folder_that_cannot_be_read_is_no_missing_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError):
        locate(tmp_path, REL)


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.ipynb").open("wb") as file:
        file.truncate(1 << 40)  # of nothing: it takes no space
    assert read([tmp_path / "a.ipynb"], tmp_path) == "the file is larger than 50 MB: clear the outputs"

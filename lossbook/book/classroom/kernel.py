"""What `lossbook grade` calls inside a kernel: the student's cells and the book's cells each have their own names.

The student's cells run in a namespace that begins as a copy of the book's. Before a cell of the book, or a test, runs,
the book's namespace is active again, with the names of the answers brought over and nothing else: an answer that binds
`losses` anew changes nothing for a test. What an answer changes inside the objects that both hold is not undone, apart
from functions and classes of the modules that tests rest on, which are put back.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

_GUARDED = {"builtins", "lossbook", "math", "numpy", "torch"}

_book: ModuleType
_student: ModuleType
_handed: dict[str, Any] = {}  # what the student's namespace has been given
_originals: dict[Any, dict[str, Any]] = {}  # functions and classes of modules as they were before any student's cell
_place: tuple[str, list[str], Any, Any] = ("", [], None, None)


def start(memory: int) -> None:
    """The first thing in a kernel: limit what it can take, in bytes beyond what it holds now."""
    global _book, _student

    _limit(memory)
    adopt_orphans(True)
    os.environ.pop("LOSSBOOK_ZYGOTE", None)
    _book = _shell().user_module
    _student = ModuleType("__main__")
    for name in ("exit", "quit"):
        setattr(_book, name, sys.exit)  # a sentence in the cell, instead of a kernel that is gone


def student() -> None:
    """The cells that follow are the student's."""
    global _place

    _put_back()  # what an answer has replaced while a test called it
    for owner in _owners():
        functions = _originals.setdefault(owner, {})
        for name, value in vars(owner).items():
            if callable(value):
                functions.setdefault(name, value)
    _place = os.getcwd(), list(sys.path), sys.stdout, sys.stderr
    for name, value in vars(_book).items():
        if name not in _handed or _handed[name] is not value:
            setattr(_student, name, value)
    _handed.update(vars(_book))
    _enter(_student)


def book(names: Iterable[str]) -> None:
    """The cells that follow are the book's: they see what the student's define under these names."""
    sys.settrace(None)
    sys.setprofile(None)
    os.chdir(_place[0])
    sys.path[:], sys.stdout, sys.stderr = _place[1:]
    _put_back()
    shell = _shell()
    # Ways to change a cell before it runs, or to hide that it failed.
    shell.ast_transformers.clear()
    shell.input_transformers_post.clear()
    shell.custom_exceptions = ()
    for event in ("pre_execute", "pre_run_cell"):
        for function in list(shell.events.callbacks[event]):
            shell.events.unregister(event, function)
    for name in names:
        if hasattr(_student, name):
            setattr(_book, name, getattr(_student, name))
        elif hasattr(_book, name):
            delattr(_book, name)
    _enter(_book)


def _put_back() -> None:
    for owner, functions in _originals.items():
        now = vars(owner)
        for name, value in functions.items():
            if now.get(name) is not value:
                setattr(owner, name, value)


def _enter(module: ModuleType) -> None:
    shell = _shell()
    shell.user_module, shell.user_ns = module, vars(module)


def _shell() -> Any:
    from IPython.core.getipython import get_ipython

    return get_ipython()


def _owners() -> list[Any]:
    modules = [module for name, module in list(sys.modules.items()) if name.split(".")[0] in _GUARDED]
    torch = sys.modules.get("torch")
    return [*(module for module in modules if isinstance(module, ModuleType)), *([torch.Tensor] if torch else [])]


def _limit(memory: int) -> None:
    try:
        import resource

        status = Path("/proc/self/status").read_text()
    except (ImportError, OSError):
        return  # not Linux: only time and output are limited there
    held = int(status.split("VmData:")[1].split()[0]) * 1024
    # Data, not address space: CUDA reserves more addresses than the machine has memory.
    for name, limit in (("RLIMIT_DATA", held + memory), ("RLIMIT_FSIZE", 1 << 30), ("RLIMIT_CORE", 0)):
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (limit, limit))


def adopt_orphans(wanted: bool) -> bool:
    """Have processes that lose their parent below this one become its children (Linux); True if they do."""
    import ctypes

    pr_set_child_subreaper = 36
    return sys.platform == "linux" and ctypes.CDLL(None).prctl(pr_set_child_subreaper, int(wanted), 0, 0, 0) == 0

"""A process that reads files it is told of, one line of JSON in and one out; `Reading` in conftest.py starts it.

It says what came of a file, the memory it took, and everything outside the temporary folder that Python was asked to
write, start or connect to meanwhile.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lossbook import data
from lossbook.book.audit import compare
from lossbook.data import cifar, idx, images, people, text

torch.set_num_threads(1)


def drained(opened: data.Predictions | data.Features) -> str:
    rows = sum(len(y) for _, y in opened.chunks())
    opened.sample(3, 0)
    return f"{rows} rows of {opened.num_classes} classes"


def with_labels(path: str) -> str:
    """Predictions whose labels are the file, and the other way round."""
    good = str(Path(path).with_name("good.npy"))
    try:
        return drained(data.read_predictions(good, labels=path))
    except data.DataError as error:
        # There may be as many rows as the file likes.
        if "holds 30 rows" not in str(error):
            raise
        return str(error)


def classifier(path: str) -> str:
    features = data.read_features(str(Path(path).with_name("features.npz")))
    w, _ = data.read_classifier(path, features)
    return f"{w.shape}"


def calibrator(path: str) -> str:
    try:
        _, names = compare.from_json(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        # As `lossbook calibrate` does.
        raise data.DataError(f"{path}: {error}") from None
    return f"{len(names)} classes"


def judged(path: str) -> str:
    return f"{len(people.label_error_set('mnist', root=Path(path).parents[1], download=False).labels)} rows"


READERS: dict[str, Callable[[str], str]] = {
    "idx": lambda path: str(idx.read(path).shape),
    "cifar": lambda path: str(cifar.read(path).test_x.shape),
    # The batch that is mutated is one of six in a folder.
    "batch": lambda path: str(cifar.read(Path(path).parent).test_x.shape),
    "images": lambda path: str([x.shape for x, _ in images.read(path).splits.values()]),
    "predictions": lambda path: drained(data.read_predictions(path)),
    "unlabelled": lambda path: drained(data.read_predictions(path, with_labels=False)),
    "labels": with_labels,
    "features": lambda path: drained(data.read_features(path)),
    "classifier": classifier,
    "text": lambda path: str(text.load_text(root=Path(path).parents[1], download=False)),
    "judged": judged,
    "people": lambda path: str(people.cifar10h(root=Path(path).parents[1], download=False).shape),
    "calibrator": calibrator,
}
# What the tests of the process itself ask for.
FAULTS: dict[str, Callable[[str], object]] = {
    "crash": lambda path: os.kill(os.getpid(), signal.SIGSEGV),
    "hang": lambda path: time.sleep(600),
    "fill": lambda path: [bytearray(2**26) for _ in range(2**10)],
    "take": lambda path: len(bytearray(100 * 2**20)),
    "write": lambda path: Path(path).with_name("written").write_text("x"),
    "start": lambda path: subprocess.run(["true"], check=True),
}
STARTING = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "pty.spawn")
CHANGING = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.chmod", "os.truncate")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def watch(seen: list[str]) -> None:
    inside = tempfile.gettempdir()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            if not (arguments[2] or 0) & WRITING or str(arguments[0]).startswith((inside, "/proc/self/", "/dev/null")):
                return
        elif event not in STARTING + CHANGING and not event.startswith(("socket.", "ctypes.dlopen")):
            return
        seen.append(f"{event} {arguments}"[:200])

    sys.addaudithook(hook)


def status(field: str) -> int:
    """Bytes of a line of /proc/self/status."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def read(reader: str, path: str, seen: list[str]) -> dict[str, Any]:
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")  # the peak starts anew
    before, start = status("VmRSS"), time.process_time()
    seen.clear()
    try:
        outcome, said = "read", str((READERS | FAULTS)[reader](path))
    except data.DataError as error:
        outcome, said = "refused", str(error)
    except Exception as error:
        outcome, said = "raised", f"{type(error).__name__}: {error}"
    touched = list(seen)
    seconds = time.process_time() - start
    peak = status("VmHWM") - before
    return {"outcome": outcome, "said": said, "peak": peak, "seconds": seconds, "touched": touched}


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for opened in sys.argv[1:]:
        # What is imported at first use is no memory of a file.
        for reader, path in json.loads(opened):
            READERS[reader](path)
    seen: list[str] = []
    watch(seen)
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        reader, path = json.loads(line)
        print(json.dumps(read(reader, path, seen)), file=answers, flush=True)

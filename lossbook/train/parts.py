"""What a sweep has trained, part by part: put together in the grid's order, and kept in a folder on the way."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path

import torch
from torch import Tensor

from lossbook import _files
from lossbook.train.checkpoint import close, to_bytes

# Stacked weights and buffers by name.
State = dict[str, Tensor]
# Row, epoch, the four metrics.
Record = tuple[int, int, tuple[float, ...]]

_SUFFIX = ".part"


@dataclass(frozen=True)
class Trained:
    """What training R configurations gave.

    state: weights and buffers by name, stacked (R, ...). kept: the same after each epoch that was to be kept. records:
    (row, epoch, metrics). diverged: row to epoch. tests: loss and accuracy on the test split of each, if there is one.
    """

    method: str
    state: State
    kept: dict[int, State]
    records: list[Record]
    diverged: dict[int, int]
    tests: list[tuple[float, float] | None]

    def rows(self, rows: list[int]) -> Trained:
        """These rows, in this order."""
        places: dict[int, list[int]] = {}
        for place, row in enumerate(rows):
            places.setdefault(row, []).append(place)
        return Trained(
            self.method,
            {name: value[rows] for name, value in self.state.items()},
            {epoch: {name: value[rows] for name, value in state.items()} for epoch, state in self.kept.items()},
            sorted((place, epoch, metrics) for row, epoch, metrics in self.records for place in places.get(row, [])),
            {place: epoch for row, epoch in self.diverged.items() for place in places.get(row, [])},
            [self.tests[row] for row in rows],
        )

    def to(self, device: torch.device) -> Trained:
        def moved(state: State) -> State:
            return {name: value.to(device) for name, value in state.items()}

        kept = {epoch: moved(state) for epoch, state in self.kept.items()}
        return Trained(self.method, moved(self.state), kept, self.records, self.diverged, self.tests)


# A part, and the places of its rows in the grid.
Part = tuple[list[int], Trained]


def together(parts: Sequence[Part]) -> Trained:
    """Parts that make up the whole, as one in the order of their places."""
    members = [place for places, _ in parts for place in places]
    order = sorted(range(len(members)), key=members.__getitem__)

    def cat(states: list[State]) -> State:
        return {name: torch.cat([state[name] for state in states])[order] for name in states[0]}

    tests = [test for _, part in parts for test in part.tests]
    methods = {part.method for _, part in parts}
    return Trained(
        "vmap" if "vmap" in methods else "loop",
        cat([part.state for _, part in parts]),
        {epoch: cat([part.kept[epoch] for _, part in parts]) for epoch in parts[0][1].kept},
        sorted((places[row], epoch, metrics) for places, part in parts for row, epoch, metrics in part.records),
        {places[row]: epoch for places, part in parts for row, epoch in part.diverged.items()},
        [tests[i] for i in order],
    )


@dataclass(frozen=True)
class Identity:
    """What makes a configuration this one: all that can be compared exactly, and its loss and penalty at the start.

    These two stand for what the code of loss, penalty and network does. Another number of threads rounds them
    differently.
    """

    key: str
    loss: float
    penalty: float

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Identity):
            return NotImplemented
        return self.key == other.key and close(self.loss, other.loss) and close(self.penalty, other.penalty)

    __hash__ = None  # type: ignore[assignment]  # equal up to rounding


class Folder:
    """Parts in a folder, a file each, named by the SHA-256 of what is in it."""

    def __init__(self, path: Path, identities: Sequence[Identity]) -> None:
        self.path, self.identities = path, identities

    def parts(self) -> Iterator[Part]:
        """The parts of this grid that are there; each configuration once. A damaged file is named in a warning."""
        missing: dict[str, list[int]] = {}
        for place, identity in enumerate(self.identities):
            missing.setdefault(identity.key, []).append(place)
        for path in sorted(self.path.glob(f"*{_SUFFIX}")):
            content = _read(path)
            if content is None:
                warnings.warn(f"{path} is damaged: what it held is trained again", stacklevel=4)
                continue
            found: list[tuple[int, int]] = []
            for row, known in enumerate(content["configurations"]):
                key, identity = known[0], Identity(*known)
                if key in missing and self.identities[missing[key][0]] == identity:
                    found += [(place, row) for place in missing.pop(key)]
            if found:
                yield [place for place, _ in found], Trained(**content["trained"]).rows([row for _, row in found])

    def add(self, part: Part) -> None:
        """Write a part; when disk or memory refuse, warn: training goes on, and this part is lost if the process is."""
        places, trained = part
        known = [astuple(self.identities[place]) for place in places]
        try:
            content = to_bytes({"configurations": known, "trained": vars(trained.to(torch.device("cpu")))})
            _files.write_atomically(self.path / (hashlib.sha256(content).hexdigest()[:32] + _SUFFIX), content)
        except (OSError, MemoryError) as error:
            why = error.strerror if isinstance(error, OSError) else "out of memory"
            warnings.warn(
                f"a part could not be written to {self.path} ({why}); training goes on without it", stacklevel=4
            )


def _read(path: Path) -> dict | None:
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest()[:32] != path.name.removesuffix(_SUFFIX):
        return None
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


@contextmanager
def opened(path: str | os.PathLike[str], identities: Sequence[Identity]) -> Iterator[Folder]:
    """The folder of a sweep's parts, made if need be and held for this process.

    Raises:
        ValueError: it cannot be written to, or another sweep holds it.
    """
    folder = Path(path)
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Refused now rather than after the first part.
            tempfile.TemporaryFile(dir=folder).close()
            stack.enter_context(_files.locked(folder / ".lock"))
            _files.clear_leftovers(folder, f"*{_SUFFIX}")
        except BlockingIOError:
            raise ValueError(f"another sweep is writing to {folder}: wait for it, or choose another folder") from None
        except OSError as error:
            raise ValueError(f"checkpoint must be a folder to write to, but {folder}: {error.strerror}") from error
        yield Folder(folder, identities)

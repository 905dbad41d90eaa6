"""Pieces of a computation on many machines: sent to the workers of a Dask cluster, fetched as they finish."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from distributed import Client, Future

logger = logging.getLogger(__name__)

T = TypeVar("T")
Result = TypeVar("Result")

# A worker with several threads would run several pieces in one process, which share torch's generators.
_ONE_AT_A_TIME = threading.Lock()
# Several pieces for each thread of the cluster, so that the last of them do not keep one worker busy alone.
PIECES_A_THREAD = 4
# Workers tell the scheduler twice a second what they are at.
_LOOK_S = 0.5


def check_client(client: Any) -> None:
    """Refuse what is not a running `distributed.Client` with workers."""
    try:
        from distributed import Client
    except ImportError:
        raise TypeError(f"client must be a distributed.Client, but is {type(client).__name__}") from None
    if not isinstance(client, Client):
        raise TypeError(f"client must be a distributed.Client, but is {type(client).__name__}")
    if client.status != "running":
        raise ValueError(f"client is {client.status}, not connected to a scheduler")
    if not client.nthreads():
        raise ValueError(f"{client!r} has no workers")


def piece_size(client: Client, count: int) -> int:
    """Items a piece, so that every thread of the cluster gets a few pieces."""
    threads = sum(client.nthreads().values())
    return max(1, -(-count // (PIECES_A_THREAD * threads)))


def in_pieces(
    client: Client,
    function: Callable[[Any, list[T]], Any],
    shared: Any,
    items: Sequence[T],
    size: int,
    watch: Callable[[set[int], int], None] | None = None,
) -> Generator[tuple[int, Future], None, None]:
    """function(shared, piece) of runs of `size` items: the position of each run's first item, and its ended future.

    They are begun in their order, and come in that in which they end. What a lost worker was to do, or had done and not
    yet handed over, is done again by another; after three losses at the same piece the scheduler takes that for the
    cause, and the future holds `distributed.KilledWorker`. While there are no workers at all, which is logged, the
    pieces wait for one. Closing the generator cancels the pieces that have not ended. ConnectionError if the
    scheduler is lost.

    watch(running, workers): called here about twice a second, with the positions of the pieces that are computed now
        and the number of workers.
    """
    from distributed import as_completed

    # As the result of a task, what is shared can be made again if all workers that hold it are lost.
    held = client.submit(_itself, shared, pure=False)
    # By default the scheduler starts with any of what comes within a tenth of a second.
    pieces = {
        client.submit(_alone, function, held, list(items[i : i + size]), pure=False, fifo_timeout=0): i
        for i in range(0, len(items), size)
    }
    ended = as_completed(list(pieces))
    address = client.scheduler_info()["address"]
    look, workers = 0.0, 1
    try:
        while pieces:
            if time.monotonic() >= look:
                look, before = time.monotonic() + _LOOK_S, workers
                keys: set[str] = set()
                # A scheduler that does not answer may come back; if it does not, the client cancels the futures.
                with contextlib.suppress(OSError):
                    keys, workers = client.run_on_scheduler(_at_work)
                if before and not workers:
                    logger.warning("no workers left: waiting for one")
                if watch is not None:
                    watch({i for future, i in pieces.items() if future.key in keys}, workers)
            if not ended.has_ready():
                time.sleep(0.05)
                continue
            future = next(ended)
            if future.cancelled():
                raise ConnectionError(f"the scheduler at {address} is gone, or drops the work")
            yield pieces.pop(future), future
            # Nobody asks again: the worker may forget it.
            future.release()
    finally:
        client.cancel(list(pieces))
        held.release()


def _at_work(dask_scheduler: Any) -> tuple[set[str], int]:
    """By the scheduler: the key of what each worker computes, and the number of workers."""
    keys = set()
    for worker in dask_scheduler.workers.values():
        # Those that wait for `_ONE_AT_A_TIME` count as executing too, but have come later.
        if executing := {task: s for task, s in worker.executing.items() if task.processing_on is worker}:
            keys.add(max(executing, key=executing.__getitem__).key)
    return keys, len(dask_scheduler.workers)


def _itself(x: Any) -> Any:
    return x


def _alone(function: Callable[[Any, list[T]], Result], shared: Any, piece: list[T]) -> Result | None:
    with _ONE_AT_A_TIME:
        return function(shared, piece) if still_wanted() else None


def still_wanted() -> bool:
    """In a task of a worker: whether the scheduler still waits for its result. True outside of a task.

    Dask lets a task whose client has gone run to its end, and the worker's thread takes no other one until then.
    """
    if "distributed" not in sys.modules:
        return True
    from distributed.worker import thread_state

    state = getattr(thread_state, "execution_state", None)
    if state is None:
        return True
    task = state["worker"].state.tasks.get(thread_state.key)
    return task is not None and task.state in ("executing", "long-running")

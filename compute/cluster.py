"""The Ray cluster: connect to one or start one here, and spread work over actors that hold a model.

Without ``RAY_ADDRESS`` a cluster is started on this machine, and ends with this process.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

from compute.settings import ResourceSettings

__all__ = [
    "Progress",
    "actor_options",
    "actor_pool",
    "connect",
    "count_rows",
    "disconnect",
    "run_on_actors",
    "silent",
    "watch",
    "worker_count",
]


class Progress(Protocol):
    """Called with the work done and the whole work, both in the same unit."""

    def __call__(self, done: int, total: int, /) -> None:
        """Take note of progress."""


def silent(done: int, total: int, /) -> None:
    """Progress that nobody watches."""


_connected_here = False


def connect() -> None:
    """Connect to Ray, unless this process is connected already.

    A cluster started here listens on the loopback address as far as Ray lets it; its dashboard is
    off, and so is its telemetry. It serves until :func:`disconnect`, or the end of this process.
    """
    global _connected_here  # noqa: PLW0603
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS")
    local: dict[str, Any] = {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    ray.init(
        # Not None, with which Ray would join whatever cluster was last begun on this machine.
        address=address or "local",
        logging_level=logging.ERROR,
        log_to_driver=False,
        **({} if address else local),
    )
    _connected_here = True


def disconnect() -> None:
    """Undo :func:`connect`; a cluster that it started ends, and one that was there stays."""
    global _connected_here  # noqa: PLW0603
    if _connected_here:
        import ray

        ray.shutdown()
        _connected_here = False


def worker_count(resources: ResourceSettings, tasks: int) -> int:
    """How many workers to start: what was asked for, or what the cluster can hold at once.

    Never more than there are tasks. Must be called while connected.
    """
    import ray

    if resources.workers is not None:
        return max(1, min(resources.workers, tasks))
    have: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    fit = have.get("CPU", 1) // resources.cpus
    if resources.gpus:
        fit = min(fit, have.get("GPU", 0) // resources.gpus)
    return int(max(1, min(fit, tasks)))


def actor_options(resources: ResourceSettings) -> dict[str, Any]:
    """Options of an actor or task: what it reserves, and that a lost one is started anew."""
    options: dict[str, Any] = {"num_cpus": resources.cpus, "num_gpus": resources.gpus}
    if resources.memory_gb is not None:
        options["memory"] = int(resources.memory_gb * 1e9)
    return options


@contextlib.contextmanager
def actor_pool(make: Callable[[], Any], n_actors: int) -> Iterator[list[Any]]:
    """Actors for :func:`run_on_actors`; they end with the block, and what they hold is freed.

    Parameters
    ----------
    make : callable
        Returns a new actor handle.
    n_actors : int
    """
    import ray

    actors = [make() for _ in range(n_actors)]
    try:
        yield actors
    finally:
        for actor in actors:
            ray.kill(actor)


def count_rows(step: str) -> Callable[[int], None]:
    """What a worker calls with the rows it has done; Ray exports them as ``ray_strata_rows_total``.

    Parameters
    ----------
    step : str
        ``extract`` or ``encode``; a tag of the metric.
    """
    from ray.util.metrics import Counter

    counter = Counter("strata_rows", "Rows done by the workers.", tag_keys=("step",))

    def add(rows: int) -> None:
        counter.inc(rows, tags={"step": step})

    return add


def run_on_actors(
    actors: Sequence[Any], method: str, tasks: Iterable[Any], *, depth: int = 2
) -> Iterator[tuple[Any, Any]]:
    """Run one method of a pool of actors on every task; yield (task, result) as each one ends.

    Tasks are handed out one by one, `depth` to an actor at a time, so that a slow actor does not
    hold up the rest and no queue grows. An actor that dies is restarted by Ray and its tasks are
    tried again, as the actor's own options say; an exception that the method raises ends the run.

    Parameters
    ----------
    actors : sequence of actor handles
    method : str
        Name of the actors' method; it takes one task.
    tasks : iterable
    depth : int
        Tasks under way per actor: 2 keeps it busy while the driver looks at a result.
    """
    import ray

    waiting = iter(tasks)
    running: dict[Any, tuple[Any, Any]] = {}

    def hand_out(actor: Any) -> None:
        for task in itertools.islice(waiting, 1):
            running[getattr(actor, method).remote(task)] = (actor, task)

    for _ in range(depth):
        for actor in actors:
            hand_out(actor)
    while running:
        (ready,), _ = ray.wait(list(running), num_returns=1)
        actor, task = running.pop(ready)
        result = ray.get(ready)
        hand_out(actor)
        yield task, result


def watch(start: Callable[[Any], Any], progress: Progress) -> Any:
    """Start one task that reports its progress, pass the reports on, and return its result.

    Parameters
    ----------
    start : callable
        Given the method to report with (``report.remote(done, total)``), returns the task's
        reference.
    progress : callable
        Told what the task reported last, about twice a second.
    """
    import ray

    board: Any = ray.remote(num_cpus=0)(_Board).remote()
    task = start(board.note)
    seen = None
    while True:
        ready, _ = ray.wait([task], timeout=0.5)
        last = ray.get(board.last.remote())
        if last is not None and last != seen:
            progress(*last)
            seen = last
        if ready:
            ray.kill(board)
            return ray.get(task)


class _Board:
    """The place where a task notes how far it is."""

    def __init__(self) -> None:
        self._last: tuple[int, int] | None = None

    def note(self, done: int, total: int) -> None:
        self._last = (done, total)

    def last(self) -> tuple[int, int] | None:
        return self._last

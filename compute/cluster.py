"""The Ray cluster: connect to one or start one here, and spread work over actors that hold a model.

Without ``RAY_ADDRESS`` a cluster is started on this machine, and ends with this process.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from compute.machine.leftovers import clear_leftovers, end_processes, owned_folder
from compute.machine.local_ray import environment_of_ray, loopback_only, patience
from compute.settings import ResourceSettings

__all__ = [
    "WORKER_MARK",
    "ActorPool",
    "Progress",
    "actor_options",
    "actor_pool",
    "connect",
    "count_rows",
    "disconnect",
    "ended",
    "listening",
    "next_ready",
    "silent",
    "watch",
    "worker_count",
    "worker_log",
]


class Progress(Protocol):
    """Called with the work done and the whole work, both in the same unit."""

    def __call__(self, done: int, total: int, /) -> None:
        """Take note of progress."""


def silent(done: int, total: int, /) -> None:
    """Progress that nobody watches."""


_log = logging.getLogger("strata")
_connected_here = False
_HANDLER = "strata"
_MAX_LOSSES = 3
_STARTS = 3
# In the folder of this process; Ray lets everybody in, the folder above nobody.
_SESSIONS = "ray"
# Between looks at whether the cluster is still there, while nothing ends.
_CHECK_SECONDS = 20.0
WORKER_MARK = "strata: "
"""What the lines of :func:`worker_log` begin with; libraries print others."""
_listeners: list[Callable[[str], None]] = []
# Ray's log monitor looks for new lines a few times a second.
_LATE_LINES_SECONDS = 0.5


def connect() -> None:
    """Connect to Ray, unless this process is connected already.

    A cluster started here is its user's alone: it listens on the loopback address, wants a token
    that stands in no file, and keeps its session in a private folder; its dashboard is off, and so
    is its telemetry. It serves until :func:`disconnect`, or the end of this process. What processes
    that were killed have left of theirs is ended and removed first.

    Raises
    ------
    RuntimeError
        If Ray does not come up in ``STRATA_START_SECONDS``, or ended three times while it started.
    ValueError
        If ``STRATA_START_SECONDS`` holds no positive number.
    """
    global _connected_here  # noqa: PLW0603
    address = os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not address:
        os.environ.update(environment_of_ray())
    import ray

    if ray.is_initialized():
        return
    if not address:
        # Ray reads its variables when it is imported, which may have been before; to have it read
        # them again is what it does itself when it turns tokens on, and there is no public way.
        from ray._raylet import Config  # type: ignore[attr-defined]

        Config.initialize("")
    ended = signal.getsignal(signal.SIGTERM)
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": bool(_listeners)}
    _log.info("connects to Ray at %s" if address else "starts Ray on this machine%s", address or "")
    if address:
        near = address.startswith(("127.0.0.1:", "localhost:"))
        with loopback_only() if near else contextlib.nullcontext():
            ray.init(address=address, **quiet)
    else:
        _start_local(quiet)
    _connected_here = True
    if ended is not None and threading.current_thread() is threading.main_thread():
        # Ray puts a handler of its own, with which a run that is cancelled looks like a crash.
        signal.signal(signal.SIGTERM, ended)
    if _listeners:
        # Ray prints what workers print; there is no public way to have it told instead.
        from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

        dispatcher.remove_handler("ray_print_logs")
        dispatcher.add_handler(_HANDLER, _tell)


def _start_local(options: Mapping[str, Any]) -> None:
    import ray

    clear_leftovers()
    folder = owned_folder()
    # Before the folder goes, and only once in a process.
    atexit.unregister(disconnect)
    atexit.register(disconnect)
    for tries in range(1, _STARTS + 1):
        try:
            with patience(folder):
                ray.init(
                    # By its public arguments, Ray chooses the address and shares the folder.
                    _node_ip_address="127.0.0.1",
                    _temp_dir=str(folder / _SESSIONS),
                    # Not None, with which Ray would join whatever cluster was last begun here.
                    address="local",
                    include_dashboard=False,
                    **options,
                )
            return
        except (ValueError, PermissionError):
            raise
        except Exception as error:
            ray.shutdown()
            end_processes(folder)
            if tries == _STARTS:
                raise RuntimeError(
                    f"Ray did not start on this machine, in {tries} tries: {error} Its processes "
                    "have ended; if the machine is busy, try again when it is less so, or allow "
                    "more time by STRATA_START_SECONDS."
                ) from error
            _log.warning("Ray did not start: %s It is started again.", error)


def disconnect() -> None:
    """Undo :func:`connect`; a cluster that it started ends, and one that was there stays."""
    global _connected_here  # noqa: PLW0603
    if _connected_here:
        import ray
        from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

        ray.shutdown()
        dispatcher.remove_handler(_HANDLER)
        _connected_here = False


@contextlib.contextmanager
def listening(listener: Callable[[str], None]) -> Iterator[None]:
    """Tell a listener what workers print during the block, line by line, on a thread of Ray's.

    Must begin before :func:`connect`; where this process is connected already, nothing is told.
    """
    _listeners.append(listener)
    try:
        yield
    finally:
        if _connected_here:
            time.sleep(_LATE_LINES_SECONDS)
        _listeners.remove(listener)


def _tell(batch: Mapping[str, Any]) -> None:
    # What Ray itself prints, such as its autoscaler every few seconds, comes by the same way.
    if not str(batch["pid"]).isdigit():
        return
    who = str(batch.get("actor_name") or batch.get("task_name") or "worker").lstrip("_")
    for line in batch["lines"]:
        for listener in list(_listeners):
            listener(f"{who}, process {batch['pid']}: {line.rstrip()}")


def worker_log() -> logging.Logger:
    """The log of a worker: each line is printed, which is what Ray carries to the driver."""
    log = logging.getLogger("strata.worker")
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter(f"{WORKER_MARK}%(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False
    return log


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
    """Options of an actor or task: what it reserves."""
    options: dict[str, Any] = {"num_cpus": resources.cpus, "num_gpus": resources.gpus}
    if resources.memory_gb is not None:
        options["memory"] = int(resources.memory_gb * 1e9)
    return options


@contextlib.contextmanager
def actor_pool(make: Callable[[], Any], n_actors: int) -> Iterator[ActorPool]:
    """A pool of actors; they end with the block, and what they hold is freed.

    Parameters
    ----------
    make : callable
        Returns a new actor handle. Ray need not restart it: a lost one is made anew.
    n_actors : int
    """
    _log.info("waits for %d %s to start", n_actors, "worker" if n_actors == 1 else "workers")
    pool = ActorPool(make, n_actors)
    try:
        yield pool
    finally:
        pool.close()


class ActorPool:
    """Actors that do tasks. What a lost one had in hand is done by those that are there.

    Ray's own restarts would keep a lost actor's tasks for its successor, which waits for ever where
    a node has gone and none comes in its place.
    """

    def __init__(self, make: Callable[[], Any], n_actors: int) -> None:
        self._make = make
        self._actors: list[Any] = []
        self._starting: dict[Any, Any] = {}
        self._failed_starts = 0
        for _ in range(n_actors):
            self._add()

    def __len__(self) -> int:
        """How many actors there are, those that still start included."""
        return len(self._actors) + len(self._starting)

    def close(self) -> None:
        """End every actor."""
        import ray

        if ray.is_initialized():
            for actor in [*self._actors, *self._starting.values()]:
                ray.kill(actor)
        self._actors, self._starting = [], {}

    def run(
        self, method: str, tasks: Iterable[Any], *, depth: int = 2
    ) -> Iterator[tuple[Any, Any]]:
        """Run one method of the actors on every task; yield (task, result) as each one ends.

        Tasks are handed out one by one, `depth` to an actor at a time, so that a slow actor does
        not hold up the rest and no queue grows. An exception that the method raises ends the run.

        Parameters
        ----------
        method : str
            Name of the actors' method; it takes one task, and may be run on it again.
        tasks : iterable
        depth : int
            Tasks under way per actor: 2 keeps it busy while the driver looks at a result.

        Raises
        ------
        ray.exceptions.RayActorError
            If a task's actor was lost four times, four actors ended while they started, or one
            raised something.
        """
        import ray

        waiting = ((task, 0) for task in tasks)
        again: deque[tuple[Any, int]] = deque()
        running: dict[Any, tuple[Any, Any, int]] = {}
        in_hand: Counter[Any] = Counter()

        def hand_out() -> None:
            for _ in range(depth):
                for actor in self._actors:
                    if in_hand[actor] < depth:
                        following = again.popleft() if again else next(waiting, None)
                        if following is None:
                            return
                        running[getattr(actor, method).remote(following[0])] = (actor, *following)
                        in_hand[actor] += 1

        hand_out()
        while running or again or not self._actors:
            # Without an actor that has started nobody knows yet whether there are tasks at all.
            ready = next_ready([*running, *self._starting])
            if ready in self._starting:
                self._note_start(ready)
                hand_out()
                continue
            actor, task, tries = running.pop(ready)
            in_hand[actor] -= 1
            try:
                result = ray.get(ready)
            except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError):
                if tries >= _MAX_LOSSES:
                    raise
                again.append((task, tries + 1))
                self._replace(actor)
                hand_out()
                continue
            hand_out()
            yield task, result

    def _add(self) -> None:
        actor = self._make()
        self._starting[actor.__ray_ready__.remote()] = actor

    def _note_start(self, ready: Any) -> None:
        """Take an actor up among those that work, or one more in place of one that was lost."""
        import ray

        actor = self._starting.pop(ready)
        try:
            ray.get(ready)
        except ray.exceptions.RayActorError as error:
            self._failed_starts += 1
            # What was raised in it would be raised in the next one, too.
            if error.actor_init_failed or self._failed_starts > _MAX_LOSSES:
                raise
            self._add()
            return
        self._actors.append(actor)

    def _replace(self, actor: Any) -> None:
        if actor in self._actors:
            import ray

            self._actors.remove(actor)
            ray.kill(actor)
            self._add()


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


def watch(start: Callable[[Any], Any], progress: Progress) -> Any:
    """Start one task that reports its progress, pass the reports on, and return its result.

    Parameters
    ----------
    start : callable
        Given the method to report with (``report.remote(done, total)``), returns the reference of
        a task, not of an actor's method; it ends where this call is interrupted.
    progress : callable
        Told what the task reported last, about twice a second.
    """
    import ray

    board: Any = ray.remote(num_cpus=0)(_Board).remote()
    task = start(board.note)
    seen = None
    with ended([task]):
        while True:
            ready = _wait([task], 0.5)
            last = ray.get(next_ready([board.last.remote()]))
            if last is not None and last != seen:
                progress(*last)
                seen = last
            if ready:
                ray.kill(board)
                return ray.get(task)


@contextlib.contextmanager
def ended(tasks: list[Any]) -> Iterator[None]:
    """End the tasks of these references with the block, those that are done left as they are.

    Without this, the work of a run that is cancelled would go on until its process has ended,
    which takes Prefect half a minute.
    """
    import ray

    try:
        yield
    finally:
        if ray.is_initialized():
            # Ray aborts this process where it is told to cancel a task that has just ended.
            _, left = ray.wait(tasks, num_returns=len(tasks), timeout=0, fetch_local=False)
            for task in left:
                ray.cancel(task, force=True)


def next_ready(references: list[Any]) -> Any:
    """Wait for one of some references, for as long as the cluster is the one that has them.

    Raises
    ------
    ConnectionError
        If the cluster has gone and another one is in its place: Ray would wait for ever. This
        process is disconnected then, so that a retry connects to the new one.
    """
    looked = time.monotonic()
    while True:
        ready = _wait(references, 1.0)
        if ready:
            return ready[0]
        if time.monotonic() - looked > _CHECK_SECONDS:
            _check_cluster()
            looked = time.monotonic()


def _wait(references: list[Any], seconds: float) -> list[Any]:
    """Wait for one of some references, on a thread apart; none where none ends in that time.

    Ray looks after signals while it waits in the main thread, and there loses what their handler
    raises: a run that is cancelled would go on until it is killed.
    """
    import ray

    with ThreadPoolExecutor(1) as thread:
        ready, _ = thread.submit(ray.wait, references, timeout=seconds).result()
    return list(ready)


def _check_cluster() -> None:
    """Refuse to go on where another cluster answers at the address of this process' own.

    Raises
    ------
    ConnectionError
        In that case; this process is disconnected then.
    """
    import ray
    import ray.exceptions

    # Ray aborts the process where its own look at the cluster finds another one, so look apart; no
    # public function tells a cluster's id.
    from ray._private.worker import global_worker
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    try:
        there = GcsClient(address=ray.get_runtime_context().gcs_address).cluster_id
    except (ray.exceptions.RpcError, ConnectionError, TimeoutError):
        # Nobody answers: it may come back, and Ray itself gives up after a minute.
        return
    worker: Any = global_worker
    if there.hex() != worker.gcs_client.cluster_id.hex():
        disconnect()
        raise ConnectionError(
            "the Ray cluster of this run is gone, another is in its place: a retry goes on there."
        )


class _Board:
    """The place where a task notes how far it is."""

    def __init__(self) -> None:
        self._last: tuple[int, int] | None = None

    def note(self, done: int, total: int) -> None:
        self._last = (done, total)

    def last(self) -> tuple[int, int] | None:
        return self._last

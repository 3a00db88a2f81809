"""Independent jobs on the processors of this machine.

Threads suffice: the time goes into BLAS, LAPACK and sparse products, which run without Python's
lock, and the data are shared.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from threadpoolctl import ThreadpoolController

Job = TypeVar("Job")
Result = TypeVar("Result")


def in_parallel(run: Callable[[Job], Result], jobs: Sequence[Job]) -> list[Result]:
    """Return the results of ``run`` for all jobs, in order; a single job runs in this thread."""
    if len(jobs) < 2:
        return [run(job) for job in jobs]
    with ThreadPoolExecutor(_processors()) as pool:
        return list(pool.map(run, jobs))


class _SingleThreadedBlas:
    """Let BLAS use one thread, in the whole process, until the last holder leaves.

    The matrices of one whole are small. Threads inside such products wait for one another longer
    than they work: on two busy cores a graph of 66 variables took 25 times the processor time.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holders = 0
        self._limits: Any = None

    def __enter__(self) -> None:
        with self._lock:
            if self._limits is None:
                self._limits = _libraries().limit(limits=1, user_api="blas")
            self._holders += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._holders -= 1
            if not self._holders and self._limits is not None:
                self._limits.restore_original_limits()
                self._limits = None


@functools.cache
def _libraries() -> ThreadpoolController:
    """What is loaded; looking for it takes a tenth of the time of a small graph."""
    return ThreadpoolController()


# BLAS has one setting per process, so there is one of these.
single_threaded_blas = _SingleThreadedBlas()


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

"""Independent jobs on the processors of this machine.

Threads suffice: the time goes into BLAS, LAPACK and sparse products, which run without Python's
lock, and the data are shared.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


def in_parallel(run: Callable[[Job], Result], jobs: Sequence[Job]) -> list[Result]:
    """Return the results of ``run`` for all jobs, in order; a single job runs in this thread."""
    if len(jobs) < 2:
        return [run(job) for job in jobs]
    with ThreadPoolExecutor(_processors()) as pool:
        return list(pool.map(run, jobs))


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

"""Doing a step once: found by its fingerprint, resumed where it stopped, sealed when it is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from prefect import State
from prefect.logging import get_run_logger

from compute.cluster import Progress, connect, worker_count
from compute.report.provenance import made_on
from compute.settings import ResourceSettings
from storage.locations import Location
from storage.records import digest
from storage.references import SCRATCH, Reference, Step, belongs_to_no_result
from storage.sealing.condemned import clear_condemned, read_condemned
from storage.sealing.damage import Damaged
from tasks.announcing import announce_step
from tasks.progress import step_progress

__all__ = ["RETRIES", "hash_below", "once", "table_content"]


# What was refused, is damaged, or is a fault of the program: another try ends the same way.
_CERTAIN = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    Damaged,
    ImportError,
    LookupError,
    NameError,
    NotImplementedError,
    PermissionError,
    TypeError,
    ValueError,
)


def _may_pass(task: Any, run: Any, state: State[Any]) -> bool:
    """Whether another try may end better."""
    try:
        # In an event loop it would be a coroutine otherwise.
        state.result(_sync=True)  # type: ignore[call-overload]
    except _CERTAIN:
        return False
    except Exception:
        return True
    return True


# More workers than a cluster has.
_EVERY_WORKER = 1 << 20

RETRIES: dict[str, Any] = {
    "retries": 2,
    "retry_delay_seconds": [5, 30],
    # Runs that failed together, as when a store is away, do not come back together.
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": _may_pass,
}
"""How often a step is tried again. What its last try left is found and not done again."""


def once(
    store: str,
    step: Step,
    name: str,
    unit: str,
    work: Callable[[Location, Progress], dict[str, Any]],
    content: Callable[[Location], str],
    upstream: Sequence[str] = (),
    *,
    resources: ResourceSettings | None = None,
) -> Reference:
    """Return the finished step of this fingerprint, doing the work first if there is none.

    `work` is given the step's folder, which may hold what an interrupted run left, and returns the
    summary. `content` gives the content hash of the files that it wrote. `upstream` are the URLs of
    what it reads, for the lineage. With `resources` the summary says what the result was
    ``made_on``.

    Raises
    ------
    CorruptFile
        If the step's record is damaged, so that nobody knows what it should be.
    ValueError
        If what was condemned does not come out as it was sealed, and its readers go on refusing it;
        or if what an earlier version left is not what its record says.
    """
    logger = get_run_logger()
    location = Reference.folder(Location(store), step, name)
    found = Reference.find(location)
    condemned = bool(read_condemned(location))
    if found is not None and not condemned:
        if not found.sha256:
            found = _adopt(found, content)
            logger.info("%s %s was written by an earlier version and is sealed now", step, name)
        logger.info("%s %s is there already", step, name)
        return found
    logger.info("%s %s begins", step, name)
    begun = time.monotonic()
    with step_progress(step, unit) as progress:
        summary = work(location, progress)
        if resources is not None:
            connect()
            summary["made_on"] = made_on(
                workers=worker_count(resources, _EVERY_WORKER),
                threads=max(1, int(resources.cpus)),
                gpus=resources.gpus,
            )
    took = round(time.monotonic() - begun, 3)
    if found is None:
        found = Reference.seal(
            location, content_hash=content(location), seconds=took, summary=summary
        )
        announce_step(found, upstream=upstream)
    elif found.sha256:
        _check_remade(found)
    else:
        found = _adopt(found, content)
    clear_condemned(location)
    for folder in SCRATCH:
        location.delete_folder(folder)
    logger.info("%s %s took %.1f s", step, name, took)
    return found


def _adopt(found: Reference, content: Callable[[Location], str]) -> Reference:
    """Seal what an earlier version left, if its content is still the one of its record."""
    if content(found.location) != found.content_hash:
        raise ValueError(
            f"{found.url} was written by an earlier version and has changed since: delete the "
            "folder and run again."
        )
    return Reference.seal(
        found.location,
        content_hash=found.content_hash,
        seconds=found.seconds,
        summary=found.summary,
    )


def _check_remade(found: Reference) -> None:
    wrong = [error.path for error in found.open().find_damage()]
    if wrong:
        raise ValueError(
            f"{wrong[0]!r} of {found.url} cannot be re-made: it comes out other than it was "
            "written; restore the model, the packages and the number of threads that wrote it, or "
            "delete the folders of this step and of those that follow, and run again."
        )


def hash_below(location: Location, folder: str = "") -> str:
    """SHA-256 over the paths and the bytes of a result's files below a folder, in order of path."""
    paths = sorted(path for path in location.walk(folder) if not belongs_to_no_result(path))
    return digest(part for path in paths for part in (path.encode(), location.get(path)))


def table_content(location: Location) -> str:
    """Content hash of a table, from its receipts."""
    from storage.tables.opening import open_table

    shards = open_table(location).plan.shards
    return digest(location.get(f"receipts/{shard}.json") for shard in shards)

"""Progress of a step: a bar in the terminal, a progress artifact in the Prefect UI."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import cast
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.logging import get_run_logger
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from compute.cluster import Progress as Report
from tasks.terminal import terminal

__all__ = ["step_progress"]

_ARTIFACT_SECONDS = 2.0
_LOG_SECONDS = 30.0


@contextlib.contextmanager
def step_progress(step: str, unit: str) -> Iterator[Report]:
    """Show how far a step is, for the duration of the block.

    Yields
    ------
    callable
        To be told the work done and the whole work, in `unit`.
    """
    logger = get_run_logger()
    artifact = cast(
        UUID,
        create_progress_artifact(0.0, key=f"{step}-progress", description=f"{step}: {unit}"),
    )
    bar = Progress(
        TextColumn("  {task.description:<9}"),
        BarColumn(bar_width=32),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
        console=terminal,
        transient=True,
        disable=not terminal.is_terminal,
    )
    task = bar.add_task(step, total=None)
    sent = logged = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal sent, logged
        bar.update(task, completed=done, total=total)
        now = time.monotonic()
        if now - sent >= _ARTIFACT_SECONDS:
            sent = now
            update_progress_artifact(artifact, progress=100.0 * done / max(1, total))
        if now - logged >= _LOG_SECONDS:
            logged = now
            logger.info("%s: %s of %s %s", step, f"{done:,}", f"{total:,}", unit)

    with bar:
        yield report
    update_progress_artifact(artifact, progress=100.0)

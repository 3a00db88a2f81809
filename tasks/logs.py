"""The logs of Ray's workers in the log of the flow run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from prefect.logging import get_run_logger

from compute.cluster import listening

__all__ = ["worker_logs"]


@contextlib.contextmanager
def worker_logs() -> Iterator[None]:
    """Write what workers print into the log of the flow run, for the duration of the block."""
    logger = get_run_logger()

    def note(line: str) -> None:
        logger.info("%s", line)

    with listening(note):
        yield

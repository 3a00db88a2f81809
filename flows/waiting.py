"""What is waited for before a flow runs, said once the wait is long."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from collections.abc import Callable, Iterator

__all__ = ["waiting_told"]

_SILENT_SECONDS = 5.0


@contextlib.contextmanager
def waiting_told() -> Iterator[Callable[..., None]]:
    """Write what Strata says it is at to stderr, where that is still so after some seconds.

    What is refused at once is told by one sentence alone.

    Yields
    ------
    callable
        What says one thing more.
    """
    log = logging.getLogger("strata")
    before, handler = log.level, _Late()
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    try:
        yield log.info
    finally:
        log.removeHandler(handler)
        log.setLevel(before)
        handler.close()


class _Late(logging.Handler):
    """Writes a record's message unless another one, or the end, comes soon after it."""

    def __init__(self) -> None:
        super().__init__()
        self._timer = threading.Timer(0, lambda: None)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one, later."""
        self._timer.cancel()
        line = f"  {record.getMessage()}\n"
        self._timer = threading.Timer(_SILENT_SECONDS, sys.stderr.write, [line])
        self._timer.daemon = True
        self._timer.start()

    def close(self) -> None:
        """Write no more."""
        self._timer.cancel()
        super().close()

"""What Strata and Ray's workers say while a run goes on, in its log and on the terminal."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator

from prefect.logging import get_run_logger

from compute.cluster import WORKER_MARK, listening
from tasks.terminal import terminal

__all__ = ["run_lines"]

_SAID = logging.getLogger("strata")


@contextlib.contextmanager
def run_lines() -> Iterator[None]:
    """Write what is said into the log of the flow run, for the duration of the block.

    On a terminal, where the log is not shown, what is waited for is said above the bars.
    """
    logger = get_run_logger()

    def said(line: str, level: int = logging.INFO) -> None:
        logger.log(level, "%s", line)
        if terminal.is_terminal and level == logging.INFO:
            terminal.print(f"  {line}", style="dim")

    def worker(line: str) -> None:
        who, mark, told = line.partition(WORKER_MARK)
        if mark:
            said(who + told)
        else:
            logger.info("%s", line)

    handler = _To(said)
    before = _SAID.level, _SAID.propagate
    _SAID.setLevel(logging.INFO)
    _SAID.propagate = False
    _SAID.addHandler(handler)
    try:
        with listening(worker):
            yield
    finally:
        _SAID.removeHandler(handler)
        _SAID.setLevel(before[0])
        _SAID.propagate = before[1]


class _To(logging.Handler):
    """Says each record's message."""

    def __init__(self, say: Callable[[str, int], None]) -> None:
        super().__init__()
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        """Say one."""
        self._say(record.getMessage(), record.levelno)

"""The log of a command that is kept: all that is logged, tracebacks too, in a file.

The terminal is shown one line of what the file has many of.
"""

from __future__ import annotations

import copy
import logging
import re
from pathlib import Path

from tasks.terminal import terminal

__all__ = ["begin_log", "keep_log"]

_FORM = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
_LONGEST = 300
# As they are, and as a repr has them.
_COLOURS = re.compile(r"(\x1b|\\x1b)\[[0-9;]*m")

_log: list[Path] = []


def keep_log(path: Path | None) -> None:
    """Have :func:`begin_log` write to a file, or leave everything on the terminal if None."""
    _log[:] = [] if path is None else [path]


def begin_log() -> None:
    """Write what is logged to the file of this command, once Prefect has set its logging up."""
    import prefect.main  # noqa: F401 - it sets its logging up when it is imported
    from prefect.logging.handlers import PrefectConsoleHandler

    root = logging.getLogger()
    for handler in root.handlers:
        # What Strata itself says is shown by the command, or by the run.
        handler.addFilter(lambda record: record.name != "strata")
        if terminal.is_terminal and isinstance(handler, PrefectConsoleHandler):
            # Above the bars, and not across them.
            handler.console = terminal
    if not _log:
        return
    for handler in root.handlers:
        handler.setFormatter(_OneLine(handler.formatter or logging.Formatter()))
    file = logging.FileHandler(_log.pop(), encoding="utf-8", delay=True)
    file.setFormatter(logging.Formatter(_FORM))
    root.addHandler(file)


class _OneLine(logging.Formatter):
    """A record's first line, as another formatter has it, and no traceback."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        short = copy.copy(record)
        message = _COLOURS.sub("", record.getMessage())
        # A message of Prefect holds others by their repr.
        line = re.split(r"\n|\\n", message, maxsplit=1)[0]
        short.msg, short.args = line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…", None
        short.exc_info = short.exc_text = short.stack_info = None
        return self._inner.format(short)

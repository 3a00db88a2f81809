"""What a command that failed says last: one sentence, after its traceback went to the log."""

from __future__ import annotations

import re
import traceback
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape

from flows.plain_words import plain
from flows.recipe import BadInput
from storage.locations import without_secrets
from storage.sealing.damage import Damaged

__all__ = ["Failure", "failure_of", "refuse", "say_failure"]

err = Console(stderr=True, highlight=False)

_ROOT = Path(__file__).resolve().parent.parent
_ROOMS = tuple(str(_ROOT / room) + "/" for room in ("flows", "tasks", "compute", "storage"))
_FRAME = re.compile(r'^\s*File "([^"]+)", line \d+', re.MULTILINE)
_LONGEST = 600


class Failure(NamedTuple):
    """Why a command failed.

    Attributes
    ----------
    sentence : str
    refused : bool
        Whether it was refused by Strata, with a remedy, and would be again.
    """

    sentence: str
    refused: bool


def refuse(error: Exception) -> None:
    """Say why something was refused, as the last line of the terminal."""
    _say(_plain(error))


def say_failure(error: BaseException, log: Path | None) -> int:
    """Say why a command failed, and give its exit code: 2 where it was refused, 1 otherwise.

    Parameters
    ----------
    log : Path, optional
        Where the traceback goes; to the terminal if there is none.
    """
    if isinstance(error, BadInput):
        refuse(error)
        return 2
    failure = failure_of(error)
    story = "".join(traceback.format_exception(error))
    if log is None:
        err.print(story, markup=False, soft_wrap=True)
    else:
        with log.open("a", encoding="utf-8") as file:
            file.write(story)
        err.print(f"[dim]The traceback is in {escape(str(log))}[/]", soft_wrap=True)
    _say(failure.sentence)
    return 2 if failure.refused else 1


def failure_of(error: BaseException) -> Failure:
    """Why a command failed, whether here or in one of Ray's workers."""
    cause, frames = error, [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    # Ray wraps what a worker raised, and tells where only as text.
    while isinstance(inner := getattr(cause, "cause", None), BaseException):
        frames = _FRAME.findall(str(cause))
        cause = inner
    kind, text = type(cause).__name__, _plain(cause).strip()
    refused = isinstance(cause, ValueError)
    if getattr(cause, "actor_init_failed", False):
        # Of what a worker raised while it started, Ray keeps nothing but text.
        frames = _FRAME.findall(text)
        kind, _, text = text.splitlines()[-1].partition(": ")
        refused = kind == ValueError.__name__
    ours = bool(frames) and str(frames[-1]).startswith(_ROOMS)
    if isinstance(cause, PermissionError | Damaged) or (ours and refused):
        return Failure(text, refused=True)
    first = next((line for line in text.splitlines() if line.strip()), "no reason was given")
    return Failure(
        f"{kind}: {first[:_LONGEST].rstrip('.')}. This is no refusal of what was asked for: what "
        "is done is kept, and the same command goes on where it stopped.",
        refused=False,
    )


def _say(sentence: str) -> None:
    err.print(f"[bold red]error:[/] {escape(sentence)}", soft_wrap=True)


def _plain(error: BaseException) -> str:
    return plain(without_secrets(str(error)))

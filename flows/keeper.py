"""The command `strata`: what computes is kept, so that it ends as it is told to.

Ray, torch and Prefect take signals into their own hands, each its own way, and are deaf to them
while they start; any of them may take the process down. So a command that computes does so in a
child of this process, which imports none of them: it hears the signals, has the child end its flow
run, ends the child if that takes long, clears what it has left, and says how it ended.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from flows.command_notes import CommandNote, goes_on

__all__ = ["main"]

# Commands that may start Ray, or a flow.
_KEPT = ("run", "check", "steer", "doctor", "estimate")
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# What the child has to tell the API of its end; ten seconds are promised for all of it.
_CHILD_SECONDS = 4.0
_LOOK_SECONDS = 0.05
# `timeout` and managers of services send a signal twice; a person does so later.
_TWICE_SECONDS = 1.0
_SHOW_CURSOR = "\r\x1b[2K\x1b[?25h"


def main() -> None:
    """Run the command line: `strata`, or `python -m flows`."""
    words = sys.argv[1:]
    if words[:1] and words[0] in _KEPT:
        sys.exit(_keep(words))
    from flows.cli import main as run_command

    run_command()


def _keep(words: Sequence[str]) -> int:
    """Run a command in a child, and return the exit code: its own, or 128 and a signal's number."""
    heard = _hear()
    read, write = os.pipe()
    note = CommandNote.write(words)
    child = os.fork()
    if child == 0:
        os.close(write)
        if note is not None:
            os.close(note.lock)
        _leave_signals_to_parent()
        from flows.kept import run_kept

        run_kept(read, note)
        # As if this process had been begun so: with whatever ends at exit.
        sys.exit(0)
    os.close(read)
    status = _wait(child, write, heard)
    # Killed here, if it took too long to end as it was told; or by others.
    code = status if status >= 0 else 128 + (heard[0] if heard else -status)
    if code > 128:
        _clear(code - 128, heard, words, note.log if note is not None else None)
    if note is not None:
        note.remove(run_ended=status >= 0)
    return code


def _hear() -> list[int]:
    """Listen to what ends a command; the list grows by what is heard."""
    heard: list[int] = []
    last = -_TWICE_SECONDS

    def note(number: int, _: object) -> None:
        nonlocal last
        before, last = last, time.monotonic()
        if not heard or last - before > _TWICE_SECONDS:
            heard.append(number)

    for number in _SIGNALS:
        # Who has begun this command may have it hear nothing, as `nohup` does.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, note)
    return heard


def _leave_signals_to_parent() -> None:
    """Ignore what a terminal sends to all processes in front of it, and outlast SIGTERM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # Not ignored, which those that are begun here would inherit.
    signal.signal(signal.SIGTERM, lambda *_: None)


def _wait(child: int, write: int, heard: list[int]) -> int:
    """Wait for the child's end, pass on the first signal, and see to it that it does end.

    Returns
    -------
    int
        Its exit code, or the number of the signal that killed it, negative.
    """
    deadline = float("inf")
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if heard and deadline == float("inf"):
            deadline = time.monotonic() + _CHILD_SECONDS
            with contextlib.suppress(BrokenPipeError):
                os.write(write, bytes([heard[0]]))
        if time.monotonic() > deadline or len(heard) > 1:
            os.kill(child, signal.SIGKILL)
        time.sleep(_LOOK_SECONDS)


def _clear(number: int, heard: Sequence[int], words: Sequence[str], log: Path | None) -> None:
    """End and remove what the child has left, and say how it ended, as the last word."""
    from compute.machine.leftovers import clear_leftovers

    clear_leftovers()
    if sys.stderr.isatty():
        sys.stderr.write(_SHOW_CURSOR)
    name = signal.Signals(number).name
    how = f"ended by {'Ctrl-C' if name == 'SIGINT' else name}"
    if not heard:
        how = f"killed by {name}, and not from here"
        if number == signal.SIGKILL:
            how += " (the machine may have run out of memory)"
        if log is not None and log.exists():
            how += f"; its log is {log}"
    remedy = "say it again, and it goes on where it stopped" if goes_on(words) else "say it again"
    sys.stderr.write(f"strata {words[0]}: {how}: {remedy}.\n")


if __name__ == "__main__":
    main()

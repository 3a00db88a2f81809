"""The child that a kept command runs in (:mod:`flows.keeper`)."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import threading
from pathlib import Path

from compute.machine.leftovers import end_processes, owned_folder
from flows.command_notes import CommandNote

__all__ = ["run_kept"]

_ending = threading.Event()


def run_kept(line: int, note: CommandNote | None) -> None:
    """Run the command line until it ends, or until the parent says that it is to.

    Parameters
    ----------
    line : int
        Descriptor on which the parent says the number of the signal that it was told to end by. The
        line ends when the parent does.
    note : CommandNote, optional
        Of this command; it says where tracebacks and the log of the run go, and not to the
        terminal.
    """
    log = note.log if note is not None else None
    threading.Thread(target=_await_end, args=(line,), daemon=True).start()
    _keep_temporary_files()
    from flows.cli import begin
    from flows.current_run import keep_run
    from flows.failures import say_failure
    from flows.run_log import keep_log

    keep_log(log)
    keep_run(note.run if note is not None else None)
    try:
        begin()
    except BaseException as error:
        if _ending.is_set():
            # The other thread ends this process; what was raised here comes of that.
            threading.Event().wait()
        if isinstance(error, SystemExit):
            raise
        sys.exit(say_failure(error, log))


def _keep_temporary_files() -> None:
    """Have what libraries put into the temporary directory go with this process."""
    before = Path(tempfile.gettempdir())
    folder = owned_folder()
    if folder.parent == before:
        own = folder / "tmp"
        own.mkdir(mode=0o700)
        # What dead processes have left is still looked for where it lies.
        os.environ.setdefault("RAY_TMPDIR", str(before))
        os.environ["TMPDIR"] = str(own)
        tempfile.tempdir = None


def _await_end(line: int) -> None:
    """End this process when the parent says so, or has ended.

    Not by an exception in the main thread, which may be anywhere: in Ray, which starts, in a
    download, in a product of matrices.
    """
    told = os.read(line, 1)
    _ending.set()
    from flows.current_run import end_flow_run

    with contextlib.suppress(Exception):
        if told:
            name = signal.Signals(told[0]).name
            by = "Ctrl-C" if name == "SIGINT" else name
            end_flow_run("CANCELLED", f"Ended by {by}; the same command goes on here.")
        else:
            end_flow_run("CRASHED", "The command of this run was killed.")
    if told:
        os._exit(128 + told[0])
    # Nobody is left who would clear this up before the next command, or who reads what the main
    # thread makes of it.
    with contextlib.suppress(Exception):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.dup2(nowhere, sys.stderr.fileno())
        end_processes(owned_folder())
    os._exit(128 + signal.SIGKILL)

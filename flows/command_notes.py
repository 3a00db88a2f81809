"""Notes of the commands that run, by which the next one knows of those that were killed.

A command notes itself before it does anything, holds a lock on its note for as long as it lives,
and removes it however it ends by itself. The kernel gives the lock back when it is killed, so a
note whose lock is free tells of a command that could tell nothing any more.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flows.home import default_home

__all__ = ["CommandNote", "forget_killed", "goes_on", "lost_runs"]

_FOLDER = "commands"
_RUN = ".run"
_LOGS_KEPT = 20
# Commands that keep what they have done, and do not do it again.
_GO_ON = ("run", "doctor")


@dataclass
class CommandNote:
    """The note of a command that runs here, locked.

    Attributes
    ----------
    path : Path
    lock : int
        Descriptor of the file, whose lock ends with it.
    """

    path: Path
    lock: int

    @classmethod
    def write(cls, words: Sequence[str]) -> CommandNote | None:
        """Note a command, given the words after its name; none where nothing can be written."""
        told = {
            "command": shlex.join(["strata", *words]),
            "goes_on": goes_on(words),
            "folder": str(Path.cwd()),
            "begun": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.json"
        try:
            folder = default_home() / _FOLDER
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            _remove_old_logs(folder)
            # Under another name, until it is locked: to others it would be that of a dead one.
            new = folder / f".{name}"
            lock = os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)
            os.write(lock, json.dumps(told).encode())
            new.rename(folder / name)
        except OSError:
            return None
        return cls(folder / name, lock)

    @property
    def log(self) -> Path:
        """Where the command writes its log; it stays when the command has ended."""
        return self.path.with_suffix(".log")

    @property
    def run(self) -> Path:
        """Where the command notes its flow run."""
        return self.path.with_suffix(_RUN)

    def remove(self, *, run_ended: bool) -> None:
        """Remove the note: whoever reads the terminal was told how the command ended.

        Parameters
        ----------
        run_ended : bool
            Whether the command has ended its flow run; otherwise the next one does.
        """
        with contextlib.suppress(OSError):
            self.path.unlink()
            if run_ended:
                self.run.unlink(missing_ok=True)
        os.close(self.lock)


def goes_on(words: Sequence[str]) -> bool:
    """Whether a command, said again, goes on where it was ended."""
    return bool(words) and words[0] in _GO_ON


def forget_killed() -> list[str]:
    """A sentence on each command that was killed and that nobody was told of; then forget it."""
    told = []
    folder = default_home() / _FOLDER
    for path in sorted(folder.glob("*.json")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            lock = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                note = json.loads(os.read(lock, 2**16))
                path.unlink()
                told.append(_sentence(note, path.with_suffix(".log")))
            finally:
                os.close(lock)
    return told


def lost_runs() -> list[Path]:
    """Notes of flow runs whose commands were killed: each file holds the id of one."""
    found = (default_home() / _FOLDER).glob(f"*{_RUN}")
    return [path for path in found if not path.with_suffix(".json").exists()]


def _sentence(note: dict[str, str], log: Path) -> str:
    remedy = (
        "say it again there, and it goes on where it stopped"
        if note["goes_on"]
        else "say it again there"
    )
    logged = f" (its log is {log})" if log.exists() else ""
    return (
        f"`{note['command']}`, begun at {note['begun']} in {note['folder']}, was killed and has "
        f"not ended by itself{logged}: {remedy}."
    )


def _remove_old_logs(folder: Path) -> None:
    """Keep the newest logs, and those of commands that still run or were killed."""
    logs = sorted(path for path in folder.glob("*.log") if not path.with_suffix(".json").exists())
    for path in logs[:-_LOGS_KEPT]:
        path.unlink(missing_ok=True)

"""What a process has outside of itself: a private folder, and processes that end with it.

Ray's sessions hold sockets, logs and spilled objects, and Ray lets every user of the machine into
them; below a folder that only its owner may enter nobody is let in. The owner holds a lock on that
folder for as long as it lives. The kernel gives the lock back however the owner ends, so a folder
whose lock is free is what a dead process has left: the next command ends what still runs for it,
and removes it. Nobody else's lock is free, so nothing of a living process is ever touched.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["MARK", "clear_leftovers", "end_processes", "folder_of_owner", "owned_folder"]

MARK = "STRATA_OWNED_BY"
"""Variable in the environment of processes that end with their owner: the owner's folder."""

_PREFIX = "strata-"
_LOCK = "owner"
# Between the making of a folder and its lock there is an instant in which it looks abandoned.
_UNLOCKED_SECONDS = 60.0
# Who is to end lost its owner, and has nothing to save.
_STOP_SECONDS = 2.0
# A socket's path has at most 107 characters, of which Ray's own names below the folder take 75.
_LONGEST = 107 - 75 - len(f"/{_PREFIX}12345678/")

_own: dict[int, Path] = {}


def owned_folder() -> Path:
    """The folder of this process, made at the first call: mode 0700, gone when the process ends.

    It lies in ``RAY_TMPDIR`` or the temporary directory; in ``/tmp`` where that has a longer name
    than the paths of Ray's sockets allow.
    """
    if os.getpid() not in _own:
        folder, lock = _make()
        _own[os.getpid()] = folder
        atexit.register(_give_up, os.getpid(), folder, lock)
    return _own[os.getpid()]


def folder_of_owner() -> Path | None:
    """The folder of the process that this one works for, or is; None if there is none."""
    found = Path(os.environ[MARK]) if MARK in os.environ else _own.get(os.getpid())
    return found if found is not None and found.is_dir() else None


def clear_leftovers() -> list[Path]:
    """End and remove what dead processes of this user have left.

    Returns
    -------
    list of Path
        The folders that were removed.
    """
    removed = []
    for folder in _temporary_directory().glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError), _abandoned(folder) as abandoned:
            if abandoned:
                end_processes(folder)
                shutil.rmtree(folder, ignore_errors=True)
                removed.append(folder)
    return removed


def end_processes(folder: Path) -> None:
    """End every process of this user that works for the owner of a folder."""
    import psutil

    # What is ended may have begun another one in the same moment.
    while found := [process for process in psutil.process_iter() if _works_for(folder, process)]:
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        _, left = psutil.wait_procs(found, timeout=_STOP_SECONDS)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=_STOP_SECONDS)


def _make() -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_temporary_directory()))
        lock = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # Taken for a leftover in this very moment, and about to be removed.
            os.close(lock)
            continue
        return folder, lock


def _give_up(owner: int, folder: Path, lock: int) -> None:
    # A process that was forked inherits this call, but not what it is about.
    if os.getpid() == owner:
        end_processes(folder)
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


@contextlib.contextmanager
def _abandoned(folder: Path) -> Iterator[bool]:
    """Whether a folder is this user's own, and its owner dead; nobody takes it up meanwhile."""
    found = folder.lstat()
    mine = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    if not mine or found.st_mode & 0o077:
        yield False
        return
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        yield time.time() - found.st_mtime > _UNLOCKED_SECONDS
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield True
    finally:
        os.close(lock)


def _works_for(folder: Path, process: Any) -> bool:
    import psutil

    if process.pid == os.getpid():
        return False
    try:
        if process.uids().real != os.getuid() or process.status() == psutil.STATUS_ZOMBIE:
            return False
        if process.environ().get(MARK) == str(folder):
            return True
        # Ray's agents write their title over their environment, and are known by their logs.
        return process.name().startswith("ray::") and any(
            Path(file.path).is_relative_to(folder) for file in process.open_files()
        )
    except psutil.Error:
        return False


def _temporary_directory() -> Path:
    directory = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    return Path(directory if len(directory) <= _LONGEST else "/tmp")  # noqa: S108

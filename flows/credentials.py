"""Secrets of the services of this machine: made once, kept where their owner alone can read them.

Programs are handed them by the environment, which other users cannot see, and never by arguments,
which they can.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path

from flows.recipe import BadInput

__all__ = ["kept_secret", "new_login", "new_token", "private_folder"]


def new_login() -> str:
    """A login of Prefect's API: a user's name and a password, parted by a colon."""
    return f"strata:{secrets.token_urlsafe(32)}"


def new_token() -> str:
    """A token of Ray: 64 hexadecimal digits."""
    return secrets.token_hex(32)


def private_folder(folder: Path) -> Path:
    """Make a folder that its owner alone may enter, or close one that is there.

    Raises
    ------
    BadInput
        If it belongs to another user.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.stat().st_uid != os.geteuid():
        raise BadInput(f"{folder} belongs to another user: give a folder of yours with --home.")
    folder.chmod(0o700)
    return folder


def kept_secret(path: Path, make: Callable[[], str]) -> str:
    """The secret that a file holds; made and written, for its owner alone, if there is none.

    Raises
    ------
    BadInput
        If the file is empty, a link, or could be read by others.
    """
    with contextlib.suppress(FileExistsError):
        made = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(made, "w") as stream:
            stream.write(make())
    found = path.lstat()
    remedy = "end what uses it with `strata down`, remove the file, and start again."
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
        raise BadInput(f"{path} is no file of yours: {remedy}")
    if found.st_mode & 0o077:
        raise BadInput(f"{path} holds a secret that other users can read: {remedy}")
    secret = path.read_text().strip()
    if not secret:
        raise BadInput(f"{path} holds no secret: {remedy}")
    return secret

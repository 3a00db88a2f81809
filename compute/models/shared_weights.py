"""Weights that several processes of one run on one machine need, and that take long to make."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from compute.machine.leftovers import folder_of_owner

__all__ = ["made_once"]

# Of the disk that is free, what may be taken.
_SHARE_OF_DISK = 0.5


def made_once(what: str, make: Callable[[], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Tensors by name, made by the first process of a run that asks and mapped from a file by all.

    They lie in the private folder of the run, and go with it; where a process belongs to no run of
    this machine, or the disk has no room for them, it makes its own.

    Parameters
    ----------
    what : str
        All that decides them.
    make : callable
    """
    folder = folder_of_owner()
    if folder is None:
        return make()
    path = folder / f"weights-{hashlib.sha256(what.encode()).hexdigest()[:32]}.safetensors"
    with _locked(path.with_suffix(".lock")):
        if not path.exists():
            made = make()
            if not _save(made, path):
                return made
            # From here on the file's pages, which all share, and not this process' own.
            del made
    return dict(load_file(path))


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _save(tensors: dict[str, torch.Tensor], path: Path) -> bool:
    """Write tensors to a file, if the disk has room for them; say whether it had."""
    size = sum(tensor.nbytes for tensor in tensors.values())
    if size > _SHARE_OF_DISK * shutil.disk_usage(path.parent).free:
        return False
    new = path.with_suffix(".new")
    try:
        save_file(tensors, new)
        new.rename(path)
    except (OSError, SafetensorError):
        new.unlink(missing_ok=True)
        return False
    return True

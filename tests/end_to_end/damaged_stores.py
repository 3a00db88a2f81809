"""Seven kinds of damage to one file, each undone again."""

import contextlib
import os
import shutil
from pathlib import Path

import numpy as np

KINDS = ("flip", "truncate", "empty", "swap", "delete", "add", "grow")


@contextlib.contextmanager
def damaged(path: Path, kind: str, seed: int, other: Path | None = None):
    """Damage a file for the duration of the block; yields the files that are wrong now.

    `other` is the file that it is swapped with, of other bytes.
    """
    rng = np.random.default_rng(seed)
    whole = path.read_bytes()
    data = bytearray(whole)
    place = int(rng.integers(len(data)))
    wrong = [path]
    if kind == "flip":
        data[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(data))
    elif kind == "truncate":
        path.write_bytes(whole[:place])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "swap":
        theirs = other.read_bytes()
        assert theirs != whole
        path.write_bytes(theirs)
        other.write_bytes(whole)
        wrong.append(other)
    elif kind == "delete":
        path.unlink()
    elif kind == "grow":
        os.truncate(path, 10 * 2**40)
    else:
        wrong = [path.parent / ["stranger", ".hidden", "half#1", "half.partial"][seed % 4]]
        wrong[0].write_bytes(whole)
    try:
        yield wrong
    finally:
        if kind == "swap":
            other.write_bytes(theirs)
        if kind == "add":
            wrong[0].unlink(missing_ok=True)
        path.write_bytes(whole)


def copied(built, recipe, target: Path) -> Path:
    """A copy of the finished run's store: of its steps and of the artifact."""
    source = Path(recipe.store)
    for step, reference in built.items():
        folder = Path(step, reference.fingerprint)
        shutil.copytree(source / folder, target / folder)
    shutil.copytree(source / "artifacts" / "tiny", target / "artifacts" / "tiny")
    return target

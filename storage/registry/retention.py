"""Which versions are kept, and the removal of what crashed publishers left.

A folder that no record names may belong to a publisher at work. It is collected when nothing has
been written to it for long, by the clock of the store. Since a publisher can be held up for longer
than any bound, both make sure: a collector marks the folder as condemned, *then* looks at the
records, and deletes it only if none names it; a publisher creates its record, *then* looks for the
mark. Whichever comes second sees the other. Marks are never taken back, and no folder's name is
used twice.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from storage.locations import Location, check_name

__all__ = ["Garbage", "Retention", "collect_leftovers", "condemnation", "store_time"]

_PART = re.compile(r".*#\d+")
# The age of what another process has removed meanwhile: too young to be touched.
_GONE = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Retention:
    """What to keep beside the versions that have an alias.

    Attributes
    ----------
    keep_last : int
        The newest versions, rejected ones included; at least 1.
    keep_days : float or None
        Versions younger than this; None sets no such bound.
    """

    keep_last: int = 30
    keep_days: float | None = None

    def __post_init__(self) -> None:
        if self.keep_last < 1:
            raise ValueError(f"keep_last = {self.keep_last} must be at least 1.")
        if self.keep_days is not None and self.keep_days < 0:
            raise ValueError(f"keep_days = {self.keep_days} must not be negative.")

    def expired(
        self,
        created_at: dict[int, datetime],
        aliased: Collection[int],
        now: Callable[[], datetime],
    ) -> list[int]:
        """The versions that are not kept, ascending; `now` is asked only if ages matter."""
        old = sorted(created_at)[: -self.keep_last]
        if self.keep_days is not None and old:
            bound = now() - timedelta(days=self.keep_days)
            old = [version for version in old if created_at[version] < bound]
        return [version for version in old if version not in aliased]


@dataclass(frozen=True)
class Garbage:
    """What was removed, or would be: versions by artifact, and folders that no version uses."""

    versions: dict[str, tuple[int, ...]] = field(default_factory=dict)
    leftovers: tuple[str, ...] = ()


def condemnation(folder: str) -> str:
    """Path of the mark that a version's folder is, or was, being deleted as a leftover."""
    return f"condemned/{folder}"


def store_time(location: Location) -> datetime:
    """The time by the clock of the store below an artifact's folder."""
    return location.now("clock")


def collect_leftovers(
    location: Location,
    in_use: Callable[[], Collection[str]],
    grace: timedelta,
    *,
    dry_run: bool,
) -> list[str]:
    """Remove folders that no record names and to which nothing was written for `grace`.

    Parameters
    ----------
    location : Location
        The artifact's folder.
    in_use : callable
        The folders that records name, as the store knows it at the time of the call.
    grace : timedelta
        By the clock of the store.
    dry_run : bool
        Remove nothing, only tell.

    Returns
    -------
    list of str
        Paths of the folders, and of what store clients that were killed have left.
    """
    folders = [name for name in location.children("versions") if _is_safe(name)]
    used = in_use()
    strays = [folder for folder in folders if folder not in used]
    parts = _parts(location)
    if not strays and not parts:
        return []
    bound = store_time(location) - grace
    old = [folder for folder in strays if _last_written(location, folder) < bound]
    if not dry_run:
        for folder in old:
            location.put(condemnation(folder), b"")
        used = in_use() if old else used
        old = [folder for folder in old if folder not in used]
        for folder in old:
            location.delete_folder(f"versions/{folder}")
    leftovers = [f"versions/{folder}" for folder in old]
    for path, written in parts.items():
        if written < bound:
            leftovers.append(path)
            if not dry_run:
                location.delete_folder(path)
    return leftovers


def _parts(location: Location) -> dict[str, datetime]:
    """Files named "<name>#<n>", when last written: a store client was killed before it named them.

    The client hides them from its own listings; object stores have none.
    """
    root = location.local_path
    if root is None:
        return {}
    parts = (path for path in _below(root) if _PART.fullmatch(path.name) and path.is_file())
    return {part.relative_to(root).as_posix(): _modified(part) for part in parts}


def _last_written(location: Location, folder: str) -> datetime:
    path = f"versions/{folder}"
    root = location.local_path
    if root is None:
        return location.last_modified(path) or _GONE
    # On a disk also what a store client is writing at this moment, which it does not list.
    return max(_modified(part) for part in (root / path, *_below(root / path)))


def _below(folder: Path) -> Iterator[Path]:
    """All files and folders below a folder that others may be deleting."""
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            yield Path(place, name)


def _modified(path: Path) -> datetime:
    try:
        return datetime.fromtimestamp(path.lstat().st_mtime, UTC)
    except FileNotFoundError:
        return _GONE


def _is_safe(name: str) -> bool:
    try:
        return bool(check_name(name))
    except ValueError:
        return False

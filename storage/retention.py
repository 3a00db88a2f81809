"""Which versions are kept, and the removal of the others and of what crashed publishers left.

A version with an alias is never removed. Numbers are never given out again: a removed version keeps
its record and gets a mark beside it. The mark is made first, then the aliases are looked at once
more, and only then is the folder deleted; a promotion does these two in the opposite order, so that
whichever comes second sees the other and backs off.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from storage.ledgers import Ledger
from storage.locations import AlreadyExists, Location

__all__ = ["Garbage", "Retention", "StoredVersion", "collect_leftovers", "remove_versions"]

_PART = re.compile(r".*#\d+")
_STAMP = "%Y%m%dT%H%M%SZ"


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


@dataclass(frozen=True)
class StoredVersion:
    """What retention needs to know of a version."""

    version: int
    folder: str
    created_at: datetime


@dataclass(frozen=True)
class Garbage:
    """What was removed, or would be: versions by artifact, and folders that no version uses."""

    versions: dict[str, tuple[int, ...]] = field(default_factory=dict)
    leftovers: tuple[str, ...] = ()


def expired(
    versions: Collection[StoredVersion],
    aliased: Collection[int],
    retention: Retention,
    now: datetime,
) -> list[StoredVersion]:
    """The versions that the policy does not keep, oldest first."""
    ordered = sorted(versions, key=lambda stored: stored.version)
    old = ordered[: -retention.keep_last]
    if retention.keep_days is not None:
        bound = now - timedelta(days=retention.keep_days)
        old = [stored for stored in old if stored.created_at < bound]
    return [stored for stored in old if stored.version not in aliased]


def remove_versions(
    location: Location,
    marks: Ledger,
    versions: Collection[StoredVersion],
    aliased: Callable[[], Collection[int]],
    grace: timedelta,
    now: datetime,
) -> list[int]:
    """Remove versions one by one, unless an alias has come to point at them.

    A version that is marked already is being removed by another collector; it is taken over only
    if its mark is older than `grace`, when that collector must have died.

    Returns
    -------
    list of int
        The versions that were removed.
    """
    removed = []
    for stored in versions:
        try:
            marks.append(stored.version, {"version": stored.version, "at": now.isoformat()})
        except AlreadyExists:
            marked_at = datetime.fromisoformat(marks.entries()[stored.version]["at"])
            if marked_at > now - grace:
                continue
        if stored.version in aliased():
            location.delete(marks.path(stored.version))
            continue
        location.delete_folder(f"versions/{stored.folder}")
        removed.append(stored.version)
    return removed


def collect_leftovers(
    location: Location, in_use: Collection[str], grace: timedelta, now: datetime, *, dry_run: bool
) -> list[str]:
    """Remove folders that no record refers to, and return their paths.

    Such a folder may belong to a publisher at work, unless nothing was written to it for `grace`.
    """
    leftovers = []
    for folder in location.children("versions"):
        if folder not in in_use and _last_sign_of_life(location, folder) < now - grace:
            leftovers.append(f"versions/{folder}")
            if not dry_run:
                location.delete_folder(f"versions/{folder}")
    root = location.local_path
    if root is not None:
        # A store client that is killed between writing a file and naming it leaves "<name>#<n>".
        bound = (now - grace).timestamp()
        for part in sorted(root.rglob("*#*")):
            if _PART.fullmatch(part.name) and part.is_file() and part.stat().st_mtime < bound:
                leftovers.append(part.relative_to(root).as_posix())
                if not dry_run:
                    part.unlink(missing_ok=True)
    return leftovers


def _last_sign_of_life(location: Location, folder: str) -> datetime:
    written = location.last_modified(f"versions/{folder}")
    try:
        begun = datetime.strptime(folder.partition("-")[0], _STAMP).replace(tzinfo=UTC)
    except ValueError:
        begun = datetime.min.replace(tzinfo=UTC)
    return begun if written is None else max(begun, written)

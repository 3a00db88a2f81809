"""Checking what a store holds, byte by byte: tables, and the folders of steps.

What is wrong is named by file; :mod:`storage.care.mending` undoes it, and
:mod:`storage.care.shelf_doctor` looks at published versions.
"""

from __future__ import annotations

import os
import stat
import uuid
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import unquote

from storage.locations import BadObject, Location, NotFound
from storage.records import digest, read_json
from storage.references import RECORD_FILES, Reference, Step, belongs_to_no_result
from storage.sealing.condemned import CONDEMNED_FILE, read_condemned
from storage.sealing.damage import CorruptFile, CorruptShard, NotSealed
from storage.sealing.seals import SealedFolder
from storage.tables.opening import open_table
from storage.tables.sealed import (
    SealedTable,
    TablePlan,
    TableWriter,
    array_sum,
    receipt,
    seal_record,
    shard_object,
    shard_objects,
    small_file,
)

__all__ = [
    "NO_FILE",
    "STEPS",
    "Damage",
    "Finding",
    "FolderFindings",
    "Kind",
    "everything",
    "examine",
    "examine_strangers",
    "find_damage",
    "is_stray",
    "read_receipt",
    "step_folders",
    "stray",
]

STEPS: tuple[str, ...] = get_args(Step)
NO_FILE = "neither a file nor a folder; the rest is looked at when it is away"

Damage = CorruptShard | CorruptFile

Kind = Literal["damaged", "stranger", "unsealed", "condemned", "left over", "unfinished"]
"""What may be wrong with a file; the last two are no damage."""


@dataclass(frozen=True)
class Finding:
    """One file, or one array of a shard, that is not as it should be.

    Attributes
    ----------
    url : str
        The folder.
    path : str
        The file below it.
    kind : str
        ``damaged`` (also: missing), ``stranger`` (no step wrote it), ``unsealed`` (an earlier
        version wrote it and sealed nothing), ``condemned`` (waits to be made again), ``left over``
        (of a writer that was killed), or ``unfinished`` (a step that did not end).
    reason : str
        What is wrong, in a few words.
    shard : CorruptShard, optional
        Where the file is a shard of a table.
    """

    url: str
    path: str
    kind: Kind
    reason: str
    shard: CorruptShard | None = field(default=None, compare=False)

    @property
    def is_damage(self) -> bool:
        """Whether somebody has to do something."""
        return self.kind not in ("left over", "unfinished")

    def __str__(self) -> str:
        place = f"{self.path!r} in {self.url}"
        if self.shard is not None:
            place = f"{self.shard.array!r} of shard {self.shard.shard} in {self.url} ({self.path})"
        return f"{place}: {self.reason}"


# ---- one table ---------------------------------------------------------------------------------


def find_damage(table: SealedTable[Any]) -> list[Damage]:
    """Check every byte of a table; return what is wrong, one entry per array of a shard or file.

    Reads all rows once, one array of one shard at a time.
    """
    plan, location = table.plan, table.location
    found: list[Damage] = _wrong_zarr_metadata(location, plan)
    seal = seal_record(plan, small_file(location, "plan.json"), table.content_hash)
    if small_file(location, "sealed.json") != seal:
        found.append(CorruptFile("sealed.json", "not what was sealed", location.url))
    return found + _wrong_rows(table)


def _wrong_rows(table: SealedTable[Any], damaged: Container[str] | None = None) -> list[Damage]:
    """Check all rows against the receipts; `damaged` are files known to be, if a seal tells."""
    plan, location = table.plan, table.location
    found: list[Damage] = []
    recorded: list[bytes] = []
    differing: dict[int, dict[str, str]] = {}
    unreadable: set[int] = set()
    for shard in plan.shards:
        recorded.append(read_receipt(location, shard))
        sums: dict[str, str] = {}
        start = shard * plan.shard_rows
        for column in plan.columns:
            try:
                values = table.rows(column.path, start, start + plan.shard_size(shard))
            except CorruptShard as error:
                found.append(error)
                unreadable.add(shard)
            except CorruptFile:
                unreadable.add(shard)
            else:
                sums[column.path] = array_sum(values)
        if receipt(plan, shard, sums) != recorded[-1]:
            differing[shard] = sums
    whole = digest(recorded) == table.content_hash
    if damaged is None:
        # Receipts that are as they were sealed say that it is the rows that are not.
        suspects = {f"receipts/{shard}.json" for shard in ([] if whole else differing)}
    else:
        suspects = {path for s in plan.shards if (path := f"receipts/{s}.json") in damaged}
    for shard, sums in differing.items():
        path = f"receipts/{shard}.json"
        if path in suspects:
            continue
        try:
            expected = read_json(recorded[shard])["sha256"]
            wrong = [array for array, value in sums.items() if expected[array] != value]
        except (ValueError, KeyError, TypeError):
            found.append(CorruptFile(path, "not a receipt", location.url))
            continue
        found += [CorruptShard(array, shard, "digest", location.url) for array in wrong]
    found += [CorruptFile(path, "digest", location.url) for path in sorted(suspects)]
    if not whole and not suspects:
        found.append(CorruptFile("sealed.json", "not of these receipts", location.url))
    return found


def read_receipt(location: Location, shard: int) -> bytes:
    """A shard's receipt as it lies there; nothing where there is none."""
    try:
        return small_file(location, f"receipts/{shard}.json")
    except (FileNotFoundError, BadObject):
        return b""


def _wrong_zarr_metadata(location: Location, plan: TablePlan) -> list[Damage]:
    """Compare what stands beside the arrays with what the plan would have written there."""
    expected = Location(f"memory://{uuid.uuid4().hex}")
    TableWriter(expected, plan).prepare()
    found: list[Damage] = []
    for path in sorted(path for path in expected.walk("rows") if path.endswith("zarr.json")):
        try:
            same = read_json(small_file(location, path)) == read_json(expected.get(path))
            reason = "not what was planned"
        except (NotFound, BadObject, ValueError) as error:
            same, reason = False, type(error).__name__
        if not same:
            found.append(CorruptFile(path, reason, location.url))
    expected.delete_folder("")
    return found


# ---- one step ----------------------------------------------------------------------------------


def step_folders(store: Location) -> list[Location]:
    """The folders of all steps of a store, finished or not."""
    return [store / step / name for step in STEPS for name in store.children(step)]


def examine(location: Location) -> list[Finding]:
    """Check every byte of a step's folder, and that there is nothing else; in order of path.

    Reads everything once; of tables, one array of one shard at a time.

    Raises
    ------
    OSError
        If the folder cannot be read.
    """
    if is_stray(location):
        return [stray(location)]
    stored = dict(everything(location))
    found = FolderFindings(location)
    for path, kind in stored.items():
        if kind == "other":
            found.add(path, "damaged", NO_FILE)
    if found:
        # Nothing else is looked at: a pipe or a link to a device would hold up whoever reads it.
        return found.sorted()
    try:
        reference = Reference.find(location)
    except CorruptFile:
        reference = None
    else:
        if reference is None:
            reason = "the step did not end; `strata run` goes on with it"
            found.add(RECORD_FILES[0], "unfinished", reason)
            return found.sorted()
    if reference is not None and not reference.sha256:
        found.add(RECORD_FILES[0], "unsealed", "an earlier version wrote it, and sealed nothing")
        reference = None
    else:
        _examine_records(location, found)
    files = {} if reference is None else reference.open().files
    for damage in SealedFolder(location, files).find_damage():
        hidden = "; its rows are looked at when it is whole" if damage.path == "plan.json" else ""
        found.add(damage.path, "damaged", damage.reason + hidden)
    try:
        if read_condemned(location):
            found.add(CONDEMNED_FILE, "condemned", "notes damage that was not undone yet")
    except CorruptFile as error:
        found.add(CONDEMNED_FILE, "damaged", error.reason)
    shards = _examine_table(location, found, reference)
    if reference is not None:
        examine_strangers(stored, files, shards, found)
    return found.sorted()


def is_stray(location: Location) -> bool:
    """Whether what should be a folder is something else, which only a disk can have."""
    folder = location.local_path
    return folder is not None and not folder.is_dir()


def stray(location: Location) -> Finding:
    """What is said of it."""
    above, name = location.url.rsplit("/", 1)
    return Finding(above, unquote(name), "stranger", "no folder of a step or an artifact")


class FolderFindings:
    """What was found in a folder, at most one entry for each file."""

    def __init__(self, location: Location) -> None:
        self._url = location.url
        self._found: dict[str, Finding] = {}

    def __contains__(self, path: object) -> bool:
        return path in self._found

    def __bool__(self) -> bool:
        return bool(self._found)

    def add(self, path: str, kind: Kind, reason: str, shard: CorruptShard | None = None) -> None:
        """Note a file; what is known of a shard takes the place of what is known of its file."""
        if path not in self._found or shard is not None:
            self._found[path] = Finding(self._url, path, kind, reason, shard)

    def sorted(self) -> list[Finding]:
        """All of it, in order of path."""
        return [self._found[path] for path in sorted(self._found)]


def _examine_records(location: Location, found: FolderFindings) -> None:
    for name in RECORD_FILES:
        try:
            Reference.read(location, name)
        except NotFound:
            found.add(name, "damaged", "missing")
        except CorruptFile as error:
            found.add(name, "damaged", error.reason)


def _examine_table(
    location: Location, found: FolderFindings, sealed: Reference | None
) -> set[str] | None:
    """Check a table's rows, and its metadata where no seal does; return all shards it has.

    None where its plan cannot be read, so that its shards are not known.
    """
    if "plan.json" in found:
        return None
    content_hash = None
    if "sealed.json" in found and sealed is not None:
        content_hash = sealed.content_hash
    try:
        table = open_table(location, content_hash=content_hash)
    except NotSealed:
        if sealed is not None or location.url.rsplit("/", 2)[-2] not in ("extract", "encode"):
            return set()
        found.add("sealed.json", "damaged", "missing")
        return None
    except CorruptFile as error:
        found.add(error.path, "damaged", error.reason)
        return None
    for damage in _wrong_rows(table, found) if sealed is not None else find_damage(table):
        if isinstance(damage, CorruptFile):
            found.add(damage.path, "damaged", damage.reason)
        else:
            path = shard_object(table.plan, damage.array, damage.shard)
            found.add(path, "damaged", damage.reason, damage)
    return set(shard_objects(table.plan))


def examine_strangers(
    stored: Mapping[str, str],
    files: Mapping[str, Any],
    shards: set[str] | None,
    found: FolderFindings,
) -> None:
    """Add what lies in a folder and is none of its files or shards; None for unknown shards."""
    known = {*files, *(shards or ()), *RECORD_FILES, CONDEMNED_FILE}
    folders = {parent for path in known for parent in _parents(path)}
    for path, kind in stored.items():
        if path in known or (shards is None and path.startswith("rows/")):
            continue
        if kind == "folder" and path in folders:
            # Of files that are missing, which is said of them.
            continue
        if belongs_to_no_result(path):
            found.add(path, "left over", "a writer was killed before it had removed this")
        else:
            found.add(path, "stranger", f"a {kind} that no step wrote: take it away")


def _parents(path: str) -> Iterator[str]:
    while "/" in path:
        path = path.rsplit("/", 1)[0]
        yield path


def everything(location: Location) -> Iterator[tuple[str, str]]:
    """Paths below a folder and what lies there: ``file``, ``folder`` (an empty one) or ``other``.

    On a disk also what a store would not list, and links are not followed.
    """
    root = location.local_path
    if root is None:
        for path in location.walk():
            yield path, "file"
        return

    def refuse(error: OSError) -> None:
        raise error

    for folder, names, files in os.walk(root, onerror=refuse):
        here = Path(folder)
        entries = [*files, *(name for name in names if (here / name).is_symlink())]
        for entry in entries:
            kind = "file" if stat.S_ISREG((here / entry).lstat().st_mode) else "other"
            yield (here / entry).relative_to(root).as_posix(), kind
        if not names and not files and here != root:
            yield here.relative_to(root).as_posix(), "folder"

"""How a version comes into being: fill a folder of one's own, then claim the next number for it.

The claim creates one record and is the only instant at which anything becomes visible. A publisher
that dies before it leaves a folder that nothing refers to; of two publishers that want the same
number exactly one gets it, and the other takes the next.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from random import SystemRandom
from typing import Any

from pydantic import ValidationError

from storage.ledgers import LATEST
from storage.locations import AlreadyExists, Location
from storage.manifests import (
    MANIFEST_FILE,
    SUMS_FILE,
    UNHASHED_FILES,
    FileEntry,
    LevelEntry,
    Manifest,
    Status,
    check_files,
    check_plain,
    content_hash,
    first_reason,
    hash_file,
)
from storage.records import digest
from storage.shelves import Contents, Shelf, VersionRecord

__all__ = ["Draft", "Page", "publish"]

Page = Callable[[int, int | None], bytes]
"""A file written when the version has its number: called with that and with the parent's."""

CARD_FILE = "README.md"
_WRITERS = 8
_MAX_SPREAD = 5


class Draft:
    """A version without its number: checked contents and what is said of them.

    Raises
    ------
    ValueError
        If a path, a level or any other field is not what the format allows.
    """

    def __init__(
        self,
        name: str,
        files: Mapping[str, bytes | Path],
        *,
        fingerprint: str,
        lineage: Mapping[str, Any],
        levels: Sequence[LevelEntry | Mapping[str, Any]],
        metrics: Mapping[str, Any],
        counts: Mapping[str, int],
        status: Status,
        rejections: Sequence[str],
        created_at: datetime | None,
        pages: Mapping[str, Page] | None = None,
    ) -> None:
        if not files:
            raise ValueError("files is empty: an artifact has at least one file.")
        self.pages = dict(pages or {})
        for path in self.pages:
            if path not in UNHASHED_FILES or path in files:
                raise ValueError(
                    f"page {path!r} must be one of {', '.join(sorted(UNHASHED_FILES))} that files "
                    "lacks: other content has to be known before the version has its number."
                )
        check_files([*files, *self.pages])
        if status == "published" and rejections:
            raise ValueError("rejections are given for a published version: set status='rejected'.")
        self.files = files
        entries = _check_levels(levels, files)
        self._fields: dict[str, Any] = {
            "name": name,
            "status": status,
            "rejections": tuple(rejections),
            "created_at": created_at or datetime.now(UTC).replace(microsecond=0),
            "fingerprint": fingerprint,
            "lineage": check_plain(lineage, field="lineage"),
            "levels": entries,
            "metrics": check_plain(metrics, field="metrics"),
            "counts": _counts(files, entries) | dict(counts),
        }
        self.manifest(version=1, parent=None, files={})

    @property
    def fingerprint(self) -> str:
        """The fingerprint of what the content follows from."""
        return str(self._fields["fingerprint"])

    @property
    def status(self) -> Status:
        """Published or rejected."""
        status: Status = self._fields["status"]
        return status

    def manifest(
        self, *, version: int, parent: int | None, files: Mapping[str, FileEntry]
    ) -> Manifest:
        """The manifest under a number."""
        try:
            return Manifest(
                **self._fields,
                version=version,
                parent=parent,
                files=dict(files),
                content_hash=content_hash(files),
            )
        except ValidationError as error:
            raise ValueError(first_reason(error)) from None


def publish(shelf: Shelf, draft: Draft, parent: int | str | None) -> VersionRecord:
    """Publish a draft, or find the version that has its fingerprint and status already."""
    contents = shelf.contents()
    existing = contents.find(draft.fingerprint, draft.status)
    if existing is not None:
        return existing
    _parent(shelf, contents, parent)
    folder = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{os.urandom(6).hex()}"
    try:
        entries = _upload(shelf.folder(folder), draft.files)
        record = _claim(shelf, folder, draft, entries, parent)
    except BaseException:
        _discard(shelf, folder)
        raise
    if record.folder != folder:
        _discard(shelf, folder)
    return record


def _upload(target: Location, files: Mapping[str, bytes | Path]) -> dict[str, FileEntry]:
    def upload(path: str) -> FileEntry:
        return _put(target, path, files[path])

    with ThreadPoolExecutor(_WRITERS) as pool:
        return dict(zip(files, pool.map(upload, files)))


def _claim(
    shelf: Shelf,
    folder: str,
    draft: Draft,
    entries: Mapping[str, FileEntry],
    parent: int | str | None,
) -> VersionRecord:
    """Give the folder the next free number; whoever creates the record has it."""
    target = shelf.folder(folder)
    lost = 0
    while True:
        begun = time.monotonic()
        # If the number that follows from these contents can still be claimed, then there is no
        # version that was not looked at for the fingerprint.
        contents = shelf.contents()
        version = max(contents.records, default=0) + 1
        existing = contents.find(draft.fingerprint, draft.status)
        if existing is not None:
            return existing
        files = dict(entries)
        follows = _parent(shelf, contents, parent)
        for path, render in draft.pages.items():
            files[path] = _put(target, path, render(version, follows))
        if CARD_FILE not in files:
            from storage.exports.model_card import model_card

            card = model_card(draft.manifest(version=version, parent=follows, files=files))
            files[CARD_FILE] = _put(target, CARD_FILE, card)
        manifest = draft.manifest(version=version, parent=follows, files=files)
        data = manifest.to_bytes()
        _put(target, SUMS_FILE, manifest.checksums())
        _put(target, MANIFEST_FILE, data)
        shared = VersionRecord.model_fields.keys() & Manifest.model_fields.keys()
        record = VersionRecord(
            folder=folder,
            manifest_sha256=digest(data),
            **{field: getattr(manifest, field) for field in shared},
        )
        try:
            shelf.ledger.append(version, record.model_dump(mode="json"))
        except AlreadyExists:
            # Of many publishers one wins each round; the others' work is lost. Spreading them out,
            # the more the longer it goes on, keeps the number of rounds near that of publishers.
            lost += 1
            longest = (time.monotonic() - begun) * 2 ** min(lost, _MAX_SPREAD)
            time.sleep(SystemRandom().uniform(0, longest))
            continue
        return record


def _discard(shelf: Shelf, folder: str) -> None:
    """Remove a folder of this publisher, unless it has become a version after all."""
    try:
        if all(record.folder != folder for record in shelf.contents().records.values()):
            shelf.location.delete_folder(f"versions/{folder}")
    except OSError:
        # The store is out of reach; garbage collection will find the folder.
        return


def _put(target: Location, path: str, source: bytes | Path) -> FileEntry:
    entry = hash_file(source)
    target.put(path, source)
    folder = target.local_path
    if folder is not None:
        # On the platter before a record may refer to it.
        descriptor = os.open(folder / path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    return entry


def _parent(shelf: Shelf, contents: Contents, parent: int | str | None) -> int | None:
    if parent is None:
        return None
    if parent == LATEST:
        return shelf.target(LATEST, contents)
    return shelf.select(parent, contents).version


def _check_levels(
    levels: Sequence[LevelEntry | Mapping[str, Any]], files: Mapping[str, bytes | Path]
) -> tuple[LevelEntry, ...]:
    try:
        entries = tuple(LevelEntry.model_validate(level) for level in levels)
    except ValidationError as error:
        raise ValueError(f"levels: {first_reason(error)}") from None
    folders = {path.split("/")[1] for path in files if path.startswith("dictionaries/")}
    named = {entry.name for entry in entries}
    if folders != named:
        raise ValueError(
            f"levels are {sorted(named)}, but the files hold dictionaries of {sorted(folders)}: "
            "give one dictionary for each level."
        )
    return entries


def _counts(files: Mapping[str, bytes | Path], levels: Sequence[LevelEntry]) -> dict[str, int]:
    counts = {"levels": len(levels), "concepts": sum(entry.n_concepts for entry in levels)}
    for kind in ("nodes", "edges"):
        source = files.get(f"graph/{kind}.parquet")
        if source is not None:
            import pyarrow as pa
            import pyarrow.parquet as pq

            reader = pa.BufferReader(source) if isinstance(source, bytes) else source
            try:
                counts[kind] = int(pq.read_metadata(reader).num_rows)
            except (pa.ArrowException, OSError) as error:
                reason = str(error).splitlines()[0]
                raise ValueError(
                    f"graph/{kind}.parquet is not a readable Parquet file ({reason})."
                ) from None
    return counts

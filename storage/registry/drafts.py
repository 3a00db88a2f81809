"""How a version comes into being: fill a folder of one's own, then claim the next number for it.

The claim creates one record and is the only instant at which anything becomes visible. A publisher
that dies before it leaves a folder that nothing refers to; of two publishers that want the same
number exactly one gets it, and the other takes the next. Before and after the claim the publisher
makes sure that all files are there and that no collector has taken the folder for a leftover
(:mod:`storage.registry.retention`); if one has, everything begins anew in another folder.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from random import SystemRandom
from typing import Any, TypedDict

from obstore.exceptions import BaseError
from pydantic import ValidationError

from storage.locations import AlreadyExists, Location
from storage.records import digest
from storage.registry.ledgers import LATEST, CorruptArtifact
from storage.registry.manifests import (
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
from storage.registry.quality_gates import QualityGate, failures
from storage.registry.shelves import Contents, Shelf, VersionRecord
from storage.registry.versions import open_version

__all__ = ["CollectedMeanwhile", "Details", "Draft", "Page", "publish"]

Page = Callable[[int, int | None], bytes]
"""A file written when the version has its number: called with that and with the parent's."""

CARD_FILE = "README.md"
_WRITERS = 8
_MAX_SPREAD = 5
_MOST_FOLDERS = 5


class CollectedMeanwhile(RuntimeError):
    """Collectors took every folder away before it had become a version."""


class Details(TypedDict, total=False):
    """What is said of a version besides its name, its files and its fingerprint.

    Attributes
    ----------
    lineage : mapping, optional
        Plain JSON: model, weights_hash, data_hash, settings, code_commit, packages, upstream.
    levels : sequence of LevelEntry or mapping
        The levels; each has its dictionary at ``dictionaries/<level name>/``.
    metrics, counts : mapping, optional
        Plain JSON. Numbers of levels, concepts, nodes and edges are counted where not given.
    status : str
        Published, unless it says otherwise; ``rejected`` versions are kept and readable, but never
        become `latest`.
    rejections : sequence of str
        Why a version is rejected, one sentence each.
    gates : sequence of QualityGate
        Bars for `metrics` and for those of the levels; a version that fails one is published as
        rejected, with the reasons.
    parent : int, str or None
        The version that this one follows: a number, an alias, or None for none; by default the
        latest.
    created_at : datetime, optional
        With a time zone; now, by default.
    pages : mapping of str to callable, optional
        ``report.html`` or ``README.md`` as functions of the version's number and its parent's,
        for pages that name them. Where several publish at once, a page may be asked for again
        with another number; the last one is kept.
    """

    lineage: Mapping[str, Any] | None
    levels: Sequence[LevelEntry | Mapping[str, Any]]
    metrics: Mapping[str, Any] | None
    counts: Mapping[str, int] | None
    status: Status
    rejections: Sequence[str]
    gates: Sequence[QualityGate]
    parent: int | str | None
    created_at: datetime | None
    pages: Mapping[str, Page] | None


class Draft:
    """A version without its number: checked contents and what is said of them.

    Raises
    ------
    ValueError
        If a path, a level or any other field is not what the format allows.
    TypeError
        If something else is said of it.
    """

    def __init__(
        self, name: str, files: Mapping[str, bytes | Path], fingerprint: str, details: Details
    ) -> None:
        unknown = sorted(details.keys() - Details.__annotations__.keys())
        if unknown:
            raise TypeError(f"{unknown[0]!r} is nothing that can be said of a version.")
        if not files:
            raise ValueError("files is empty: an artifact has at least one file.")
        self.pages = dict(details.get("pages") or {})
        for path in self.pages:
            if path not in UNHASHED_FILES or path in files:
                raise ValueError(
                    f"page {path!r} must be one of {', '.join(sorted(UNHASHED_FILES))} that files "
                    "lacks: other content has to be known before the version has its number."
                )
        check_files([*files, *self.pages])
        self.files = files
        status, rejections = _verdict(details)
        levels = _check_levels(details.get("levels", ()), files)
        self._fields: dict[str, Any] = {
            "name": name,
            "status": status,
            "rejections": rejections,
            "created_at": details.get("created_at") or datetime.now(UTC).replace(microsecond=0),
            "fingerprint": fingerprint,
            "lineage": check_plain(details.get("lineage") or {}, field="lineage"),
            "levels": levels,
            "metrics": check_plain(details.get("metrics") or {}, field="metrics"),
            "counts": _counts(files, levels) | dict(details.get("counts") or {}),
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
        self,
        *,
        version: int,
        parent: int | None,
        files: Mapping[str, FileEntry],
        created_at: datetime | None = None,
    ) -> Manifest:
        """The manifest under a number; with `created_at`, as of a version that was published."""
        try:
            return Manifest(
                **self._fields | ({} if created_at is None else {"created_at": created_at}),
                version=version,
                parent=parent,
                files=dict(files),
                content_hash=content_hash(files),
            )
        except ValidationError as error:
            raise ValueError(first_reason(error)) from None

    def late_files(self, manifest: Manifest) -> dict[str, bytes]:
        """The files that tell the version's number: the pages, and the model card if none is given.

        Parameters
        ----------
        manifest : Manifest
            That of the version, with or without these files.
        """
        late = {
            path: render(manifest.version, manifest.parent) for path, render in self.pages.items()
        }
        if CARD_FILE not in self.files and CARD_FILE not in late:
            from storage.exports.model_card import model_card

            late[CARD_FILE] = model_card(manifest)
        return late


def publish(shelf: Shelf, draft: Draft, parent: int | str | None) -> VersionRecord:
    """Publish a draft, or find the version that has its fingerprint and status already.

    Raises
    ------
    CollectedMeanwhile
        If collectors take every folder away before it is a version.
    """
    damaged: set[int] = set()
    for _ in range(_MOST_FOLDERS):
        contents = shelf.contents()
        standing = _standing(shelf, draft, contents, damaged)
        if standing is not None:
            return standing
        _parent(shelf, contents, parent)
        claim = _Claim(shelf, draft, parent, damaged)
        try:
            entries = _upload(claim.target, draft.files)
            record = claim.make(entries)
        except BaseException as error:
            collected = isinstance(error, OSError | BaseError) and claim.is_collected()
            if not claim.uncertain:
                claim.discard()
            if collected and not claim.uncertain:
                continue
            raise
        if record is None or record.folder != claim.folder:
            claim.discard()
        if record is not None:
            return record
    raise CollectedMeanwhile(
        f"{shelf.location.url}: {_MOST_FOLDERS} folders were taken for leftovers while they were "
        "being filled: let whoever collects garbage wait longer (grace)."
    )


def _standing(
    shelf: Shelf, draft: Draft, contents: Contents, damaged: set[int]
) -> VersionRecord | None:
    """The version that has the draft's fingerprint and status, verified and if need be mended.

    One that can not be mended is added to `damaged`; it stays as it is, for the draft to follow.
    """
    record = contents.find(draft.fingerprint, draft.status)
    if record is None or record.version in damaged:
        return None
    if _problems(shelf, record) is not None:
        # An error: something is in the way that is no file, or the version is being removed.
        with contextlib.suppress(OSError, BaseError):
            _mend(shelf, draft, record)
        if _problems(shelf, record) is not None:
            damaged.add(record.version)
            return None
    return record


def _problems(shelf: Shelf, record: VersionRecord) -> CorruptArtifact | None:
    try:
        open_version(
            shelf.folder(record.folder), shelf.reference(record), record.manifest_sha256
        ).verify()
    except CorruptArtifact as error:
        return error
    return None


def _mend(shelf: Shelf, draft: Draft, record: VersionRecord) -> None:
    """Put the draft's files in the place of damaged ones, where they are what was published."""
    target, reference = shelf.folder(record.folder), shelf.reference(record)
    try:
        manifest = open_version(target, reference, record.manifest_sha256).manifest
    except CorruptArtifact:
        manifest = _remade(draft, record)
        if digest(manifest.to_bytes()) != record.manifest_sha256:
            return
        _put(target, MANIFEST_FILE, manifest.to_bytes())
    found = _problems(shelf, record)
    bad = () if found is None else found.files
    ours: dict[str, bytes | Path] = {**draft.files, SUMS_FILE: manifest.checksums()}
    if set(bad) & manifest.files.keys() - draft.files.keys():
        ours |= draft.late_files(manifest)
    for path in bad:
        if path == SUMS_FILE or (
            path in ours and hash_file(ours[path]) == manifest.files.get(path)
        ):
            _put(target, path, ours[path])
        elif path not in manifest.files:
            target.delete_folder(path)


def _remade(draft: Draft, record: VersionRecord) -> Manifest:
    """The manifest that a version has if it was published from this draft."""
    files = {path: hash_file(source) for path, source in draft.files.items()}
    said: dict[str, Any] = {
        "version": record.version,
        "parent": record.parent,
        "created_at": record.created_at,
    }
    late = draft.late_files(draft.manifest(**said, files=files))
    return draft.manifest(
        **said, files=files | {path: hash_file(data) for path, data in late.items()}
    )


def _upload(target: Location, files: Mapping[str, bytes | Path]) -> dict[str, FileEntry]:
    def upload(path: str) -> FileEntry:
        return _put(target, path, files[path])

    with ThreadPoolExecutor(_WRITERS) as pool:
        return dict(zip(files, pool.map(upload, files)))


@dataclass
class _Claim:
    """The way of one folder to the next free number; whoever creates the record has it.

    Attributes
    ----------
    uncertain : bool
        Whether the record may have been created without an answer that said so; the folder must
        then be left for collectors to judge.
    """

    shelf: Shelf
    draft: Draft
    parent: int | str | None
    damaged: set[int]
    folder: str = field(
        default_factory=lambda: f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{os.urandom(6).hex()}"
    )
    uncertain: bool = False

    @property
    def target(self) -> Location:
        """The folder."""
        return self.shelf.folder(self.folder)

    def make(self, entries: Mapping[str, FileEntry]) -> VersionRecord | None:
        """The record; or that of another publisher's version; None if the folder was collected."""
        lost = 0
        while True:
            begun = time.monotonic()
            # If the number that follows from these contents can still be claimed, then there is no
            # version that was not looked at for the fingerprint.
            contents = self.shelf.contents()
            standing = _standing(self.shelf, self.draft, contents, self.damaged)
            if standing is not None:
                return standing
            manifest = self._written(contents, entries)
            # Not in every round: what happens later is found after the claim, at the cost of a
            # number.
            if not lost and (self.is_collected() or not self._is_whole(manifest)):
                return None
            record = _record(self.folder, manifest, contents)
            try:
                self.uncertain = True
                self.shelf.records.append(
                    record.model_dump(mode="json"), after=contents.last, origin=contents.first
                )
            except AlreadyExists:
                self.uncertain = False
                # Of many publishers one wins each round; the others' work is lost. Spreading them
                # out, the more the longer it goes on, keeps the rounds near as few as publishers.
                lost += 1
                longest = (time.monotonic() - begun) * 2 ** min(lost, _MAX_SPREAD)
                time.sleep(SystemRandom().uniform(0, longest))
                continue
            # First the mark: a collector that has not made one by now will see the record.
            if self.is_collected() or not self._is_whole(manifest):
                self.shelf.retract(record.version, reason="collected while it was published")
                return None
            return record

    def is_collected(self) -> bool:
        """Whether a collector has taken the folder for a leftover."""
        return self.shelf.is_condemned(self.folder)

    def discard(self) -> None:
        """Remove the folder, which did not become a version."""
        try:
            self.shelf.location.delete_folder(f"versions/{self.folder}")
        except (OSError, BaseError):
            # The store is out of reach; garbage collection will find the folder.
            return

    def _written(self, contents: Contents, entries: Mapping[str, FileEntry]) -> Manifest:
        """The manifest under the next number, written with all files that depend on the number."""
        said: dict[str, Any] = {
            "version": len(contents.records) + 1,
            "parent": _parent(self.shelf, contents, self.parent),
        }
        files = dict(entries)
        for path, data in self.draft.late_files(self.draft.manifest(**said, files=files)).items():
            files[path] = _put(self.target, path, data)
        manifest = self.draft.manifest(**said, files=files)
        _put(self.target, SUMS_FILE, manifest.checksums())
        _put(self.target, MANIFEST_FILE, manifest.to_bytes())
        return manifest

    def _is_whole(self, manifest: Manifest) -> bool:
        lengths = {path: entry.bytes for path, entry in manifest.files.items()}
        lengths[SUMS_FILE] = len(manifest.checksums())
        lengths[MANIFEST_FILE] = len(manifest.to_bytes())
        return self.target.sizes() == lengths


def _record(folder: str, manifest: Manifest, contents: Contents) -> VersionRecord:
    shared = VersionRecord.model_fields.keys() & Manifest.model_fields.keys()
    published = manifest.status == "published"
    return VersionRecord(
        folder=folder,
        manifest_sha256=digest(manifest.to_bytes()),
        latest=manifest.version if published else contents.newest_published,
        changes=contents.state.number,
        **{key: getattr(manifest, key) for key in shared},
    )


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
        return shelf.latest(contents)
    return shelf.select(parent).version


def _verdict(details: Details) -> tuple[Status, tuple[str, ...]]:
    """Whether the version is published or rejected, and why it is rejected."""
    status, rejections = details.get("status", "published"), details.get("rejections", ())
    levels = [_level_metrics(level) for level in details.get("levels", ())]
    failed = failures(details.get("gates", ()), details.get("metrics") or {}, levels)
    if failed:
        return "rejected", (*rejections, *failed)
    if status == "published" and rejections:
        raise ValueError("rejections are given for a published version: set status='rejected'.")
    return status, tuple(rejections)


def _level_metrics(level: LevelEntry | Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    if isinstance(level, Mapping):
        return str(level.get("name")), level.get("metrics") or {}
    return level.name, level.metrics


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

"""The registry of published concept artifacts: immutable, numbered, atomic, without a lock server.

A version is a folder that nobody changes after it is published, and one record in a ledger that
makes it visible::

    <registry>/<name>/versions/<folder>/…            manifest.json and everything that it lists
    <registry>/<name>/records/00000007.json          version 7 is <folder>, and its digest
    <registry>/<name>/aliases/<alias>/00000002.json  the second move of an alias
    <registry>/<name>/removed/00000003.json          version 3 has been removed

The publisher fills a folder of its own and then creates the next record. That creation is the one
instant at which the version comes into being: a publisher that dies before it leaves a folder that
nothing refers to, and of two publishers exactly one gets a number. ``ARTIFACT.md`` is the normative
description of the format.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from storage.ledgers import CorruptArtifact, Ledger
from storage.locations import AlreadyExists, Location, check_name
from storage.manifests import (
    MANIFEST_FILE,
    SUMS_FILE,
    ArtifactReference,
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
from storage.retention import (
    Garbage,
    Retention,
    StoredVersion,
    collect_leftovers,
    expired,
    remove_versions,
)
from storage.signatures import BadSignature, Keyring
from storage.versions import Artifact, open_version

__all__ = [
    "AliasMove",
    "AliasMoved",
    "Artifact",
    "ArtifactReference",
    "BadSignature",
    "CorruptArtifact",
    "Garbage",
    "LevelEntry",
    "Manifest",
    "Registry",
    "Retention",
    "UnknownArtifact",
    "UnknownVersion",
    "VersionRecord",
]

LATEST = "latest"
_WRITERS = 8


class UnknownArtifact(KeyError):
    """The registry has no published version under this name."""

    def __str__(self) -> str:
        return str(self.args[0])


class UnknownVersion(UnknownArtifact):
    """The artifact has no such version or alias, or the version has been removed."""


class AliasMoved(RuntimeError):
    """An alias does not point where the caller expected it to."""


class VersionRecord(BaseModel):
    """The record that makes a version visible: where it lies and the digest of its manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    version: int
    folder: str
    status: Status
    fingerprint: str
    content_hash: str
    manifest_sha256: str
    created_at: datetime
    parent: int | None
    rejections: tuple[str, ...] = ()


class AliasMove(BaseModel):
    """One move of an alias; a version of None ends it. `newest` is the newest version by then."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    alias: str
    version: int | None
    previous: int | None
    newest: int
    moved_at: datetime
    reason: str = ""


class Registry:
    """Published artifacts below one URL.

    Parameters
    ----------
    url : str
        A local folder or a URL that :class:`storage.locations.Location` takes.
    keyring : Keyring, optional
        Keys to sign with and to trust; by default those of the environment.
    """

    def __init__(self, url: str | Path, *, keyring: Keyring | None = None) -> None:
        self.location = Location(str(url))
        self._keyring = Keyring.from_environment() if keyring is None else keyring
        self._ledgers: dict[str, Ledger] = {}

    def __repr__(self) -> str:
        return f"Registry({self.url!r})"

    @property
    def url(self) -> str:
        """The registry's URL."""
        return self.location.url

    # ---- publishing ----------------------------------------------------------------------------

    def publish(
        self,
        name: str,
        files: Mapping[str, bytes | Path],
        *,
        fingerprint: str,
        lineage: Mapping[str, Any] | None = None,
        levels: Sequence[LevelEntry | Mapping[str, Any]] = (),
        metrics: Mapping[str, Any] | None = None,
        counts: Mapping[str, int] | None = None,
        status: Status = "published",
        rejections: Sequence[str] = (),
        parent: int | str | None = LATEST,
        created_at: datetime | None = None,
    ) -> ArtifactReference:
        """Publish files as the next version of an artifact, whole or not at all.

        A fingerprint that is published already, with the same status, is not published again: the
        existing version is returned. Any number of publishers may run at once on one name.

        Parameters
        ----------
        name : str
            Name of the artifact.
        files : mapping of str to bytes or Path
            Contents by path inside the version's folder; a Path is a local file.
        fingerprint : str
            Fingerprint of all that the content follows from.
        lineage : mapping, optional
            Plain JSON: model, weights_hash, data_hash, settings, code_commit, packages, upstream.
        levels : sequence of LevelEntry or mapping
            The levels; each has its dictionary at ``dictionaries/<level name>/``.
        metrics, counts : mapping, optional
            Plain JSON. Numbers of levels, concepts, nodes and edges are counted where not given.
        status : str
            ``rejected`` versions are kept and readable, but never become `latest`.
        rejections : sequence of str
            Why a version is rejected, one sentence each.
        parent : int, str or None
            The version that this one follows: a number, an alias, or None for none.
        created_at : datetime, optional
            With a time zone; now, by default.

        Raises
        ------
        ValueError
            If a name, a path, a level or any other field is not what the format allows.
        UnknownVersion
            If there is no such parent.
        """
        check_name(name, field="artifact name")
        if not files:
            raise ValueError("files is empty: an artifact has at least one file.")
        check_files(files)
        level_entries = _check_levels(levels, files)
        draft: dict[str, Any] = {
            "name": name,
            "status": status,
            "rejections": tuple(rejections),
            "created_at": created_at or datetime.now(UTC).replace(microsecond=0),
            "fingerprint": fingerprint,
            "lineage": check_plain(lineage or {}, field="lineage"),
            "levels": level_entries,
            "metrics": check_plain(metrics or {}, field="metrics"),
            "counts": _counts(files, level_entries) | dict(counts or {}),
        }
        if status == "published" and rejections:
            raise ValueError("rejections are given for a published version: set status='rejected'.")
        probe = _manifest(draft, version=1, parent=None, files={})
        existing = self._by_fingerprint(name, probe)
        if existing is not None:
            return existing
        self._parent(name, parent)
        folder = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{os.urandom(6).hex()}"
        try:
            entries = self._upload(name, folder, files)
            return self._claim(name, folder, draft, entries, parent)
        except BaseException:
            self._discard(name, folder)
            raise

    def _upload(
        self, name: str, folder: str, files: Mapping[str, bytes | Path]
    ) -> dict[str, FileEntry]:
        target = self._version_location(name, folder)

        def upload(path: str) -> FileEntry:
            source = files[path]
            entry = hash_file(source)
            target.put(path, source)
            _flush(target, path)
            return entry

        with ThreadPoolExecutor(_WRITERS) as pool:
            return dict(zip(files, pool.map(upload, files)))

    def _claim(
        self,
        name: str,
        folder: str,
        draft: Mapping[str, Any],
        entries: Mapping[str, FileEntry],
        parent: int | str | None,
    ) -> ArtifactReference:
        """Give the folder the next free number; whoever creates the record has it."""
        target = self._version_location(name, folder)
        while True:
            records = self._records(name)
            number = max(records, default=0) + 1
            manifest = _manifest(
                draft, version=number, parent=self._parent(name, parent), files=entries
            )
            existing = self._by_fingerprint(name, manifest)
            if existing is not None:
                self._discard(name, folder)
                return existing
            data = manifest.to_bytes()
            target.put(SUMS_FILE, manifest.checksums())
            target.put(MANIFEST_FILE, data)
            _flush(target, SUMS_FILE)
            _flush(target, MANIFEST_FILE)
            record = VersionRecord(
                folder=folder,
                manifest_sha256=digest(data),
                **{
                    key: getattr(manifest, key)
                    for key in VersionRecord.model_fields
                    if key in Manifest.model_fields
                },
            )
            try:
                self._ledger(name, "records").append(number, record.model_dump(mode="json"))
            except AlreadyExists:
                continue
            return self._reference(record)

    def _discard(self, name: str, folder: str) -> None:
        """Remove a folder of this publisher, unless it has become a version after all."""
        try:
            if all(record.folder != folder for record in self._records(name).values()):
                self._named(name).delete_folder(f"versions/{folder}")
        except OSError:
            # The store is out of reach; garbage collection will find the folder.
            return

    # ---- reading -------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Names of all artifacts with a version, sorted."""
        return [name for name in self._folders() if self._ledger(name, "records").numbers()]

    def versions(self, name: str, *, status: Status | None = None) -> list[ArtifactReference]:
        """References of all versions that are still there, oldest first.

        Raises
        ------
        UnknownArtifact
            If the registry has no artifact of this name.
        """
        records = self._known_records(name)
        return [
            self._reference(record)
            for record in self._alive(name, records).values()
            if status in (None, record.status)
        ]

    def resolve(self, name: str, version: int | str = LATEST) -> ArtifactReference:
        """The reference of a version, given by number, alias or ``latest``.

        Raises
        ------
        UnknownVersion
            If there is no such version or alias.
        """
        records = self._known_records(name)
        return self._reference(self._select(name, records, version))

    def load(
        self, name: str, version: int | str = LATEST, *, verify: bool | None = None
    ) -> Artifact:
        """Open a version; what it holds is read when it is asked for.

        Every file is verified when it is read. With ``verify=True`` all of them are verified now,
        and that is the default for a registry on this machine; on an object store it would fetch
        the whole version, and is done on request.

        Raises
        ------
        UnknownVersion
            If there is no such version or alias.
        CorruptArtifact
            If a file is damaged, missing or not listed; the message names every such file.
        """
        records = self._known_records(name)
        record = self._select(name, records, version)
        artifact = open_version(
            self._version_location(name, record.folder),
            self._reference(record),
            record.manifest_sha256,
        )
        if verify if verify is not None else self.location.local_path is not None:
            artifact.verify()
        return artifact

    # ---- aliases -------------------------------------------------------------------------------

    def aliases(self, name: str) -> dict[str, int]:
        """Where every alias points, `latest` included."""
        records = self._known_records(name)
        found = {}
        for alias in [LATEST, *self._named(name).children("aliases")]:
            target = self._alias_target(name, records, alias)
            if target is not None:
                found[alias] = target
        return found

    def promote(
        self,
        name: str,
        version: int | str = LATEST,
        alias: str = "production",
        *,
        expected: int | None = None,
        reason: str = "",
    ) -> AliasMove:
        """Point an alias at a version; readers see the old target or the new one.

        `latest` can be moved too: it then stays there until the next version is published.

        Parameters
        ----------
        name, version : str, int or str
            What the alias shall point at; the version may itself be given by an alias.
        alias : str
            The alias, created if it does not exist.
        expected : int, optional
            Move only if the alias points at this version now.
        reason : str
            Kept in the alias's history.

        Raises
        ------
        AliasMoved
            If the alias does not point at `expected`.
        UnknownVersion
            If there is no such version.
        ValueError
            If the version is rejected, or if the alias reads like a version number.
        """
        records = self._known_records(name)
        record = self._select(name, records, version)
        if record.status == "rejected":
            reasons = "; ".join(record.rejections) or "no reason given"
            raise ValueError(
                f"{name} version {record.version} was rejected ({reasons}): no alias may point at "
                "it."
            )
        move = self._move_alias(name, alias, record.version, expected=expected, reason=reason)
        # Garbage collection marks a version first and looks at the aliases afterwards; looking here
        # in the opposite order, one of the two always sees the other.
        if record.version not in self._alive(name, {record.version: record}):
            self._move_alias(name, alias, move.previous, reason="the version was being removed")
            raise UnknownVersion(f"{name} version {record.version} is being removed.")
        return move

    def withdraw(self, name: str, alias: str, *, reason: str = "") -> AliasMove:
        """End an alias; its history stays. `latest` then follows the newest version again.

        Raises
        ------
        UnknownVersion
            If there is no such alias.
        """
        if alias not in self.aliases(name):
            raise UnknownVersion(f"{name} has no alias {alias!r}.")
        return self._move_alias(name, alias, None, reason=reason)

    def _move_alias(
        self,
        name: str,
        alias: str,
        version: int | None,
        *,
        expected: int | None = None,
        reason: str,
    ) -> AliasMove:
        ledger = self._ledger(name, f"aliases/{_check_alias(alias)}")
        while True:
            last = max(ledger.numbers(), default=0)
            records = self._known_records(name)
            previous = self._alias_target(name, records, alias)
            if expected is not None and previous != expected:
                raise AliasMoved(f"{alias} of {name} points at {previous}, not at {expected}.")
            move = AliasMove(
                alias=alias,
                version=version,
                previous=previous,
                newest=max(records),
                moved_at=datetime.now(UTC),
                reason=reason,
            )
            try:
                ledger.append(last + 1, move.model_dump(mode="json"))
            except AlreadyExists:
                continue
            return move

    def history(self, name: str, alias: str) -> list[AliasMove]:
        """All moves of an alias, oldest first; for `latest` these include every publication.

        Raises
        ------
        UnknownVersion
            If there is no such alias.
        """
        records = self._known_records(name)
        moves = [AliasMove.model_validate(e) for e in self._alias_entries(name, alias)]
        if alias != LATEST:
            if not moves:
                raise UnknownVersion(f"{name} has no alias {alias!r}.")
            return moves
        published = [record for record in records.values() if record.status == "published"]
        steps: list[tuple[int, int, VersionRecord | AliasMove]] = [
            *((record.version, 0, record) for record in published),
            *((move.newest, 1 + i, move) for i, move in enumerate(moves)),
        ]
        history: list[AliasMove] = []
        for _, _, step in sorted(steps, key=lambda item: item[:2]):
            previous = history[-1].version if history else None
            if isinstance(step, AliasMove):
                history.append(step.model_copy(update={"previous": previous}))
            else:
                history.append(
                    AliasMove(
                        alias=LATEST,
                        version=step.version,
                        previous=previous,
                        newest=step.version,
                        moved_at=step.created_at,
                        reason="published",
                    )
                )
        return history

    # ---- housekeeping --------------------------------------------------------------------------

    def collect_garbage(
        self,
        name: str | None = None,
        *,
        retention: Retention | None = None,
        grace: timedelta = timedelta(hours=24),
        dry_run: bool = False,
    ) -> Garbage:
        """Remove the versions that a policy does not keep, and what crashed publishers left.

        Parameters
        ----------
        name : str, optional
            One artifact; all of them by default.
        retention : Retention, optional
            The policy; without one no version is removed.
        grace : timedelta
            A folder that no record refers to is removed if nothing was written to it for this long.
        dry_run : bool
            Remove nothing, only tell.
        """
        now = datetime.now(UTC)
        versions: dict[str, tuple[int, ...]] = {}
        leftovers: list[str] = []
        for each in [name] if name is not None else self._folders():
            location, records = self._named(each), self._records(each)
            alive = self._alive(each, records)
            present = set(location.children("versions"))
            stored = {
                number: StoredVersion(number, record.folder, record.created_at)
                for number, record in records.items()
            }

            def aliased(each: str = each) -> set[int]:
                return set(self.aliases(each).values())

            old = [
                stored[number]
                for number, record in records.items()
                if number not in alive and record.folder in present
            ]
            if retention is not None and records:
                old += expired([stored[number] for number in alive], aliased(), retention, now)
            if dry_run:
                versions[each] = tuple(item.version for item in old)
            else:
                # Marks can be taken back, so that a cached one may be another than the one stored.
                marks = Ledger(location, "removed", self._keyring)
                versions[each] = tuple(remove_versions(location, marks, old, aliased, grace, now))
            in_use = {record.folder for record in records.values()}
            found = collect_leftovers(location, in_use, grace, now, dry_run=dry_run)
            leftovers += [f"{each}/{path}" for path in found]
        return Garbage({k: v for k, v in versions.items() if v}, tuple(leftovers))

    def _folders(self) -> list[str]:
        """Names of all folders that are, or were to become, artifacts."""
        found = []
        for name in self.location.children():
            try:
                found.append(check_name(name))
            except ValueError:
                continue
        return found

    # ---- inside --------------------------------------------------------------------------------

    def _named(self, name: str) -> Location:
        return self.location / check_name(name, field="artifact name")

    def _version_location(self, name: str, folder: str) -> Location:
        return self._named(name) / "versions" / check_name(folder, field="version folder")

    def _ledger(self, name: str, folder: str) -> Ledger:
        key = f"{check_name(name, field='artifact name')}/{folder}"
        if key not in self._ledgers:
            self._ledgers[key] = Ledger(self._named(name), folder, self._keyring)
        return self._ledgers[key]

    def _records(self, name: str) -> dict[int, VersionRecord]:
        """Records of all versions ever published, by number, ascending."""
        ledger = self._ledger(name, "records")
        records = {}
        for number, entry in ledger.entries().items():
            try:
                record = VersionRecord.model_validate(entry)
                check_name(record.folder, field="version folder")
            except (ValidationError, ValueError) as error:
                where = f"{name}/{ledger.path(number)}"
                raise CorruptArtifact(
                    f"{where} is no version record: {first_reason(error)}", (where,)
                ) from None
            if (record.name, record.version) != (name, number):
                where = f"{name}/{ledger.path(number)}"
                raise CorruptArtifact(f"{where} speaks of another version.", (where,))
            records[number] = record
        return records

    def _known_records(self, name: str) -> dict[int, VersionRecord]:
        records = self._records(name)
        if not records:
            raise UnknownArtifact(f"registry {self.url} has no artifact {name!r}.")
        return records

    def _alive(self, name: str, records: Mapping[int, VersionRecord]) -> dict[int, VersionRecord]:
        removed = set(self._ledger(name, "removed").numbers())
        return {number: record for number, record in records.items() if number not in removed}

    def _by_fingerprint(self, name: str, manifest: Manifest) -> ArtifactReference | None:
        for record in self._alive(name, self._records(name)).values():
            if (record.fingerprint, record.status) == (manifest.fingerprint, manifest.status):
                return self._reference(record)
        return None

    def _parent(self, name: str, parent: int | str | None) -> int | None:
        if parent is None:
            return None
        records = self._records(name)
        if parent == LATEST:
            return self._alias_target(name, records, LATEST)
        return self._select(name, records, parent).version

    def _select(
        self, name: str, records: Mapping[int, VersionRecord], version: int | str
    ) -> VersionRecord:
        number = version if isinstance(version, int) else _version_number(version)
        if number is None:
            _check_alias(str(version))
            number = self._alias_target(name, records, str(version))
            if number is None:
                raise UnknownVersion(f"{name} has no alias {version!r}.")
        alive = self._alive(name, records)
        if number not in alive:
            state = "has been removed" if number in records else "does not exist"
            raise UnknownVersion(f"{name} version {number} {state}.")
        return alive[number]

    def _alias_entries(self, name: str, alias: str) -> Iterable[Mapping[str, Any]]:
        _check_alias(alias)
        return self._ledger(name, f"aliases/{alias}").entries().values()

    def _alias_target(
        self, name: str, records: Mapping[int, VersionRecord], alias: str
    ) -> int | None:
        """Where an alias points; `latest` follows the newest published version by itself."""
        entries = list(self._alias_entries(name, alias))
        move = AliasMove.model_validate(entries[-1]) if entries else None
        if alias == LATEST:
            published = (
                number
                for number, record in self._alive(name, records).items()
                if record.status == "published"
            )
            newest = max(published, default=None)
            if move is None or move.version is None:
                return newest
            return newest if newest is not None and newest > move.newest else move.version
        return None if move is None else move.version

    def _reference(self, record: VersionRecord) -> ArtifactReference:
        return ArtifactReference(
            registry=self.url,
            url=self._version_location(record.name, record.folder).url,
            **record.model_dump(exclude={"folder", "manifest_sha256", "created_at"}),
        )


def _manifest(
    draft: Mapping[str, Any],
    *,
    version: int,
    parent: int | None,
    files: Mapping[str, FileEntry],
) -> Manifest:
    try:
        return Manifest(
            **draft,
            version=version,
            parent=parent,
            files=dict(files),
            content_hash=content_hash(files),
        )
    except ValidationError as error:
        raise ValueError(first_reason(error)) from None


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


def _flush(location: Location, path: str) -> None:
    """Bring a file on a local disk to the platter before a record may refer to it."""
    folder = location.local_path
    if folder is not None:
        descriptor = os.open(folder / path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _version_number(text: str) -> int | None:
    digits = text.removeprefix("v")
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= 8 else None


def _check_alias(alias: str) -> str:
    check_name(alias, field="alias")
    if _version_number(alias) is not None:
        raise ValueError(f"alias {alias!r} reads like a version number: choose a word.")
    return alias

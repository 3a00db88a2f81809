"""What a registry keeps under one name: records of versions, their removals, and aliases."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pydantic import BaseModel, ConfigDict, ValidationError

from storage.ledgers import LATEST, CorruptArtifact, Ledger
from storage.locations import AlreadyExists, Location, check_name
from storage.manifests import ArtifactReference, Status, first_reason
from storage.retention import (
    Retention,
    StoredVersion,
    collect_leftovers,
    expired,
    remove_versions,
)
from storage.signatures import Keyring

__all__ = [
    "AliasMove",
    "AliasMoved",
    "Shelf",
    "UnknownArtifact",
    "UnknownVersion",
    "VersionRecord",
]


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


@dataclass(frozen=True)
class Contents:
    """What a shelf held at one moment.

    Attributes
    ----------
    records : dict of int to VersionRecord
        Records of all versions ever published, by number, ascending.
    removed : frozenset of int
        Versions that have been removed since.
    """

    records: dict[int, VersionRecord]
    removed: frozenset[int]

    @property
    def alive(self) -> dict[int, VersionRecord]:
        """Records of the versions that are still there."""
        return {n: record for n, record in self.records.items() if n not in self.removed}

    def find(self, fingerprint: str, status: Status) -> VersionRecord | None:
        """The version that has this fingerprint and status, if there is one."""
        for record in self.alive.values():
            if (record.fingerprint, record.status) == (fingerprint, status):
                return record
        return None


class Shelf:
    """The versions and aliases of one artifact.

    Parameters
    ----------
    registry : Location
        The registry's folder.
    name : str
        Name of the artifact.
    keyring : Keyring
        Keys to sign with and to trust.
    """

    def __init__(self, registry: Location, name: str, keyring: Keyring) -> None:
        self.name = check_name(name, field="artifact name")
        self.location = registry / name
        self.ledger = Ledger(self.location, "records", keyring)
        self._registry = registry
        self._keyring = keyring
        self._alias_ledgers: dict[str, Ledger] = {}

    # ---- versions ------------------------------------------------------------------------------

    def contents(self) -> Contents:
        """What the shelf holds now.

        Raises
        ------
        CorruptArtifact
            If a record is damaged or speaks of another version.
        """
        removed = frozenset(self._marks().numbers())
        records = {}
        for number, entry in self.ledger.entries().items():
            where = f"{self.name}/{self.ledger.path(number)}"
            try:
                record = VersionRecord.model_validate(entry)
                check_name(record.folder, field="version folder")
            except (ValidationError, ValueError) as error:
                reason = first_reason(error)
                raise CorruptArtifact(f"{where} is no version record: {reason}", (where,)) from None
            if (record.name, record.version) != (self.name, number):
                raise CorruptArtifact(f"{where} speaks of another version.", (where,))
            records[number] = record
        return Contents(records, removed)

    def known_contents(self) -> Contents:
        """The same, or :class:`UnknownArtifact` if nothing was ever published."""
        contents = self.contents()
        if not contents.records:
            raise UnknownArtifact(f"registry {self._registry.url} has no artifact {self.name!r}.")
        return contents

    def select(self, version: int | str, contents: Contents) -> VersionRecord:
        """The record of a version that is there, by number or alias, or :class:`UnknownVersion`."""
        number = version if isinstance(version, int) else _version_number(version)
        if number is None:
            number = self.target(str(version), contents)
            if number is None:
                raise UnknownVersion(f"{self.name} has no alias {version!r}.")
        if number not in contents.alive:
            state = "has been removed" if number in contents.records else "does not exist"
            raise UnknownVersion(f"{self.name} version {number} {state}.")
        return contents.records[number]

    def folder(self, name: str) -> Location:
        """Where a version's files lie."""
        return self.location / "versions" / check_name(name, field="version folder")

    def reference(self, record: VersionRecord) -> ArtifactReference:
        """The reference by which steps pass a version on."""
        return ArtifactReference(
            registry=self._registry.url,
            url=self.folder(record.folder).url,
            **record.model_dump(exclude={"folder", "manifest_sha256", "created_at"}),
        )

    # ---- aliases -------------------------------------------------------------------------------

    def target(self, alias: str, contents: Contents) -> int | None:
        """Where an alias points; `latest` follows the newest published version by itself."""
        moves = self._moves(alias)
        move = moves[-1] if moves else None
        if alias != LATEST:
            return None if move is None else move.version
        published = (n for n, record in contents.alive.items() if record.status == "published")
        newest = max(published, default=None)
        if move is None or move.version is None:
            return newest
        return newest if newest is not None and newest > move.newest else move.version

    def aliases(self) -> dict[str, int]:
        """Where every alias points, `latest` included."""
        contents = self.known_contents()
        names = sorted({LATEST, *self.location.children("aliases")})
        targets = {alias: self.target(alias, contents) for alias in names}
        return {alias: target for alias, target in targets.items() if target is not None}

    def promote(
        self, version: int | str, alias: str, *, expected: int | None, reason: str
    ) -> AliasMove:
        """Point an alias at a version; see :meth:`storage.artifacts.Registry.promote`."""
        check_alias(alias)
        record = self.select(version, self.known_contents())
        if record.status == "rejected":
            reasons = "; ".join(record.rejections) or "no reason given"
            raise ValueError(
                f"{self.name} version {record.version} was rejected ({reasons}): no alias may "
                "point at it."
            )
        move = self._move(alias, record.version, expected=expected, reason=reason)
        # Garbage collection marks a version first and looks at the aliases afterwards; looking here
        # in the opposite order, one of the two always sees the other.
        if record.version in self._marks().numbers():
            self._move(alias, move.previous, reason="the version was being removed")
            raise UnknownVersion(f"{self.name} version {record.version} is being removed.")
        return move

    def withdraw(self, alias: str, *, reason: str) -> AliasMove:
        """End an alias; its history stays."""
        if self.target(alias, self.known_contents()) is None:
            raise UnknownVersion(f"{self.name} has no alias {alias!r}.")
        return self._move(alias, None, reason=reason)

    def history(self, alias: str) -> list[AliasMove]:
        """All moves of an alias, oldest first; for `latest` these include every publication."""
        records = self.known_contents().records
        moves = self._moves(alias)
        if alias != LATEST:
            if not moves:
                raise UnknownVersion(f"{self.name} has no alias {alias!r}.")
            return moves
        publications = [
            AliasMove(
                alias=LATEST,
                version=record.version,
                previous=None,
                newest=record.version,
                moved_at=record.created_at,
                reason="published",
            )
            for record in records.values()
            if record.status == "published"
        ]
        # A move was made after version `newest` was published; the sort keeps equal ones in order.
        history: list[AliasMove] = []
        for move in sorted([*publications, *moves], key=lambda move: move.newest):
            previous = history[-1].version if history else None
            history.append(move.model_copy(update={"previous": previous}))
        return history

    def _moves(self, alias: str) -> list[AliasMove]:
        return [AliasMove.model_validate(e) for e in self._alias_ledger(alias).entries().values()]

    def _move(
        self, alias: str, version: int | None, *, expected: int | None = None, reason: str
    ) -> AliasMove:
        ledger = self._alias_ledger(alias)
        while True:
            last = max(ledger.numbers(), default=0)
            contents = self.known_contents()
            previous = self.target(alias, contents)
            if expected is not None and previous != expected:
                raise AliasMoved(f"{alias} of {self.name} points at {previous}, not at {expected}.")
            move = AliasMove(
                alias=alias,
                version=version,
                previous=previous,
                newest=max(contents.records),
                moved_at=datetime.now(UTC),
                reason=reason,
            )
            try:
                ledger.append(last + 1, move.model_dump(mode="json"))
            except AlreadyExists:
                continue
            return move

    def _alias_ledger(self, alias: str) -> Ledger:
        if check_alias(alias) not in self._alias_ledgers:
            ledger = Ledger(self.location, f"aliases/{alias}", self._keyring)
            self._alias_ledgers[alias] = ledger
        return self._alias_ledgers[alias]

    # ---- housekeeping --------------------------------------------------------------------------

    def collect_garbage(
        self, retention: Retention | None, grace: timedelta, *, dry_run: bool
    ) -> tuple[list[int], list[str]]:
        """Remove what a policy does not keep; return the versions and the leftover paths."""
        now = datetime.now(UTC)
        contents = self.contents()
        records, alive = contents.records, contents.alive
        present = set(self.location.children("versions"))
        stored = {
            number: StoredVersion(number, record.folder, record.created_at)
            for number, record in records.items()
        }
        old = [stored[n] for n, r in records.items() if n not in alive and r.folder in present]
        if retention is not None and records:
            candidates = [stored[number] for number in alive]
            old += expired(candidates, self.aliases().values(), retention, now)
        if dry_run:
            removed = [item.version for item in old]
        else:
            removed = remove_versions(
                self.location, self._marks(), old, lambda: self.aliases().values(), grace, now
            )
        in_use = {record.folder for record in records.values()}
        return removed, collect_leftovers(self.location, in_use, grace, now, dry_run=dry_run)

    def _marks(self) -> Ledger:
        # Marks can be taken back, so that a cached one may be another than the one stored.
        return Ledger(self.location, "removed", self._keyring)


def check_alias(alias: str) -> str:
    """Return an alias if it is a safe name that does not read like a version number."""
    check_name(alias, field="alias")
    if _version_number(alias) is not None:
        raise ValueError(f"alias {alias!r} reads like a version number: choose a word.")
    return alias


def _version_number(text: str) -> int | None:
    digits = text.removeprefix("v")
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= 8 else None

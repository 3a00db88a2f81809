"""What a registry keeps under one name: the records of versions, and what was changed since.

Two ledgers hold all of it. ``records/`` has one entry for each version. ``changes/`` has one for
each move of an alias and each removal; each says what has changed and what holds from then on, so
that its newest entry alone tells where all aliases point and which versions are gone. An alias and
a removal can never pass each other by, since both have to be the next entry of the same ledger.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from storage.locations import AlreadyExists, Location, check_name
from storage.registry.aliases import check_alias, version_number
from storage.registry.ledgers import FORM, LATEST, CorruptArtifact, Entry, Ledger
from storage.registry.manifests import ArtifactReference, Status, first_reason, in_utc
from storage.registry.numbers import NumberSet
from storage.registry.old_form import old_aliases, old_removals, refuse_old_form
from storage.registry.retention import Retention, collect_leftovers, condemnation, store_time
from storage.registry.signatures import BadSignature, Keyring
from storage.registry.witness import Witness

__all__ = [
    "AliasMove",
    "AliasMoved",
    "Contents",
    "Shelf",
    "UnknownArtifact",
    "UnknownVersion",
    "VersionRecord",
]

Model = TypeVar("Model", bound=BaseModel)

_DELETERS = 16
_FROZEN = ConfigDict(frozen=True, extra="forbid")


class UnknownArtifact(KeyError):
    """The registry has no published version under this name."""

    def __str__(self) -> str:
        return str(self.args[0])


class UnknownVersion(UnknownArtifact):
    """The artifact has no such version or alias, or the version has been removed."""


class AliasMoved(RuntimeError):
    """An alias does not point where the caller expected it to."""


class VersionRecord(BaseModel):
    """The record that makes a version visible: where it lies and the digest of its manifest.

    `latest` is the newest published version up to this one, 0 without any (None in form 1, which
    did not say), and `changes` the number of changes that the publisher had seen.
    """

    model_config = _FROZEN

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
    latest: int | None = None
    changes: int = 0

    @field_validator("folder")
    @classmethod
    def _is_safe(cls, value: str) -> str:
        return check_name(value, field="version folder")

    @field_validator("created_at")
    @classmethod
    def _in_utc(cls, value: datetime) -> datetime:
        return in_utc(value, field="created_at")


class AliasMove(BaseModel):
    """One move of an alias; a version of None ends it. `newest` is the newest version by then."""

    model_config = _FROZEN

    alias: str
    version: int | None
    previous: int | None
    newest: int
    moved_at: datetime
    reason: str = ""

    @field_validator("alias")
    @classmethod
    def _is_named(cls, value: str) -> str:
        return check_alias(value)

    @field_validator("moved_at")
    @classmethod
    def _in_utc(cls, value: datetime) -> datetime:
        return in_utc(value, field="moved_at")


class Pointer(BaseModel):
    """Where an alias points, and the newest version at the time when it was moved there."""

    model_config = _FROZEN

    version: int
    newest: int


class ShelfChange(BaseModel):
    """An entry of ``changes/``: what has changed, and what holds from then on.

    `records` is the number of versions that whoever made the change had seen.
    """

    model_config = _FROZEN

    at: datetime
    records: int
    moves: tuple[AliasMove, ...] = ()
    removes: tuple[tuple[int, int], ...] = ()
    aliases: dict[str, Pointer]
    removed: tuple[tuple[int, int], ...]

    @field_validator("removes", "removed")
    @classmethod
    def _are_ranges(cls, value: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
        return NumberSet(value).ranges

    @field_validator("aliases")
    @classmethod
    def _are_named(cls, value: dict[str, Pointer]) -> dict[str, Pointer]:
        for alias in value:
            check_alias(alias)
        return value


@dataclass(frozen=True)
class State:
    """Where aliases point and which versions are gone, as of one entry of ``changes/``."""

    aliases: dict[str, Pointer] = field(default_factory=dict)
    removed: NumberSet = field(default_factory=NumberSet)
    records: int = 0
    entry: Entry | None = None

    @classmethod
    def after(cls, entry: Entry, change: ShelfChange) -> Self:
        """What holds from an entry on."""
        return cls(change.aliases, NumberSet(change.removed), change.records, entry)

    @property
    def number(self) -> int:
        """How many changes there were."""
        return 0 if self.entry is None else self.entry.number


@dataclass(frozen=True)
class Contents:
    """All that a shelf held at one moment.

    Attributes
    ----------
    records : dict of int to VersionRecord
        Records of all versions ever published, by number, ascending.
    state : State
        Where aliases point and which versions are gone.
    first, last : Entry or None
        The first and the newest entry of the records.
    """

    records: dict[int, VersionRecord]
    state: State
    first: Entry | None
    last: Entry | None

    @property
    def alive(self) -> dict[int, VersionRecord]:
        """Records of the versions that are still there."""
        return {n: record for n, record in self.records.items() if n not in self.state.removed}

    @property
    def newest_published(self) -> int:
        """The newest published version, removed or not; 0 without any."""
        published = (n for n, record in self.records.items() if record.status == "published")
        return max(published, default=0)

    def find(self, fingerprint: str, status: Status) -> VersionRecord | None:
        """The newest version that has this fingerprint and status, if there is one."""
        for record in reversed(self.alive.values()):
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
    witness : Witness, optional
        Remembers how far the ledgers were seen.
    """

    def __init__(
        self, registry: Location, name: str, keyring: Keyring, witness: Witness | None = None
    ) -> None:
        self.name = check_name(name, field="artifact name")
        self.location = registry / name
        self.records = Ledger(self.location, name, "records", keyring, witness)
        self._changes = Ledger(self.location, name, "changes", keyring, witness)
        # Who signs the next change vouches for all that it carries over from the one before.
        self._vouching = keyring.vouching()
        self._vouched = Ledger(self.location, name, "changes", self._vouching)
        self._registry = registry
        self._keyring = keyring
        self._parsed: dict[str, VersionRecord] = {}

    # ---- versions ------------------------------------------------------------------------------

    def contents(self) -> Contents:
        """All that the shelf holds now.

        Raises
        ------
        CorruptArtifact
            If an entry is damaged, missing or belongs elsewhere.
        BadSignature
            If an entry is not signed by a trusted key.
        """
        return self._contents(*self._heads())

    def known_contents(self) -> Contents:
        """The same, or :class:`UnknownArtifact` if nothing was ever published."""
        return self._contents(*self._known_heads())

    def select(self, version: int | str) -> VersionRecord:
        """The record of a version that is there, by number or alias.

        However many versions there are, only the newest entries and the version's own are read.

        Raises
        ------
        UnknownArtifact
            If nothing was ever published.
        UnknownVersion
            If there is no such version or alias, or it has been removed.
        CorruptArtifact, BadSignature
            As :meth:`contents`.
        """
        head, state = self._known_heads()
        number = version if isinstance(version, int) else version_number(version)
        if number is None:
            number = self._target(str(version), head.number, state)
            if number is None:
                raise UnknownVersion(f"{self.name} has no alias {version!r}.")
        if not 1 <= number <= head.number:
            raise UnknownVersion(f"{self.name} version {number} does not exist.")
        if number in state.removed:
            raise UnknownVersion(f"{self.name} version {number} has been removed.")
        entry = self.records.entry(number)
        self._check_origin(entry, self._origin_of(head), self.records)
        return self._record(entry)

    def is_removed(self, version: int) -> bool:
        """Whether a version has been removed."""
        return version in self._state().removed

    def is_condemned(self, folder: str) -> bool:
        """Whether a collector has found that a folder was left by a publisher that died."""
        return self.location.exists(condemnation(folder))

    def folder(self, name: str) -> Location:
        """Where a version's files lie."""
        return self.location / "versions" / check_name(name, field="version folder")

    def reference(self, record: VersionRecord) -> ArtifactReference:
        """The reference by which steps pass a version on."""
        fields = record.model_dump(include=ArtifactReference.model_fields.keys() - {"url"})
        url = f"{self.location.url}/versions/{record.folder}"
        return ArtifactReference(registry=self._registry.url, url=url, **fields)

    # ---- aliases -------------------------------------------------------------------------------

    def latest(self, contents: Contents) -> int | None:
        """The version that `latest` names."""
        return self._target(LATEST, max(contents.records, default=0), contents.state)

    def aliases(self) -> dict[str, int]:
        """Where every alias points, `latest` included."""
        head, state = self._known_heads()
        return self._aliases(head.number, state)

    def promote(
        self, version: int | str, alias: str, *, expected: int | None, reason: str
    ) -> AliasMove:
        """Point an alias at a version; see :meth:`storage.artifacts.Registry.promote`."""
        check_alias(alias)
        record = self.select(version)
        if record.status == "rejected":
            reasons = "; ".join(record.rejections) or "no reason given"
            raise ValueError(
                f"{self.name} version {record.version} was rejected ({reasons}): no alias may "
                "point at it."
            )
        return self._move(alias, record.version, expected=expected, reason=reason)

    def withdraw(self, alias: str, *, reason: str) -> AliasMove:
        """End an alias; its history stays."""
        if alias not in self.aliases():
            raise UnknownVersion(f"{self.name} has no alias {alias!r}.")
        return self._move(alias, None, reason=reason)

    def history(self, alias: str) -> list[AliasMove]:
        """All moves of an alias, oldest first; for `latest` these include every publication."""
        records = self.known_contents().records
        entries = self._changes.entries(self._changes.head())
        moves = [move for entry in entries for move in self._change(entry).moves]
        if not self._keyring.trusted and self._is_old():
            moves = [*self._old_moves().get(alias, ()), *moves]
        moves = [move for move in moves if move.alias == alias]
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

    # ---- housekeeping --------------------------------------------------------------------------

    def collect_garbage(
        self, retention: Retention | None, grace: timedelta, *, dry_run: bool
    ) -> tuple[list[int], list[str]]:
        """Remove what a policy does not keep; return the versions and the leftover paths."""
        # Where a link leads, other things may lie than versions.
        self._registry.refuse_links(f"{self.name}/versions")
        contents = self.contents()
        expired: list[int] = []
        while retention is not None and contents.records:
            created_at = {n: record.created_at for n, record in contents.alive.items()}
            aliased = self._aliases(max(contents.records), contents.state).values()
            expired = retention.expired(created_at, aliased, lambda: store_time(self.location))
            if not expired or dry_run:
                break
            appended = self._append(contents.state, removes=expired)
            contents = self.contents()
            if appended:
                break
        present = set(self.location.children("versions"))
        kept = {record.folder for n, record in contents.alive.items() if n not in expired}
        gone = [n for n in contents.records if n in contents.state.removed or n in expired]
        folders = {n: contents.records[n].folder for n in gone}
        removed = [n for n in gone if folders[n] in present and folders[n] not in kept]
        if not dry_run:
            paths = [f"versions/{folders[n]}" for n in removed]
            # A disk or a store answers many deletions at once in little more time than one.
            with ThreadPoolExecutor(_DELETERS) as pool:
                list(pool.map(self.location.delete_folder, paths))
        return removed, collect_leftovers(self.location, self._in_use, grace, dry_run=dry_run)

    def retract(self, version: int, *, reason: str) -> None:
        """Remove a version that is not whole, and end the aliases that point at it."""
        while True:
            newest, state = self.records.newest(), self._state()
            if version in state.removed:
                return
            pointing = [a for a, pointer in state.aliases.items() if pointer.version == version]
            moves = [_move(alias, None, version, newest, reason) for alias in pointing]
            if self._append(state, moves=moves, removes=[version]):
                return

    def renew(self) -> dict[str, int]:
        """Sign the state that is found; see :meth:`storage.artifacts.Registry.renew`."""
        if self._keyring.signing is None:
            raise BadSignature(f"{self.name} is renewed by signing: set STRATA_SIGNING_KEY.")
        found = Shelf(self._registry, self.name, Keyring())
        while True:
            _, state = found._known_heads()
            if not self._is_vouched(state):
                moves = [
                    _move(alias, pointer.version, pointer.version, pointer.newest, "renewed")
                    for alias, pointer in state.aliases.items()
                ]
                if not self._append(state, moves=moves, unseen=True):
                    continue
            return {alias: pointer.version for alias, pointer in sorted(state.aliases.items())}

    # ---- reading -------------------------------------------------------------------------------

    def _in_use(self) -> set[str]:
        entries = self.records.entries(self.records.head())
        return {self._record(entry).folder for entry in entries}

    def _contents(self, head: Entry | None, state: State) -> Contents:
        entries = self.records.entries(head)
        for entry in entries:
            self._check_origin(entry, entries[0].digest, self.records)
        records = {entry.number: self._record(entry) for entry in entries}
        return Contents(records, state, entries[0] if entries else None, head)

    def _record(self, entry: Entry) -> VersionRecord:
        known = self._parsed.get(entry.digest)
        if known is not None:
            return known
        record = self._parse(VersionRecord, entry, self.records)
        if (record.name, record.version) != (self.name, entry.number):
            where = f"{self.name}/{self.records.path(entry.number)}"
            raise CorruptArtifact(f"{where} speaks of another version.", (where,))
        self._parsed[entry.digest] = record
        return record

    def _change(self, entry: Entry) -> ShelfChange:
        return self._parse(ShelfChange, entry, self._changes)

    def _parse(self, model: type[Model], entry: Entry, ledger: Ledger) -> Model:
        try:
            return model.model_validate(entry.content)
        except ValidationError as error:
            where = f"{self.name}/{ledger.path(entry.number)}"
            reason = first_reason(error)
            raise CorruptArtifact(f"{where} is not valid: {reason}", (where,)) from None

    def _heads(self) -> tuple[Entry | None, State]:
        """The newest record and the state, of one artifact, each as new as the other knows of.

        The record comes first, since it never speaks of a change that is made later; a change may
        speak of a record that has come between the two looks.
        """
        while True:
            head = self.records.head()
            state = self._state()
            if state.records <= (0 if head is None else head.number):
                break
            if self.records.newest() < state.records:
                raise self._missing(self.records.path(state.records))
        if head is not None:
            if self._record(head).changes > state.number:
                raise self._missing(self._changes.path(self._record(head).changes))
            if state.entry is not None:
                self._check_origin(state.entry, self._origin_of(head), self._changes)
        return head, state

    def _known_heads(self) -> tuple[Entry, State]:
        """The same, or :class:`UnknownArtifact` if nothing was ever published."""
        head, state = self._heads()
        if head is None:
            raise UnknownArtifact(f"registry {self._registry.url} has no artifact {self.name!r}.")
        return head, state

    def _state(self) -> State:
        head = self._changes.head()
        if head is not None:
            return State.after(head, self._change(head))
        if not self._is_old():
            return State()
        if self._keyring.trusted:
            refuse_old_form(self.location, self.name, self._keyring)
            return State()
        last = {alias: moves[-1] for alias, moves in self._old_moves().items() if moves}
        return State(
            {
                alias: Pointer(version=move.version, newest=move.newest)
                for alias, move in last.items()
                if move.version is not None
            },
            NumberSet.of(old_removals(self.location, self.name, self._keyring)),
        )

    def _is_old(self) -> bool:
        """Whether the artifact was begun in form 1."""
        try:
            return self.records.entry(1).form != FORM
        except CorruptArtifact:
            # Once more if there is one: it may have come between the two looks.
            return self.records.newest() > 0 and self.records.entry(1).form != FORM

    def _old_moves(self) -> dict[str, list[AliasMove]]:
        found: dict[str, list[AliasMove]] = {}
        for alias, ledger in old_aliases(self.location, self.name, self._keyring).items():
            entries = ledger.entries(ledger.head())
            found[alias] = [self._parse(AliasMove, entry, ledger) for entry in entries]
            for entry, move in zip(entries, found[alias]):
                if move.alias != alias:
                    where = f"{self.name}/{ledger.path(entry.number)}"
                    raise CorruptArtifact(f"{where} moves another alias.", (where,))
        return found

    def _origin_of(self, record: Entry) -> str | None:
        """Digest of the first record of the artifact that a record belongs to, if it says so."""
        return record.digest if record.number == 1 else record.origin

    def _check_origin(self, entry: Entry, origin: str | None, ledger: Ledger) -> None:
        """Refuse an entry of another artifact of this name, as another registry may have one."""
        found = self._origin_of(entry) if ledger is self.records else entry.origin
        if found is not None and origin is not None and found != origin:
            path = ledger.path(entry.number)
            raise CorruptArtifact(
                f"{self.location.url}/{path} belongs to another artifact of this name.", (path,)
            )

    def _missing(self, path: str) -> CorruptArtifact:
        return CorruptArtifact(
            f"{self.location.url}/{path} is missing: what came after it speaks of it.", (path,)
        )

    def _target(self, alias: str, newest: int, state: State) -> int | None:
        """Where an alias points, with so many records; `latest` moves on by itself."""
        moved = state.aliases.get(alias)
        if alias == LATEST:
            published = self._published(newest, state.removed)
            if moved is None or published > moved.newest:
                return published or None
        return None if moved is None else moved.version

    def _published(self, number: int, removed: NumberSet) -> int:
        """The newest published version up to a number that is not removed; 0 without any."""
        while number:
            record = self._record(self.records.entry(number))
            if record.status == "published" and number not in removed:
                return number
            before = number - 1
            if record.status == "rejected" and record.latest is not None:
                before = min(before, record.latest)
            number = before
        return 0

    def _aliases(self, newest: int, state: State) -> dict[str, int]:
        names = sorted({LATEST, *state.aliases})
        targets = {alias: self._target(alias, newest, state) for alias in names}
        return {alias: target for alias, target in targets.items() if target is not None}

    # ---- writing -------------------------------------------------------------------------------

    def _move(
        self, alias: str, version: int | None, *, expected: int | None = None, reason: str
    ) -> AliasMove:
        while True:
            newest, state = self.records.newest(), self._state()
            previous = self._target(alias, newest, state)
            if expected is not None and previous != expected:
                raise AliasMoved(f"{alias} of {self.name} points at {previous}, not at {expected}.")
            if version is not None and version in state.removed:
                raise UnknownVersion(f"{self.name} version {version} has been removed.")
            move = _move(alias, version, previous, newest, reason)
            if self._append(state, moves=[move]):
                return move

    def _append(
        self,
        state: State,
        *,
        moves: Sequence[AliasMove] = (),
        removes: Iterable[int] = (),
        unseen: bool = False,
    ) -> bool:
        """Make the change that follows a state; False if another writer was first."""
        if not unseen and not self._is_vouched(state):
            raise BadSignature(
                f"{self.location.url}: where its aliases point is not signed by a key that is "
                "trusted here, and a signed change would vouch for it: look at it, then run "
                f"`strata artifacts renew {self.name}`."
            )
        aliases = dict(state.aliases)
        for move in moves:
            aliases.pop(move.alias, None)
            if move.version is not None:
                aliases[move.alias] = Pointer(version=move.version, newest=move.newest)
        gone = NumberSet.of(removes)
        change = ShelfChange(
            at=datetime.now(UTC),
            records=max(state.records, self.records.newest()),
            moves=tuple(moves),
            removes=gone.ranges,
            aliases=aliases,
            removed=(state.removed | gone).ranges,
        )
        content, origin = change.model_dump(mode="json"), self.records.entry(1)
        try:
            self._changes.append(content, after=state.entry, origin=origin)
        except AlreadyExists:
            return False
        return True

    def _is_vouched(self, state: State) -> bool:
        """Whether a signer may carry a state over: its own key, or a trusted one, has signed it."""
        try:
            if state.entry is not None:
                return self._vouched.entry(state.number) == state.entry
            if self._vouching.trusted and self._is_old():
                refuse_old_form(self.location, self.name, self._vouching)
        except BadSignature:
            return False
        return True


def _move(
    alias: str, version: int | None, previous: int | None, newest: int, reason: str
) -> AliasMove:
    return AliasMove(
        alias=alias,
        version=version,
        previous=previous,
        newest=newest,
        moved_at=datetime.now(UTC),
        reason=reason,
    )

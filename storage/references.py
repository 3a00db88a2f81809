"""References: what travels between steps in place of data, and the proof that a step is done.

Each step owns a folder named by its fingerprint. Its record, ``reference.json``, is written there
last, so a folder with one holds a finished result, and one without is resumed. The record seals
the result: it lists every file with its size and digest, ends with its own digest, and names step
and fingerprint but no place, so that a store may be copied or moved as it is. Since no work could
bring it back, it is stored twice.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from storage.locations import Location, NotFound, is_partial
from storage.sealing.condemned import CONDEMNED_FILE
from storage.sealing.damage import CorruptFile
from storage.sealing.seals import (
    SealedFolder,
    dump_seals,
    hash_files,
    read_record,
    record_bytes,
    sealed_record,
    seals_of,
    verified_record,
)

__all__ = ["RECORD_FILES", "SCRATCH", "Reference", "Step"]

Step = Literal["extract", "learn", "encode", "recover", "verify", "publish", "train", "score"]

RECORD_FILES = ("reference.json", "reference.copy.json")
"""The two copies of the record; the second is written first."""

SCRATCH = ("staging", "checkpoint", "checkpoints")
"""Folders that a step needs only while it is at work."""

_EARLIER = {"step", "fingerprint", "url", "content_hash", "seconds", "summary"}


class Reference(BaseModel):
    """Names the finished result of one step.

    ``content_hash`` covers what the result says; ``summary`` holds what people want to know of it.
    ``url`` is where it was found.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: Step
    fingerprint: str
    url: str
    content_hash: str
    seconds: float = Field(ge=0)
    """How long the work took when it was done."""
    summary: dict[str, Any] = Field(default_factory=dict)
    sha256: str = ""
    """Digest of the record; empty for a result of an earlier version, which sealed nothing."""

    @property
    def location(self) -> Location:
        """Where the result lies; what it holds is read through :meth:`open`."""
        return Location(self.url)

    def open(self) -> SealedFolder:
        """The result's files, each checked when it is read.

        Raises
        ------
        CorruptFile
            If the record is damaged, or is not of the result that this reference names.
        """
        for name in RECORD_FILES:
            try:
                record = read_record(self.location, name)
            except (NotFound, CorruptFile):
                continue
            # Two runs that do a step at once end with equal results and records of different times.
            if self.sha256 and record["content_hash"] == self.content_hash:
                return SealedFolder(self.location, seals_of(record, name, self.location))
        raise CorruptFile(RECORD_FILES[0], "not of the result that was referred to", self.url)

    @staticmethod
    def folder(store: Location, step: Step, fingerprint: str) -> Location:
        """Where a step with this fingerprint puts its result."""
        return store / step / fingerprint

    @classmethod
    def find(cls, location: Location) -> Reference | None:
        """The reference of the step whose folder `location` is, or None if it did not finish there.

        One good copy of the record is enough.

        Raises
        ------
        CorruptFile
            If there is a record and no good copy, or it is the one of another step.
        """
        damage: CorruptFile | None = None
        found: list[Reference] = []
        for name in RECORD_FILES:
            try:
                found.append(cls.read(location, name))
            except NotFound:
                continue
            except CorruptFile as error:
                damage = damage or error
        if found:
            # Of an earlier version's and a sealed one, the sealed one.
            return max(found, key=lambda reference: bool(reference.sha256))
        if damage is not None:
            raise damage
        return None

    @classmethod
    def read(cls, location: Location, name: str) -> Reference:
        """Read one copy of the record.

        Raises
        ------
        NotFound
            If there is none.
        CorruptFile
            If it is damaged, or is the one of another step.
        """
        step, fingerprint = location.url.rsplit("/", 2)[-2:]
        data = record_bytes(location, name)
        record = verified_record(data) or _earlier_record(data)
        if record is None:
            raise CorruptFile(name, "digest", location.url)
        seals_of(record, name, location)
        del record["files"]
        try:
            reference = cls.model_validate(record | {"url": location.url})
        except ValidationError:
            raise CorruptFile(name, "not a reference", location.url) from None
        if (reference.step, reference.fingerprint) != (step, fingerprint):
            reason = f"it is the one of {reference.step}/{reference.fingerprint}"
            raise CorruptFile(name, reason, location.url)
        return reference

    @classmethod
    def seal(
        cls, location: Location, *, content_hash: str, seconds: float, summary: dict[str, Any]
    ) -> Reference:
        """Seal the files of a step's folder as they are now, and so declare its result finished.

        A number of the summary that is not finite becomes null.
        """
        step, fingerprint = location.url.rsplit("/", 2)[-2:]
        told = cls.model_validate(
            {
                "step": step,
                "fingerprint": fingerprint,
                "url": location.url,
                "content_hash": content_hash,
                "seconds": seconds,
                "summary": summary,
            }
        )
        body = json.loads(told.model_dump_json(exclude={"url", "sha256"}))
        body["files"] = dump_seals(hash_files(location, _to_seal(location)))
        record = sealed_record(body)
        for name in reversed(RECORD_FILES):
            location.put(name, record)
        return cls.read(location, RECORD_FILES[0])


def raw_shards(location: Location) -> set[str]:
    """Objects of a finished table that its receipts vouch for, so that no seal need list them.

    These are the shards of raw arrays: each chunk has its checksum, and each array its digest in
    the shard's receipt. A compressed chunk has bits that no checksum of its own covers.
    """
    if not location.exists("sealed.json"):
        return set()
    from storage.tables.opening import open_table
    from storage.tables.sealed import shard_objects

    plan = open_table(location).plan
    return {
        path
        for path, (array, _) in shard_objects(plan).items()
        if not plan.column(array).compressed
    }


def belongs_to_no_result(path: str) -> bool:
    """Whether a path in a step's folder is the step's own book-keeping, or left by its work."""
    return (
        path in (*RECORD_FILES, CONDEMNED_FILE)
        or path.split("/", 1)[0] in SCRATCH
        or is_partial(path)
    )


def _to_seal(location: Location) -> Iterator[str]:
    raw = raw_shards(location)
    for path in location.walk():
        if path not in raw and not belongs_to_no_result(path):
            yield path


def _earlier_record(data: bytes) -> dict[str, Any] | None:
    """A record as versions before seals wrote it; None if it is none."""
    try:
        record = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or set(record) != _EARLIER:
        return None
    return record | {"files": {}, "sha256": ""}

"""Seals: the files of a folder, each with its size and digest, checked whenever one is read.

A sealed record is a JSON file that ends with the SHA-256 of the rest of it, and has exactly one
spelling, so that a single changed byte of the record itself is found too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from storage.locations import BadObject, Location, NotFound
from storage.records import canonical_json, digest
from storage.sealing.damage import CorruptFile

__all__ = [
    "FileSeal",
    "Files",
    "SealedFolder",
    "read_record",
    "record_bytes",
    "seal_files",
    "sealed_record",
    "verified_record",
]

SEAL_FILE = "seal.json"
# No seal of a store comes near; more is refused before it is read.
_MOST_RECORD_BYTES = 1 << 30
_READERS = 8


class Files(Protocol):
    """What readers need of a folder: sealed, or plain while its step is still at work."""

    def get(self, path: str) -> bytes:
        """Return a file's bytes."""

    def children(self, prefix: str = "") -> list[str]:
        """Return the sorted names directly below `prefix`."""

    def exists(self, path: str) -> bool:
        """Whether there is such a file."""


class FileSeal(BaseModel):
    """What a file was when it was sealed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)

    @classmethod
    def of(cls, data: bytes) -> FileSeal:
        """The seal of these bytes."""
        return cls(sha256=digest(data), size=len(data))


class SealedFolder:
    """The door to a finished folder: no byte passes that is not the one that was sealed.

    Parameters
    ----------
    location : Location
        Where the folder lies now; seals hold no place.
    files : mapping of str to FileSeal
        By path below the folder.
    """

    def __init__(self, location: Location, files: Mapping[str, FileSeal]) -> None:
        self.location = location
        self.files = dict(files)

    @classmethod
    def open(cls, location: Location, name: str = SEAL_FILE) -> SealedFolder:
        """Open a folder by the seal that :func:`seal_files` wrote there.

        Raises
        ------
        NotFound
            If there is no seal.
        CorruptFile
            If the seal is damaged.
        """
        return cls(location, seals_of(read_record(location, name), name, location))

    def get(self, path: str) -> bytes:
        """Return a file's bytes, checked: first its size, then its digest.

        Raises
        ------
        NotFound
            If the seal lists no such file.
        CorruptFile
            If the file is missing, or is not what was sealed.
        """
        if path not in self.files:
            raise NotFound(f"{self.location.url} was sealed without {path!r}.")
        seal = self.files[path]
        try:
            with self.location.open(path) as found:
                if found.size != seal.size:
                    reason = f"{found.size:,} bytes instead of {seal.size:,}"
                    raise CorruptFile(path, reason, self.location.url)
                data = b"".join(found.blocks())
        except NotFound:
            raise CorruptFile(path, "missing", self.location.url) from None
        except BadObject as error:
            raise CorruptFile(path, error.reason, self.location.url) from None
        if digest(data) != seal.sha256:
            raise CorruptFile(path, "digest", self.location.url)
        return data

    def exists(self, path: str) -> bool:
        """Whether the seal lists such a file."""
        return path in self.files

    def walk(self, prefix: str = "") -> list[str]:
        """The sorted paths of all files below the folder `prefix`."""
        start = f"{prefix}/" if prefix else ""
        return sorted(path for path in self.files if path.startswith(start))

    def children(self, prefix: str = "") -> list[str]:
        """The sorted names of files and folders directly below `prefix`."""
        skipped = len(prefix) + 1 if prefix else 0
        return sorted({path[skipped:].split("/", 1)[0] for path in self.walk(prefix)})

    def find_damage(self, paths: Iterable[str] | None = None) -> list[CorruptFile]:
        """What is wrong with these files, or all of them, in order of path."""

        def problem(path: str) -> CorruptFile | None:
            try:
                self.get(path)
            except CorruptFile as error:
                return error
            return None

        with ThreadPoolExecutor(_READERS) as pool:
            found = list(pool.map(problem, sorted(self.files if paths is None else paths)))
        return [error for error in found if error is not None]


def seal_files(location: Location, paths: Iterable[str], name: str = SEAL_FILE) -> SealedFolder:
    """Write the seal of these files as they are now."""
    files = hash_files(location, paths)
    location.put(name, sealed_record({"files": dump_seals(files)}))
    return SealedFolder(location, files)


def hash_files(location: Location, paths: Iterable[str]) -> dict[str, FileSeal]:
    """Seals of these files as they are now, in order of path."""
    ordered = sorted(paths)
    with ThreadPoolExecutor(_READERS) as pool:
        seals = pool.map(lambda path: FileSeal.of(location.get(path)), ordered)
        return dict(zip(ordered, seals, strict=True))


def dump_seals(files: Mapping[str, FileSeal]) -> dict[str, Any]:
    """Seals as plain JSON."""
    return {path: seal.model_dump() for path, seal in files.items()}


def seals_of(record: Mapping[str, Any], name: str, location: Location) -> dict[str, FileSeal]:
    """The seals that a record lists; the inverse of :func:`dump_seals`."""
    try:
        return {path: FileSeal.model_validate(seal) for path, seal in record["files"].items()}
    except (KeyError, AttributeError, ValidationError):
        raise CorruptFile(name, "not a seal", location.url) from None


def sealed_record(body: Mapping[str, Any]) -> bytes:
    """A record as JSON that ends with the SHA-256 of the canonical JSON of the rest.

    Raises
    ------
    ValueError
        If a number is not finite.
    """
    whole = dict(sorted(body.items())) | {"sha256": digest(canonical_json(dict(body)))}
    return json.dumps(whole, ensure_ascii=False, allow_nan=False, indent=1).encode()


def read_record(location: Location, name: str) -> dict[str, Any]:
    """Read what :func:`sealed_record` gave, its digest included.

    Raises
    ------
    NotFound
        If there is no such file.
    CorruptFile
        If a byte of it has changed.
    """
    record = verified_record(record_bytes(location, name))
    if record is None:
        raise CorruptFile(name, "digest", location.url)
    return record


def record_bytes(location: Location, name: str) -> bytes:
    """The bytes of a record, checked for nothing but their number.

    Raises
    ------
    NotFound
        If there is no such file.
    CorruptFile
        If it is no regular file, or has more bytes than any record.
    """
    try:
        return location.get(name, most=_MOST_RECORD_BYTES)
    except BadObject as error:
        raise CorruptFile(name, error.reason, location.url) from None


def verified_record(data: bytes) -> dict[str, Any] | None:
    """The record in these bytes, its digest included; None if a byte of it has changed."""
    try:
        record: dict[str, Any] = json.loads(data)
        stated = record.pop("sha256")
        if sealed_record(record) != data:
            return None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return record | {"sha256": stated}

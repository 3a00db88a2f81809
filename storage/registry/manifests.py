"""What a version of an artifact says of itself: the manifest and the hashes over its files."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from storage.locations import StoredObject, check_name
from storage.records import canonical_json, digest, read_json
from storage.registry.ledgers import CorruptArtifact

__all__ = [
    "LEVEL_SCORES",
    "LOSS_SCORES",
    "MANIFEST_FILE",
    "SCHEMA_VERSION",
    "SUMS_FILE",
    "ArtifactReference",
    "FileEntry",
    "LevelEntry",
    "Manifest",
    "Status",
    "check_file_path",
    "content_hash",
    "hash_file",
    "shown_scores",
]

SCHEMA_VERSION: Literal[2] = 2
"""Of manifests that are written; earlier ones are read as well."""
LEVEL_SCORES = {
    "explained_variance": "explained variance",
    "l0": "L0",
    "dead_share": "dead",
    "agreement": "agreement",
    "cross_entropy_recovered": "cross-entropy recovered",
    "denoising_loss_recovered": "denoising loss recovered",
}
"""Metrics of a level that are shown wherever a version is, where it has them, and their names."""
LOSS_SCORES = ("cross_entropy_recovered", "denoising_loss_recovered")
"""What codes keep of the model's loss, of a language model and of a diffusion model."""
MANIFEST_FILE = "manifest.json"
SUMS_FILE = "SHA256SUMS"
MAX_DEPTH = 8
MAX_FILES = 10_000
MAX_MANIFEST = 2**24
"""Bytes of the longest manifest that is written or read."""
# They carry dates and durations, so that they differ between two runs with equal results.
UNHASHED_FILES = frozenset({"report.html", "README.md"})

Status = Literal["published", "rejected"]

_SHA256 = re.compile(r"[0-9a-f]{64}")
_FROZEN = ConfigDict(frozen=True, extra="forbid")


class FileEntry(BaseModel):
    """Digest and length of one file."""

    model_config = _FROZEN

    sha256: str
    bytes: int = Field(ge=0)

    @field_validator("sha256")
    @classmethod
    def _is_digest(cls, value: str) -> str:
        if not _SHA256.fullmatch(value):
            raise ValueError("sha256 is not 64 hexadecimal digits")
        return value


class LevelEntry(BaseModel):
    """One level of the hierarchy: where its dictionary was learnt, and how well it fits.

    `d` is the width of its activations; `timestep` is None for models without one.
    """

    model_config = _FROZEN

    level: int = Field(ge=1)
    name: str
    hookpoint: str = ""
    timestep: int | None = None
    n_concepts: int = Field(ge=1)
    d: int = Field(ge=1)
    metrics: dict[str, Any] = Field(default_factory=dict)

    @field_validator("name")
    @classmethod
    def _is_safe(cls, value: str) -> str:
        return check_name(value, field="level name")


def shown_scores(levels: Iterable[LevelEntry]) -> list[str]:
    """Those of `LEVEL_SCORES` that any of these levels has, in their order."""
    there = {metric for level in levels for metric in level.metrics}
    return [metric for metric in LEVEL_SCORES if metric in there]


class Manifest(BaseModel):
    """The manifest of one version; see ``ARTIFACT.md`` for the meaning of every field."""

    model_config = _FROZEN

    schema_version: Literal[1, 2] = SCHEMA_VERSION
    name: str
    version: int = Field(ge=1)
    status: Status
    rejections: tuple[str, ...] = ()
    created_at: datetime
    parent: int | None = None
    fingerprint: str = Field(min_length=1, max_length=256)
    lineage: dict[str, Any] = Field(default_factory=dict)
    levels: tuple[LevelEntry, ...] = ()
    metrics: dict[str, Any] = Field(default_factory=dict)
    counts: dict[str, int] = Field(default_factory=dict)
    files: dict[str, FileEntry]
    content_hash: str

    @field_validator("name")
    @classmethod
    def _is_safe(cls, value: str) -> str:
        return check_name(value, field="artifact name")

    @field_validator("created_at")
    @classmethod
    def _in_utc(cls, value: datetime) -> datetime:
        return in_utc(value, field="created_at")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        check_files(self.files)
        if self.content_hash != content_hash(self.files):
            raise ValueError("content_hash does not match the files")
        numbers = [level.level for level in self.levels]
        if len(set(numbers)) != len(numbers):
            raise ValueError(f"levels repeat a level: {numbers}")
        names = [level.name for level in self.levels]
        if len({name.casefold() for name in names}) != len(names):
            raise ValueError(f"levels repeat a name, or differ in case alone: {names}")
        return self

    def to_bytes(self) -> bytes:
        """The manifest as it is stored: indented JSON with sorted keys.

        Raises
        ------
        ValueError
            If it is longer than readers take.
        """
        value = self.model_dump(mode="json")
        text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
        data = text.encode() + b"\n"
        if len(data) > MAX_MANIFEST:
            raise ValueError(
                f"the manifest would have {len(data):,} bytes, which is more than "
                f"{MAX_MANIFEST:,}: publish fewer files, or say less in lineage and metrics."
            )
        return data

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read a manifest; raise :class:`CorruptArtifact` if the bytes are not one."""
        try:
            return cls.model_validate(read_json(data))
        except ValueError as error:
            reason = first_reason(error)
            raise CorruptArtifact(
                f"{MANIFEST_FILE} is not valid: {reason}", (MANIFEST_FILE,)
            ) from None

    def level(self, level: int | str) -> LevelEntry:
        """The entry of a level, by its number or its name; raise KeyError if there is none."""
        for entry in self.levels:
            if level in (entry.level, entry.name):
                return entry
        raise KeyError(f"{self.name} version {self.version} has no level {level!r}")

    def checksums(self) -> bytes:
        """The file ``SHA256SUMS``, for ``sha256sum -c``: every file and the manifest itself."""
        sums = {path: entry.sha256 for path, entry in self.files.items()}
        sums[MANIFEST_FILE] = digest(self.to_bytes())
        return "".join(f"{sums[path]}  {path}\n" for path in sorted(sums)).encode()


class ArtifactReference(BaseModel):
    """What travels between steps in place of an artifact."""

    model_config = ConfigDict(frozen=True)

    registry: str
    name: str
    version: int
    url: str
    status: Status
    content_hash: str
    fingerprint: str
    parent: int | None = None
    rejections: tuple[str, ...] = ()


def in_utc(value: datetime, *, field: str) -> datetime:
    """A time in UTC; raise ValueError that names the field if it does not say when it was."""
    if value.tzinfo is None:
        raise ValueError(f"{field} has no time zone: give one, such as UTC")
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError(f"{field} is no time of UTC's years 1 to 9999") from None


def first_reason(error: Exception) -> str:
    """One sentence for the first thing that is wrong."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        message = str(first["msg"]).removeprefix("Value error, ")
        return f"{field}: {message}" if field else message
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def check_file_path(path: str) -> str:
    """Return the path of a file inside a version if every part of it is a safe name.

    Raises
    ------
    ValueError
        If the path is absolute, leaves the folder, hides itself, is too deep, or is one of the
        files that the registry writes itself.
    """
    parts = path.split("/")
    if len(parts) > MAX_DEPTH:
        raise ValueError(f"file path {path[:40]!r}… is deeper than {MAX_DEPTH} folders.")
    for part in parts:
        check_name(part, field="part of a file path")
    if path in (MANIFEST_FILE, SUMS_FILE):
        raise ValueError(f"file path {path!r} is taken: the registry writes this file itself.")
    return path


def check_files(paths: Iterable[str]) -> None:
    """Refuse unsafe paths, and sets of paths that some file system could not hold together.

    Raises
    ------
    ValueError
        If a path is unsafe, two paths or their folders differ only in case, a path is a file and
        a folder at once, or there are too many.
    """
    spelt: dict[str, str] = {}
    files: set[str] = set()
    folders: set[str] = set()
    for path in paths:
        check_file_path(path)
        parts = path.split("/")
        above = ["/".join(parts[:i]) for i in range(1, len(parts))]
        for each in (*above, path):
            if spelt.setdefault(each.casefold(), each) != each:
                raise ValueError(
                    f"file paths {spelt[each.casefold()]!r} and {each!r} differ only in case."
                )
        files.add(path)
        folders.update(above)
        if len(files) > MAX_FILES:
            raise ValueError(f"files are more than {MAX_FILES:,}: pack small ones together.")
    clash = sorted(folders & files)
    if clash:
        raise ValueError(f"file path {clash[0]!r} is a file and a folder at once.")


def content_hash(files: Mapping[str, FileEntry]) -> str:
    """SHA-256 over the lines ``sha256  path`` of the deterministic files, sorted by path.

    ``report.html`` and ``README.md`` are left out, since they carry dates and durations.
    """
    lines = (
        f"{entry.sha256}  {path}\n".encode()
        for path, entry in sorted(files.items())
        if path not in UNHASHED_FILES
    )
    return digest(lines)


def hash_file(source: bytes | Path | StoredObject) -> FileEntry:
    """Digest and length of bytes, of a local file or of a stored object, read in pieces."""
    if isinstance(source, bytes):
        return FileEntry(sha256=digest(source), bytes=len(source))
    if isinstance(source, StoredObject):
        return FileEntry(sha256=digest(source.blocks()), bytes=source.size)
    with source.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        return FileEntry(sha256=sha256, bytes=stream.tell())


def check_plain(value: Mapping[str, Any], *, field: str) -> dict[str, Any]:
    """Return a mapping as plain JSON; raise ValueError that names the field if it is none."""
    try:
        plain: dict[str, Any] = read_json(canonical_json(dict(value)))
    except (TypeError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{field} is not plain JSON with finite numbers ({reason}).") from None
    return plain

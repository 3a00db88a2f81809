"""One published version, read lazily and verified as it is read; no torch, no Ray."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storage.ledgers import CorruptArtifact
from storage.locations import Location, NotFound
from storage.manifests import (
    MANIFEST_FILE,
    SUMS_FILE,
    ArtifactReference,
    FileEntry,
    LevelEntry,
    Manifest,
    hash_file,
)
from storage.records import digest

if TYPE_CHECKING:
    from storage.exports.saelens import SaeLensDictionary
    from storage.graphs import ConceptGraph

__all__ = ["Artifact"]

REPORT_FILE = "report.html"
STRIPS_FILE = "steering.json"
_READERS = 4


class Artifact:
    """One version of an artifact; nothing but its manifest is read before it is asked for.

    Every file is checked against the manifest when it is read, and the manifest against the
    registry's record, so that no changed byte is ever used.

    Attributes
    ----------
    manifest : Manifest
        Lineage, levels, metrics and the list of files.
    reference : ArtifactReference
        The small record by which steps pass this version on.
    location : Location
        The folder of the version.
    """

    def __init__(
        self, location: Location, manifest: Manifest, reference: ArtifactReference
    ) -> None:
        self.location = location
        self.manifest = manifest
        self.reference = reference

    def __repr__(self) -> str:
        return f"<Artifact {self.name} version {self.version} ({self.status}) at {self.url}>"

    @property
    def name(self) -> str:
        """Name of the artifact."""
        return self.manifest.name

    @property
    def version(self) -> int:
        """Number of the version."""
        return self.manifest.version

    @property
    def status(self) -> str:
        """Published, or rejected by a quality gate."""
        return self.manifest.status

    @property
    def levels(self) -> tuple[LevelEntry, ...]:
        """The levels, lowest first."""
        return tuple(sorted(self.manifest.levels, key=lambda entry: entry.level))

    @property
    def url(self) -> str:
        """URL of the version's folder."""
        return self.location.url

    @property
    def path(self) -> Path | None:
        """The version's folder on this machine, or None for a remote registry."""
        return self.location.local_path

    @property
    def files(self) -> tuple[str, ...]:
        """Paths of all files of the version, sorted."""
        return tuple(sorted(self.manifest.files))

    def read(self, path: str) -> bytes:
        """Return one file's bytes, verified.

        Raises
        ------
        KeyError
            If the manifest lists no such file.
        CorruptArtifact
            If the file is missing or its bytes are not those that were published.
        """
        if path not in self.manifest.files:
            raise KeyError(f"{self.name} version {self.version} has no file {path!r}")
        try:
            data = self.location.get(path)
        except NotFound:
            raise self._corrupt({path: "is missing"}) from None
        if hash_file(data) != self.manifest.files[path]:
            raise self._corrupt({path: "does not match its digest"})
        return data

    def dictionary(self, level: int | str) -> SaeLensDictionary:
        """The dictionary of a level (given by number or name), as numpy arrays."""
        from storage.exports.saelens import from_saelens

        folder = f"dictionaries/{self.manifest.level(level).name}/"
        names = [path for path in self.files if path.startswith(folder)]
        return from_saelens({path.removeprefix(folder): self.read(path) for path in names})

    @cached_property
    def graph(self) -> ConceptGraph:
        """The concept graph, read when it is first asked for."""
        from storage.graphs import ConceptGraph

        return ConceptGraph.from_parquet(
            self.read("graph/nodes.parquet"), self.read("graph/edges.parquet")
        )

    def examples(self, level: int | str) -> list[dict[str, Any]]:
        """The stored examples of a level's concepts, one record per row.

        Raises
        ------
        KeyError
            If the level has no examples.
        """
        stem = f"examples/{self.manifest.level(level).name}"
        if f"{stem}.json" in self.manifest.files:
            records: list[dict[str, Any]] = json.loads(self.read(f"{stem}.json"))
            return records
        import pyarrow as pa
        import pyarrow.parquet as pq

        source = pa.BufferReader(self.read(f"{stem}.parquet"))
        rows: list[dict[str, Any]] = pq.ParquetFile(source).read().to_pylist()
        return rows

    @property
    def report(self) -> bytes:
        """The report, a self-contained HTML page."""
        return self.read(REPORT_FILE)

    @property
    def report_path(self) -> Path | None:
        """The report's path on this machine; None for a remote registry or without a report."""
        if self.path is None or REPORT_FILE not in self.manifest.files:
            return None
        return self.path / REPORT_FILE

    def verify(self) -> None:
        """Check every file of the version, and that there are no others.

        Raises
        ------
        CorruptArtifact
            Naming every file that is missing, damaged or not listed.
        """
        with ThreadPoolExecutor(_READERS) as pool:
            checks = dict(zip(self.files, pool.map(self._problem, self.files)))
        problems = {path: problem for path, problem in checks.items() if problem}
        if self._entry(SUMS_FILE) != hash_file(self.manifest.checksums()):
            problems[SUMS_FILE] = "does not match the manifest"
        known = {*self.manifest.files, MANIFEST_FILE, SUMS_FILE}
        problems |= dict.fromkeys(sorted(self._stored() - known), "is not listed")
        if problems:
            raise self._corrupt(problems)

    def save_to(self, folder: str | Path) -> Path:
        """Copy the version, verified, into a folder that does not exist yet, and return its path.

        Raises
        ------
        FileExistsError
            If the folder exists and is not empty.
        CorruptArtifact
            If a file is damaged.
        """
        target = Path(folder)
        if target.exists() and any(target.iterdir()):
            raise FileExistsError(f"folder {str(target)!r} is not empty: give a new one.")
        for path in self.files:
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            (target / path).write_bytes(self.read(path))
        (target / SUMS_FILE).write_bytes(self.manifest.checksums())
        (target / MANIFEST_FILE).write_bytes(self.manifest.to_bytes())
        return target

    def _stored(self) -> set[str]:
        return set(self._walk())

    def _walk(self) -> Iterator[str]:
        if self.path is None:
            yield from self.location.walk()
            return
        # The store client hides files whose names look like its temporary ones; the disk does not.
        # Folders may be deleted meanwhile, if the version is being removed.
        for place, folders, files in os.walk(self.path):
            for name in files + [name for name in folders if Path(place, name).is_symlink()]:
                yield Path(place, name).relative_to(self.path).as_posix()

    def _entry(self, path: str) -> FileEntry | None:
        try:
            if self.path is not None:
                return hash_file(self.path / path)
            return hash_file(self.location.get(path))
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None

    def _problem(self, path: str) -> str | None:
        entry = self._entry(path)
        if entry is None:
            return "is missing"
        return None if entry == self.manifest.files[path] else "does not match its digest"

    def _corrupt(self, problems: dict[str, str]) -> CorruptArtifact:
        listed = "; ".join(f"{path} {problem}" for path, problem in problems.items())
        return CorruptArtifact(
            f"{self.name} version {self.version} at {self.url} is damaged: {listed}.",
            tuple(problems),
        )


def open_version(
    location: Location, reference: ArtifactReference, manifest_sha256: str
) -> Artifact:
    """Read the manifest of a version's folder and check it against the registry's record.

    Raises
    ------
    CorruptArtifact
        If the manifest is missing or not the one that was published.
    """
    try:
        data = location.get(MANIFEST_FILE)
    except NotFound:
        problem = "is missing"
    else:
        if digest(data) == manifest_sha256:
            return Artifact(location, Manifest.from_bytes(data), reference)
        problem = "does not match its digest"
    raise CorruptArtifact(
        f"{reference.name} version {reference.version} at {location.url} is damaged: "
        f"{MANIFEST_FILE} {problem}.",
        (MANIFEST_FILE,),
    )

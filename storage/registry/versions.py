"""One published version, read lazily and verified as it is read; no torch, no Ray."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from storage.exports.notebook import card, figure, table
from storage.locations import BadObject, Location, NotFound, StoredObject
from storage.records import digest, read_json
from storage.registry.ledgers import CorruptArtifact
from storage.registry.manifests import (
    MANIFEST_FILE,
    MAX_DEPTH,
    MAX_MANIFEST,
    SUMS_FILE,
    ArtifactReference,
    LevelEntry,
    Manifest,
    first_reason,
    hash_file,
    shown_scores,
)

if TYPE_CHECKING:
    from storage.exports.saelens import SaeLensDictionary
    from storage.graph.concept_graph import ConceptGraph
    from storage.registry.published_concepts import PublishedConcept, VersionConcepts

__all__ = ["Artifact", "new_folder"]

REPORT_FILE = "report.html"
STRIPS_FILE = "steering.json"
MAX_PARSED = 2**28
"""Bytes of the longest graph, table of examples or strips that is read into memory as a whole."""
_READERS = 4
_MOST_STRANGERS = 100


class _Example(BaseModel):
    """What of an example's record is used here; further fields are kept."""

    model_config = ConfigDict(extra="allow", strict=True)

    index: Annotated[int | None, Field(ge=0, lt=1_000_000_000)] = None
    tokens: list[str] | None = None
    values: list[Annotated[float, Field(allow_inf_nan=False)]] | None = None
    peak: int | None = None
    activation: Annotated[float | None, Field(allow_inf_nan=False)] = None
    document: str | int | None = None


_EXAMPLES = TypeAdapter(list[_Example])


class Artifact:
    """One version of an artifact; nothing but its manifest is read before it is asked for.

    Every file is checked against the manifest when it is read, its kind and size before its bytes,
    and the manifest against the registry's record, so that no changed byte is ever used.

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
        self._verified: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"<Artifact {self.name} version {self.version} ({self.status}) at {self.url}>"

    def _repr_html_(self) -> str:
        scores = shown_scores(self.levels)
        rows = [
            [level.level, level.name, level.hookpoint, f"{level.n_concepts:,}"]
            + [figure(level.metrics.get(score)) for score in scores]
            for level in reversed(self.levels)
        ]
        counts = ", ".join(f"{value:,} {key}" for key, value in self.manifest.counts.items())
        place = self.url if self.report_path is None else self.report_path.as_uri()
        return card(
            f"{self.name} v{self.version} ({self.status}): {counts}",
            table(["level", "name", "hookpoint", "concepts", *scores], rows),
            table([], [["report" if self.report_path else "files", place]]),
        )

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

    def open(self, path: str) -> StoredObject:
        """Open one file for reading in blocks, which takes no memory that grows with the file.

        The whole file is verified before it is opened, unless that has been done since it was last
        written; a file that is changed while it is read raises
        :class:`~storage.locations.BadObject`.

        Raises
        ------
        KeyError
            If the manifest lists no such file.
        CorruptArtifact
            If the file is missing or its bytes are not those that were published.
        """
        found = self._opened(path)
        try:
            if found.version is None or self._verified.get(path) != found.version:
                with self.reading(path):
                    if hash_file(found) != self.manifest.files[path]:
                        raise self._corrupt({path: "does not match its digest"})
                if found.version is not None:
                    self._verified[path] = found.version
        except BaseException:
            found.close()
            raise
        return found

    def read(self, path: str, *, most: int | None = None) -> bytes:
        """Return one file's bytes, verified.

        Parameters
        ----------
        path : str
            Its path inside the version.
        most : int, optional
            Refuse a file of more bytes before any is read.

        Raises
        ------
        KeyError
            If the manifest lists no such file.
        CorruptArtifact
            If the file is missing, too long, or its bytes are not those that were published.
        """
        with self._opened(path) as found, self.reading(path):
            if most is not None and found.size > most:
                raise self._corrupt(
                    {path: f"has {found.size:,} bytes, which is more than {most:,}"}
                )
            data = found.read()
        if hash_file(data) != self.manifest.files[path]:
            raise self._corrupt({path: "does not match its digest"})
        return data

    def read_json(self, path: str) -> Any:
        """Return what one file of JSON says, verified; raises as :meth:`read`."""
        data = self.read(path, most=MAX_PARSED)
        with self.reading(path):
            return read_json(data)

    @contextlib.contextmanager
    def reading(self, *paths: str) -> Iterator[None]:
        """Whatever is found to be wrong in this block is wrong with these files.

        Raises
        ------
        CorruptArtifact
            In place of a ValueError, or of a file that is none or changes; it names the files.
        """
        try:
            yield
        except CorruptArtifact:
            raise
        except BadObject as error:
            raise self._corrupt(dict.fromkeys(paths, error.reason)) from None
        except ValueError as error:
            reason = f"is not what it should be ({first_reason(error)})"
            raise self._corrupt(dict.fromkeys(paths, reason)) from None

    def dictionary(self, level: int | str) -> SaeLensDictionary:
        """The dictionary of a level (given by number or name), as numpy arrays.

        Raises
        ------
        KeyError
            If there is no such level.
        CorruptArtifact
            If a file of it is damaged or does not make a dictionary.
        """
        from storage.exports.saelens import from_saelens

        folder = f"dictionaries/{self.manifest.level(level).name}/"
        names = [path for path in self.files if path.startswith(folder)]
        files = {path.removeprefix(folder): self.read(path) for path in names}
        with self.reading(*names):
            return from_saelens(files)

    @cached_property
    def graph(self) -> ConceptGraph:
        """The concept graph, read when it is first asked for.

        Raises
        ------
        KeyError
            If the version has no graph.
        CorruptArtifact
            If its files are damaged or do not make a graph.
        """
        from storage.graph.concept_graph import ConceptGraph

        paths = ("graph/nodes.parquet", "graph/edges.parquet")
        nodes, edges = (self.read(path, most=MAX_PARSED) for path in paths)
        with self.reading(*paths):
            return ConceptGraph.from_parquet(nodes, edges)

    def concept(self, concept_id: str) -> PublishedConcept:
        """One concept, or observed variable, by its id ``"{level}:{index}"``.

        Raises
        ------
        UnknownConcept
            A KeyError, if the graph has no such node.
        """
        return self._concepts[concept_id]

    @cached_property
    def _concepts(self) -> VersionConcepts:
        from storage.registry.published_concepts import VersionConcepts

        return VersionConcepts(self)

    def examples(self, level: int | str) -> list[dict[str, Any]]:
        """The stored examples of a level's concepts, one record per row.

        ``index`` says of which concept; it, ``tokens`` and ``values`` (one per token), ``peak``,
        ``activation`` and ``document`` may be missing or None. Further fields are as they are.

        Raises
        ------
        KeyError
            If the level has no examples.
        CorruptArtifact
            If the file is damaged or does not hold such records.
        """
        stem = f"examples/{self.manifest.level(level).name}"
        path = f"{stem}.json"
        if path in self.manifest.files:
            records = self.read_json(path)
        else:
            from storage.graph.graph_columns import read_parquet

            path = f"{stem}.parquet"
            data = self.read(path, most=MAX_PARSED)
            with self.reading(path):
                records = read_parquet(data, "examples", lists=True).to_pylist()
        with self.reading(path):
            _EXAMPLES.validate_python(records)
        checked: list[dict[str, Any]] = records
        return checked

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
        if not self._sums_match():
            problems[SUMS_FILE] = "does not match the manifest"
        for path in self._strangers():
            problems[path] = "is not listed"
            if len(problems) > _MOST_STRANGERS + len(self.files):
                break
        if problems:
            raise self._corrupt(problems)

    def save_to(self, folder: str | Path) -> Path:
        """Copy the version, verified, into a folder that does not exist yet, and return its path.

        The folder appears when it is whole; a copy that fails leaves nothing.

        Raises
        ------
        FileExistsError
            If the folder exists and is not empty.
        CorruptArtifact
            If a file is damaged.
        """
        with new_folder(folder) as partial:
            for path in self.files:
                self.copy(path, partial / path)
            (partial / SUMS_FILE).write_bytes(self.manifest.checksums())
            (partial / MANIFEST_FILE).write_bytes(self.manifest.to_bytes())
        return Path(folder)

    def copy(self, path: str, target: Path) -> None:
        """Write one file to a place on this machine that is free, verified while it is copied.

        Raises
        ------
        KeyError
            If the manifest lists no such file.
        CorruptArtifact
            If the file is damaged; what was written must not be used.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        state = hashlib.sha256()
        with self._opened(path) as found, self.reading(path), target.open("xb") as stream:
            for block in found.blocks():
                state.update(block)
                stream.write(block)
        if state.hexdigest() != self.manifest.files[path].sha256:
            raise self._corrupt({path: "does not match its digest"})

    def _opened(self, path: str) -> StoredObject:
        """One file, opened and of the size that the manifest states, but not verified yet."""
        if path not in self.manifest.files:
            raise KeyError(f"{self.name} version {self.version} has no file {path!r}")
        try:
            found = self.location.open(path)
        except NotFound:
            raise self._corrupt({path: "is missing"}) from None
        except BadObject as error:
            raise self._corrupt({path: error.reason}) from None
        problem = self._size_problem(path, found)
        if problem is not None:
            found.close()
            raise self._corrupt({path: problem})
        return found

    def _problem(self, path: str) -> str | None:
        """What is wrong with a file's kind, size or bytes."""
        try:
            with self.location.open(path) as found:
                return self._size_problem(path, found) or (
                    None
                    if hash_file(found) == self.manifest.files[path]
                    else "does not match its digest"
                )
        except NotFound:
            return "is missing"
        except BadObject as error:
            return error.reason

    def _size_problem(self, path: str, found: StoredObject) -> str | None:
        stated = self.manifest.files[path].bytes
        return None if found.size == stated else f"has {found.size:,} bytes instead of {stated:,}"

    def _sums_match(self) -> bool:
        try:
            return self.location.get(SUMS_FILE, most=MAX_MANIFEST) == self.manifest.checksums()
        except (NotFound, BadObject):
            return False

    def _strangers(self) -> Iterator[str]:
        """Paths of what lies in the version's folder and is not listed."""
        known = {*self.manifest.files, MANIFEST_FILE, SUMS_FILE}
        paths = self.location.walk() if self.path is None else _walk(self.path)
        return (path for path in paths if path not in known)

    def _corrupt(self, problems: dict[str, str]) -> CorruptArtifact:
        listed = "; ".join(f"{path} {problem}" for path, problem in problems.items())
        return CorruptArtifact(
            f"{self.name} version {self.version} at {self.url} is damaged: {listed}.",
            tuple(problems),
        )


@contextlib.contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """A folder to fill, which appears as `folder` at the end of the block; after an error, never.

    Raises
    ------
    FileExistsError
        If the folder exists and is not empty.
    """
    target = Path(folder).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"folder {str(folder)!r} is not empty: give a new one.")
    partial = target.with_name(f".{target.name}-{os.urandom(6).hex()}")
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


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
        data = location.get(MANIFEST_FILE, most=MAX_MANIFEST)
    except (NotFound, BadObject) as error:
        problem = "is missing" if isinstance(error, NotFound) else error.reason
    else:
        if digest(data) == manifest_sha256:
            return Artifact(location, Manifest.from_bytes(data), reference)
        problem = "does not match its digest"
    raise CorruptArtifact(
        f"{reference.name} version {reference.version} at {location.url} is damaged: "
        f"{MANIFEST_FILE} {problem}.",
        (MANIFEST_FILE,),
    )


def _walk(root: Path) -> Iterator[str]:
    """Paths of everything but folders below `root`; over no link, and not deeper than may be."""
    # The store client hides files whose names look like its temporary ones; the disk does not.
    waiting = [(root, 0)]
    while waiting:
        folder, depth = waiting.pop()
        # It may be deleted meanwhile, if the version is being removed.
        with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False) and depth < MAX_DEPTH:
                    waiting.append((Path(entry.path), depth + 1))
                else:
                    yield Path(entry.path).relative_to(root).as_posix()

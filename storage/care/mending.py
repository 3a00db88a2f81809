"""Mending what :mod:`storage.care.doctor` has found.

Metadata of a table follow from its plan and its rows, and what a store holds twice is copied back.
The rest is condemned: the step that made it makes it again when it is next asked for.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from storage.artifacts import Artifact, CorruptArtifact, Registry, UnknownArtifact
from storage.care.doctor import NO_FILE, Finding, examine, read_receipt, step_folders
from storage.care.shelf_doctor import ARTIFACTS, MODELS
from storage.locations import BadObject, Location, NotFound, is_partial
from storage.records import digest
from storage.references import RECORD_FILES, Reference
from storage.registry.manifests import SUMS_FILE
from storage.registry.signatures import BadSignature
from storage.sealing.condemned import CONDEMNED_FILE, condemn
from storage.sealing.damage import CorruptFile, CorruptShard, Damaged, NotSealed
from storage.sealing.seals import FileSeal, SealedFolder
from storage.tables.opening import open_table, table_type
from storage.tables.sealed import (
    SealedTable,
    TableWriter,
    array_sum,
    receipt,
    seal_record,
    shard_objects,
    small_file,
)

__all__ = ["Copies", "mend", "mend_metadata", "mend_models", "mend_registry", "mend_version"]


class Copies:
    """Finds what a store holds twice, such as dictionaries, which an artifact has too.

    Parameters
    ----------
    store : Location
    """

    def __init__(self, store: Location) -> None:
        self._store = store

    def find(self, seal: FileSeal) -> bytes | None:
        """The bytes that have this seal, from wherever in the store they are whole."""
        for get, path in self._places.get(seal, ()):
            try:
                return get(path)
            except (Damaged, CorruptArtifact):
                continue
        return None

    @functools.cached_property
    def _places(self) -> dict[FileSeal, list[tuple[Callable[[str], bytes], str]]]:
        places: dict[FileSeal, list[tuple[Callable[[str], bytes], str]]] = {}
        for folder in self._sealed():
            for path, seal in folder.files.items():
                places.setdefault(seal, []).append((folder.get, path))
        for version in self._versions():
            for path, entry in version.manifest.files.items():
                seal = FileSeal(sha256=entry.sha256, size=entry.bytes)
                places.setdefault(seal, []).append((version.read, path))
        return places

    def _sealed(self) -> Iterator[SealedFolder]:
        for location in step_folders(self._store):
            try:
                reference = Reference.find(location)
                if reference is not None and reference.sha256:
                    yield reference.open()
            except CorruptFile:
                continue

    def _versions(self) -> Iterator[Artifact]:
        registry = Registry((self._store / ARTIFACTS).url)
        for name in registry.location.children():
            try:
                for version in registry.versions(name):
                    yield registry.load(name, version.version, verify=False)
            except (CorruptArtifact, BadSignature, UnknownArtifact, ValueError):
                continue


def mend(location: Location, findings: Sequence[Finding], copies: Copies) -> bool:
    """Mend a step's folder as far as that can be done without the step, and condemn the rest.

    What a killed writer left over is removed, what is no file makes room, and strangers stay. Where
    something kept the doctor from seeing the rest, the folder is examined again. Nobody may be at
    work on the step.

    Returns
    -------
    bool
        Whether the step has to be done again, as far as it is condemned.

    Raises
    ------
    ValueError
        If the metadata of a table do not come out as they were sealed; nothing is lost by it.
    """
    again = _mend_seen(location, findings, copies)
    damaged = {finding.path for finding in findings if finding.kind == "damaged"}
    hiding = any(finding.reason == NO_FILE for finding in findings)
    hiding |= bool(damaged & {"plan.json", "sealed.json"}) and location.exists("sealed.json")
    if hiding:
        again |= _mend_seen(location, examine(location), copies)
    return again


def _mend_seen(location: Location, findings: Sequence[Finding], copies: Copies) -> bool:
    for finding in findings:
        if finding.kind == "left over":
            _remove(location, finding.path)
    damaged = {finding.path for finding in findings if finding.kind == "damaged"}
    again = any(finding.kind in ("unsealed", "condemned") for finding in findings)
    for path in damaged:
        _make_room(location, path)
    if CONDEMNED_FILE in damaged:
        # What it noted is found again.
        _remove(location, CONDEMNED_FILE)
    try:
        reference = Reference.find(location)
    except CorruptFile:
        # Nothing says any more what the files were: the step goes over all of them.
        reference = None
    if reference is None:
        for name in damaged & set(RECORD_FILES):
            _remove(location, name)
            again = True
    elif reference.sha256:
        _copy_record(location, reference, damaged)
    sealed = SealedFolder(location, {})
    if reference is not None and reference.sha256:
        sealed = reference.open()
    content_hash = None if reference is None else reference.content_hash
    shards, unsealed = _mend_table(location, damaged, content_hash)
    lost = []
    for path in sorted(damaged & set(sealed.files) - set(shards)):
        if not sealed.find_damage([path]):
            continue
        data = copies.find(sealed.files[path])
        if data is None:
            lost.append(path)
        else:
            location.put(path, data)
    errors = [
        CorruptShard(*shards[path], "condemned", location.url)
        for path in sorted(damaged & set(shards))
    ]
    if lost or errors:
        condemn(location, shards=errors, files=lost)
    return again or unsealed or bool(lost or errors)


def _copy_record(location: Location, reference: Reference, damaged: set[str]) -> None:
    """Write the damaged copies of a record anew from the one that is whole."""
    for whole in RECORD_FILES:
        if whole not in damaged:
            for name in damaged & set(RECORD_FILES):
                location.put(name, location.get(whole))


def _mend_table(
    location: Location, damaged: set[str], content_hash: str | None
) -> tuple[dict[str, tuple[str, int]], bool]:
    """Mend a table's metadata; return its shards, and whether plan and seal were taken away."""
    if damaged & {"plan.json", "sealed.json"}:
        try:
            plan_json = small_file(location, "plan.json")
            plan = table_type(plan_json).plan_type.model_validate_json(plan_json)
        except (NotFound, BadObject, ValueError):
            plan = None
        if plan is None or content_hash is None or "plan.json" in damaged:
            # Who wrote them will again; all shards and receipts stay.
            for name in ("sealed.json", "plan.json"):
                _remove(location, name)
            return {}, True
        location.put("sealed.json", seal_record(plan, plan_json, content_hash))
    try:
        table = open_table(location)
    except (NotSealed, CorruptFile):
        return {}, False
    shards = shard_objects(table.plan)
    # A receipt follows from the rows of its shard, unless they are damaged as well.
    unknown = {f"receipts/{shards[path][1]}.json" for path in damaged & set(shards)}
    receipts = {path for path in damaged if path.startswith("receipts/")}
    metadata = {path for path in damaged if path.endswith("zarr.json")}
    if not receipts & unknown:
        metadata |= receipts
    if metadata:
        mend_metadata(table, sorted(metadata))
    return shards, False


def _make_room(location: Location, path: str) -> None:
    """Remove what lies in the place of a file and is none: a link, a pipe, an empty folder."""
    root = location.local_path
    if root is None:
        return
    place = root / path
    if place.is_dir() and not place.is_symlink():
        with contextlib.suppress(OSError):
            place.rmdir()
    elif place.is_symlink() or (place.exists() and not place.is_file()):
        place.unlink()


def _remove(location: Location, path: str) -> None:
    """Remove a file, or what a folder holds, and on a disk also what a store would not list."""
    root = location.local_path
    if root is None:
        location.delete(path)
        return
    place = root / path
    if place.is_dir() and not place.is_symlink():
        place.rmdir()
    else:
        place.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        # As far as the folders around it are empty now.
        while (place := place.parent) != root:
            place.rmdir()


def mend_version(
    registry: Registry, name: str, version: int, paths: Sequence[str], copies: Copies
) -> None:
    """Copy damaged files of a published version back, as far as the store has them elsewhere."""
    try:
        artifact = registry.load(name, version, verify=False)
    except (CorruptArtifact, BadSignature):
        return
    for path in paths:
        entry = artifact.manifest.files.get(path)
        data = (
            None if entry is None else copies.find(FileSeal(sha256=entry.sha256, size=entry.bytes))
        )
        if path == SUMS_FILE:
            data = artifact.manifest.checksums()
        if data is not None:
            _make_room(artifact.location, path)
            artifact.location.put(path, data)


def mend_models(store: Location, findings: Sequence[Finding], copies: Copies) -> None:
    """Copy damaged files of trained models back from the training that made them."""
    for name in (store / MODELS).children():
        location = store / MODELS / name
        own = [finding for finding in findings if finding.url == location.url]
        try:
            sealed = SealedFolder.open(location)
        except (NotFound, CorruptFile):
            continue
        for finding in own:
            if finding.kind == "left over":
                _remove(location, finding.path)
            elif finding.kind == "damaged" and finding.path in sealed.files:
                data = copies.find(sealed.files[finding.path])
                if data is not None:
                    _make_room(location, finding.path)
                    location.put(finding.path, data)


def mend_registry(store: Location, findings: Sequence[Finding], copies: Copies) -> bool:
    """Mend published versions as far as their files are elsewhere in the store.

    Returns
    -------
    bool
        Whether steps that have published have to publish again.
    """
    registry = Registry((store / ARTIFACTS).url)
    own = [finding for finding in findings if finding.url.startswith(f"{registry.url}/")]
    for finding in own:
        if finding.kind == "left over" and is_partial(finding.path):
            _remove(Location(finding.url), finding.path)
    damaged = [finding for finding in own if finding.kind == "damaged"]
    for name in {_artifact_of(registry, finding) for finding in damaged}:
        try:
            versions = registry.versions(name)
        except (CorruptArtifact, BadSignature, UnknownArtifact):
            continue
        for version in versions:
            paths = [finding.path for finding in damaged if finding.url == version.url]
            if paths:
                mend_version(registry, name, version.version, paths, copies)
    again = False
    names = {_artifact_of(registry, finding) for finding in damaged}
    for location in step_folders(store) if names else ():
        try:
            reference = Reference.find(location)
        except CorruptFile:
            continue
        if reference is None or reference.step != "publish":
            continue
        name = reference.summary["name"]
        try:
            if name in names:
                registry.load(name, reference.summary["version"], verify=True)
        except (CorruptArtifact, BadSignature, UnknownArtifact):
            condemn(location, files=[ARTIFACTS])
            again = True
    return again


def _artifact_of(registry: Registry, finding: Finding) -> str:
    return finding.url.removeprefix(f"{registry.url}/").split("/", 1)[0]


def mend_metadata(table: SealedTable[Any], paths: Sequence[str]) -> None:
    """Write damaged Zarr metadata and receipts anew.

    Raises
    ------
    ValueError
        If the receipts do not come out as they were sealed; nothing is lost by it.
    """
    location, plan = table.location, table.plan
    writer = TableWriter(location, plan)
    for path in paths:
        if path.endswith("zarr.json"):
            location.delete(path)
    writer.prepare()
    if not any(path.startswith("receipts/") for path in paths):
        return
    recorded = [read_receipt(location, shard) for shard in plan.shards]
    for shard in plan.shards:
        if f"receipts/{shard}.json" in paths:
            start, size = shard * plan.shard_rows, plan.shard_size(shard)
            sums = {
                column.path: array_sum(table.rows(column.path, start, start + size))
                for column in plan.columns
            }
            recorded[shard] = receipt(plan, shard, sums)
    if digest(recorded) != table.content_hash:
        raise ValueError(
            f"the receipts of {location.url} cannot be restored from its rows: "
            "delete the folder and run again."
        )
    for shard in plan.shards:
        if f"receipts/{shard}.json" in paths:
            location.put(f"receipts/{shard}.json", recorded[shard])

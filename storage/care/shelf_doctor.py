"""Checking what a store holds beside its steps: published versions, and trained models."""

from __future__ import annotations

import re
from collections.abc import Container

from storage.artifacts import Artifact, CorruptArtifact, Registry, UnknownArtifact
from storage.care.doctor import (
    NO_FILE,
    Finding,
    FolderFindings,
    Kind,
    everything,
    examine_strangers,
    is_stray,
    step_folders,
    stray,
)
from storage.locations import BadObject, Location, NotFound, check_name, is_partial
from storage.records import MAX_RECORD, canonical_json, digest, read_json
from storage.references import Reference
from storage.registry.manifests import (
    MANIFEST_FILE,
    MAX_MANIFEST,
    SUMS_FILE,
    ArtifactReference,
    Manifest,
)
from storage.registry.signatures import BadSignature
from storage.sealing.damage import CorruptFile
from storage.sealing.seals import SEAL_FILE, SealedFolder

__all__ = ["ARTIFACTS", "MODELS", "examine_models", "examine_registry"]

ARTIFACTS, MODELS = "artifacts", "models"
# Where sums alone are left, nothing says how long a file was; the largest dictionaries are shorter.
_MOST_UNSIZED = 2**36
# What a registry keeps beside the folders of versions, and may hold anything or nothing.
_NOTE = re.compile(r"(records|changes|removed|aliases/[^/]+)/newest|clock|condemned/[^/]+")
_ENTRY = re.compile(r"(records|changes|removed|aliases/[^/]+)/(\d{8})\.json")


def examine_registry(store: Location) -> list[Finding]:
    """Check every file of every published version, and that the registry has no others.

    The versions that the store's own runs have published must be there, unless they were removed.
    """
    root = store / ARTIFACTS
    registry = Registry(root.url)
    found: list[Finding] = []
    for name in root.children():
        try:
            check_name(name)
        except ValueError as error:
            found.append(Finding(root.url, name, "stranger", str(error)))
            continue
        found += _examine_artifact(registry, name)
    for location in step_folders(store):
        found += _examine_publication(registry, location)
    return found


def _examine_artifact(registry: Registry, name: str) -> list[Finding]:
    folder = registry.location / name
    if is_stray(folder):
        return [stray(folder)]
    found, unrecorded = _examine_shelf(folder)
    versions: dict[str, Artifact | None] = {}
    try:
        for reference in registry.versions(name):
            try:
                versions[reference.url] = registry.load(name, reference.version, verify=False)
            except CorruptArtifact as error:
                found += _named(reference.url, error)
                versions |= _by_its_manifest(registry, Location(reference.url))
    except UnknownArtifact:
        pass
    except (CorruptArtifact, BadSignature) as error:
        found = found or _named(folder.url, error)
        for own in unrecorded:
            versions |= _by_its_manifest(registry, folder / "versions" / own)
    for url, artifact in versions.items():
        if artifact is None:
            found += _by_its_sums(Location(url))
            continue
        try:
            artifact.verify()
        except CorruptArtifact as error:
            found += _named(url, error, {*artifact.files, MANIFEST_FILE, SUMS_FILE})
    unrecorded -= {url.rstrip("/").rsplit("/", 1)[-1] for url in versions}
    reason = "no version refers to it; `strata artifacts clean` removes it after a day"
    return found + [
        Finding(folder.url, f"versions/{own}", "left over", reason) for own in sorted(unrecorded)
    ]


def _examine_shelf(folder: Location) -> tuple[list[Finding], set[str]]:
    """Check what lies beside the versions' folders; return these folders' names as well."""
    found: list[Finding] = []
    versions = set()
    changes: set[int] = set()
    for path, kind in everything(folder):
        head, _, rest = path.partition("/")
        match = _ENTRY.fullmatch(path)
        if match is not None and match[1] == "changes":
            changes.add(int(match[2]))
        if head == "versions" and "/" in rest:
            versions.add(rest.split("/", 1)[0])
        elif is_partial(path):
            found.append(Finding(folder.url, path, "left over", "of a writer that was killed"))
        elif kind == "file" and _NOTE.fullmatch(path):
            continue
        elif kind != "file" or match is None:
            reason = f"a {kind} that no publisher wrote: take it away"
            found.append(Finding(folder.url, path, "stranger", reason))
        elif not _is_entry(folder, path, int(match[2]), match[1]):
            found.append(Finding(folder.url, path, "damaged", "digest, or another place"))
    # Those of versions are missed when they are read; of the changes, only the newest is.
    found += [
        Finding(folder.url, f"changes/{number:08d}.json", "damaged", "missing")
        for number in _gaps(changes)
    ]
    return found, versions


def _gaps(numbers: set[int]) -> list[int]:
    """The first number that is missing between others; the numbers may be anybody's."""
    return next(([n] for n in range(1, max(numbers, default=0)) if n not in numbers), [])


def _is_entry(folder: Location, path: str, number: int, ledger: str) -> bool:
    """Whether a file is an entry of a ledger, spelt as one is, in its own place."""
    try:
        data = folder.get(path, most=MAX_RECORD)
        body = read_json(data)
        stated = body.pop("digest")
        if canonical_json(body | {"digest": stated}) != data:
            return False
        if digest(canonical_json(body)) != stated:
            return False
        if "form" in body:
            return (body["ledger"], body["number"]) == (ledger, number)
        return ledger != "records" or body["entry"]["version"] == number
    except (BadObject, ValueError, KeyError, TypeError, AttributeError):
        return False


def _named(
    url: str, error: CorruptArtifact | BadSignature, known: Container[str] | None = None
) -> list[Finding]:
    """What an error of the registry names; a file that is not known is a stranger."""

    def kind(path: str) -> Kind:
        if known is None or path in known:
            return "damaged"
        return "left over" if is_partial(path) else "stranger"

    files = getattr(error, "files", None) or (".",)
    return [Finding(url, path, kind(path), str(error)) for path in files]


def _by_its_manifest(registry: Registry, location: Location) -> dict[str, Artifact | None]:
    """A version whose record or manifest is damaged, as far as it can vouch for itself."""
    try:
        manifest = Manifest.from_bytes(location.get(MANIFEST_FILE, most=MAX_MANIFEST))
    except (NotFound, BadObject, CorruptArtifact):
        return {location.url: None}
    shared = ArtifactReference.model_fields.keys() & Manifest.model_fields.keys()
    told = {field: getattr(manifest, field) for field in shared}
    reference = ArtifactReference(registry=registry.url, url=location.url, **told)
    return {location.url: Artifact(location, manifest, reference)}


def _by_its_sums(location: Location) -> list[Finding]:
    """What is wrong with the files of a version whose manifest cannot be read."""
    try:
        lines = location.get(SUMS_FILE, most=MAX_MANIFEST).decode().splitlines()
        sums = {path: value for value, path in (line.split("  ", 1) for line in lines)}
    except (NotFound, BadObject, ValueError):
        sums = {}
    if MANIFEST_FILE not in sums:
        return [Finding(location.url, SUMS_FILE, "damaged", "no list of checksums")]
    found = []
    for path, value in sums.items():
        try:
            with location.open(path) as file:
                good = file.size <= _MOST_UNSIZED and digest(file.blocks()) == value
        except (NotFound, BadObject, ValueError):
            good = False
        if not good and path != MANIFEST_FILE:
            found.append(Finding(location.url, path, "damaged", f"not as {SUMS_FILE} lists it"))
    return found


def _examine_publication(registry: Registry, location: Location) -> list[Finding]:
    """Whether the version that a step says it has published has its record."""
    try:
        reference = Reference.find(location)
    except CorruptFile:
        return []
    if reference is None or reference.step != "publish":
        return []
    folder = registry.location / reference.summary["name"]
    path = f"records/{reference.summary['version']:08d}.json"
    if folder.exists(path):
        return []
    return [Finding(folder.url, path, "damaged", "missing")]


def examine_models(store: Location) -> list[Finding]:
    """Check the copies of trained models that lie where people look for them."""
    found = []
    for name in (store / MODELS).children():
        location = store / MODELS / name
        if is_stray(location):
            found.append(stray(location))
            continue
        try:
            sealed = SealedFolder.open(location)
        except NotFound:
            found.append(Finding(location.url, SEAL_FILE, "unsealed", "nothing was sealed here"))
            continue
        except CorruptFile as error:
            found.append(Finding(location.url, error.path, "damaged", error.reason))
            continue
        findings = FolderFindings(location)
        stored = dict(everything(location))
        readable = [path for path in sealed.files if stored.get(path) != "other"]
        for damage in sealed.find_damage(readable):
            findings.add(damage.path, "damaged", damage.reason)
        for path, kind in stored.items():
            if kind == "other":
                findings.add(path, "damaged", NO_FILE)
        examine_strangers(stored, {**sealed.files, SEAL_FILE: None}, set(), findings)
        found += findings.sorted()
    return found

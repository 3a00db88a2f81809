"""The registry of published concept artifacts: immutable, numbered, atomic, without a lock server.

A version is a folder that nobody changes after it is published, and one record in a ledger that
makes it visible::

    <registry>/<name>/versions/<folder>/…            manifest.json and everything that it lists
    <registry>/<name>/records/00000007.json          version 7 is <folder>, and its digest
    <registry>/<name>/changes/00000002.json          the second move of an alias, or removal

``ARTIFACT.md`` is the normative description of the format.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from storage.locations import Location, check_name, s3_endpoint
from storage.registry.ledgers import LATEST, CorruptArtifact
from storage.registry.quality_gates import QualityGate
from storage.registry.retention import Garbage, Retention
from storage.registry.signatures import BadSignature, Keyring
from storage.registry.witness import RolledBack, Witness, witness_folder

if TYPE_CHECKING:
    from storage.graph.comparison import Comparison
    from storage.registry.drafts import CollectedMeanwhile, Details
    from storage.registry.manifests import ArtifactReference, LevelEntry, Manifest, Status
    from storage.registry.shelves import (
        AliasMove,
        AliasMoved,
        Shelf,
        UnknownArtifact,
        UnknownVersion,
        VersionRecord,
    )
    from storage.registry.versions import Artifact

__all__ = [
    "AliasMove",
    "AliasMoved",
    "Artifact",
    "ArtifactReference",
    "BadSignature",
    "CollectedMeanwhile",
    "CorruptArtifact",
    "Garbage",
    "LevelEntry",
    "Manifest",
    "QualityGate",
    "Registry",
    "Retention",
    "RolledBack",
    "UnknownArtifact",
    "UnknownVersion",
    "VersionRecord",
]


# Names that a registry remembers what it has read of.
_MOST_SHELVES = 1024
# What these names stand for is built with pydantic, whose import takes longer than all the rest
# here: they are looked up when they are first asked for.
_LATER = {
    "AliasMove": "storage.registry.shelves",
    "AliasMoved": "storage.registry.shelves",
    "Artifact": "storage.registry.versions",
    "ArtifactReference": "storage.registry.manifests",
    "CollectedMeanwhile": "storage.registry.drafts",
    "LevelEntry": "storage.registry.manifests",
    "Manifest": "storage.registry.manifests",
    "UnknownArtifact": "storage.registry.shelves",
    "UnknownVersion": "storage.registry.shelves",
    "VersionRecord": "storage.registry.shelves",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LATER[name]), name)


class Registry:
    """Published artifacts below one URL.

    With keys to trust, what was seen of a registry is remembered in the user's cache, so that one
    that was set back is refused; see :mod:`storage.registry.witness`.

    Parameters
    ----------
    url : str or Path
        A local folder or a URL that :class:`storage.locations.Location` takes.
    keyring : Keyring, optional
        Keys to sign with and to trust; by default those of the environment.
    """

    def __init__(self, url: str | Path, *, keyring: Keyring | None = None) -> None:
        self.location = Location(str(url))
        self._keyring = Keyring.from_environment() if keyring is None else keyring
        self._memory = witness_folder(trusting=bool(self._keyring.trusted))
        self._shelves: dict[str, Shelf] = {}

    def __repr__(self) -> str:
        return f"Registry({self.url!r})"

    @property
    def url(self) -> str:
        """The registry's URL."""
        return self.location.url

    def publish(
        self,
        name: str,
        files: Mapping[str, bytes | Path],
        *,
        fingerprint: str,
        **details: Unpack[Details],
    ) -> ArtifactReference:
        """Publish files as the next version of an artifact, whole or not at all.

        A fingerprint that is published already, with the same status, is not published again: the
        existing version is verified and returned. If it is damaged, the files that are given here
        mend it; if they are not those that it was published with, they become the next version.
        Any number of publishers may run at once on one name.

        Parameters
        ----------
        name : str
            Name of the artifact.
        files : mapping of str to bytes or Path
            Contents by path inside the version's folder; a Path is a local file. A ``README.md``,
            the model card, is written where none is given.
        fingerprint : str
            Fingerprint of all that the content follows from.
        **details
            What is said of the version, by the names of :class:`storage.registry.drafts.Details`:
            ``lineage``, ``levels``, ``metrics``, ``counts``, ``status``, ``rejections``, ``gates``,
            ``parent``, ``created_at`` and ``pages``; none of them is needed.

        Raises
        ------
        ValueError
            If a name, a path, a level or any other field is not what the format allows.
        TypeError
            If something else is said of the version.
        UnknownVersion
            If there is no such parent.
        CollectedMeanwhile
            If collectors take every folder away before it is a version.
        """
        from storage.registry.drafts import Draft, publish

        shelf = self._shelf(name)
        draft = Draft(name, files, fingerprint, details)
        return shelf.reference(publish(shelf, draft, details.get("parent", LATEST)))

    def names(self) -> list[str]:
        """Names of all artifacts with a version, sorted."""
        return [name for name in self._folders() if self._shelf(name).records.newest()]

    def versions(self, name: str, *, status: Status | None = None) -> list[ArtifactReference]:
        """References of all versions that are still there, oldest first.

        Raises
        ------
        UnknownArtifact
            If the registry has no artifact of this name.
        """
        shelf = self._shelf(name)
        alive = shelf.known_contents().alive.values()
        return [shelf.reference(record) for record in alive if status in (None, record.status)]

    def resolve(self, name: str, version: int | str = LATEST) -> ArtifactReference:
        """The reference of a version, given by number, alias or ``latest``.

        Raises
        ------
        UnknownVersion
            If there is no such version or alias.
        """
        shelf = self._shelf(name)
        return shelf.reference(shelf.select(version))

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
        from storage.registry.shelves import UnknownVersion
        from storage.registry.versions import open_version

        shelf = self._shelf(name)
        record = shelf.select(version)
        try:
            artifact = open_version(
                shelf.folder(record.folder), shelf.reference(record), record.manifest_sha256
            )
            if verify if verify is not None else self.location.local_path is not None:
                artifact.verify()
        except CorruptArtifact:
            if shelf.is_removed(record.version):
                raise UnknownVersion(f"{name} version {record.version} has been removed.") from None
            raise
        return artifact

    def ancestors(
        self, name: str, version: int | str = LATEST, *, most: int = 10
    ) -> list[Artifact]:
        """A version and those that it follows, up to `most` of them, oldest first.

        The line ends where a version follows none or one that has been removed. Files are verified
        when they are read.

        Raises
        ------
        UnknownVersion
            If there is no such version or alias.
        """
        from storage.registry.shelves import UnknownVersion

        found = [self.load(name, version, verify=False)]
        while len(found) < most and (parent := found[-1].manifest.parent) is not None:
            try:
                found.append(self.load(name, parent, verify=False))
            except UnknownVersion:
                break
        return found[::-1]

    def aliases(self, name: str) -> dict[str, int]:
        """Where every alias points, `latest` included.

        Raises
        ------
        UnknownArtifact
            If the registry has no artifact of this name.
        """
        return self._shelf(name).aliases()

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
        return self._shelf(name).promote(version, alias, expected=expected, reason=reason)

    def withdraw(self, name: str, alias: str, *, reason: str = "") -> AliasMove:
        """End an alias; its history stays. `latest` then follows the newest version again.

        Raises
        ------
        UnknownVersion
            If there is no such alias.
        """
        return self._shelf(name).withdraw(alias, reason=reason)

    def history(self, name: str, alias: str = LATEST) -> list[AliasMove]:
        """All moves of an alias, oldest first; for `latest` these include every publication.

        Raises
        ------
        UnknownVersion
            If there is no such alias.
        """
        return self._shelf(name).history(alias)

    def renew(self, name: str) -> dict[str, int]:
        """Sign where aliases point and which versions are gone, as it is now, whoever wrote it.

        For a registry that was begun without keys, or in form 1 (``ARTIFACT.md``): nothing is asked
        of the signatures that are there, so look at what it says first. What is signed already
        stays as it is.

        Returns
        -------
        dict of str to int
            Where every alias points that has been moved, as it is signed now.

        Raises
        ------
        UnknownArtifact
            If the registry has no artifact of this name.
        BadSignature
            If there is no key to sign with.
        """
        return self._shelf(name).renew()

    def compare(self, name: str, old: int | str, new: int | str = LATEST) -> Comparison:
        """Which concepts and edges are kept, changed, born and gone from one version to another.

        Raises
        ------
        UnknownVersion
            If there is no such version or alias.
        """
        from storage.graph.comparison import compare

        return compare(self.load(name, old, verify=False), self.load(name, new, verify=False))

    def collect_garbage(
        self,
        name: str | None = None,
        *,
        retention: Retention | None = None,
        grace: timedelta = timedelta(hours=24),
        dry_run: bool = False,
    ) -> Garbage:
        """Remove the versions that a policy does not keep, and what crashed publishers left.

        A version with an alias is never removed, and no number is given out twice.

        Parameters
        ----------
        name : str, optional
            One artifact; all of them by default.
        retention : Retention, optional
            The policy; without one no version is removed.
        grace : timedelta
            A folder that no record refers to is removed if nothing was written to it for this long,
            by the clock of the store.
        dry_run : bool
            Remove nothing, only tell.

        Raises
        ------
        CorruptArtifact, BadSignature, ValueError
            Of the first artifact that cannot be looked at; all others are seen to before.
        """
        versions: dict[str, tuple[int, ...]] = {}
        leftovers: list[str] = []
        failures: list[Exception] = []
        for each in [name] if name is not None else self._folders():
            try:
                removed, found = self._shelf(each).collect_garbage(
                    retention, grace, dry_run=dry_run
                )
            except (ValueError, BadSignature) as error:
                failures.append(error)
                continue
            if removed:
                versions[each] = tuple(removed)
            leftovers += [f"{each}/{path}" for path in found]
        if failures:
            raise failures[0]
        return Garbage(versions, tuple(leftovers))

    def _shelf(self, name: str) -> Shelf:
        from storage.registry.shelves import Shelf

        shelf = self._shelves.get(name)
        if shelf is None:
            # A store in memory is another one in every process.
            folder = None if self.url.startswith("memory:") else self._memory
            # Buckets of one name at two services are two registries.
            service = s3_endpoint() if self.url.startswith("s3:") else None
            place = self.url if service is None else f"{self.url} at {service}"
            witness = None if folder is None else Witness(folder, place, name)
            shelf = Shelf(self.location, name, self._keyring, witness)
            # Whoever asks a service may ask for any name.
            if len(self._shelves) >= _MOST_SHELVES:
                self._shelves.clear()
            self._shelves[name] = shelf
        return shelf

    def _folders(self) -> list[str]:
        """Names of all folders that are, or were to become, artifacts."""
        found = []
        for name in self.location.children():
            try:
                found.append(check_name(name))
            except ValueError:
                continue
        return found

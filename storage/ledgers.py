"""Append-only logs of small JSON records, each created by exactly one of any number of writers.

A ledger is a folder of files ``00000001.json``, ``00000002.json``, …. Entry n + 1 can be created
only by a writer that has seen entry n, and only once (:meth:`storage.locations.Location.create`):
this is a compare-and-swap that needs no lock, keeps the history, and works alike on a disk and on
an object store. A file is the canonical JSON of::

    {"digest": SHA-256 of the canonical JSON of the other two, "entry": {...}, "signature": ...}

so that a single changed bit is found.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from storage.locations import AlreadyExists, BadObject, Location
from storage.records import MAX_RECORD, canonical_json, digest, read_json
from storage.signatures import Keyring

__all__ = ["LATEST", "CorruptArtifact", "Ledger"]

LATEST = "latest"
"""The alias that every artifact has: its newest version that is published and not removed."""

_FILE = re.compile(r"(\d{8})\.json")
_READERS = 16


class CorruptArtifact(ValueError):
    """Files are damaged, missing or not those that were published.

    Attributes
    ----------
    files : tuple of str
        The paths of the files, below the registry's or the version's folder.
    """

    def __init__(self, message: str, files: tuple[str, ...]) -> None:
        super().__init__(message)
        self.files = files

    def __reduce__(self) -> tuple[type[CorruptArtifact], tuple[str, tuple[str, ...]]]:
        return (type(self), (str(self), self.files))


class Ledger:
    """The numbered entries below one folder of a location.

    Parameters
    ----------
    location : Location
        Where the ledger's folder lies.
    folder : str
        The folder, relative to the location.
    keyring : Keyring
        Signs what is appended and checks what is read.
    """

    def __init__(self, location: Location, folder: str, keyring: Keyring) -> None:
        self._location = location
        self._folder = folder
        self._keyring = keyring
        self._seen: dict[int, dict[str, Any]] = {}

    def path(self, number: int) -> str:
        """Path of the entry's file, relative to the location."""
        return f"{self._folder}/{number:08d}.json"

    def numbers(self) -> list[int]:
        """Numbers of all entries, ascending."""
        names = (path.rsplit("/", 1)[-1] for path in self._location.walk(self._folder))
        return sorted(int(match[1]) for name in names if (match := _FILE.fullmatch(name)))

    def entries(self) -> dict[int, dict[str, Any]]:
        """All entries by number, ascending; entries never change, so each is read only once.

        Raises
        ------
        CorruptArtifact
            If an entry is damaged.
        BadSignature
            If an entry is not signed by a trusted key.
        """
        numbers = self.numbers()
        unseen = [number for number in numbers if number not in self._seen]
        if len(unseen) > 1:
            with ThreadPoolExecutor(_READERS) as pool:
                self._seen |= dict(zip(unseen, pool.map(self._read, unseen)))
        elif unseen:
            self._seen[unseen[0]] = self._read(unseen[0])
        return {number: self._seen[number] for number in numbers}

    def append(self, number: int, entry: Mapping[str, Any]) -> None:
        """Create entry `number`; raise :class:`AlreadyExists` if another writer was first."""
        signature = self._keyring.sign(canonical_json(dict(entry)))
        body = {"entry": dict(entry), "signature": signature}
        data = canonical_json(body | {"digest": digest(canonical_json(body))})
        try:
            self._location.create(self.path(number), data)
        except AlreadyExists:
            # A store client repeats a request whose answer was lost: the first one may have won.
            if self._location.get(self.path(number), most=MAX_RECORD) != data:
                raise

    def _read(self, number: int) -> dict[str, Any]:
        path = self.path(number)
        where = f"{self._location.url}/{path}"
        try:
            data = self._location.get(path, most=MAX_RECORD)
        except BadObject as error:
            raise CorruptArtifact(f"{where} is damaged: it {error.reason}.", (path,)) from None
        try:
            body = read_json(data)
            stated = body.pop("digest")
            sound = canonical_json(body | {"digest": stated}) == data
            sound &= set(body) == {"entry", "signature"} and stated == digest(canonical_json(body))
        except (ValueError, KeyError, TypeError, AttributeError):
            sound = False
        if not sound or not isinstance(body["entry"], dict):
            raise CorruptArtifact(f"{where} is damaged: its digest does not match.", (path,))
        entry: dict[str, Any] = body["entry"]
        self._keyring.check(canonical_json(entry), body["signature"], what=where)
        return entry

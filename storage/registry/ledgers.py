"""Append-only logs of small JSON records, each created by exactly one of any number of writers.

A ledger is a folder of files ``00000001.json``, ``00000002.json``, …. Entry n + 1 can be created
only by a writer that has seen entry n, and only once (:meth:`storage.locations.Location.create`):
this is a compare-and-swap that needs no lock, keeps the history, and works alike on a disk and on
an object store. A file is the canonical JSON of::

    {"form": 2, "artifact", "ledger", "number", "origin", "previous", "entry",
     "signature": over all of these, "digest": SHA-256 of the canonical JSON of all others}

so that a single changed bit is found, and an entry counts only where it was written: in the ledger
of this name, under this number, after this predecessor, in the artifact that began with `origin`.
Files of other names are none of the ledger's.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from obstore.exceptions import BaseError

from storage.locations import AlreadyExists, BadObject, Location, NotFound
from storage.records import MAX_RECORD, canonical_json, digest, read_json
from storage.registry.signatures import BadSignature, Keyring
from storage.registry.witness import Witness

__all__ = ["FORM", "LATEST", "CorruptArtifact", "Entry", "Ledger"]

FORM = 2
LATEST = "latest"
"""The alias that every artifact has: its newest version that is published and not removed."""

_PLACE = {"form", "artifact", "ledger", "number", "origin", "previous"}
_NAME = re.compile(r"(\d{8})\.json")
_READERS = 16
_BLOCK = 512
# A store lists a thousand names a request: far fewer lie behind the newest hint.
_HINT_EVERY = 100
_HINT = "newest"
_MOST_HINT = 16


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


@dataclass(frozen=True)
class Entry:
    """One entry of a ledger, as it was read and found authentic.

    Attributes
    ----------
    number : int
        Its place in the ledger.
    content : dict
        What it says.
    digest : str
        SHA-256 of all of it.
    signed : bool
        Whether it has a signature, of whatever key.
    form : int
        1 for entries of the older form, which do not say where they belong.
    previous : str or None
        Digest of its predecessor; None for the first, and in form 1.
    origin : str or None
        Digest of the artifact's first record; None in that record itself, and in form 1.
    """

    number: int
    content: dict[str, Any]
    digest: str
    signed: bool
    form: int = FORM
    previous: str | None = None
    origin: str | None = None


class Ledger:
    """The numbered entries below one folder of an artifact.

    Parameters
    ----------
    location : Location
        The artifact's folder.
    artifact : str
        The artifact's name.
    folder : str
        The ledger's folder, relative to the location.
    keyring : Keyring
        Signs what is appended and checks what is read.
    witness : Witness, optional
        Remembers how far the ledger was seen.
    """

    def __init__(
        self,
        location: Location,
        artifact: str,
        folder: str,
        keyring: Keyring,
        witness: Witness | None = None,
    ) -> None:
        self._location = location
        self._artifact = artifact
        self._folder = folder
        self._keyring = keyring
        self._witness = witness
        self._seen: dict[int, Entry] = {}

    def path(self, number: int) -> str:
        """Path of the entry's file, relative to the location."""
        return f"{self._folder}/{number:08d}.json"

    def newest(self) -> int:
        """Number of the newest entry; 0 without any. Asks the store for one page of names."""
        try:
            hint = int(self._location.get(f"{self._folder}/{_HINT}", most=_MOST_HINT))
        except (OSError, BaseError, ValueError):
            hint = 1
        # A hint counts only if the entry that it names is there: anyone may have written it.
        if 1 < hint < 10**8 and (found := self.numbers(hint - 1)) and min(found) == hint:
            return max(found)
        return max(self.numbers(0), default=0)

    def head(self) -> Entry | None:
        """The newest entry, or None without any.

        Raises
        ------
        CorruptArtifact
            If it is damaged or belongs elsewhere.
        BadSignature
            If it is not signed by a trusted key.
        RolledBack
            If a witness has seen more, or something else.
        """
        newest = self.newest()
        head = self.entry(newest) if newest else None
        if self._witness is not None:
            self._witness.check(self._folder, newest, lambda number: self.entry(number).digest)
        return head

    def entry(self, number: int) -> Entry:
        """The entry of a number that is not beyond the newest; each is read only once.

        Raises
        ------
        CorruptArtifact, BadSignature
            As :meth:`head`, or if there is none.
        """
        if number not in self._seen:
            self._seen[number] = self._read(number)
        return self._seen[number]

    def entries(self, head: Entry | None) -> list[Entry]:
        """All entries up to the newest, ascending, each checked to follow its predecessor.

        Parameters
        ----------
        head : Entry or None
            What :meth:`head` has returned.

        Raises
        ------
        CorruptArtifact, BadSignature
            If one is damaged, missing, or was replaced.
        """
        newest = 0 if head is None else head.number
        with ThreadPoolExecutor(_READERS) as pool:
            # In blocks: a head may bear any number, and the first gap ends the reading.
            for block in (range(at, min(at + _BLOCK, newest)) for at in range(1, newest, _BLOCK)):
                unseen = [number for number in block if number not in self._seen]
                # Threads wait for a store's answers; on a disk they only get in each other's way.
                read = map if self._location.local_path is not None else pool.map
                self._seen |= dict(zip(unseen, read(self._read, unseen)))
        found = [self._seen[number] for number in range(1, newest + 1)]
        for before, after in zip([None, *found], found):
            broken = after.form != FORM and before is not None and before.form == FORM
            if after.form == FORM:
                broken = after.previous != (None if before is None else before.digest)
            if broken:
                raise CorruptArtifact(
                    f"{self._where(after.number)} does not follow the entry before it: one of the "
                    "two was replaced.",
                    (self.path(after.number),),
                )
        return found

    def append(
        self, content: Mapping[str, Any], *, after: Entry | None, origin: Entry | None
    ) -> None:
        """Create the entry that follows `after`.

        Parameters
        ----------
        content : mapping
            Plain JSON.
        after : Entry or None
            The newest entry; None for an empty ledger.
        origin : Entry or None
            The artifact's first record; None for that record itself.

        Raises
        ------
        AlreadyExists
            If another writer was first.
        BadSignature
            If what is there is signed, and there is no key to sign with: readers that trust the
            other entries would refuse everything from then on.
        """
        if self._keyring.signing is None and any(
            e is not None and e.signed for e in (after, origin)
        ):
            raise BadSignature(
                f"{self._location.url} is signed: set STRATA_SIGNING_KEY to add to it."
            )
        number = 1 if after is None else after.number + 1
        previous = None if after is None else after.digest
        begun = None if origin is None else origin.digest
        body = self._place(number) | {"origin": begun, "previous": previous}
        body["entry"] = json.loads(canonical_json(dict(content)))
        body["signature"] = self._keyring.sign(_message(body))
        stated = digest(canonical_json(body))
        data = canonical_json(body | {"digest": stated})
        try:
            self._location.create(self.path(number), data)
        except AlreadyExists:
            # A store client repeats a request whose answer was lost: the first one may have won.
            if self._obstacle(number) != data:
                raise
        if number % _HINT_EVERY == 0:
            # Only a hint: without it the next reader lists more names.
            with contextlib.suppress(OSError, BaseError):
                self._location.put(f"{self._folder}/{_HINT}", str(number).encode())
        self._seen[number] = _entry(body, stated)
        if self._witness is not None:
            self._witness.check(self._folder, number, lambda seen: self.entry(seen).digest)

    def numbers(self, after: int = 0) -> list[int]:
        """Numbers of the entries beyond `after` that the store lists; strangers are left out."""
        paths = self._location.walk(self._folder, after=self.path(after) if after else None)
        names = (path.removeprefix(f"{self._folder}/") for path in paths)
        found = (int(match[1]) for name in names if (match := _NAME.fullmatch(name)))
        return [number for number in found if number > after]

    def _place(self, number: int) -> dict[str, Any]:
        return {
            "form": FORM,
            "artifact": self._artifact,
            "ledger": self._folder,
            "number": number,
        }

    def _where(self, number: int) -> str:
        return f"{self._location.url}/{self.path(number)}"

    def _obstacle(self, number: int) -> bytes:
        """What is stored where an entry should have been created."""
        try:
            return self._location.get(self.path(number), most=MAX_RECORD)
        except (NotFound, BadObject):
            raise CorruptArtifact(
                f"{self._where(number)} is in the way of the next entry, and is no file.",
                (self.path(number),),
            ) from None

    def _read(self, number: int) -> Entry:
        path, where = self.path(number), self._where(number)
        try:
            data = self._location.get(path, most=MAX_RECORD)
        except NotFound:
            raise CorruptArtifact(
                f"{where} is missing: an entry of the ledger was deleted.", (path,)
            ) from None
        except BadObject as error:
            raise CorruptArtifact(f"{where} is damaged: it {error.reason}.", (path,)) from None
        try:
            body = read_json(data)
            sound = canonical_json(body) == data
            stated = body.pop("digest")
            sound &= stated == digest(canonical_json(body)) and isinstance(body["entry"], dict)
        except (ValueError, KeyError, TypeError, AttributeError):
            sound = False
        if not sound:
            raise CorruptArtifact(f"{where} is damaged: its digest does not match.", (path,))
        if set(body) == {"entry", "signature"}:
            self._keyring.check(canonical_json(body["entry"]), body["signature"], what=where)
            return Entry(number, body["entry"], stated, body["signature"] is not None, form=1)
        if set(body) != {*_PLACE, "entry", "signature"} or body["form"] != FORM:
            form = body.get("form")
            raise CorruptArtifact(
                f"{where} is of the form {form!r}: this release of Strata reads 1 and {FORM}.",
                (path,),
            )
        self._keyring.check(_message(body), body["signature"], what=where)
        place = self._place(number)
        if any(body[key] != value for key, value in place.items()):
            belongs = ", ".join(f"{key} {str(body[key])[:128]}" for key in place if key != "form")
            raise CorruptArtifact(f"{where} was copied here from {belongs}.", (path,))
        return _entry(body, stated)


def _entry(body: Mapping[str, Any], stated: str) -> Entry:
    return Entry(
        number=body["number"],
        content=body["entry"],
        digest=stated,
        signed=body["signature"] is not None,
        previous=body["previous"],
        origin=body["origin"],
    )


def _message(body: Mapping[str, Any]) -> bytes:
    """What is signed: the entry and its place, marked so that it can be read as nothing else."""
    said = {key: value for key, value in body.items() if key != "signature"}
    return b"strata ledger\n" + canonical_json(said)

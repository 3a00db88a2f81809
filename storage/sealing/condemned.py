"""Notes of what a finished step is to make again, read by the step when it is next asked for.

Readers refuse what is damaged whether it is noted or not; a note only tells the step what to do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from storage.locations import Location, NotFound
from storage.sealing.damage import CorruptFile, CorruptShard
from storage.sealing.seals import read_record, sealed_record

__all__ = ["CONDEMNED_FILE", "Condemned", "clear_condemned", "condemn", "read_condemned"]

CONDEMNED_FILE = "condemned.json"


@dataclass(frozen=True)
class Condemned:
    """What a step is to make again: shard → paths of its arrays, and files."""

    shards: Mapping[int, Sequence[str]]
    files: Sequence[str]

    def __bool__(self) -> bool:
        return bool(self.shards or self.files)


def condemn(
    location: Location, *, shards: Sequence[CorruptShard] = (), files: Sequence[str] = ()
) -> None:
    """Note what the step that wrote it is to make again, beside what is noted already.

    The files are removed; shards stay until they are replaced, since most of their arrays may
    still be good.
    """
    before = read_condemned(location)
    noted = {shard: list(paths) for shard, paths in before.shards.items()}
    for error in shards:
        arrays = noted.setdefault(error.shard, [])
        if error.array not in arrays:
            arrays.append(error.array)
    body = {
        "shards": {str(shard): paths for shard, paths in sorted(noted.items())},
        "files": sorted({*before.files, *files}),
    }
    # Noted before anything is removed, so that nothing is forgotten if this process is killed.
    location.put(CONDEMNED_FILE, sealed_record(body))
    for path in files:
        location.delete(path)


def read_condemned(location: Location) -> Condemned:
    """What :func:`condemn` noted.

    Raises
    ------
    CorruptFile
        If the note is damaged.
    """
    try:
        record = read_record(location, CONDEMNED_FILE)
        shards = {int(shard): paths for shard, paths in record["shards"].items()}
        return Condemned(shards, record["files"])
    except NotFound:
        return Condemned({}, ())
    except (KeyError, ValueError, AttributeError):
        raise CorruptFile(CONDEMNED_FILE, "not a note", location.url) from None


def clear_condemned(location: Location) -> None:
    """Declare everything that was condemned to be whole again."""
    location.delete(CONDEMNED_FILE)

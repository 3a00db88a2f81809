"""What a reader raises when a table is not there, or is not what was written."""

from __future__ import annotations

__all__ = ["CorruptMetadata", "CorruptShard", "NotSealed"]


class NotSealed(FileNotFoundError):
    """The table was never finished, so for a reader it does not exist."""


class CorruptShard(OSError):
    """A shard is missing, or its bytes are not those that were written."""

    def __init__(self, array: str, shard: int, reason: str, url: str) -> None:
        super().__init__(
            f"{array!r} of shard {shard} in {url} is damaged ({reason}): "
            "run `strata doctor RECIPE --repair` to re-make that shard."
        )
        self.array = array
        self.shard = shard
        self.reason = reason
        self.url = url

    def __reduce__(self) -> tuple[type[CorruptShard], tuple[str, int, str, str]]:
        return (CorruptShard, (self.array, self.shard, self.reason, self.url))


class CorruptMetadata(OSError):
    """What the table says of an array or of a finished shard is not what was written."""

    def __init__(self, path: str, reason: str, url: str) -> None:
        super().__init__(
            f"the metadata of {path!r} in {url} are damaged ({reason}): "
            "run `strata doctor RECIPE --repair` to write them anew."
        )
        self.path = path
        self.reason = reason
        self.url = url

    def __reduce__(self) -> tuple[type[CorruptMetadata], tuple[str, str, str]]:
        return (CorruptMetadata, (self.path, self.reason, self.url))

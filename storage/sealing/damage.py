"""What a reader raises when something stored is not there, or is not what was written."""

from __future__ import annotations

__all__ = ["CorruptFile", "CorruptShard", "Damaged", "NotSealed"]


class NotSealed(FileNotFoundError):
    """The table was never finished, so for a reader it does not exist."""


class Damaged(OSError):
    """Something stored is missing, or its bytes are not those that were written."""


class CorruptShard(Damaged):
    """An array's shard is missing, or its bytes are not those that were written."""

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


class CorruptFile(Damaged):
    """A file is missing, or its bytes are not those that were written."""

    def __init__(self, path: str, reason: str, url: str) -> None:
        super().__init__(
            f"{path!r} in {url} is damaged ({reason}): "
            "run `strata doctor RECIPE --repair` to make it again."
        )
        self.path = path
        self.reason = reason
        self.url = url

    def __reduce__(self) -> tuple[type[CorruptFile], tuple[str, str, str]]:
        return (CorruptFile, (self.path, self.reason, self.url))

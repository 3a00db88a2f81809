"""Sealed tables: Zarr arrays of equal length, written by whole shards, checked on every read.

Activation sets and code sets are both such tables. A table is a folder::

    plan.json            what will be written; created first, never changed
    rows/                a Zarr v3 group; every array has the same rows and the same shards
    receipts/<n>.json    one per finished shard: rows, and the SHA-256 of each array's bytes in it
    sealed.json          written last; without it the table does not exist for readers
"""

from __future__ import annotations

import functools
import importlib.util
import json
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Generic, Literal, Self, TypeVar

import numpy as np
import numpy.typing as npt
import zarr
from pydantic import BaseModel, ConfigDict, Field, model_validator
from zarr.codecs import BytesCodec, Crc32cCodec, ZstdCodec

from storage.locations import AlreadyExists, Location
from storage.records import canonical_json, digest

__all__ = [
    "Column",
    "CorruptShard",
    "NotSealed",
    "SealedTable",
    "TablePlan",
    "TableWriter",
    "open_table",
]

_Array = npt.NDArray[Any]


class NotSealed(FileNotFoundError):
    """The table was never finished, so for a reader it does not exist."""


class CorruptShard(OSError):
    """A shard is missing, or its bytes are not those that were written."""

    def __init__(self, array: str, shard: int, reason: str, url: str) -> None:
        super().__init__(
            f"{array!r} of shard {shard} in {url} is damaged ({reason}): "
            f"run `strata doctor {url}` to re-make that shard."
        )
        self.array = array
        self.shard = shard
        self.reason = reason
        self.url = url

    def __reduce__(self) -> tuple[type[CorruptShard], tuple[str, int, str, str]]:
        return (CorruptShard, (self.array, self.shard, self.reason, self.url))


class Column(BaseModel):
    """One array of a table: where it lies, what a row of it is, and how it is stored."""

    model_config = ConfigDict(frozen=True)

    path: str
    dtype: str
    width: int | None = None
    compressed: bool = False
    attributes: dict[str, Any] = Field(default_factory=dict)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, uncompressed."""
        return np.dtype(self.dtype).itemsize * (self.width or 1)

    def empty(self, rows: int) -> _Array:
        """An uninitialised array of so many rows."""
        return np.empty((rows,) if self.width is None else (rows, self.width), dtype=self.dtype)

    def view(self, data: bytes | memoryview) -> _Array:
        """Rows from their bytes, without a copy."""
        shape = (-1,) if self.width is None else (-1, self.width)
        return np.frombuffer(data, dtype=self.dtype).reshape(shape)


class TablePlan(BaseModel):
    """What will be written, known before the work begins.

    ``fingerprint`` names the settings and inputs; rows ``[0, n_train)`` are the training split and
    the rest is held out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    protocol: Literal[1] = 1
    fingerprint: str
    n_train: int = Field(ge=0)
    n_rows: int = Field(gt=0)
    shard_rows: int = Field(gt=0)
    chunk_rows: int = Field(gt=0)
    provenance: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _shards_hold_whole_chunks(self) -> Self:
        if self.shard_rows % self.chunk_rows:
            raise ValueError(
                f"shard_rows {self.shard_rows} is not a multiple of chunk_rows {self.chunk_rows}."
            )
        if self.n_train > self.n_rows:
            raise ValueError(f"n_train {self.n_train} exceeds n_rows {self.n_rows}.")
        return self

    @functools.cached_property
    def columns(self) -> tuple[Column, ...]:
        """The arrays of the table."""
        raise NotImplementedError

    @property
    def shards(self) -> range:
        """Numbers of all shards; the last may be short."""
        return range(-(-self.n_rows // self.shard_rows))

    @property
    def row_bytes(self) -> int:
        """Bytes that one row takes in all arrays together, uncompressed."""
        return sum(column.row_bytes for column in self.columns)

    @property
    def disk_bytes(self) -> int:
        """Bytes that the finished arrays take on disk; compressed ones count as uncompressed.

        Each inner chunk carries a 4-byte checksum and a 16-byte entry in its shard's index, which
        has a checksum itself. Partial chunks are padded to whole ones.
        """
        chunks = sum(-(-rows // self.chunk_rows) for rows in map(self.shard_size, self.shards))
        index = 16 * (self.shard_rows // self.chunk_rows) + 4
        data = chunks * (self.chunk_rows * self.row_bytes + 4 * len(self.columns))
        return data + len(self.shards) * index * len(self.columns)

    def shard_size(self, shard: int) -> int:
        """Rows in the shard."""
        return min((shard + 1) * self.shard_rows, self.n_rows) - shard * self.shard_rows

    def split(self, name: Literal["train", "held_out", "all"]) -> range:
        """Stored rows of a split."""
        return {
            "train": range(0, self.n_train),
            "held_out": range(self.n_train, self.n_rows),
            "all": range(0, self.n_rows),
        }[name]

    def shard_bounds(self, rows: range) -> Iterator[tuple[int, int]]:
        """Cut a range of rows at shard borders; yield (start, stop) of each piece."""
        start = rows.start
        while start < rows.stop:
            stop = min((start // self.shard_rows + 1) * self.shard_rows, rows.stop)
            yield start, stop
            start = stop


PlanT = TypeVar("PlanT", bound=TablePlan)


class TableWriter(Generic[PlanT]):
    """Writes one table; any number of writers in any number of processes may share it.

    Parameters
    ----------
    location : Location
        Where the table lies.
    plan : TablePlan
        What is to be written.

    Raises
    ------
    ValueError
        If another plan has been begun at this location.
    """

    def __init__(self, location: Location, plan: PlanT) -> None:
        self.location = location
        self.plan = plan
        data = canonical_json(plan.model_dump(mode="json"))
        try:
            location.create("plan.json", data)
        except AlreadyExists:
            if location.get("plan.json") != data:
                raise ValueError(
                    f"location {location.url!r} holds a table of another plan: "
                    "choose another location."
                ) from None

    def prepare(self) -> None:
        """Write the Zarr metadata; called once, by the process that hands out the work."""
        group = zarr.open_group((self.location / "rows").zarr_store(), mode="a")
        group.attrs.update(
            {
                "strata_protocol": self.plan.protocol,
                "fingerprint": self.plan.fingerprint,
                "provenance": self.plan.provenance,
            }
        )
        for column in self.plan.columns:
            if column.path in group:
                continue
            tail = () if column.width is None else (column.width,)
            group.create_array(
                column.path,
                shape=(self.plan.n_rows, *tail),
                dtype=column.dtype,
                shards=(self.plan.shard_rows, *tail),
                chunks=(self.plan.chunk_rows, *tail),
                serializer=BytesCodec(endian="little"),
                compressors=[
                    ZstdCodec(level=1, checksum=True) if column.compressed else Crc32cCodec()
                ],
                filters=None,
                fill_value=0,
                attributes=column.attributes,
            )

    def missing_shards(self) -> list[int]:
        """Shards without a receipt, in order."""
        done = set(self.location.children("receipts"))
        return [s for s in self.plan.shards if f"{s}.json" not in done]

    def write_rows(self, shard: int, arrays: Mapping[str, _Array]) -> None:
        """Store one whole shard of every array, then its receipt.

        Parameters
        ----------
        shard : int
            Number of the shard.
        arrays : mapping of path to array (rows of the shard, …)
            One entry per column of the plan, in the column's dtype.
        """
        start, size = shard * self.plan.shard_rows, self.plan.shard_size(shard)
        sums: dict[str, str] = {}
        # Zarr leaves out chunks of zeros; then no reader could tell a zero from a missing shard.
        with zarr.config.set({"array.write_empty_chunks": True}):
            group = zarr.open_group((self.location / "rows").zarr_store(), mode="r+")
            for column in self.plan.columns:
                values = np.ascontiguousarray(arrays[column.path])
                _array(group, column.path)[start : start + size] = values
                sums[column.path] = digest(raw_bytes(values))
        receipt = {"shard": shard, "rows": size, "sha256": sums}
        self.location.put(f"receipts/{shard}.json", canonical_json(receipt))

    def seal(self) -> str:
        """Make the table visible and return its content hash.

        Raises
        ------
        ValueError
            If shards are missing.
        """
        missing = self.missing_shards()
        if missing:
            raise ValueError(f"shard {missing[0]} and {len(missing) - 1} more are not written yet.")
        content = digest(self.location.get(f"receipts/{s}.json") for s in self.plan.shards)
        sealed = {
            "protocol": self.plan.protocol,
            "fingerprint": self.plan.fingerprint,
            "plan_sha256": digest(self.location.get("plan.json")),
            "content_hash": content,
        }
        self.location.put("sealed.json", canonical_json(sealed))
        return content


class SealedTable(Generic[PlanT]):
    """A finished table, read-only.

    Parameters
    ----------
    location : Location
        Where the table lies.

    Raises
    ------
    NotSealed
        If there is no finished table.
    CorruptShard
        If the plan is not the one that was sealed.

    Attributes
    ----------
    plan : TablePlan
    content_hash : str
        Equal for equal rows; covers every byte of every array.
    """

    plan_type: ClassVar[type[TablePlan]]
    plan: PlanT

    def __init__(self, location: Location) -> None:
        try:
            sealed = json.loads(location.get("sealed.json"))
        except FileNotFoundError:
            raise NotSealed(f"{location.url} holds no finished table.") from None
        plan = location.get("plan.json")
        if digest(plan) != sealed["plan_sha256"]:
            raise CorruptShard("plan.json", 0, "digest", location.url)
        self.location = location
        self.plan = self.plan_type.model_validate_json(plan)  # type: ignore[assignment]
        self.content_hash: str = sealed["content_hash"]
        self._group: Any = None
        self._seen: set[tuple[str, int]] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {"location": self.location}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["location"])  # type: ignore[misc]

    def __len__(self) -> int:
        return self.plan.n_rows

    def array(self, path: str) -> Any:
        """The Zarr array below ``rows/``, for views such as Dask's."""
        return _array(self._open(), path)

    def rows(self, path: str, start: int, stop: int) -> _Array:
        """Rows ``[start, stop)`` of one array, as stored.

        Raises
        ------
        IndexError
            If the rows lie outside the table.
        CorruptShard
            If a shard is missing or a checksum fails.
        """
        if not 0 <= start <= stop <= self.plan.n_rows:
            raise IndexError(f"rows {start} to {stop} are outside 0 to {self.plan.n_rows}.")
        shards = [start_ // self.plan.shard_rows for start_, _ in self._pieces(start, stop)]
        for shard in shards:
            self._require(path, shard)
        with _fast_codecs(self.location):
            array = _array(self._open(), path)
            try:
                return np.asarray(array[start:stop])
            except Exception as error:
                shard = next((s for s in shards if not self._readable(array, s)), shards[0])
                reason = (str(error) or type(error).__name__).splitlines()[0]
                raise CorruptShard(path, shard, reason, self.location.url) from error

    def damaged(self) -> list[CorruptShard]:
        """Check every byte against its receipt and return what is wrong, one entry per array."""
        found: list[CorruptShard] = []
        for shard in self.plan.shards:
            receipt = json.loads(self.location.get(f"receipts/{shard}.json"))
            start = shard * self.plan.shard_rows
            for path, expected in receipt["sha256"].items():
                try:
                    values = self.rows(path, start, start + receipt["rows"])
                except CorruptShard as error:
                    found.append(error)
                    continue
                if digest(raw_bytes(np.ascontiguousarray(values))) != expected:
                    found.append(CorruptShard(path, shard, "digest", self.location.url))
        return found

    def _open(self) -> Any:
        if self._group is None:
            with _fast_codecs(self.location):
                store = (self.location / "rows").zarr_store(read_only=True)
                self._group = zarr.open_group(store, mode="r")
        return self._group

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        return self.plan.shard_bounds(range(start, stop))

    def _require(self, path: str, shard: int) -> None:
        """Zarr reads a missing shard as zeros; ask once per shard whether it is there."""
        if (path, shard) in self._seen:
            return
        tail = "/0" * (_array(self._open(), path).ndim - 1)
        if not self.location.exists(f"rows/{path}/c/{shard}{tail}"):
            raise CorruptShard(path, shard, "missing", self.location.url)
        self._seen.add((path, shard))

    def _readable(self, array: Any, shard: int) -> bool:
        start = shard * self.plan.shard_rows
        try:
            array[start : start + self.plan.shard_size(shard)]
        except Exception:
            return False
        return True


def open_table(location: Location) -> SealedTable[Any]:
    """Open whichever kind of table lies at `location`.

    Raises
    ------
    NotSealed
        If there is no finished table.
    """
    from storage.activations import ActivationSet
    from storage.codes import CodeSet

    try:
        plan = json.loads(location.get("plan.json"))
    except FileNotFoundError:
        raise NotSealed(f"{location.url} holds no finished table.") from None
    return CodeSet(location) if "activations" in plan else ActivationSet(location)


def raw_bytes(array: _Array) -> memoryview:
    """The bytes of a C-contiguous array, without a copy."""
    return array.data.cast("B") if array.size else memoryview(b"")


def _array(group: Any, path: str) -> Any:
    array = group[path]
    if not isinstance(array, zarr.Array):
        raise TypeError(f"{path!r} is not an array.")
    return array


def _fast_codecs(location: Location) -> Any:
    """Zarr configuration under which arrays are read by the Rust codec pipeline where it can.

    It reads folders about twice as fast; other stores it does not know, and it may be absent.
    """
    if location.local_path is None or importlib.util.find_spec("zarrs") is None:
        return zarr.config.set({})
    return zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})

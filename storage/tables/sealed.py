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
import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Generic, Literal, Self, TypeVar

import numpy as np
import numpy.typing as npt
import zarr
from pydantic import BaseModel, ConfigDict, Field, model_validator
from zarr.codecs import BytesCodec, Crc32cCodec, ZstdCodec

from storage.locations import AlreadyExists, BadObject, Location, NotFound
from storage.records import canonical_json, digest, read_json
from storage.sealing.damage import CorruptFile, CorruptShard, NotSealed
from storage.sealing.seals import SealedFolder
from storage.tables.raw_shards import RawShard, empty

__all__ = [
    "Column",
    "CorruptShard",
    "NotSealed",
    "SealedTable",
    "TablePlan",
    "TableWriter",
    "small_file",
]

# Files that a table keeps open: the shards being read, of all levels.
_OPEN_SHARDS = 64
# Bytes of the longest plan, seal, receipt or metadata that is read.
_MOST_SMALL = 2**24
# What does not compress takes a little more than it is.
_MOST_OVERHEAD = 2
_Array = npt.NDArray[Any]


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
        shape = (rows,) if self.width is None else (rows, self.width)
        return empty(shape, np.dtype(self.dtype))

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

    def column(self, path: str) -> Column:
        """The array of this path; raise KeyError if there is none."""
        for column in self.columns:
            if column.path == path:
                return column
        known = ", ".join(column.path for column in self.columns)
        raise KeyError(f"array {path!r} is not one of {known}.")

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
# A plan lists the rows of every block of documents.
_MAX_PLAN = 2**26


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
            if small_file(location, "plan.json") != data:
                raise ValueError(
                    f"location {location.url!r} holds a table of another plan: "
                    "choose another location."
                ) from None

    def prepare(self) -> None:
        """Write the Zarr metadata; called once, by the process that hands out the work."""
        group = zarr.open_group((self.location / "rows").zarr_store(), mode="a")
        about = {
            "strata_protocol": self.plan.protocol,
            "fingerprint": self.plan.fingerprint,
            "provenance": self.plan.provenance,
        }
        # In one order, whether the plan was made here or read back.
        group.attrs.update(read_json(canonical_json(about)))
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
        self._store(shard, arrays)
        sums = {path: array_sum(values) for path, values in arrays.items()}
        self.location.put(f"receipts/{shard}.json", receipt(self.plan, shard, sums))

    def remake(self, shard: int, arrays: Mapping[str, _Array]) -> None:
        """Store arrays of a finished shard anew: all, or the damaged ones (protocol 4.5).

        Arguments as for :meth:`write_rows`. Where the receipt is lost as well, it is written anew,
        and whoever sealed it can tell whether it is the same.

        Raises
        ------
        ValueError
            If an array is not the one that the receipt records; nothing is written then.
        """
        path = f"receipts/{shard}.json"
        recorded = None
        if self.location.exists(path):
            recorded = read_json(small_file(self.location, path))["sha256"]
            self._check_remade(shard, arrays, recorded)
        for array, values in arrays.items():
            # Zarr would read the damaged shard before it writes a short one.
            self.location.delete(shard_object(self.plan, array, shard))
            self._store(shard, {array: values})
        if recorded is None:
            group = zarr.open_group((self.location / "rows").zarr_store(), mode="r")
            start = shard * self.plan.shard_rows
            rows = slice(start, start + self.plan.shard_size(shard))
            sums = {c.path: array_sum(_array(group, c.path)[rows]) for c in self.plan.columns}
            self.location.put(path, receipt(self.plan, shard, sums))

    def _check_remade(
        self, shard: int, arrays: Mapping[str, _Array], recorded: Mapping[str, str]
    ) -> None:
        wrong = [path for path, values in arrays.items() if recorded[path] != array_sum(values)]
        if wrong:
            raise ValueError(
                f"shard {shard} of {self.location.url} cannot be re-made: {wrong[0]!r} comes out "
                "other than it was written; restore the model, the packages and the number of "
                "threads that wrote it, or delete the folder and run again."
            )

    def _store(self, shard: int, arrays: Mapping[str, _Array]) -> None:
        start, size = shard * self.plan.shard_rows, self.plan.shard_size(shard)
        # Zarr leaves out chunks of zeros; then no reader could tell a zero from a missing shard.
        with zarr.config.set({"array.write_empty_chunks": True}):
            group = zarr.open_group((self.location / "rows").zarr_store(), mode="r+")
            for path, values in arrays.items():
                _array(group, path)[start : start + size] = np.ascontiguousarray(values)

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
        self.location.delete_partial()
        self.location.put(
            "sealed.json", seal_record(self.plan, self.location.get("plan.json"), content)
        )
        return content


def small_file(place: Location | SealedFolder, path: str) -> bytes:
    """What describes a table: its plan, its seal, a receipt, an array's metadata.

    Raises
    ------
    NotFound
        If there is none.
    BadObject
        If it is no regular file, or longer than any of these is.
    CorruptFile
        If it is not what was sealed.
    """
    if isinstance(place, SealedFolder):
        return place.get(path)
    return place.get(path, most=_MOST_SMALL)


class SealedTable(Generic[PlanT]):
    """A finished table, read-only.

    Parameters
    ----------
    place : Location or SealedFolder
        Where the table lies: the sealed folder of a step, or that of a table by itself.
    content_hash : str, optional
        Taken in place of ``sealed.json``, for one who looks behind a damaged one.

    Raises
    ------
    NotSealed
        If there is no finished table.
    CorruptFile
        If plan or seal is not what was written.

    Attributes
    ----------
    plan : TablePlan
    content_hash : str
        Equal for equal rows; covers every byte of every array.
    files : Files
        What lies beside the rows; checked when it is read where the folder is sealed.
    """

    plan_type: ClassVar[type[TablePlan]]
    plan: PlanT

    def __init__(self, place: Location | SealedFolder, *, content_hash: str | None = None) -> None:
        location = place.location if isinstance(place, SealedFolder) else place
        plan_sha256 = None
        try:
            if content_hash is None:
                sealed = read_json(small_file(place, "sealed.json"))
                plan_sha256, content_hash = sealed["plan_sha256"], str(sealed["content_hash"])
        except FileNotFoundError:
            raise NotSealed(f"{location.url} holds no finished table.") from None
        except (ValueError, KeyError, TypeError, BadObject) as error:
            raise CorruptFile("sealed.json", "not readable", location.url) from error
        try:
            plan = small_file(place, "plan.json")
        except FileNotFoundError:
            raise CorruptFile("plan.json", "missing", location.url) from None
        except BadObject as error:
            raise CorruptFile("plan.json", error.reason, location.url) from None
        if plan_sha256 not in (None, digest(plan)):
            raise CorruptFile("plan.json", "digest", location.url)
        self.location = location
        self.files: Location | SealedFolder = place
        self.plan = self.plan_type.model_validate_json(plan)  # type: ignore[assignment]
        self.content_hash = content_hash
        self._lock = threading.Lock()
        self._arrays: dict[str, Any] = {}
        self._seen: set[tuple[str, int]] = set()
        self._open_shards: dict[tuple[str, int], RawShard] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"files": self.files}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["files"])  # type: ignore[misc]

    def __len__(self) -> int:
        return self.plan.n_rows

    def array(self, path: str) -> Any:
        """The Zarr array below ``rows/``, for views such as Dask's.

        Raises
        ------
        CorruptFile
            If its metadata cannot be read, or do not describe what the plan says.
        """
        with self._lock:
            if path not in self._arrays:
                self._arrays[path] = self._open(self.plan.column(path))
            return self._arrays[path]

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
        pieces = itertools.starmap(range, self.plan.shard_bounds(range(start, stop)))
        return self.gather_rows(path, list(pieces))

    def gather_rows(self, path: str, pieces: Sequence[range]) -> _Array:
        """Rows of one array, as stored, piece after piece; each piece lies in one shard.

        One pass over a shard for the pieces that follow each other in it, whatever their order.

        Raises
        ------
        CorruptShard
            If the shard is missing or a checksum fails.
        """
        out = self.plan.column(path).empty(sum(map(len, pieces)))
        done = 0
        for _, group in itertools.groupby(
            pieces, lambda piece: piece.start // self.plan.shard_rows
        ):
            same = list(group)
            rows = sum(map(len, same))
            self._gather(path, same, out[done : done + rows])
            done += rows
        return out

    def prefetch_shard(self, path: str, shard: int) -> Callable[[], None] | None:
        """What fetches a shard of one array from a local disk, unless it is in memory already."""
        try:
            raw = self._raw_shard(path, shard)
        except (OSError, ValueError):
            # Its reader will say so.
            return None
        return None if raw is None or raw.in_memory() else raw.prefetch

    def _raw_shard(self, path: str, shard: int) -> RawShard | None:
        """A shard of raw chunks on a local disk; those last used stay open."""
        key = (path, shard)
        found = self._open_shards.get(key)
        if found is not None:
            return found
        column = self.plan.column(path)
        folder = self.location.local_path
        if folder is None or column.compressed:
            return None
        opened = RawShard(
            folder / shard_object(self.plan, path, shard),
            chunk_rows=self.plan.chunk_rows,
            row_bytes=column.row_bytes,
            n_chunks=self.plan.shard_rows // self.plan.chunk_rows,
        )
        with self._lock:
            if len(self._open_shards) >= _OPEN_SHARDS:
                del self._open_shards[next(iter(self._open_shards))]
            self._open_shards[key] = opened
        return opened

    def _gather(self, path: str, pieces: Sequence[range], out: _Array) -> None:
        plan = self.plan
        shard = pieces[0].start // plan.shard_rows
        first = shard * plan.shard_rows
        try:
            raw = self._raw_shard(path, shard)
            if raw is not None:
                raw.copy([range(piece.start - first, piece.stop - first) for piece in pieces], out)
                return
            # Zarr reads a missing shard as zeros; ask once per shard whether it is there.
            if (path, shard) not in self._seen:
                self._check_size(path, shard)
                self._seen.add((path, shard))
            begin = min(piece.start for piece in pieces)
            end = max(piece.stop for piece in pieces)
            values = np.asarray(self.array(path)[begin:end])
        except FileNotFoundError:
            raise CorruptShard(path, shard, "missing", self.location.url) from None
        except CorruptFile:
            raise
        except Exception as error:
            # Who looks again opens the file again: it may have been re-made.
            with self._lock:
                self._open_shards.clear()
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise CorruptShard(path, shard, reason, self.location.url) from error
        done = 0
        for piece in pieces:
            out[done : done + len(piece)] = values[piece.start - begin : piece.stop - begin]
            done += len(piece)

    def _check_size(self, path: str, shard: int) -> None:
        """Refuse a shard that cannot be one: the codecs make room for whatever size it has."""
        name, column = shard_object(self.plan, path, shard), self.plan.column(path)
        size = self.location.size(name)
        if isinstance(self.files, SealedFolder) and name in self.files.files:
            stated = self.files.files[name].size
            if size != stated:
                raise ValueError(f"{size:,} bytes instead of {stated:,}")
        most = _MOST_OVERHEAD * (self.plan.shard_rows * column.row_bytes + _MOST_SMALL)
        if size > most:
            raise ValueError(f"{size:,} bytes, which is more than {most:,}")

    def _open(self, column: Column) -> Any:
        plan = self.plan
        try:
            small_file(self.files, array_metadata(column.path))
        except (NotFound, BadObject) as error:
            raise CorruptFile(array_metadata(column.path), str(error), self.location.url) from None
        tail = () if column.width is None else (column.width,)
        try:
            # An array keeps the codec pipeline that was chosen when it was opened.
            with _fast_codecs(self.location):
                store = (self.location / "rows" / column.path).zarr_store(read_only=True)
                array = zarr.open_array(store, mode="r")
            found = (array.shape, array.dtype, array.shards, array.chunks)
        except Exception as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise CorruptFile(array_metadata(column.path), reason, self.location.url) from error
        expected = (
            (plan.n_rows, *tail),
            np.dtype(column.dtype),
            (plan.shard_rows, *tail),
            (plan.chunk_rows, *tail),
        )
        if found != expected:
            raise CorruptFile(
                array_metadata(column.path), "not what was planned", self.location.url
            )
        return array


def array_metadata(path: str) -> str:
    """Path in the table's folder of what Zarr says of an array."""
    return f"rows/{path}/zarr.json"


def shard_object(plan: TablePlan, path: str, shard: int) -> str:
    """Path in the table's folder of the object that holds a shard of an array."""
    tail = "" if plan.column(path).width is None else "/0"
    return f"rows/{path}/c/{shard}{tail}"


def shard_objects(plan: TablePlan) -> dict[str, tuple[str, int]]:
    """Objects that hold the rows: path in the table's folder → array and shard."""
    return {
        shard_object(plan, column.path, shard): (column.path, shard)
        for column in plan.columns
        for shard in plan.shards
    }


def receipt(plan: TablePlan, shard: int, sums: Mapping[str, str]) -> bytes:
    """The receipt of a shard whose arrays have these SHA-256 sums."""
    return canonical_json({"shard": shard, "rows": plan.shard_size(shard), "sha256": dict(sums)})


def seal_record(plan: TablePlan, plan_json: bytes, content_hash: str) -> bytes:
    """What ``sealed.json`` holds."""
    return canonical_json(
        {
            "protocol": plan.protocol,
            "fingerprint": plan.fingerprint,
            "plan_sha256": digest(plan_json),
            "content_hash": content_hash,
        }
    )


def array_sum(values: _Array) -> str:
    """SHA-256 of an array's bytes."""
    return digest(raw_bytes(np.ascontiguousarray(values)))


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

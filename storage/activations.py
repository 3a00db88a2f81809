"""The activation store: rows aligned across levels, shuffled at write time, sealed when whole.

The format is specified in ``storage/PROTOCOL.md``; numbers in comments are its clauses.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import zarr
from pydantic import BaseModel, ConfigDict, Field, model_validator
from zarr.codecs import BytesCodec, Crc32cCodec

from storage.locations import AlreadyExists, Location, check_name
from storage.permutation import Permutation
from storage.records import canonical_json, digest

__all__ = [
    "PROTOCOL",
    "ActivationPlan",
    "ActivationSet",
    "ActivationWriter",
    "CorruptShard",
    "LevelPlan",
    "NotSealed",
    "Shard",
    "fast_codecs",
]

PROTOCOL = 1
INDEX_DTYPES: dict[str, str] = {"sample": "<i8", "position": "<i4", "observed": "<i8"}
Dtype = Literal["float32", "float16", "bfloat16"]
_STORED = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}
_WITHIN = np.dtype("<u4")  # a staged row's place in its shard
_CUT = np.dtype("<i8")  # where a block's rows for each shard begin
_Array = npt.NDArray[Any]


class NotSealed(FileNotFoundError):
    """The set was never finished, so for a reader it does not exist."""


class CorruptShard(OSError):
    """A shard is missing, or its bytes are not those that were written."""

    def __init__(self, array: str, shard: int, reason: str, url: str) -> None:
        super().__init__(
            f"{array!r} of shard {shard} in {url} is damaged ({reason}): "
            f"run `strata doctor {url}` to re-make that shard."
        )
        self.array = array
        self.shard = shard


class LevelPlan(BaseModel):
    """One level of an activation set: its path-safe name and its width."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    width: int = Field(gt=0)

    @model_validator(mode="after")
    def _safe(self) -> LevelPlan:
        check_name(self.name, field="level")
        return self


class ActivationPlan(BaseModel):
    """What will be written, known before the first forward pass (protocol 4.1).

    ``blocks`` holds the canonical row numbers at which blocks begin, and the number of rows as its
    last entry; one of them is ``n_train``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    protocol: Literal[1] = 1
    fingerprint: str
    levels: tuple[LevelPlan, ...] = Field(min_length=1)
    dtype: Dtype
    n_train: int = Field(ge=0)
    n_rows: int = Field(gt=0)
    blocks: tuple[int, ...] = Field(min_length=2)
    shard_rows: int = Field(gt=0)
    chunk_rows: int = Field(gt=0)
    seed: int = Field(ge=0)
    provenance: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> ActivationPlan:
        if self.shard_rows % self.chunk_rows:
            raise ValueError(
                f"shard_rows {self.shard_rows} is not a multiple of chunk_rows {self.chunk_rows}."
            )
        increasing = all(a < b for a, b in zip(self.blocks, self.blocks[1:], strict=False))
        ends = self.blocks[0] == 0 and self.blocks[-1] == self.n_rows
        if not (increasing and ends and self.n_train in self.blocks):
            raise ValueError(
                "blocks must rise from 0 to n_rows and contain n_train, so that no block is empty "
                "and none lies in both splits."
            )
        if len({level.name for level in self.levels}) < len(self.levels):
            raise ValueError("levels must have distinct names.")
        return self

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return len(self.blocks) - 1

    @property
    def n_shards(self) -> int:
        """Number of shards, the last of which may be short."""
        return -(-self.n_rows // self.shard_rows)

    @property
    def row_bytes(self) -> int:
        """Bytes that one row takes in all arrays together."""
        return sum(array.row_bytes for array in self._arrays)

    @property
    def disk_bytes(self) -> int:
        """Bytes that the finished set takes on disk, without its small JSON files.

        Each inner chunk carries a 4-byte checksum and a 16-byte entry in its shard's index, which
        has a checksum itself. Partial chunks are padded to whole ones.
        """
        chunks = sum(-(-rows // self.chunk_rows) for rows in map(self.shard_size, self.shards))
        per_shard = 16 * (self.shard_rows // self.chunk_rows) + 4
        data = chunks * (self.chunk_rows * self.row_bytes + 4 * len(self._arrays))
        return data + self.n_shards * per_shard * len(self._arrays)

    @property
    def staging_bytes(self) -> int:
        """Bytes that the staged blocks take until the set is sealed."""
        per_block = 4 * self.n_shards + 8 * (self.n_shards + 1)
        return self.n_rows * (self.row_bytes + _WITHIN.itemsize) + self.n_blocks * per_block

    @property
    def shards(self) -> range:
        """Numbers of all shards."""
        return range(self.n_shards)

    def shard_size(self, shard: int) -> int:
        """Rows in the shard."""
        return min((shard + 1) * self.shard_rows, self.n_rows) - shard * self.shard_rows

    def split(self, name: Literal["train", "held_out", "all"]) -> range:
        """Stored rows of a split (protocol 3.2)."""
        return {
            "train": range(0, self.n_train),
            "held_out": range(self.n_train, self.n_rows),
            "all": range(0, self.n_rows),
        }[name]

    def destinations(self, block: int) -> npt.NDArray[np.int64]:
        """Stored row of each canonical row of the block, in canonical order (protocol 3.3)."""
        start, stop = self.blocks[block], self.blocks[block + 1]
        offset, size = (0, self.n_train)
        if start >= self.n_train:
            offset, size = self.n_train, self.n_rows - self.n_train
        return offset + Permutation(size, self.seed)(np.arange(start - offset, stop - offset))

    @functools.cached_property
    def _arrays(self) -> tuple[_ArrayPlan, ...]:
        stored = np.dtype(_STORED[self.dtype])
        return (
            *(_ArrayPlan(f"levels/{lv.name}", stored, lv.width) for lv in self.levels),
            *(_ArrayPlan(f"norms/{lv.name}", np.dtype("<f4"), None) for lv in self.levels),
            *(_ArrayPlan(f"index/{n}", np.dtype(d), None) for n, d in INDEX_DTYPES.items()),
        )


class _ArrayPlan(NamedTuple):
    path: str
    dtype: np.dtype[Any]
    width: int | None

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * (self.width or 1)

    def view(self, data: bytes | memoryview) -> _Array:
        shape = (-1,) if self.width is None else (-1, self.width)
        return np.frombuffer(data, dtype=self.dtype).reshape(shape)


@dataclass(frozen=True, slots=True)
class Shard:
    """A finished shard: its number, its rows and the SHA-256 of each array's bytes in it."""

    shard: int
    rows: int
    sha256: Mapping[str, str]


class ActivationWriter:
    """Writes one activation set; any number of writers in any number of processes may share it.

    Parameters
    ----------
    location : Location
        Where the set lies.
    plan : ActivationPlan
        What is to be written.

    Raises
    ------
    ValueError
        If another plan has been begun at this location.
    """

    def __init__(self, location: Location, plan: ActivationPlan) -> None:
        self.location = location
        self.plan = plan
        data = canonical_json(plan.model_dump(mode="json"))
        try:
            location.create("plan.json", data)
        except AlreadyExists:
            if location.get("plan.json") != data:
                raise ValueError(
                    f"location {location.url!r} holds an activation set of another plan: "
                    "choose another location."
                ) from None

    def prepare(self) -> None:
        """Write the Zarr metadata; called once, by the process that hands out the work."""
        group = zarr.open_group((self.location / "rows").zarr_store(), mode="a")
        group.attrs.update(
            {
                "strata_protocol": PROTOCOL,
                "fingerprint": self.plan.fingerprint,
                "provenance": self.plan.provenance,
            }
        )
        for array in self.plan._arrays:
            if array.path in group:
                continue
            tail = () if array.width is None else (array.width,)
            created = group.create_array(
                array.path,
                shape=(self.plan.n_rows, *tail),
                dtype=array.dtype,
                shards=(self.plan.shard_rows, *tail),
                chunks=(self.plan.chunk_rows, *tail),
                serializer=BytesCodec(endian="little"),
                compressors=[Crc32cCodec()],
                filters=None,
                fill_value=0,
            )
            if array.path.startswith("levels/"):
                created.attrs["logical_dtype"] = self.plan.dtype

    def missing_blocks(self) -> list[int]:
        """Blocks that are neither staged nor needed any more, in order."""
        if not self.missing_shards():
            return []
        staged = set(self.location.children("staging"))
        return [b for b in range(self.plan.n_blocks) if f"{b}.bin" not in staged]

    def missing_shards(self) -> list[int]:
        """Shards without a receipt, in order."""
        done = set(self.location.children("receipts"))
        return [s for s in self.plan.shards if f"{s}.json" not in done]

    def stage(
        self, block: int, activations: Mapping[str, _Array], index: Mapping[str, _Array]
    ) -> int:
        """Store the rows of one block, in canonical order, and return their number (protocol 4.2).

        Parameters
        ----------
        block : int
            Number of the block.
        activations : mapping of str to array (rows, width)
            Rows of each level: float arrays, or the bits of bfloat16 as uint16.
        index : mapping of str to array (rows,)
            ``sample``, ``position`` and ``observed``.

        Raises
        ------
        ValueError
            If rows are missing, of the wrong shape, or not finite in the plan's dtype.
        """
        rows = self.plan.blocks[block + 1] - self.plan.blocks[block]
        arrays: list[_Array] = []
        norms: list[_Array] = []
        for level in self.plan.levels:
            stored, norm = self._encode(level, np.asarray(activations[level.name]), rows)
            arrays.append(stored)
            norms.append(norm)
        arrays += norms
        for name, dtype in INDEX_DTYPES.items():
            column = np.asarray(index[name])
            if column.shape != (rows,):
                raise ValueError(f"index {name!r} has shape {column.shape}: expected ({rows},).")
            arrays.append(column.astype(dtype, casting="same_kind"))
        destinations = self.plan.destinations(block)
        order = np.argsort(destinations, kind="stable")
        destinations = destinations[order]
        within = (destinations % self.plan.shard_rows).astype(_WITHIN)
        arrays = [within, *(array[order] for array in arrays)]
        bounds = np.arange(self.plan.n_shards + 1) * self.plan.shard_rows
        cuts = np.searchsorted(destinations, bounds).astype(_CUT)
        pieces: list[memoryview | bytes] = [cuts.data.cast("B")]
        for start, stop in itertools.pairwise(cuts):
            segment = [_raw(array[start:stop]) for array in arrays] if stop > start else []
            pieces += [*segment, _checksum(*segment)]
        self.location.put(f"staging/{block}.bin", b"".join(pieces))
        return rows

    def write_shard(self, shard: int) -> Shard:
        """Gather one shard from the staged blocks, write it and its receipt (protocol 4.3).

        Raises
        ------
        CorruptShard
            If a staged segment does not have its checksum.
        """
        plan = self.plan
        size = plan.shard_size(shard)
        out = [
            np.empty((size, a.width) if a.width is not None else (size,), dtype=a.dtype)
            for a in plan._arrays
        ]
        for block in range(plan.n_blocks):
            name = f"staging/{block}.bin"
            start, stop = np.frombuffer(self.location.get_range(name, 8 * shard, 16), dtype=_CUT)
            row_bytes = plan.row_bytes + _WITHIN.itemsize
            offset = 8 * (plan.n_shards + 1) + int(start) * row_bytes + 4 * shard
            length = int(stop - start) * row_bytes
            data = memoryview(self.location.get_range(name, offset, length + 4))
            if _checksum(data[:length]) != data[length:]:
                raise CorruptShard(f"staged block {block}", shard, "checksum", self.location.url)
            begin = _WITHIN.itemsize * int(stop - start)
            rows = np.frombuffer(data[:begin], dtype=_WITHIN)
            for array, target in zip(plan._arrays, out, strict=True):
                end = begin + array.row_bytes * len(rows)
                target[rows] = array.view(data[begin:end])
                begin = end
        start = shard * plan.shard_rows
        # Zarr leaves out chunks of zeros; then no reader could tell a zero from a missing shard.
        with zarr.config.set({"array.write_empty_chunks": True}):
            group = zarr.open_group((self.location / "rows").zarr_store(), mode="r+")
            for array, values in zip(plan._arrays, out, strict=True):
                _array(group, array.path)[start : start + size] = values
        sums = {a.path: digest(_raw(v)) for a, v in zip(plan._arrays, out)}
        receipt = {"shard": shard, "rows": size, "sha256": sums}
        self.location.put(f"receipts/{shard}.json", canonical_json(receipt))
        return Shard(shard, size, sums)

    def seal(self) -> str:
        """Make the set visible, clear the staging area and return the content hash (4.5).

        Raises
        ------
        ValueError
            If shards are missing.
        """
        missing = self.missing_shards()
        if missing:
            raise ValueError(f"shard {missing[0]} and {len(missing) - 1} more are not written yet.")
        receipts = (self.location.get(f"receipts/{s}.json") for s in self.plan.shards)
        content = digest(receipts)
        sealed = {
            "protocol": PROTOCOL,
            "fingerprint": self.plan.fingerprint,
            "plan_sha256": digest(self.location.get("plan.json")),
            "content_hash": content,
        }
        self.location.put("sealed.json", canonical_json(sealed))
        self.location.delete_folder("staging")
        return content

    def _encode(self, level: LevelPlan, values: _Array, rows: int) -> tuple[_Array, _Array]:
        if values.shape != (rows, level.width):
            raise ValueError(
                f"level {level.name!r} has activations of shape {values.shape}: "
                f"expected ({rows}, {level.width})."
            )
        if self.plan.dtype == "bfloat16":
            stored = values if values.dtype == np.uint16 else _to_bfloat16(values)
        else:
            with np.errstate(over="ignore"):
                stored = values.astype(_STORED[self.plan.dtype], copy=False)
        norms = np.linalg.norm(_to_float32(stored, self.plan.dtype), axis=1)
        if not np.isfinite(norms).all():
            row = int(np.flatnonzero(~np.isfinite(norms))[0])
            raise ValueError(
                f"level {level.name!r} has an activation that is not finite in {self.plan.dtype} "
                f"(row {row} of the block): choose extract.dtype=bfloat16 or float32."
            )
        return np.ascontiguousarray(stored), norms.astype("<f4")


class ActivationSet:
    """A sealed activation set, read-only.

    Parameters
    ----------
    location : Location
        Where the set lies.

    Raises
    ------
    NotSealed
        If there is no finished set.

    Attributes
    ----------
    plan : ActivationPlan
    content_hash : str
    """

    def __init__(self, location: Location) -> None:
        try:
            sealed = json.loads(location.get("sealed.json"))
        except FileNotFoundError:
            raise NotSealed(f"{location.url} holds no finished activation set.") from None
        if sealed["protocol"] != PROTOCOL:
            raise ValueError(
                f"{location.url} has protocol {sealed['protocol']}: this version reads {PROTOCOL}."
            )
        plan = location.get("plan.json")
        if digest(plan) != sealed["plan_sha256"]:
            raise CorruptShard("plan.json", 0, "digest", location.url)
        self.location = location
        self.plan = ActivationPlan.model_validate_json(plan)
        self.content_hash: str = sealed["content_hash"]
        self._group: Any = None
        self._seen: set[tuple[str, int]] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {"location": self.location}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["location"])  # type: ignore[misc]

    @property
    def levels(self) -> tuple[str, ...]:
        """Names of the levels, lowest first."""
        return tuple(level.name for level in self.plan.levels)

    def __len__(self) -> int:
        return self.plan.n_rows

    def read(self, level: str, start: int, stop: int) -> _Array:
        """Activations (stop − start, width) of a level; float16 or float32 (bfloat16 widened)."""
        return _to_readable(self._rows(f"levels/{level}", start, stop), self.plan.dtype)

    def norms(self, level: str, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Euclidean norms (stop − start,) of a level's rows."""
        return self._rows(f"norms/{level}", start, stop)

    def index(self, name: str, start: int, stop: int) -> npt.NDArray[np.int64]:
        """One column of the index: ``sample``, ``position`` or ``observed``."""
        return self._rows(f"index/{name}", start, stop)

    def array(self, path: str) -> Any:
        """The Zarr array below ``rows/``, for views such as Dask's; it checks checksums only."""
        return _array(self._open(), path)

    def shard_bounds(self, rows: range) -> Iterator[tuple[int, int]]:
        """Cut a range of rows at shard borders; yield (start, stop) of each piece."""
        start = rows.start
        while start < rows.stop:
            stop = min((start // self.plan.shard_rows + 1) * self.plan.shard_rows, rows.stop)
            yield start, stop
            start = stop

    def damaged(self) -> list[CorruptShard]:
        """Check every byte against its receipt and return what is wrong, one entry per array."""
        found: list[CorruptShard] = []
        for shard in self.plan.shards:
            receipt = json.loads(self.location.get(f"receipts/{shard}.json"))
            start = shard * self.plan.shard_rows
            for path, expected in receipt["sha256"].items():
                try:
                    values = self._rows(path, start, start + receipt["rows"])
                except CorruptShard as error:
                    found.append(error)
                    continue
                if digest(_raw(np.ascontiguousarray(values))) != expected:
                    found.append(CorruptShard(path, shard, "digest", self.location.url))
        return found

    def _open(self) -> Any:
        if self._group is None:
            with fast_codecs(self.location):
                store = (self.location / "rows").zarr_store(read_only=True)
                self._group = zarr.open_group(store, mode="r")
        return self._group

    def _rows(self, path: str, start: int, stop: int) -> _Array:
        if not 0 <= start <= stop <= self.plan.n_rows:
            raise IndexError(f"rows {start} to {stop} are outside 0 to {self.plan.n_rows}.")
        if start == stop:
            return np.asarray(_array(self._open(), path)[0:0])
        shards = range(start // self.plan.shard_rows, (stop - 1) // self.plan.shard_rows + 1)
        for shard in shards:
            self._require(path, shard)
        with fast_codecs(self.location):
            array = _array(self._open(), path)
            try:
                return np.asarray(array[start:stop])
            except Exception as error:
                reason = (str(error) or type(error).__name__).splitlines()[0]
                raise CorruptShard(
                    path, self._blame(array, shards, start, stop), reason, self.location.url
                ) from error

    def _require(self, path: str, shard: int) -> None:
        """Zarr reads a missing shard as zeros (5.2); ask once per shard whether it is there."""
        if (path, shard) in self._seen:
            return
        key = f"rows/{path}/c/{shard}" + ("/0" if path.startswith("levels/") else "")
        if not self.location.exists(key):
            raise CorruptShard(path, shard, "missing", self.location.url)
        self._seen.add((path, shard))

    def _blame(self, array: Any, shards: range, start: int, stop: int) -> int:
        for shard in shards:
            first = max(start, shard * self.plan.shard_rows)
            last = min(stop, (shard + 1) * self.plan.shard_rows)
            try:
                array[first:last]
            except Exception:
                return shard
        return shards[0]


def _raw(array: _Array) -> memoryview:
    return array.data.cast("B") if array.size else memoryview(b"")


def _checksum(*parts: memoryview) -> bytes:
    crc = functools.reduce(lambda value, part: zlib.crc32(part, value), parts, 0)
    return crc.to_bytes(4, "little")


def _array(group: Any, path: str) -> Any:
    array = group[path]
    if not isinstance(array, zarr.Array):
        raise TypeError(f"{path!r} is not an array.")
    return array


def fast_codecs(location: Location) -> Any:
    """Zarr configuration under which arrays are read by the Rust codec pipeline where it can.

    It reads folders about twice as fast; other stores it does not know, and it may be absent.
    """
    if location.local_path is None or importlib.util.find_spec("zarrs") is None:
        return zarr.config.set({})
    return zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})


def _to_bfloat16(values: _Array) -> npt.NDArray[np.uint16]:
    """Round float values to bfloat16, ties to even, as bits."""
    with np.errstate(over="ignore"):
        bits = np.ascontiguousarray(values, dtype="<f4").view("<u4")
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> 16
    # Rounding the bits of a NaN could carry into infinity or zero.
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded.astype("<u2"))


def _to_readable(stored: _Array, dtype: Dtype) -> _Array:
    if dtype != "bfloat16":
        return stored
    return (stored.astype("<u4") << np.uint32(16)).view("<f4")


def _to_float32(stored: _Array, dtype: Dtype) -> npt.NDArray[np.float32]:
    return _to_readable(stored, dtype).astype(np.float32, copy=False)

"""The activation store: rows aligned across levels, shuffled at write time, sealed when whole.

The format is specified in ``storage/PROTOCOL.md``; numbers in comments are its clauses.
"""

from __future__ import annotations

import functools
import itertools
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from storage.locations import check_name
from storage.tables.permutation import Permutation
from storage.tables.sealed import (
    Column,
    CorruptShard,
    NotSealed,
    SealedTable,
    TablePlan,
    TableWriter,
    raw_bytes,
)

__all__ = [
    "ActivationPlan",
    "ActivationSet",
    "ActivationWriter",
    "CorruptShard",
    "Dtype",
    "LevelPlan",
    "NotSealed",
]

INDEX_DTYPES: dict[str, str] = {"sample": "<i8", "position": "<i4", "observed": "<i8"}
Dtype = Literal["float32", "float16", "bfloat16"]
_STORED = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}
_WITHIN = np.dtype("<u4")  # a staged row's place in its shard
_CUT = np.dtype("<i8")  # where a block's rows for each shard begin
_Array = npt.NDArray[Any]


class LevelPlan(BaseModel):
    """One level of an activation set: its path-safe name and its width."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    width: int = Field(gt=0)

    @model_validator(mode="after")
    def _safe(self) -> Self:
        check_name(self.name, field="level")
        return self


class ActivationPlan(TablePlan):
    """What will be written, known before the first forward pass (4.1).

    ``blocks`` holds the canonical row numbers at which blocks begin, and the number of rows as its
    last entry; one of them is ``n_train``.
    """

    levels: tuple[LevelPlan, ...] = Field(min_length=1)
    dtype: Dtype
    blocks: tuple[int, ...] = Field(min_length=2)
    seed: int = Field(ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        increasing = all(a < b for a, b in itertools.pairwise(self.blocks))
        ends = self.blocks[0] == 0 and self.blocks[-1] == self.n_rows
        if not (increasing and ends and self.n_train in self.blocks):
            raise ValueError(
                "blocks must rise from 0 to n_rows and contain n_train, so that no block is empty "
                "and none lies in both splits."
            )
        if len({level.name for level in self.levels}) < len(self.levels):
            raise ValueError("levels must have distinct names.")
        return self

    @functools.cached_property
    def columns(self) -> tuple[Column, ...]:
        """Levels, norms and index, in this order."""
        logical = {"logical_dtype": self.dtype}
        return (
            *(
                Column(
                    path=f"levels/{level.name}",
                    dtype=_STORED[self.dtype],
                    width=level.width,
                    attributes=logical,
                )
                for level in self.levels
            ),
            *(Column(path=f"norms/{level.name}", dtype="<f4") for level in self.levels),
            *(Column(path=f"index/{name}", dtype=dtype) for name, dtype in INDEX_DTYPES.items()),
        )

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return len(self.blocks) - 1

    @property
    def staging_bytes(self) -> int:
        """Bytes that the staged blocks take until the set is sealed."""
        per_block = 4 * len(self.shards) + _CUT.itemsize * (len(self.shards) + 1)
        return self.n_rows * (self.row_bytes + _WITHIN.itemsize) + self.n_blocks * per_block

    def destinations(self, block: int) -> npt.NDArray[np.int64]:
        """Stored row of each canonical row of the block, in canonical order (3.3)."""
        start, stop = self.blocks[block], self.blocks[block + 1]
        offset, size = 0, self.n_train
        if start >= self.n_train:
            offset, size = self.n_train, self.n_rows - self.n_train
        return offset + Permutation(size, self.seed)(np.arange(start - offset, stop - offset))


class ActivationWriter(TableWriter[ActivationPlan]):
    """Writes one activation set: blocks in canonical order first, then shuffled shards."""

    def missing_blocks(self) -> list[int]:
        """Blocks that are neither staged nor needed any more, in order."""
        if not self.missing_shards():
            return []
        staged = set(self.location.children("staging"))
        return [b for b in range(self.plan.n_blocks) if f"{b}.bin" not in staged]

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
        if self.location.exists(f"staging/{block}.bin"):
            # A worker that died between this put and its answer is asked for the block again.
            return rows
        columns = self.to_columns(rows, activations, index)
        arrays = [columns[column.path] for column in self.plan.columns]
        destinations = self.plan.destinations(block)
        order = np.argsort(destinations, kind="stable")
        destinations = destinations[order]
        within = (destinations % self.plan.shard_rows).astype(_WITHIN)
        arrays = [within, *(array[order] for array in arrays)]
        bounds = np.arange(len(self.plan.shards) + 1) * self.plan.shard_rows
        cuts = np.searchsorted(destinations, bounds).astype(_CUT)
        pieces: list[memoryview | bytes] = [cuts.data.cast("B")]
        for start, stop in itertools.pairwise(cuts):
            segment = [raw_bytes(array[start:stop]) for array in arrays] if stop > start else []
            pieces += [*segment, _checksum(*segment)]
        self.location.put(f"staging/{block}.bin", b"".join(pieces))
        return rows

    def to_columns(
        self, rows: int, activations: Mapping[str, _Array], index: Mapping[str, _Array]
    ) -> dict[str, _Array]:
        """Rows as the plan's columns store them; arguments and errors as for :meth:`stage`."""
        columns: dict[str, _Array] = {}
        for level in self.plan.levels:
            stored, norm = self._encode(level, np.asarray(activations[level.name]), rows)
            columns[f"levels/{level.name}"] = stored
            columns[f"norms/{level.name}"] = norm
        for name, dtype in INDEX_DTYPES.items():
            column = np.asarray(index[name])
            if column.shape != (rows,):
                raise ValueError(f"index {name!r} has shape {column.shape}: expected ({rows},).")
            columns[f"index/{name}"] = column.astype(dtype, casting="same_kind")
        return columns

    def write_shard(self, shard: int) -> int:
        """Gather one shard from the staged blocks, write it and return its rows (4.3).

        Raises
        ------
        CorruptShard
            If a staged segment does not have its checksum.
        """
        plan = self.plan
        size = plan.shard_size(shard)
        if self.location.exists(f"receipts/{shard}.json"):
            return size
        out = {column.path: column.empty(size) for column in plan.columns}
        row_bytes = plan.row_bytes + _WITHIN.itemsize
        header = _CUT.itemsize * (len(plan.shards) + 1)
        for block in range(plan.n_blocks):
            name = f"staging/{block}.bin"
            cuts = self.location.get_range(name, _CUT.itemsize * shard, 2 * _CUT.itemsize)
            start, stop = (int(cut) for cut in np.frombuffer(cuts, dtype=_CUT))
            length = (stop - start) * row_bytes
            offset = header + start * row_bytes + 4 * shard
            data = memoryview(self.location.get_range(name, offset, length + 4))
            if _checksum(data[:length]) != data[length:]:
                raise CorruptShard(f"staged block {block}", shard, "checksum", self.location.url)
            begin = _WITHIN.itemsize * (stop - start)
            within = np.frombuffer(data[:begin], dtype=_WITHIN)
            for column in plan.columns:
                end = begin + column.row_bytes * (stop - start)
                out[column.path][within] = column.view(data[begin:end])
                begin = end
        self.write_rows(shard, out)
        return size

    def seal(self) -> str:
        """Clear the staging area, make the set visible and return its content hash (4.5)."""
        if not self.missing_shards():
            # Before the seal, so that a crash between the two leaves nothing behind for ever.
            self.location.delete_folder("staging")
        return super().seal()

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
            raise ValueError(self._not_finite(level, row, values[row]))
        return np.ascontiguousarray(stored), norms.astype("<f4")

    def _not_finite(self, level: LevelPlan, row: int, values: _Array) -> str:
        """Why a row cannot be stored, and what helps."""
        where = f"level {level.name!r} has an activation that is not finite"
        at = f"(row {row} of the block)"
        given = _to_readable(values, "bfloat16") if values.dtype == np.uint16 else values
        if not np.isfinite(given).all():
            return (
                f"{where} {at}, and the model itself gave it: no extract.dtype can hold it; check "
                "the model's weights and inputs, or run it with model.dtype=bfloat16 or float32."
            )
        with np.errstate(over="ignore"):
            fits = np.isfinite(np.linalg.norm(given.astype(np.float32)))
        if fits:
            return f"{where} in {self.plan.dtype} {at}: choose extract.dtype=bfloat16 or float32."
        return (
            f"level {level.name!r} has a row whose norm is more than float32 can hold {at}: check "
            "the model's weights, or read another hookpoint."
        )


class ActivationSet(SealedTable[ActivationPlan]):
    """A sealed activation set, read-only."""

    plan_type: ClassVar[type[TablePlan]] = ActivationPlan

    @property
    def levels(self) -> tuple[str, ...]:
        """Names of the levels, lowest first."""
        return tuple(level.name for level in self.plan.levels)

    def read(self, level: str, start: int, stop: int) -> _Array:
        """Activations (stop − start, width) of a level; float16 or float32 (bfloat16 widened)."""
        return _to_readable(self.rows(f"levels/{level}", start, stop), self.plan.dtype)

    def gather(self, level: str, pieces: Sequence[range]) -> _Array:
        """Activations of a level as `read` gives them, piece after piece, each of one shard."""
        return _to_readable(self.gather_rows(f"levels/{level}", pieces), self.plan.dtype)

    def prefetch(self, level: str, row: int) -> Callable[[], None] | None:
        """What fetches the shard of this row from a local disk, unless it is in memory already."""
        return self.prefetch_shard(f"levels/{level}", row // self.plan.shard_rows)

    def norms(self, level: str, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Euclidean norms (stop − start,) of a level's rows."""
        return self.rows(f"norms/{level}", start, stop)

    def index(self, name: str, start: int, stop: int) -> npt.NDArray[np.int64]:
        """One column of the index: ``sample``, ``position`` or ``observed``."""
        return self.rows(f"index/{name}", start, stop)


def _checksum(*parts: memoryview) -> bytes:
    crc = functools.reduce(lambda value, part: zlib.crc32(part, value), parts, 0)
    return crc.to_bytes(4, "little")


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

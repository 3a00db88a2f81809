"""The code store: the sparse codes of an activation set's rows, level by level, in the same order.

A sealed table (``storage/tables/sealed.py``) with, per level, ``codes/<level>/indices`` and
``codes/<level>/values``, both ``(n_rows, k)``, and one array ``kept`` that tells which rows take
part in fits and scores. A value of 0 means that the place is not used.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from storage.locations import check_name
from storage.tables.sealed import Column, SealedTable, TablePlan, TableWriter

__all__ = ["CodeLevel", "CodePlan", "CodeSet", "CodeWriter"]


class CodeLevel(BaseModel):
    """One level of a code set: its name, its concepts, and the most that are active in a row."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    n_concepts: int = Field(gt=0)
    k: int = Field(gt=0)

    @model_validator(mode="after")
    def _safe(self) -> Self:
        check_name(self.name, field="level")
        return self


class CodePlan(TablePlan):
    """What will be written: the levels' shapes, on the rows of one activation set."""

    levels: tuple[CodeLevel, ...] = Field(min_length=1)
    activations: str
    """Content hash of the activation set."""

    @functools.cached_property
    def columns(self) -> tuple[Column, ...]:
        """Indices and values of each level, then ``kept``."""
        found = []
        for level in self.levels:
            dtype = "<u2" if level.n_concepts <= 2**16 else "<u4"
            for name, kind in (("indices", dtype), ("values", "<f4")):
                path = f"codes/{level.name}/{name}"
                found.append(Column(path=path, dtype=kind, width=level.k, compressed=True))
        return (*found, Column(path="kept", dtype="|u1", compressed=True))


CodeWriter = TableWriter[CodePlan]


class CodeSet(SealedTable[CodePlan]):
    """A sealed code set, read-only."""

    plan_type: ClassVar[type[TablePlan]] = CodePlan

    @property
    def levels(self) -> tuple[str, ...]:
        """Names of the levels, lowest first."""
        return tuple(level.name for level in self.plan.levels)

    def kept(self, start: int, stop: int) -> npt.NDArray[np.bool_]:
        """Which rows take part in fits and scores, (stop − start,)."""
        return self.rows("kept", start, stop).astype(bool)

    def read(
        self, level: str, start: int, stop: int
    ) -> tuple[npt.NDArray[np.integer[Any]], npt.NDArray[np.float32]]:
        """Indices and values, both (stop − start, k)."""
        return (
            self.rows(f"codes/{level}/indices", start, stop),
            self.rows(f"codes/{level}/values", start, stop),
        )

    def matrix(self, level: str, start: int, stop: int) -> Any:
        """Codes as a SciPy CSR matrix (stop − start, n_concepts), float32."""
        from scipy.sparse import csr_matrix

        shape = (stop - start, self._level(level).n_concepts)
        indices, values = self.read(level, start, stop)
        active = values > 0
        pointers = np.concatenate([[0], np.cumsum(active.sum(axis=1))])
        return csr_matrix((values[active], indices[active].astype(np.int32), pointers), shape=shape)

    def blocks(
        self, level: str, split: Literal["train", "held_out", "all"] = "all"
    ) -> Iterator[tuple[int, int, Any]]:
        """Yield (start, stop, CSR matrix) of a level, one shard at a time."""
        for start, stop in self.plan.shard_bounds(self.plan.split(split)):
            yield start, stop, self.matrix(level, start, stop)

    def _level(self, name: str) -> CodeLevel:
        for level in self.plan.levels:
            if level.name == name:
                return level
        raise KeyError(f"level {name!r} is not one of {', '.join(self.levels)}.")

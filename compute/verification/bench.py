"""A model on the bench: run on a pool of samples as it is, and again with its codes changed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, vstack
from torch import Tensor

from compute.dictionaries import Dictionary
from compute.steering.places import Moment, PlaceRows, Target
from compute.steering.running import RowChange
from compute.steering.steering_levels import ConceptLevel, find_level

__all__ = ["Add", "Bench", "Direction", "Pool", "Replace", "Shift"]

Direction = Literal["up", "down"]

# Rows with a norm of so many medians (attention sinks) are no data; the dictionaries were fitted
# without them.
_OUTLIER = 10.0


@dataclass(frozen=True)
class Pool:
    """What the model does with the samples when nothing is changed.

    Attributes
    ----------
    codes : level number → sparse codes ``(n_items · n_positions, n_concepts)``, item by item.
    kept : ``(n_items · n_positions,)`` whether a row is data: no padding, no attention sink.
    n_items, n_positions : samples, and rows of each.
    """

    codes: Mapping[int, Any]
    kept: NDArray[np.bool_]
    n_items: int
    n_positions: int
    _columns: dict[int, Any] = field(default_factory=dict, repr=False)

    def active_items(self, level: int, concept: int) -> NDArray[np.int64]:
        """Samples with a row of data in which the concept is active."""
        column = self.columns(level)[:, [concept]]
        rows = column.indices[: column.indptr[1]]
        return np.unique(rows[self.kept[rows]] // self.n_positions)

    def columns(self, level: int) -> Any:
        """Codes of a level by column."""
        if level not in self._columns:
            self._columns[level] = self.codes[level].tocsc()
        return self._columns[level]

    def code(self, level: int, concept: int, items: NDArray[np.int64]) -> NDArray[np.float32]:
        """A concept's codes in some samples, ``(len(items), n_positions)``."""
        column = self.columns(level)[:, [concept]].toarray().reshape(self.n_items, -1)
        return np.asarray(column[items], dtype=np.float32)


class Replace:
    """Replaces codes at one place: ``new(codes) − codes`` on the decoder, row by row.

    Parameters
    ----------
    change : ``(b, p, n)`` is too much to hold, so a callable of the dense codes ``(r, n)`` of the
        pass that returns the new ones.
    """

    def __init__(self, dictionary: Dictionary, change: Any) -> None:
        self._dictionary = dictionary
        self._change = change

    def __call__(self, rows: PlaceRows, moment: Moment) -> RowChange:
        """Return the change of every row."""
        x = rows.values.reshape(-1, rows.values.shape[-1]).float()
        codes = self._dictionary.encode(x)
        delta = (self._change(codes) - codes) @ self._dictionary.W_dec
        return RowChange(torch.arange(len(x), device=x.device), delta)


class Add:
    """Adds to the code of one concept in every sample of a pass.

    Parameters
    ----------
    concepts : ``(b,)`` which concept's code is changed in each sample.
    changes : ``(b, p)`` what is added to that code in each row.
    """

    def __init__(
        self,
        dictionary: Dictionary,
        concepts: NDArray[np.int64],
        changes: NDArray[np.float32],
    ) -> None:
        where = torch.from_numpy(concepts).to(dictionary.device)
        self._directions = dictionary.W_dec[where]
        self._changes = torch.from_numpy(changes).to(dictionary.device)

    def changes(self, rows: PlaceRows) -> Tensor:
        """Return what is added in each row of a place, ``(b, p)``."""
        return self._changes

    def __call__(self, rows: PlaceRows, moment: Moment) -> RowChange:
        """Return the change of every row in which the code changes."""
        changes = self.changes(rows)
        item, position = changes.nonzero(as_tuple=True)
        delta = changes[item, position][:, None] * self._directions[item]
        return RowChange(item * changes.shape[1] + position, delta)


class Shift:
    """Adds to every row of a place: ``added (b, p, d)``, zero where nothing is to change."""

    def __init__(self, added: Tensor) -> None:
        self._added = added.reshape(-1, added.shape[-1])

    def __call__(self, rows: PlaceRows, moment: Moment) -> RowChange:
        """Return the change of every row."""
        return RowChange(torch.arange(len(self._added), device=self._added.device), self._added)


class Bench(ABC):
    """A model, its levels, and a pool of samples."""

    def __init__(self, target: Target, levels: Sequence[ConceptLevel], batch_size: int) -> None:
        self.target = target
        self.levels = tuple(levels)
        self.batch_size = batch_size
        self._pool: Pool | None = None

    @property
    @abstractmethod
    def n_items(self) -> int:
        """Number of samples."""

    def direction(self, part: int) -> Direction:
        """Return ``up`` where the model computes level ``part`` before the next, else ``down``."""
        return "up"

    @abstractmethod
    def read(self, items: NDArray[np.int64]) -> dict[int, Tensor]:
        """Return level → activations ``(b, p, d)`` of samples as they are."""

    @abstractmethod
    def data_rows(self, items: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return ``(b, p)``: which rows are no padding."""

    @abstractmethod
    def intervene(
        self,
        items: NDArray[np.int64],
        changed: int,
        concepts: NDArray[np.int64],
        changes: NDArray[np.float32],
        read: int,
    ) -> Tensor:
        """Run samples with one code changed in each, and return what another level becomes.

        Parameters
        ----------
        items : ``(b,)`` samples; one may come several times.
        changed, read : numbers of the levels.
        concepts : ``(b,)`` which concept's code is changed in each.
        changes : ``(b, p)`` what is added to that code in each row.

        Returns
        -------
        Activations ``(b, p, d)`` of the level ``read``.
        """

    @abstractmethod
    def score(
        self, items: NDArray[np.int64], change: Mapping[int, Any] | None
    ) -> NDArray[np.float64]:
        """Return, per sample, how well the model keeps to its own output when codes are replaced.

        Parameters
        ----------
        change : level → callable of the dense codes ``(b · p, n)`` that returns the new ones; None
            runs the model as it is.

        Returns
        -------
        ``(b,)``; larger is better, and no replacement gives the most on average.
        """

    @abstractmethod
    def loss(self, items: NDArray[np.int64], number: int, added: Tensor | None = None) -> float:
        """Return the loss that the model was trained for, summed over samples.

        Parameters
        ----------
        number : the level; where models have timesteps the loss is that of its timestep.
        added : ``(b, p, d)`` what is added to each of its rows; None runs the model as it is.
        """

    def level(self, number: int) -> ConceptLevel:
        """Return a level by number."""
        return find_level(self.levels, number)

    @property
    def pool(self) -> Pool:
        """What the model does when nothing is changed; run once."""
        if self._pool is None:
            self._pool = self._run_pool()
        return self._pool

    def batches(self) -> list[NDArray[np.int64]]:
        """All samples in batches."""
        order = np.arange(self.n_items)
        return [order[i : i + self.batch_size] for i in range(0, self.n_items, self.batch_size)]

    def _run_pool(self) -> Pool:
        codes: dict[int, list[Any]] = {level.level: [] for level in self.levels}
        norms: dict[int, list[NDArray[np.float32]]] = {level.level: [] for level in self.levels}
        data = []
        positions = 0
        for batch in self.batches():
            data.append(self.data_rows(batch))
            for number, x in self.read(batch).items():
                positions = x.shape[1]
                rows = x.reshape(-1, x.shape[-1]).float()
                norms[number].append(torch.linalg.vector_norm(rows, dim=1).cpu().numpy())
                codes[number].append(_sparse(self.level(number).dictionary, rows))
        kept = np.concatenate([rows.reshape(-1) for rows in data])
        for chunks in norms.values():
            lengths = np.concatenate(chunks)
            kept &= lengths <= _OUTLIER * np.median(lengths[kept])
        stacked = {number: vstack(chunks).tocsr() for number, chunks in codes.items()}
        return Pool(stacked, kept, self.n_items, positions)


def _sparse(dictionary: Dictionary, rows: Tensor) -> Any:
    chunks = [
        csr_matrix(dictionary.encode(chunk).cpu().numpy()) for chunk in torch.split(rows, 1024)
    ]
    return vstack(chunks).tocsr()

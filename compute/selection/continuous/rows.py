"""Where rows come from: arrays in memory, or an activation store. All levels, aligned, in batches.

A stream is endless and can begin at any step; equal settings give equal batches, so that a fit that
was interrupted sees the rows that it would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from compute.selection.continuous.coordinates import White
from storage.tables.activations import ActivationSet
from storage.tables.loader import ActivationLoader, kept_rows

_BLOCK_ROWS = 8192
# Rows held out: a twentieth, but as many as tell small gains, and no more than these need.
_HELD_OUT = (0.05, 200, 4096)


class RowSource(Protocol):
    """Aligned rows of L levels."""

    n_rows: int

    def white(self) -> list[White]:
        """White coordinates of each level, from one pass over all its rows."""
        ...

    def batches(self, size: int, start: int) -> Iterator[list[Tensor]]:
        """Batches of (size, d_l) float32 from step ``start`` on, without those held out."""
        ...

    def held_out(self) -> list[Tensor]:
        """Rows (n, d_l) of each level that no batch holds."""
        ...


class ArrayRows:
    """Rows of arrays (n, d_l); ``seed`` decides their order and which are held out."""

    def __init__(self, levels: Sequence[Tensor], seed: int) -> None:
        self._levels, self._seed = list(levels), seed
        self.n_rows = len(levels[0])
        share, fewest, most = _HELD_OUT
        count = min(max(int(share * self.n_rows), fewest), most, self.n_rows // 4)
        order = torch.randperm(self.n_rows, generator=torch.Generator().manual_seed(seed))
        self._held, self._trained = order[:count].sort().values, order[count:].sort().values

    def white(self) -> list[White]:
        """White coordinates of each level."""
        return [White.of_blocks(torch.split(x, _BLOCK_ROWS)) for x in self._levels]

    def batches(self, size: int, start: int) -> Iterator[list[Tensor]]:
        """Each epoch in an order of its own; batches may span two."""
        n = len(self._trained)
        if n <= size:
            while True:
                yield [x[self._trained] for x in self._levels]
        epoch, skip = divmod(start * size, n)
        order = self._order(epoch)[skip:]
        while True:
            while len(order) < size:
                epoch += 1
                order = torch.cat([order, self._order(epoch)])
            rows, order = order[:size], order[size:]
            yield [x[rows] for x in self._levels]

    def held_out(self) -> list[Tensor]:
        """Some rows that no batch holds."""
        return [x[self._held] for x in self._levels]

    def _order(self, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
        return self._trained[torch.randperm(len(self._trained), generator=generator)]


class StoredRows:
    """Rows of an activation store, without those above any norm of ``max_norm``."""

    def __init__(
        self, activations: ActivationSet, seed: int, max_norm: Mapping[str, float] | None = None
    ) -> None:
        self._set, self._seed = activations, seed
        self._max_norm = dict(max_norm or {})
        self.n_rows = activations.plan.n_train

    def white(self) -> list[White]:
        """White coordinates of each level, from all rows for training."""
        return [white_level(self._set, level, self._max_norm) for level in self._set.levels]

    def batches(self, size: int, start: int) -> Iterator[list[Tensor]]:
        """Batches as the store's loader gives them."""
        loader = ActivationLoader(
            self._set, batch_size=size, seed=self._seed, max_norm=self._max_norm, start=start
        )
        for batch in loader:
            yield [torch.from_numpy(batch[level]).float() for level in self._set.levels]

    def held_out(self) -> list[Tensor]:
        """The first rows of those that the store holds out."""
        rows = self._set.plan.split("held_out")
        stop = min(rows.stop, rows.start + _HELD_OUT[2])
        kept = kept_rows(self._set, self._max_norm, rows.start, stop)
        return [
            torch.from_numpy(self._set.read(level, rows.start, stop)[kept].astype(np.float32))
            for level in self._set.levels
        ]


def white_level(
    activations: ActivationSet, level: str, max_norm: Mapping[str, float] | None = None
) -> White:
    """White coordinates of a level of a store, from all rows for training below ``max_norm``."""
    from storage.tables.statistics import moments

    found = moments(activations, level, "train", max_norm=max_norm)
    return White.of(found.mean, found.covariance)

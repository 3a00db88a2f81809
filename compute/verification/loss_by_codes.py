"""How much of the model's own loss is kept when its activations are put together from codes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compute.verification.bench import Bench

__all__ = ["Rebuild", "recovered_loss"]

Rebuild = Callable[[Mapping[int, Tensor]], Mapping[int, Tensor]]
"""Level → rows ``(r, d)``, the same rows at every level, to level → what codes make of them."""


def recovered_loss(
    bench: Bench,
    rebuilds: Mapping[str, Rebuild],
    *,
    means: Mapping[int, NDArray[np.float32]],
    bounds: Mapping[int, float],
) -> dict[str, dict[int, float]]:
    """Return what reconstructions recover of the loss, ``(L_mean − L_codes) / (L_mean − L)``.

    1 where the model loses nothing by them and 0 where they serve it no better than the mean of the
    level (SAEBench's ``ce_loss_score``, 2503.09532, with the mean in place of zeros: it is what a
    dictionary without concepts would write, and zeros, which no residual stream comes near, flatter
    any other). One level is replaced at a time, in all rows of data at once; all other rows
    (special tokens, padding, outliers) stay as they are.

    Parameters
    ----------
    bench : model and samples.
    rebuilds : what to try, by name.
    means : level → ``(d,)`` mean of its rows.
    bounds : level → largest norm of a row of data; a row that exceeds one is none at any level.

    Returns
    -------
    Name → level → share; NaN where the model is no worse off with the mean.
    """
    plain: defaultdict[int | None, float] = defaultdict(float)
    # Without a name: with the mean of the level in place of its rows.
    total: defaultdict[tuple[str | None, int], float] = defaultdict(float)
    for batch in bench.batches():
        seen = bench.read(batch)
        kept = _data(bench, batch, seen, bounds)
        rows = {number: _rows(x)[kept] for number, x in seen.items()}
        written: dict[str | None, Mapping[int, Tensor]] = {
            None: {n: torch.from_numpy(means[n]).to(x).expand_as(x) for n, x in rows.items()}
        }
        # No code is asked of no row.
        written |= {n: rebuild(rows) if kept.any() else rows for n, rebuild in rebuilds.items()}
        for when, number in {lv.timestep: lv.level for lv in bench.levels}.items():
            plain[when] += bench.loss(batch, number)
        for name, new in written.items():
            for number, x in seen.items():
                added = torch.zeros_like(_rows(x))
                added[kept] = new[number].to(added) - rows[number]
                total[name, number] += bench.loss(batch, number, added.reshape(x.shape))
    return {
        name: {
            level.level: _share(
                plain[level.timestep], total[None, level.level], total[name, level.level]
            )
            for level in bench.levels
        }
        for name in rebuilds
    }


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1]).float()


def _data(
    bench: Bench, batch: NDArray[np.int64], seen: Mapping[int, Tensor], bounds: Mapping[int, float]
) -> Tensor:
    """Which rows ``(b · p,)`` are data."""
    kept = torch.from_numpy(bench.data_rows(batch)).reshape(-1).to(next(iter(seen.values())).device)
    for number, x in seen.items():
        kept &= torch.linalg.vector_norm(_rows(x), dim=1) <= bounds[number]
    return kept


def _share(plain: float, mean: float, codes: float) -> float:
    return (mean - codes) / (mean - plain) if mean > plain else float("nan")

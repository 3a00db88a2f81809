"""What the level below says of a whole: which directions its parts point to, and when it is active.

Wholes are gates over few parts. Two things follow that no level alone can know:

- *Pure compositions.* In a regression of the upper activations on all compositions of the parts,
  the coefficients of a composition that only one whole uses point along that whole's direction.
  They find wholes that always come with others, or too seldom to be seen by reconstruction alone.
- *Predicted activity.* Given the pattern of its parents, a whole's activity is nearly certain.
  A dictionary by itself has to pay for every active concept as if concepts were independent, and
  saves by merging wholes that share parts; given the parts there is nothing to save.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from compute.selection.continuous.coding import SpikeAndSlab

FloatArray = NDArray[np.float32]

# Parents whose pattern is tabulated: 3^6 cells at most.
_MOST_PARENTS = 6
# Rows that a coarser table counts for in a finer one.
_BACKOFF = 2.0
_LEAST_PROBABILITY = 1e-4
# Active rows that a slope needs.
_ROWS_PER_SLOPE = 5
# Rows in which two parts must meet for their composition to be looked at, and how many are.
_LEAST_MEETINGS = 30
_MOST_COMPOSITIONS = 512
# Coefficients this many times longer than noise would make them are kept as candidates.
_SIGNIFICANT = 2.0
_ALIKE = 0.9


@dataclass(frozen=True)
class LogicGates:
    """Tables of a level's c concepts given the level below.

    Attributes
    ----------
    middles : (p,) median of every part where it is active
    parents : per concept, its parents, strongest first
    log_odds, means : per concept, a (3^parents,) table over their states, the first parent slowest
    slopes : per concept, what its strength gains with that of each parent, (parents,); ``means``
        are of what that leaves
    """

    middles: FloatArray
    parents: tuple[NDArray[np.int64], ...]
    log_odds: tuple[FloatArray, ...]
    means: tuple[FloatArray, ...]
    slopes: tuple[FloatArray, ...]

    def prior(self, parts: FloatArray, variance: torch.Tensor) -> SpikeAndSlab:
        """The prior of the c concepts in each of the rows of ``parts`` (n, p)."""
        columns = _columns(parts)
        state = _states(columns, self.middles)
        log_odds = np.empty((len(self.parents), len(parts)), np.float32)
        means = np.empty_like(log_odds)
        for j, parents in enumerate(self.parents):
            cell = _cells(state[parents])
            log_odds[j] = self.log_odds[j][cell]
            means[j] = self.means[j][cell] + self.slopes[j] @ columns[parents]
        by_row = [torch.from_numpy(_columns(field)) for field in (log_odds, means)]
        return SpikeAndSlab(by_row[0], by_row[1], variance)

    def keep(self, kept: NDArray[np.int64]) -> LogicGates:
        """The gates of some concepts only."""
        fields = (self.parents, self.log_odds, self.means, self.slopes)
        own = ([field[j] for j in kept] for field in fields)
        return LogicGates(self.middles, *map(tuple, own))


def fit_logic_gates(
    parts: FloatArray, codes: FloatArray, parents: list[NDArray[np.int64]]
) -> tuple[LogicGates, FloatArray]:
    """Tabulate activity and strength of ``codes`` (n, c) by the states of their parents.

    A part is absent, weak or strong. A cell is smoothed towards the cell that forgets the weakest
    parent, and so on up to the marginal, so that rare patterns say no more than they know. Strength
    is also a linear function of the parents': a sum over a threshold is nothing else.

    Returns
    -------
    The gates, and the (c,) variance of active codes given the parents.
    """
    columns, wholes = _columns(parts), _columns(codes)
    middles = _middles(columns)
    state = _states(columns, middles)
    tables, means, slopes, used = [], [], [], []
    variance = np.empty(len(wholes), np.float32)
    for j, strongest in enumerate(parents):
        own = strongest[:_MOST_PARENTS]
        active = wholes[j] > 0
        given = columns[own]
        slope = _slopes(given[:, active].T, wholes[j, active])
        strength = np.where(active, wholes[j] - slope @ given, 0.0)
        probability = np.array([(active.sum() + 0.5) / (len(codes) + 1.0)])
        mean = np.array([strength[active].mean() if active.any() else 1.0])
        cell = _cells(state[own])
        finest = [np.bincount(cell, by, 3 ** len(own)) for by in (None, active, strength)]
        for depth in range(1, len(own) + 1):
            rows, on, sums = (table.reshape(3**depth, -1).sum(1) for table in finest)
            probability = (on + _BACKOFF * probability.repeat(3)) / (rows + _BACKOFF)
            mean = (sums + _BACKOFF * mean.repeat(3)) / (on + _BACKOFF)
        probability = probability.clip(_LEAST_PROBABILITY, 1.0 - _LEAST_PROBABILITY)
        tables.append(np.log(probability / (1.0 - probability)).astype(np.float32))
        means.append(mean.astype(np.float32))
        slopes.append(slope)
        used.append(own)
        left = strength[active] - mean[cell[active]]
        free = max(len(left) - int(np.count_nonzero(slope)), 1)
        variance[j] = np.square(left).sum() / free
    variance = np.maximum(variance, _least_variance(codes))
    return LogicGates(middles, tuple(used), tuple(tables), tuple(means), tuple(slopes)), variance


def strength_variance(codes: FloatArray) -> FloatArray:
    """Variance (c,) of codes (n, c) where they are active."""
    count = np.maximum((codes > 0).sum(0), 1)
    mean = codes.sum(0) / count
    left = np.where(codes > 0, codes - mean, 0.0)
    variance = np.maximum(np.square(left).sum(0) / count, _least_variance(codes))
    return np.asarray(variance, np.float32)


def _least_variance(codes: FloatArray) -> FloatArray:
    # A slab of zero width would forbid every other value for good.
    mean = codes.sum(0) / np.maximum((codes > 0).sum(0), 1)
    return np.asarray((0.05 * mean) ** 2 + 1e-12, np.float32)


def _slopes(parts: FloatArray, strength: FloatArray) -> FloatArray:
    """Least-squares slopes (k,) of a strength (n,) on those of parents (n, k); 0 if n is small."""
    n, k = parts.shape
    if k == 0 or n < _ROWS_PER_SLOPE * (k + 1):
        return np.zeros(k, np.float32)
    centred = parts - parts.mean(0)
    solution = np.linalg.lstsq(centred, strength - strength.mean(), rcond=1e-4)[0]
    return np.asarray(solution, np.float32)


class Compositions(NamedTuple):
    """What compositions of parts point to in the level above.

    ``directions`` (m, d) are unit rows, those with most evidence first; ``bias`` (d,) is what is
    left where no part is active.
    """

    directions: FloatArray
    bias: FloatArray


def pure_directions(parts: FloatArray, x: FloatArray, most: int) -> Compositions:
    """Directions of wholes in ``x`` (n, d), at most ``most``, from codes of parts (n, p)."""
    n = len(parts)
    active = parts > 0
    size = parts.sum(0) / np.maximum(active.sum(0), 1)
    levels = np.minimum(parts / np.maximum(size, 1e-9), 2.0).astype(np.float32)
    levels = levels[:, active.any(0)]
    present = (levels > 0).astype(np.float32)
    meetings = present.T @ present
    first, second = np.triu_indices(levels.shape[1], 1)
    often = np.argsort(-meetings[first, second], kind="stable")[: 4 * _MOST_COMPOSITIONS]
    often = often[meetings[first[often], second[often]] >= _LEAST_MEETINGS]
    first, second = first[often], second[often]
    centred = x - x.mean(0)
    single = levels - levels.mean(0)
    ridge = 1e-5 * n
    gram = single.T @ single + ridge * np.eye(single.shape[1], dtype=np.float32)
    left = centred - single @ np.linalg.solve(gram, single.T @ centred)
    evidence = np.empty(len(first), np.float32)
    for start in range(0, len(first), 512):
        pairs = slice(start, start + 512)
        both = np.minimum(levels[:, first[pairs]], levels[:, second[pairs]])
        both -= both.mean(0)
        evidence[pairs] = np.square(both.T @ left).sum(1) / (np.square(both).sum(0) + ridge)
    # More features than a quarter of the rows would fit noise.
    count = max(0, min(_MOST_COMPOSITIONS, n // 4 - single.shape[1]))
    best = np.argsort(-evidence, kind="stable")[:count]
    both = np.minimum(levels[:, first[best]], levels[:, second[best]])
    features = np.concatenate([levels, both], axis=1)
    middle = features.mean(0)
    features -= middle
    gram = features.T @ features + ridge * np.eye(features.shape[1], dtype=np.float32)
    inverse = np.linalg.inv(gram.astype(np.float64))
    pointers = (inverse @ (features.T @ centred)).astype(np.float32)
    bias = x.mean(0) - middle @ pointers
    noise = np.square(centred - features @ pointers).mean()
    expected = np.maximum(np.diag(inverse) * noise * x.shape[1], 1e-30)
    weight = np.square(pointers).sum(1) / expected
    kept = weight > _SIGNIFICANT
    pointers, weight = pointers[kept], weight[kept]
    pointers /= np.linalg.norm(pointers, axis=1, keepdims=True)
    # An OR subtracts its composition: codes are positive, so a direction is where rows reach far.
    reach = np.array([((centred @ row) ** 3).mean() for row in pointers])
    pointers *= np.where(reach < 0, -1.0, 1.0)[:, None].astype(np.float32)
    return Compositions(_distinct(pointers, weight, most), bias)


def _distinct(pointers: FloatArray, weight: NDArray[np.floating], most: int) -> FloatArray:
    """Join directions that are alike, those with most evidence first."""
    found = []
    left = np.ones(len(pointers), np.bool_)
    for i in np.argsort(-weight, kind="stable"):
        if not left[i]:
            continue
        group = left & (pointers @ pointers[i] > _ALIKE)
        joint = (pointers[group] * weight[group, None]).sum(0)
        found.append((float(weight[group].sum()), joint / np.linalg.norm(joint)))
        left &= ~group
    found.sort(key=lambda pair: -pair[0])
    rows = [direction for _, direction in found[:most]]
    return np.asarray(rows, np.float32).reshape(-1, pointers.shape[1])


def _columns(rows: FloatArray) -> FloatArray:
    """Columns (c, n) of rows (n, c), or the other way round, each in one piece."""
    return np.ascontiguousarray(rows.T)


def _middles(columns: FloatArray) -> FloatArray:
    middles = np.zeros(len(columns), np.float32)
    for i, column in enumerate(columns):
        present = column[column > 0]
        middles[i] = np.median(present) if len(present) else 0.0
    return middles


def _states(columns: FloatArray, middles: FloatArray) -> NDArray[np.int64]:
    """0 for an absent part, 1 for a weak and 2 for a strong one, from columns (p, n)."""
    return (columns > 0).astype(np.int64) + (columns > middles[:, None])


def _cells(state: NDArray[np.int64]) -> NDArray[np.int64]:
    """Cell (n,) of a table by the states (k, n) of the parents, the first slowest."""
    cell = np.zeros(state.shape[1], np.int64)
    for own in state:
        cell = 3 * cell + own
    return cell

"""Edges from parts to wholes: the front door."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from compute.graphs.candidates import Candidates, find_candidates
from compute.graphs.composition import form_of
from compute.graphs.decision import LossThreshold, beyond_chance, fit_threshold
from compute.graphs.direction import kind_of
from compute.graphs.invariance import check_environment, invariant_parts
from compute.graphs.jobs import in_parallel, single_threaded_blas
from compute.graphs.level_pairs import Correlations, DenseLevelPair, LevelPair, SparseLevelPair
from compute.graphs.parents import Parents, find_parents
from compute.graphs.regression_columns import (
    FEWEST_ROWS,
    check_level,
    dense_columns,
    sparse_columns,
)
from compute.graphs.result import EdgeRecovery

# Inputs of more cells than this stay sparse (or become so, if at most a tenth is non-zero).
_DENSE_CELLS = 20_000_000
_SPARSE_SHARE = 0.1
# The quarters of the rows that make each half-sample: two halves and, cut otherwise, two more, each
# beside its complement (Shah & Samworth 2013). Two more such pairs would cost as much again.
_HALVES = ((0, 1), (2, 3), (0, 2), (1, 3))
_WHOLES_AT_ONCE = 128


def recover_edges(
    parts: Any, wholes: Any, seed: int = 0, *, environment: ArrayLike | None = None
) -> EdgeRecovery:
    """Recover which parts make which whole.

    Parameters
    ----------
    parts
        (n, p) codes of the lower level: dense array or ``scipy.sparse`` matrix of floats, integers
        or booleans. Rows are samples; zero means "not active" where it is frequent.
    wholes
        (n, w) codes of the level above, row r being the same sample.
    seed
        Without effect: nothing is drawn at random. It is there because every estimator of this
        package has one.
    environment
        (n,) int: the environment (night, domain, prompt distribution) of each row. If given, every
        edge is tested for being there in all environments.

    Returns
    -------
    EdgeRecovery
        Edges with strength, sign, confidence and stability; kind, form and error node per whole.
        Stability repeats the whole selection on four half-samples, cut from the rows in their
        order, which doubles or triples the cost.

    Raises
    ------
    ValueError
        If the row counts differ, there are fewer than 100 rows, or an input is not a finite
        numeric matrix. Constant columns are no error: they take part in no edge.
    """
    lower, upper = check_level("parts", parts), check_level("wholes", wholes)
    n = lower.shape[0]
    if upper.shape[0] != n:
        raise ValueError(
            f"parts has {n} rows and wholes has {upper.shape[0]}; row r of both must be the same "
            "sample."
        )
    if n < FEWEST_ROWS:
        raise ValueError(f"parts has {n} rows; edges need {FEWEST_ROWS} or more.")
    labels = None if environment is None else check_environment(environment, n)
    with single_threaded_blas:
        return recover_from(lower, upper, labels)


def recover_from(
    lower: Any,
    upper: Any,
    environment: NDArray[np.int64] | None,
    corr: Correlations | None = None,
) -> EdgeRecovery:
    """Recover the edges between checked levels (n, p) and (n, w).

    ``corr`` are correlations of more rows than these, where there are more.
    """
    p, w = lower.shape[1], upper.shape[1]
    dense = _fits_dense(lower, upper)
    rows = _look_at(lower, upper, dense)
    found, threshold, settled = _select(rows, rows.correlations() if corr is None else corr)
    repeated = _stability(lower, upper, dense, settled)
    kind = np.full(w, "undecided", dtype="<U16")
    form = np.full(w, "none", dtype="<U16")
    unexplained = np.ones(w)

    def describe(wholes: list[int]) -> list[tuple[NDArray[Any], ...]]:
        columns = []
        for j in wholes:
            parents, evidence, _ = settled[j]
            siblings = found.siblings[j]
            unexplained[j] = evidence.unexplained
            alone = rows.close(j, parents, siblings[:0])
            part_active, active = rows.activity(j, parents, alone)
            form[j] = form_of(part_active, active, evidence.sign, rows.n)
            kind[j] = kind_of(alone.values, alone.whole, active, evidence.sign, rows.n)
            invariant = np.ones(len(parents), dtype=np.bool_)
            if environment is not None:
                close = rows.close(j, parents, siblings)
                invariant = invariant_parts(close, environment, found.quadratic, threshold.share)
            owner = np.full(len(parents), j)
            sure = threshold.confidence(evidence.strength, evidence.unexplained)
            edges: tuple[NDArray[Any], ...] = (evidence.strength, sure, evidence.sign, repeated[j])
            columns.append((parents, owner, *edges, invariant))
        return columns

    order = sorted(settled)
    groups = [order[a : a + _WHOLES_AT_ONCE] for a in range(0, len(order), _WHOLES_AT_ONCE)]
    columns = [row for group in in_parallel(describe, groups) for row in group]
    lists = (np.concatenate(c) for c in zip(*columns)) if columns else (np.empty(0),) * 7
    part, whole, strength, confidence, sign, stability, invariant = lists
    return EdgeRecovery(
        (p, w),
        part.astype(np.int64),
        whole.astype(np.int64),
        strength,
        confidence,
        sign.astype(np.int64),
        stability,
        None if environment is None else invariant.astype(np.bool_),
        kind,
        form,
        unexplained,
        rows.n,
    )


class _Selection(NamedTuple):
    """The parents of every whole that has any, and by what they were chosen."""

    found: Candidates
    threshold: LossThreshold
    settled: dict[int, Parents]


def _select(rows: LevelPair, corr: Correlations) -> _Selection:
    p, w = corr.cross.shape
    found = find_candidates(rows, corr)
    threshold = fit_threshold(
        found.share[beyond_chance(found.evidence, found.freedom, p * w, rows.n)]
    )
    return _Selection(found, threshold, find_parents(rows, found, threshold, p * w))


def _stability(
    lower: Any, upper: Any, dense: bool, settled: dict[int, Parents]
) -> dict[int, NDArray[np.float64]]:
    """Whole → for each of its (k,) parents the share of half-samples that choose it again.

    Everything is repeated on a half: scaling, screening, elimination, threshold and second look.
    With the parents kept, an edge would never have to win against its rivals again.
    """
    times = {j: np.zeros(len(parents.parts)) for j, parents in settled.items()}
    if not settled:
        return times
    edges = np.linspace(0, lower.shape[0], max(map(max, _HALVES)) + 2).astype(int)
    quarters = [np.arange(a, b) for a, b in pairwise(edges)]
    for chosen in _HALVES:
        half = np.concatenate([quarters[i] for i in chosen])
        rows = _look_at(lower[half], upper[half], dense)
        again = _select(rows, rows.correlations()).settled
        for j, parents in again.items():
            if j in times:
                times[j] += np.isin(settled[j].parts, parents.parts)
    return {j: count / len(_HALVES) for j, count in times.items()}


def _fits_dense(lower: Any, upper: Any) -> bool:
    """Whether two levels are small or full enough to be held as dense matrices."""
    cells = lower.shape[0] * (lower.shape[1] + upper.shape[1])
    filled = sum(int(m.nnz) if hasattr(m, "nnz") else np.count_nonzero(m) for m in (lower, upper))
    return bool(cells <= _DENSE_CELLS or filled >= _SPARSE_SHARE * cells)


def _look_at(lower: Any, upper: Any, dense: bool) -> LevelPair:
    """Prepare two checked levels."""
    if not dense:
        return SparseLevelPair(sparse_columns(lower), sparse_columns(upper))
    lower, upper = (m.toarray() if hasattr(m, "toarray") else m for m in (lower, upper))
    return DenseLevelPair(dense_columns(lower), dense_columns(upper))

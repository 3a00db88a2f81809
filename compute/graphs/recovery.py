"""Edges from parts to wholes: the front door."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from compute.graphs.candidates import Candidates, find_candidates
from compute.graphs.composition import form_of
from compute.graphs.decision import LossThreshold
from compute.graphs.direction import kind_of
from compute.graphs.invariance import check_environment, invariant_parts
from compute.graphs.jobs import in_parallel, single_threaded_blas
from compute.graphs.level_pairs import Correlations, DenseLevelPair, LevelPair, SparseLevelPair
from compute.graphs.likeness import Echoes, echoes, partners, twins
from compute.graphs.parents import Parents, Settled, find_parents
from compute.graphs.regression_columns import (
    FEWEST_ROWS,
    check_level,
    dense_columns,
    sparse_columns,
)
from compute.graphs.result import EdgeRecovery, Form, Kind

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
    chosen = _select(rows, rows.correlations() if corr is None else corr)
    repeated = _stability(lower, upper, dense, chosen.settled.parents)

    def describe(wholes: list[int]) -> list[_Described]:
        return [_describe(rows, chosen, j, repeated[j], environment) for j in wholes]

    order = sorted(repeated)
    groups = [order[a : a + _WHOLES_AT_ONCE] for a in range(0, len(order), _WHOLES_AT_ONCE)]
    described = [each for group in in_parallel(describe, groups) for each in group]
    kind = np.full(w, "undecided", dtype="<U16")
    form = np.full(w, "none", dtype="<U16")
    unexplained = np.ones(w)
    for each in described:
        kind[each.whole], form[each.whole] = each.kind, each.form
        unexplained[each.whole] = each.unexplained
    columns = [each.edges for each in described]
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
        chosen.twins,
        chosen.echoes.pairs,
        chosen.settled.left_out,
        chosen.settled.limited,
    )


class _Described(NamedTuple):
    """One whole: its kind, form and error node, and the columns (k,) of its edges."""

    whole: int
    kind: Kind
    form: Form
    unexplained: float
    edges: tuple[NDArray[Any], ...]


def _describe(
    rows: LevelPair,
    chosen: _Selection,
    j: int,
    repeated: NDArray[np.float64],
    environment: NDArray[np.int64] | None,
) -> _Described:
    """Describe the whole ``j``, whose parents the (k,) shares ``repeated`` of halves find again."""
    parents = chosen.settled.parents[j]
    parts, evidence = parents.parts, parents.evidence
    siblings = chosen.found.held(j)
    alone = rows.close(j, parts, siblings[:0])
    part_active, active = rows.activity(j, parts, alone)
    invariant = np.ones(len(parts), dtype=np.bool_)
    if environment is not None:
        invariant = invariant_parts(
            rows.close(j, parts, siblings),
            environment,
            bool(chosen.found.quadratic[j]),
            chosen.threshold.share,
        )
    sure = chosen.threshold.confidence(evidence.strength, evidence.unexplained)
    columns = (evidence.strength, sure, evidence.sign, repeated, invariant)
    ascending = np.argsort(parts)
    return _Described(
        j,
        kind_of(alone.values, alone.whole, active, evidence.sign, rows.n),
        form_of(part_active, active, evidence.sign, rows.n),
        evidence.unexplained,
        (parts[ascending], np.full(len(parts), j), *(c[ascending] for c in columns)),
    )


class _Selection(NamedTuple):
    """The parents of every whole that has any, by what they were chosen, and what is alike.

    ``twins`` is (t, 2) pairs of wholes.
    """

    found: Candidates
    threshold: LossThreshold
    settled: Settled
    twins: NDArray[np.int64]
    echoes: Echoes


def _select(rows: LevelPair, corr: Correlations) -> _Selection:
    p, w = corr.cross.shape
    alike, same = twins(corr.wholes), echoes(corr.parts)
    rows.set_apart(partners(alike))
    found, threshold = find_candidates(rows, corr, same.barred)
    settled = find_parents(rows, found, threshold, p * w, same.barred)
    return _Selection(found, threshold, settled, alike, same)


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
        for j, parents in again.parents.items():
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

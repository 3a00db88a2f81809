"""Edges from parts to wholes: screening, elimination, decision, evidence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.stats import chi2

from compute.graphs.columns import FEWEST_ROWS, check_level, dense_columns, sparse_columns
from compute.graphs.composition import composition
from compute.graphs.decision import Bar, beyond_chance, set_bar
from compute.graphs.elimination import Basis, Moments, eliminate, standardise
from compute.graphs.evidence import WholeEvidence, weigh
from compute.graphs.result import EdgeRecovery
from compute.graphs.rows import Correlations, DenseRows, Rows, SparseRows
from compute.graphs.screening import forward_select, pick_siblings

# Candidates per whole; the elimination is cubic in their number.
_CANDIDATES = 8
_SIBLINGS = 4
# Fewer rows per feature than this and only linear features are used.
_ROWS_PER_FEATURE = 8
# Inputs of more cells than this stay sparse (or become so, if at most a tenth is non-zero).
_DENSE_CELLS = 20_000_000
_WHOLES_AT_ONCE = 128
# A step of forward selection that gains less than this much chi-squared (one degree, p = 1e-4) and
# is followed by none better is not worth carrying into the elimination.
_LEAST_GAIN = 15.1
# Level of the second, heteroscedasticity-consistent test. It guards against losses carried by a
# few rows, whose statistic it bounds by the number of those rows; chance as such is kept out by the
# first test.
_ROBUST_LEVEL = 1e-3


@dataclass(frozen=True)
class _Candidates:
    """Candidates of every whole after elimination; ``share`` is 0 where there is none."""

    part: NDArray[np.int64]
    share: NDArray[np.float64]
    evidence: NDArray[np.float64]
    freedom: NDArray[np.int64]
    siblings: NDArray[np.int64]
    quadratic: bool


def recover_edges(parts: Any, wholes: Any, seed: int = 0) -> EdgeRecovery:
    """Recover which parts make which whole.

    Parameters
    ----------
    parts
        (n, p) codes of the lower level: dense array or ``scipy.sparse`` matrix of floats, integers
        or booleans. Rows are samples; zero means "not active" where it is frequent.
    wholes
        (n, w) codes of the level above, row r being the same sample.
    seed
        Kept in the signature of every estimator of this package; this method draws no numbers.

    Returns
    -------
    EdgeRecovery
        Edges with strength, sign, confidence and stability; kind, form and error node per whole.

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
    rows = _look_at(lower, upper)
    return _recover(rows, (lower.shape[1], upper.shape[1]))


def _look_at(lower: Any, upper: Any) -> Rows:
    cells = lower.shape[0] * (lower.shape[1] + upper.shape[1])
    filled = sum(m.nnz if sparse.issparse(m) else np.count_nonzero(m) for m in (lower, upper))
    if cells > _DENSE_CELLS and filled < 0.1 * cells:
        return SparseRows(sparse_columns(lower), sparse_columns(upper))
    lower, upper = (m.toarray() if sparse.issparse(m) else m for m in (lower, upper))
    return DenseRows(dense_columns(lower), dense_columns(upper))


def _recover(rows: Rows, shape: tuple[int, int]) -> EdgeRecovery:
    found = _find_candidates(rows, rows.correlations(), shape)
    significant = beyond_chance(found.evidence, found.freedom, shape[0] * shape[1])
    bar = set_bar(found.share[significant])
    chosen = significant & (found.share > bar.share)
    return _gather_evidence(rows, found, chosen, bar, shape)


def _find_candidates(rows: Rows, corr: Correlations, shape: tuple[int, int]) -> _Candidates:
    p, w = shape
    n_siblings = min(_SIBLINGS, w - 1)
    most = min(_CANDIDATES, p)
    quadratic = rows.n >= _ROWS_PER_FEATURE * Basis(most, n_siblings + 1, True).size
    while most > 1 and rows.n < _ROWS_PER_FEATURE * Basis(most, n_siblings + 1, quadratic).size:
        most -= 1
    part = np.zeros((w, most), dtype=np.int64)
    share, evidence = np.zeros((w, most)), np.zeros((w, most))
    freedom = np.ones((w, most), dtype=np.int64)
    siblings = np.zeros((w, n_siblings), dtype=np.int64)
    for a in range(0, w, _WHOLES_AT_ONCE):
        group = np.arange(a, min(a + _WHOLES_AT_ONCE, w))
        part[group], gain = forward_select(corr.parts, corr.cross[:, group], most)
        worth = gain * rows.n > _LEAST_GAIN
        count = np.where(worth.any(axis=1), most - worth[:, ::-1].argmax(axis=1), 0)
        siblings[group] = pick_siblings(
            corr.parts, corr.cross, corr.wholes, part[group], group, n_siblings
        )
        for k in np.unique(count[count > 0]):
            these = group[count == k]
            basis = Basis(int(k), n_siblings + rows.n_controls, quadratic)
            path = eliminate(_moments(rows, these, part[these, :k], siblings[these], basis), basis)
            share[these, :k] = path.share
            evidence[these, :k] = path.evidence
            freedom[these, :k] = path.freedom
    return _Candidates(part, share, evidence, freedom, siblings, quadratic)


def _moments(
    rows: Rows,
    wholes: NDArray[np.int64],
    parts: NDArray[np.int64],
    siblings: NDArray[np.int64],
    basis: Basis,
) -> Moments:
    d = basis.size + 1
    second = np.empty((len(wholes), d, d), dtype=np.float64)
    first = np.empty((len(wholes), d), dtype=np.float64)
    for row, j in enumerate(wholes):
        features = basis.features(*rows.close(int(j), parts[row], siblings[row]))
        second[row] = features @ features.T
        first[row] = features.sum(axis=1)
    return standardise(second, first, rows.n)


def _gather_evidence(
    rows: Rows,
    found: _Candidates,
    chosen: NDArray[np.bool_],
    bar: Bar,
    shape: tuple[int, int],
) -> EdgeRecovery:
    w = shape[1]
    kind = np.full(w, "undecided", dtype="<U16")
    form = np.full(w, "none", dtype="<U16")
    unexplained = np.ones(w)
    lists: list[tuple[NDArray[Any], ...]] = []
    for j in np.flatnonzero(chosen.any(axis=1)):
        parents = np.sort(found.part[j, chosen[j]])
        evidence: WholeEvidence | None = None
        while len(parents):
            close = rows.close(int(j), parents, found.siblings[j])
            evidence = weigh(*close, n=rows.n, quadratic=found.quadratic)
            held = evidence.robust > chi2.isf(_ROBUST_LEVEL, evidence.freedom)
            held &= evidence.strength > bar.share
            if held.all():
                break
            # One at a time: what the weakest held may pass to the next.
            weakest = np.where(held, np.inf, evidence.strength).argmin()
            parents = np.delete(parents, weakest)
        if evidence is None or not len(parents):
            continue
        unexplained[j] = evidence.unexplained
        kind[j], form[j] = composition(*rows.activity(int(j), parents), evidence.sign, rows.n)
        stable = evidence.half_chi2 > chi2.isf(1e-3, evidence.freedom)[:, None]
        lists.append(
            (
                parents,
                np.full(len(parents), j),
                evidence.strength,
                bar.confidence(evidence.strength),
                evidence.sign,
                np.mean(stable & (evidence.halves > bar.share), axis=1),
            )
        )
    part, whole, strength, confidence, sign, stability = (
        (np.concatenate(column) for column in zip(*lists)) if lists else (np.empty(0),) * 6
    )
    return EdgeRecovery(
        shape,
        part.astype(np.int64),
        whole.astype(np.int64),
        strength,
        confidence,
        sign.astype(np.int64),
        stability,
        None,
        kind,
        form,
        unexplained,
        rows.n,
    )

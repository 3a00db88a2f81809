"""The parents of every whole: candidates over the threshold, tested, and searched once more."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from compute.graphs.candidates import Candidates, elimination_path, fits_rows
from compute.graphs.decision import LossThreshold, beyond_chance
from compute.graphs.elimination import Basis
from compute.graphs.evidence import WholeEvidence, weigh
from compute.graphs.jobs import in_parallel
from compute.graphs.level_pairs import LevelPair

# An edge must be carried by more rows than this, as counted by its heteroscedasticity-consistent
# chi-squared. Two codes that are each present in few rows meet eight times by chance less than
# once in a million pairs wherever meeting eight times would look significant to the first test.
_FEWEST_CARRIERS = 8.0
# The second search starts where the residual's squared correlation with a part is this share of the
# threshold; it takes this many parts in, most of them neighbours of the one that was missed.
_SUSPICION = 0.25
_SECOND_LOOK = 4
_WHOLES_AT_ONCE = 128


class Parents(NamedTuple):
    """The parents (k,) of one whole, those that matter most first, their evidence, and what they
    leave; ``weighed`` parts lost more than chance, these among them."""

    parts: NDArray[np.int64]
    evidence: WholeEvidence
    residual: NDArray[np.float32] | None
    weighed: int


class Settled(NamedTuple):
    """What was decided of all wholes.

    Attributes
    ----------
    parents
        Whole → its parents, of every whole that has any.
    left_out
        (w,) int: parts that lose more than chance and too little for an edge.
    limited
        (w,) bool: whether more parts may be parents than there were rows to weigh.
    """

    parents: dict[int, Parents]
    left_out: NDArray[np.int64]
    limited: NDArray[np.bool_]


def find_parents(
    rows: LevelPair,
    found: Candidates,
    threshold: LossThreshold,
    n_pairs: int,
    barred: NDArray[np.bool_],
) -> Settled:
    """Settle the parents of every whole that has any.

    Screening sees first-order effects only, so a parent that mostly acts together with others can
    be crowded out by their neighbours. The residual of the quadratic fit, from which what the
    found parents do together is gone, shows it. ``barred`` parts, (p,), are not looked at.
    """
    beyond = found.beyond_chance(n_pairs, rows.n)
    chosen = beyond & (found.share > threshold.share)
    left_out, limited = beyond.sum(axis=1), found.limited.copy()
    wholes = np.flatnonzero(chosen.any(axis=1))

    def settle(group: NDArray[np.int64]) -> list[Parents | None]:
        return [
            _settle(rows, found, int(j), found.part[j, chosen[j]], threshold, int(left_out[j]))
            for j in group
        ]

    groups = np.split(wholes, range(_WHOLES_AT_ONCE, len(wholes), _WHOLES_AT_ONCE))
    results = [parents for group in in_parallel(settle, groups) for parents in group]
    settled = {int(j): parents for j, parents in zip(wholes, results) if parents is not None}
    offered = _second_look(rows, settled, threshold, barred)
    first = True
    while offered:
        again = {}
        for j, more in offered.items():
            candidates = np.concatenate([settled[j].parts, more])
            if not first and not _rows_for(rows, found, j, len(candidates)):
                limited[j] = True
                continue
            parents = _weighed(rows, found, j, candidates, threshold, n_pairs)
            if parents is not None:
                settled[j] = parents
                if np.isin(more, parents.parts).all():
                    again[j] = parents
        offered, first = _second_look(rows, again, threshold, barred), False
    for j, parents in settled.items():
        left_out[j] = parents.weighed - len(parents.parts)
    return Settled(settled, left_out, limited)


def _rows_for(rows: LevelPair, found: Candidates, j: int, candidates: int) -> bool:
    controls = len(found.held(j)) + rows.n_controls
    return fits_rows(Basis(candidates, controls, bool(found.quadratic[j])), rows.n)


def _weighed(
    rows: LevelPair,
    found: Candidates,
    j: int,
    candidates: NDArray[np.int64],
    threshold: LossThreshold,
    n_pairs: int,
) -> Parents | None:
    """Settle the parents of one whole among other candidates."""
    quadratic = bool(found.quadratic[j])
    path = elimination_path(rows, np.asarray([j]), candidates[None], found.held(j)[None], quadratic)
    beyond = beyond_chance(path.evidence, path.freedom, n_pairs, rows.n)[0]
    keep = beyond & (path.share[0] > threshold.share)
    return _settle(rows, found, j, candidates[keep], threshold, int(beyond.sum()))


def _settle(
    rows: LevelPair,
    found: Candidates,
    j: int,
    parts: NDArray[np.int64],
    threshold: LossThreshold,
    weighed: int,
) -> Parents | None:
    while len(parts):
        close = rows.close(j, parts, found.held(j))
        evidence, residual = weigh(*close, n=rows.n, quadratic=bool(found.quadratic[j]))
        held = (evidence.robust > _FEWEST_CARRIERS) & (evidence.strength > threshold.share)
        if held.all():
            return Parents(parts, evidence, residual if rows.second_look else None, weighed)
        # One at a time: what the weakest held may pass to the next.
        parts = np.delete(parts, np.where(held, np.inf, evidence.strength).argmin())
    return None


def _second_look(
    rows: LevelPair,
    settled: dict[int, Parents],
    threshold: LossThreshold,
    barred: NDArray[np.bool_],
) -> dict[int, NDArray[np.int64]]:
    """For wholes whose residual still correlates with other parts, the strongest of those."""
    wholes = list(settled)
    residuals = [parents.residual for parents in settled.values() if parents.residual is not None]
    if not residuals:
        return {}
    square = rows.residual_shares(residuals)
    square[barred] = 0.0
    out = {}
    for column, j in enumerate(wholes):
        explained = 1.0 - settled[j].evidence.unexplained
        share = square[:, column].copy()
        share[settled[j].parts] = 0.0
        order = np.argsort(-share)[:_SECOND_LOOK]
        order = order[share[order] > 0]
        if len(order) and share[order[0]] > _SUSPICION * threshold.share * explained:
            out[j] = order.astype(np.int64)
    return out

"""The parents of every whole: candidates over the threshold, tested, and searched once more."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from compute.graphs.candidates import Candidates, elimination_path
from compute.graphs.decision import LossThreshold, beyond_chance
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
    """The parents (k,) of one whole, ascending, their evidence, and what they leave."""

    parts: NDArray[np.int64]
    evidence: WholeEvidence
    residual: NDArray[np.float32] | None


def find_parents(
    rows: LevelPair, found: Candidates, threshold: LossThreshold, n_pairs: int
) -> dict[int, Parents]:
    """Settle the parents of every whole that has any.

    Screening sees first-order effects only, so a parent that mostly acts together with others can
    be crowded out by their neighbours. The residual of the quadratic fit, from which what the
    found parents do together is gone, shows it.
    """
    chosen = beyond_chance(found.evidence, found.freedom, n_pairs, rows.n) & (
        found.share > threshold.share
    )
    wholes = np.flatnonzero(chosen.any(axis=1))

    def settle(group: NDArray[np.int64]) -> list[Parents | None]:
        return [_settle(rows, found, int(j), found.part[j, chosen[j]], threshold) for j in group]

    groups = np.split(wholes, range(_WHOLES_AT_ONCE, len(wholes), _WHOLES_AT_ONCE))
    results = [parents for group in in_parallel(settle, groups) for parents in group]
    settled = {int(j): found for j, found in zip(wholes, results) if found is not None}
    for j, more in _second_look(rows, settled, threshold).items():
        candidates = np.concatenate([settled[j].parts, more])
        siblings = found.siblings[[j]]
        path = elimination_path(rows, np.asarray([j]), candidates[None], siblings, found.quadratic)
        keep = beyond_chance(path.evidence, path.freedom, n_pairs, rows.n) & (
            path.share > threshold.share
        )
        parents = _settle(rows, found, j, candidates[keep[0]], threshold)
        if parents is not None:
            settled[j] = parents
    return settled


def _settle(
    rows: LevelPair, found: Candidates, j: int, parts: NDArray[np.int64], threshold: LossThreshold
) -> Parents | None:
    parts = np.sort(parts)
    while len(parts):
        close = rows.close(j, parts, found.siblings[j])
        evidence, residual = weigh(*close, n=rows.n, quadratic=found.quadratic)
        held = (evidence.robust > _FEWEST_CARRIERS) & (evidence.strength > threshold.share)
        if held.all():
            return Parents(parts, evidence, residual if rows.second_look else None)
        # One at a time: what the weakest held may pass to the next.
        parts = np.delete(parts, np.where(held, np.inf, evidence.strength).argmin())
    return None


def _second_look(
    rows: LevelPair, settled: dict[int, Parents], threshold: LossThreshold
) -> dict[int, NDArray[np.int64]]:
    """For wholes whose residual still correlates with other parts, the strongest of those."""
    wholes = list(settled)
    residuals = [parents.residual for parents in settled.values() if parents.residual is not None]
    if not residuals:
        return {}
    square = rows.residual_shares(residuals)
    out = {}
    for column, j in enumerate(wholes):
        explained = 1.0 - settled[j].evidence.unexplained
        share = square[:, column].copy()
        share[settled[j].parts] = 0.0
        order = np.argsort(-share)[:_SECOND_LOOK]
        if share.size and share[order[0]] > _SUSPICION * threshold.share * explained:
            out[j] = order.astype(np.int64)
    return out

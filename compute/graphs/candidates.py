"""Candidate parents of every whole, and what each of them contributes to the fit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from compute.graphs.elimination import (
    Basis,
    EliminationPath,
    FeatureMoments,
    eliminate,
    standardise,
)
from compute.graphs.jobs import in_parallel
from compute.graphs.level_pairs import Correlations, LevelPair
from compute.graphs.screening import forward_select, pick_siblings

# Candidates per whole; the elimination is cubic in their number.
_CANDIDATES = 8
_SIBLINGS = 4
# Fewer rows per feature than this and only linear features are used.
_ROWS_PER_FEATURE = 8
_WHOLES_AT_ONCE = 128
# Forward selection takes the best of p parts; a step is carried into the elimination if
# less than this many of such steps would gain as much by chance.
_CHANCE_STEPS = 0.02


@dataclass(frozen=True)
class Candidates:
    """Candidates of every whole after elimination.

    Attributes
    ----------
    part
        (w, m) int: candidate parents.
    share, evidence, freedom
        (w, m): as in :class:`compute.graphs.elimination.EliminationPath`; 0 where there is no
        candidate.
    siblings
        (w, s) int: the sibling wholes conditioned on.
    quadratic
        Whether there were rows enough for squares and products.
    """

    part: NDArray[np.int64]
    share: NDArray[np.float64]
    evidence: NDArray[np.float64]
    freedom: NDArray[np.int64]
    siblings: NDArray[np.int64]
    quadratic: bool


def find_candidates(rows: LevelPair, corr: Correlations) -> Candidates:
    """Screen the parts for every whole and run the elimination on what is left."""
    p, w = corr.cross.shape
    n_siblings = min(_SIBLINGS, w - 1)
    most = min(_CANDIDATES, p)
    quadratic = rows.n >= _ROWS_PER_FEATURE * Basis(most, n_siblings + 1, True).size
    while most > 1 and rows.n < _ROWS_PER_FEATURE * Basis(most, n_siblings + 1, quadratic).size:
        most -= 1
    part = np.zeros((w, most), dtype=np.int64)
    share, evidence = np.zeros((w, most)), np.zeros((w, most))
    freedom = np.ones((w, most), dtype=np.int64)
    siblings = np.zeros((w, n_siblings), dtype=np.int64)

    least = float(chi2.isf(_CHANCE_STEPS / p, 1)) / rows.n

    def run(group: NDArray[np.int64]) -> None:
        chosen, gain = forward_select(corr.parts, corr.cross[:, group], most, least)
        m = chosen.shape[1]
        part[group, :m] = chosen
        gained = gain > least
        count = np.where(gained.any(axis=1), m - gained[:, ::-1].argmax(axis=1), 0)
        siblings[group] = pick_siblings(
            corr.parts, corr.cross, corr.wholes, chosen, group, n_siblings
        )
        for k in np.unique(count[count > 0]):
            these = group[count == k]
            path = elimination_path(rows, these, part[these, :k], siblings[these], quadratic)
            share[these, :k] = path.share
            evidence[these, :k] = path.evidence
            freedom[these, :k] = path.freedom

    in_parallel(run, np.split(np.arange(w), range(_WHOLES_AT_ONCE, w, _WHOLES_AT_ONCE)))
    return Candidates(part, share, evidence, freedom, siblings, quadratic)


def elimination_path(
    rows: LevelPair,
    wholes: NDArray[np.int64],
    parts: NDArray[np.int64],
    siblings: NDArray[np.int64],
    quadratic: bool,
) -> EliminationPath:
    """Eliminate the (g, k) candidate ``parts`` of g ``wholes``."""
    basis = Basis(parts.shape[1], siblings.shape[1] + rows.n_controls, quadratic)
    return eliminate(_moments(rows, wholes, parts, siblings, basis), basis)


def _moments(
    rows: LevelPair,
    wholes: NDArray[np.int64],
    parts: NDArray[np.int64],
    siblings: NDArray[np.int64],
    basis: Basis,
) -> FeatureMoments:
    d = basis.size + 1
    second = np.empty((len(wholes), d, d), dtype=np.float64)
    first = np.empty((len(wholes), d), dtype=np.float64)
    for row, j in enumerate(wholes):
        features = basis.features(*rows.close(int(j), parts[row], siblings[row]))
        second[row] = features @ features.T
        first[row] = features.sum(axis=1)
    return standardise(second, first, rows.n)

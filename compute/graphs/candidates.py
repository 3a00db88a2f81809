"""Candidate parents of every whole, and what each of them contributes to the fit."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from compute.graphs.decision import LossThreshold, beyond_chance, fit_threshold
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

# Candidates that every whole begins with. A whole that takes all of them but one is offered half as
# many again, and so on: most wholes have fewer parents, and the fit grows with their square.
_FIRST_CANDIDATES = 8
_SPARE = 1
_SIBLINGS = 4
# Fewer rows per feature than this and only linear features are used.
_ROWS_PER_FEATURE = 8
# Wholes that are screened at once, with as many candidates as above.
_WHOLES_AT_ONCE = 128
# Forward selection takes the best of p parts; a step is carried into the elimination if
# less than this many of such steps would gain as much by chance.
_CHANCE_STEPS = 0.02


@dataclass(frozen=True)
class Candidates:
    """Candidates of w wholes after elimination.

    Attributes
    ----------
    part
        (w, m) int: candidate parents.
    share, evidence, freedom
        (w, m): as in :class:`compute.graphs.elimination.EliminationPath`; 0 where there is no
        candidate.
    siblings
        (w, s) int: the sibling wholes conditioned on; -1 where a whole has fewer.
    quadratic
        (w,) bool: whether there were rows enough for squares and products.
    limited
        (w,) bool: whether more parts may be parents than there were rows to weigh.
    """

    part: NDArray[np.int64]
    share: NDArray[np.float64]
    evidence: NDArray[np.float64]
    freedom: NDArray[np.int64]
    siblings: NDArray[np.int64]
    quadratic: NDArray[np.bool_]
    limited: NDArray[np.bool_]

    def beyond_chance(self, n_pairs: int, n: int) -> NDArray[np.bool_]:
        """Return (w, m) bool: which losses are too much for chance in ``n`` rows."""
        return beyond_chance(self.evidence, self.freedom, n_pairs, n)

    def held(self, whole: int) -> NDArray[np.int64]:
        """Return the siblings of one whole."""
        siblings = self.siblings[whole]
        return np.asarray(siblings[siblings >= 0])

    def with_wider(self, wholes: NDArray[np.int64], wider: Candidates) -> Candidates:
        """Return these with those of ``wholes`` replaced by ``wider``, which has more columns."""
        more = wider.part.shape[1] - self.part.shape[1]
        merged = {}
        for field in fields(self):
            own, other = getattr(self, field.name), getattr(wider, field.name)
            is_candidate = field.name in ("part", "share", "evidence", "freedom")
            out = np.pad(own, ((0, 0), (0, more))) if is_candidate else own.copy()
            out[wholes] = other
            merged[field.name] = out
        return Candidates(**merged)


class Screened(NamedTuple):
    """Candidates of all wholes, and the threshold that was fitted to their losses."""

    candidates: Candidates
    threshold: LossThreshold


def find_candidates(rows: LevelPair, corr: Correlations, barred: NDArray[np.bool_]) -> Screened:
    """Screen the parts for every whole and run the elimination on what is left.

    Wholes that take what they are offered are offered more, for as long as there are parts and rows
    for it. ``barred`` parts, (p,), are no candidates.
    """
    p, w = corr.cross.shape
    controls = min(_SIBLINGS, w - 1) + 1
    every = int(p - barred.sum())
    basis = _fitting_basis(rows.n, min(_FIRST_CANDIDATES, every), controls)
    found = _screen(rows, corr, np.arange(w), basis, barred)
    while True:
        beyond = found.beyond_chance(p * w, rows.n)
        threshold = fit_threshold(found.share[beyond])
        taken = (beyond & (found.share > threshold.share)).sum(axis=1)
        most = basis.candidates
        offered_all = found.evidence[:, -1] > 0
        unsated = np.flatnonzero(offered_all & (taken >= max(most - _SPARE, 1)))
        if not len(unsated) or most == every:
            return Screened(found, threshold)
        basis = _fitting_basis(rows.n, min(most + (most + 1) // 2, every), controls)
        if basis.candidates <= most:
            limited = np.isin(np.arange(w), unsated)
            return Screened(replace(found, limited=limited), threshold)
        found = found.with_wider(unsated, _screen(rows, corr, unsated, basis, barred))


def fits_rows(basis: Basis, n: int) -> bool:
    """Whether ``n`` rows are enough for a regression on these features."""
    return n >= _ROWS_PER_FEATURE * basis.size


def _fitting_basis(n: int, most: int, controls: int) -> Basis:
    """Return the basis of ``most`` candidates, or of as many as ``n`` rows are enough for."""
    quadratic = fits_rows(Basis(most, controls, True), n)
    while most > 1 and not fits_rows(Basis(most, controls, quadratic), n):
        most -= 1
    return Basis(most, controls, quadratic)


def _screen(
    rows: LevelPair,
    corr: Correlations,
    wholes: NDArray[np.int64],
    basis: Basis,
    barred: NDArray[np.bool_],
) -> Candidates:
    """Find the candidates of the (g,) ``wholes``, as many as ``basis`` has room for."""
    p, w = corr.cross.shape
    g, most, n_siblings = len(wholes), basis.candidates, min(_SIBLINGS, w - 1)
    part = np.zeros((g, most), dtype=np.int64)
    share, evidence = np.zeros((g, most)), np.zeros((g, most))
    freedom = np.ones((g, most), dtype=np.int64)
    siblings = np.zeros((g, n_siblings), dtype=np.int64)
    least = float(chi2.isf(_CHANCE_STEPS / p, 1)) / rows.n

    def run(at: NDArray[np.int64]) -> None:
        group = wholes[at]
        chosen, gain = forward_select(corr.parts, corr.cross[:, group], most, least, barred)
        m = chosen.shape[1]
        part[at, :m] = chosen
        gained = gain > least
        count = np.where(gained.any(axis=1), m - gained[:, ::-1].argmax(axis=1), 0)
        siblings[at] = pick_siblings(corr.parts, corr.cross, corr.wholes, chosen, group, n_siblings)
        beside = (siblings[at] >= 0).sum(axis=1)
        for k, s in {(int(k), int(s)) for k, s in zip(count, beside) if k}:
            these = at[(count == k) & (beside == s)]
            path = elimination_path(
                rows, wholes[these], part[these, :k], siblings[these, :s], basis.quadratic
            )
            share[these, :k] = path.share
            evidence[these, :k] = path.evidence
            freedom[these, :k] = path.freedom

    at_once = max(1, _WHOLES_AT_ONCE * _FIRST_CANDIDATES // most)
    in_parallel(run, np.split(np.arange(g), range(at_once, g, at_once)))
    quadratic = np.full(g, basis.quadratic)
    return Candidates(part, share, evidence, freedom, siblings, quadratic, np.zeros(g, np.bool_))


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
    second = np.zeros((len(wholes), d, d), dtype=np.float64)
    first = np.zeros((len(wholes), d), dtype=np.float64)
    for row, j in enumerate(wholes):
        for features in basis.blocks_of_rows(*rows.close(int(j), parts[row], siblings[row])):
            second[row] += features @ features.T
            first[row] += features.sum(axis=1)
    return standardise(second, first, rows.n)

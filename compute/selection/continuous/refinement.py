"""The fit of one level: codes and everything else in turn, and the fewest concepts that keep it.

Refinement alternates between the codes of a sample of rows, given everything else, and everything
else, given the codes. Between rounds, concepts that the data do not need are dropped: at first as
the others stand, which is quick, and in the end only if the level, refitted without one, scores as
high. The score of a level is the log probability of rows and codes, less the description length of
its concepts; it also decides between fits from different starts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from heapq import heapify, heappop, heappush
from math import isclose
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compute.selection.continuous.coding import Posterior, SpikeAndSlab, SufficientStatistics
from compute.selection.continuous.level import LEAST_ACTIVE, Likelihood, SelectionLevel, inactive
from compute.selection.continuous.logic_gates import FloatArray

# Active rows on which dropping a concept is tried: a few, and more where these leave a doubt.
_TRIAL_ROWS = (32, 256)
_CLEAR = 10.0
# Changes of a row in which others must stand in for a dropped concept: a merged pair takes three.
# What is truly missed would be approached by ever more concepts, and its loss stays large.
_TRIAL_STEPS = 24
_UNLIKE = 0.5
# Least needed concepts without which the level is refitted before it is called minimal.
_REFITS = 4
_REFIT_ROUNDS = 2
# Concepts that are dropped one by one before a level with terms is given up.
_PATIENCE = 5
# Concepts that are left at the least.
_FEWEST = 2
# Most directions to choose from, as a multiple of the concepts that may stay.
CHOICE = 3.0
# How often fits are crossed, and how like another a direction may be.
_CROSSINGS = 3
_ALIKE = 0.97
# Concepts with which the last refits begin, as a multiple of the most that may stay.
_ROOM = 1.25


def best_fit(
    starts: Iterable[SelectionLevel],
    x: Tensor,
    below: FloatArray | None,
    rounds: int,
    n_total: int,
    most: int,
) -> SelectionLevel:
    """The level of the highest score among those refined from ``starts``; see :func:`refine`.

    Every start finds concepts that others miss, or merge. So the best fit is also refined with the
    concepts of the others beside its own, and again as long as that raises the score.
    """

    def fit(level: SelectionLevel) -> _RefinedLevel:
        return _RefinedLevel(refine(level, x, below, rounds, n_total, most), level, x, below)

    fits = [fit(level) for level in starts]
    if not fits:
        raise ValueError("starts is empty; give at least one level to begin with.")
    for _ in range(_CROSSINGS):
        fits.sort(key=lambda own: -own.score)
        crossed = _crossed(fits, int(CHOICE * most))
        if crossed is None:
            break
        fits.append(fit(crossed))
        if fits[-1].score <= fits[0].score:
            break
    return max(fits, key=lambda own: own.score).level


@dataclass(frozen=True)
class _RefinedLevel:
    """A level that was refined on rows (n, d), given codes (n, p) of the level below, if any."""

    score: float
    level: SelectionLevel
    x: Tensor
    below: FloatArray | None

    @cached_property
    def codes(self) -> Tensor:
        """Codes (n, c) of the rows, asked for by every crossing."""
        return torch.from_numpy(self.level.encode(self.x, self.below))


def _crossed(fits: list[_RefinedLevel], bound: int) -> SelectionLevel | None:
    """The first fit with what is new in the others, up to ``bound`` concepts; none if nothing."""
    first = fits[0]
    directions = first.level.directions
    codes = [first.codes]
    for fit in fits[1:]:
        new = ((fit.level.directions @ directions.T).amax(1) < _ALIKE).nonzero()[:, 0]
        new = new[: bound - len(directions)]
        if len(new):
            directions = torch.cat([directions, fit.level.directions[new]])
            codes.append(fit.codes[:, new])
    if len(codes) == 1:
        return None
    return SelectionLevel.start(first.x, directions, first.level.bias, torch.cat(codes, 1))


class DescriptionLength(NamedTuple):
    """Description length of a concept and of a term, in nats (as log probability)."""

    concept: float
    term: float

    @classmethod
    def of_rows(cls, x: Tensor, n_total: int) -> DescriptionLength:
        """Half the logarithm of the number of rows for each number; a sample pays its share."""
        each = 0.5 * float(np.log(n_total)) * len(x) / n_total
        return cls((x.shape[1] + 3) * each, x.shape[1] * each)

    def of(self, level: SelectionLevel) -> float:
        """Of a level as a whole."""
        terms = 0 if level.terms is None else len(level.terms.first)
        return self.concept * level.n_concepts + self.term * terms


def with_interactions(
    fit: Callable[[int], SelectionLevel],
    x: Tensor,
    below: FloatArray | None,
    n_total: int,
    most: int,
) -> SelectionLevel:
    """The level of ``most`` concepts or fewer, with terms in products of codes if they pay.

    A sum of directions fits rows that are nonlinear in the codes only with more concepts than there
    are, some of them spurious. So where terms are needed, concepts are dropped one by one, and
    ``fit``, which is asked for a level of so many concepts at most, is asked for half as many, as
    long as a level with terms scores higher for it.
    """
    description_length = DescriptionLength.of_rows(x, n_total)
    level = fit(most)
    best = _best_with_terms(level, x, below, description_length)
    if best is None:
        return level
    while most > _FEWEST:
        most = -(-most // 2)
        other = _best_with_terms(fit(most), x, below, description_length)
        if other is None or other.score <= best.score:
            break
        best = other
    _simplify(best.level, x, below, best.codes, description_length, best.level.n_concepts)
    return best.level


class _WithTerms(NamedTuple):
    """A level with terms, its score, and codes (n, c) of its rows."""

    score: float
    level: SelectionLevel
    codes: Tensor

    @classmethod
    def of(
        cls,
        level: SelectionLevel,
        x: Tensor,
        below: FloatArray | None,
        codes: Tensor,
        description_length: DescriptionLength,
    ) -> _WithTerms:
        """A level with the terms that rows (n, d) need, from codes (n, c) without.

        The score of a level that needs none is minus infinity here.
        """
        extended, score = replace(level), -np.inf
        for _ in range(_REFIT_ROUNDS):
            if not extended.fit_terms(x, codes, description_length.term):
                return cls(-np.inf, level, codes)
            codes, score = _refit(extended, x, below, codes, description_length)
        return cls(score, extended, codes)


def _best_with_terms(
    level: SelectionLevel,
    x: Tensor,
    below: FloatArray | None,
    description_length: DescriptionLength,
) -> _WithTerms | None:
    """The best level with terms, as concepts are dropped one by one; none if terms do not pay.

    Concepts are dropped from the level without terms, as these would soon stand in for any.
    """
    plain = replace(level)
    z, score = _weigh(level, x, below, torch.from_numpy(level.encode(x, below)), description_length)
    best = _WithTerms.of(plain, x, below, z, description_length)
    if best.score <= score:
        return None
    misses = 0
    while plain.n_concepts > _FEWEST and misses < _PATIENCE:
        _, z = _simplify(plain, x, below, z, description_length, plain.n_concepts - 1)
        extended = _WithTerms.of(plain, x, below, z, description_length)
        misses += 1
        if extended.score > best.score:
            best, misses = extended, 0
    return best


def refine(
    level: SelectionLevel, x: Tensor, below: FloatArray | None, rounds: int, n_total: int, most: int
) -> float:
    """Refine a level in place on a sample of rows; afterwards it has ``most`` concepts or fewer.

    A concept must save its description: half the logarithm of the number of rows for each of its
    numbers (Schwarz 1978), its direction, frequency, strength and spread.

    Parameters
    ----------
    x : (n, d) sample of the ``n_total`` rows
    below : (n, p) codes of the level below, if there is one
    rounds : of codes, directions and prior in turn

    Returns
    -------
    The level's score: log probability of rows and codes, less the description length.
    """
    # The sample speaks for all rows, so it pays its share of the description.
    description_length = DescriptionLength.of_rows(x, n_total)
    z: Tensor | None = None
    # What is left after the last drop is settled for one more round.
    last = max(rounds - 2, 0)
    for number in range(rounds):
        prior = level.prior(below)
        posterior = level.infer(x, prior, z)
        z = posterior.codes
        if number % 3 == 2 or number == last:
            bound = int(_ROOM * most) + 1 if number >= last else level.n_concepts
            z = _Elimination(level, level.statistics(x), prior, posterior).run(
                description_length.concept, bound
            )
        z = level.fit_directions(x, z)
        level.fit_reading(x, z)
        level.fit_prior(z, below if number > 0 else None)
    assert z is not None
    return _simplify(level, x, below, z, description_length, most)[0]


def settled(level: SelectionLevel, x: Tensor, rounds: int) -> Likelihood:
    """Codes and likelihood of rows ``x`` (n, d) under a level by itself, refined in place.

    Nothing is dropped.
    """
    z: Tensor | None = None
    for _ in range(rounds):
        z = level.infer(x, level.marginal_prior, z).codes
        z = level.fit_directions(x, z)
        level.fit_reading(x, z)
        level.fit_prior(z, None)
    assert z is not None
    return level.likelihood(x, None, z)


def _simplify(
    level: SelectionLevel,
    x: Tensor,
    below: FloatArray | None,
    start: Tensor,
    description_length: DescriptionLength,
    most: int,
) -> tuple[float, Tensor]:
    """Drop concepts in place as long as the level, refitted without one, scores as high.

    Others were fitted beside a concept that they could stand in for: what they lack for its rows
    at first, they may make up for when fitted without it. Then down to ``most``, whatever it
    costs. Returns the score, and the codes.
    """
    z, total = _weigh(level, x, below, start, description_length)
    names = np.arange(level.n_concepts)
    losses = np.full(level.n_concepts, -np.inf)
    refused: set[int] = set()
    dropped = True
    while dropped and level.n_concepts > 1:
        dropped = False
        prior = level.prior(below)
        statistics = level.statistics(x)
        elimination = _Elimination(level, statistics, prior, statistics.codes(prior, z))
        crowded = level.n_concepts > most
        tried = [j for j, name in enumerate(names) if crowded or name not in refused]
        best: tuple[float, SelectionLevel, Tensor, NDArray[np.int64]] | None = None
        for j in elimination.least_needed(tried, losses, description_length.concept):
            left = np.delete(np.arange(level.n_concepts), j)
            codes = elimination.codes_without(j)[:, torch.from_numpy(left)]
            trial = replace(level)
            trial.keep(left)
            value = -np.inf
            for _ in range(_REFIT_ROUNDS):
                if trial.terms is not None:
                    trial.fit_terms(x, codes, description_length.term)
                codes, value = _refit(trial, x, below, codes, description_length)
            if best is None or value > best[0]:
                best = value, trial, codes, left
            if value > total:
                break
            refused.add(int(names[j]))
        if best is not None and (best[0] > total or crowded):
            total, trial, z, left = best
            names, losses = names[left], losses[left]
            vars(level).update(vars(trial))
            dropped = True
    if below is not None:
        level.fit_prior(z, below)
        z, total = _weigh(level, x, below, z, description_length)
    level.fit_reading(x, z)
    return total, z


def _refit(
    level: SelectionLevel,
    x: Tensor,
    below: FloatArray | None,
    codes: Tensor,
    description_length: DescriptionLength,
) -> tuple[Tensor, float]:
    """Fit all but parents and terms to codes (n, c) in place; the codes after, and the score."""
    codes = level.fit_directions(x, codes)
    level.fit_prior(codes, below, same_parents=True)
    return _weigh(level, x, below, codes, description_length)


def _weigh(
    level: SelectionLevel,
    x: Tensor,
    below: FloatArray | None,
    start: Tensor,
    description_length: DescriptionLength,
) -> tuple[Tensor, float]:
    """Codes of rows (n, d) from a start (n, c), and the level's score with them."""
    codes, likely = level.likelihood(x, below, start)
    return codes, likely - description_length.of(level)


class _Elimination:
    """Concepts of a level leave one by one; directions, noise and prior stay as they are."""

    def __init__(
        self,
        level: SelectionLevel,
        statistics: SufficientStatistics,
        prior: SpikeAndSlab,
        posterior: Posterior,
    ) -> None:
        self.level = level
        self.statistics = statistics
        self.z, self.log_posterior = posterior.codes.clone(), posterior.log_posterior.clone()
        self.prior = prior._replace(log_odds=prior.log_odds.clone())
        # The prior of a concept that is gone need not say where it is inactive.
        self.saved = inactive(prior, self.z)

    def run(self, description_length: float, most: int) -> Tensor:
        """Drop what saves less than ``description_length``, and down to ``most``, the least first.

        What a concept is needed for only grows as others go, so a loss that was measured earlier
        is a lower bound, and only the smallest has to be measured again. Returns the codes.
        """
        level = self.level
        pull = self.statistics.projections - self.z @ self.statistics.gram + self.z / 2
        gain = (self.z * pull / self.statistics.noise[:, None]).sum(0)
        likeness = self.statistics.gram.clone()
        likeness.fill_diagonal_(0.0)
        # Others can only stand in for a concept that is like them.
        unlike = (likeness.amax(1) <= _UNLIKE) & (gain > gain.median())
        queue = [
            (float(gain[j]) if unlike[j] else self.loss(j, description_length), j)
            for j in range(level.n_concepts)
        ]
        heapify(queue)
        while len(queue) > 1:
            _, j = heappop(queue)
            now = self.loss(j, description_length)
            if now > queue[0][0] and not isclose(now, queue[0][0]):
                heappush(queue, (now, j))
                continue
            if now >= description_length and len(queue) + 1 <= most:
                heappush(queue, (now, j))
                break
            active = self._active(j)
            rest = self._without(j, active)
            self.z[active], self.log_posterior[active] = rest
            self.prior.log_odds[..., j] = -torch.inf
        kept = np.sort(np.array([j for _, j in queue], dtype=np.int64))
        level.keep(kept)
        return self.z[:, torch.from_numpy(kept)]

    def least_needed(
        self, concepts: list[int], losses: NDArray[np.float64], description_length: float
    ) -> list[int]:
        """The few of some concepts whose losses are smallest, given losses (c,) measured earlier.

        These are lower bounds, as in :meth:`run`, and brought up to date where they are small.
        """
        stale = set(concepts)
        while True:
            least = sorted(concepts, key=lambda j: losses[j])[:_REFITS]
            again = stale.intersection(least)
            if not again:
                return least
            for j in again:
                losses[j] = self.loss(j, description_length)
            stale -= again

    def loss(self, j: int, description_length: float) -> float:
        """What all rows lose without a concept; roughly where it is clearly above
        ``description_length``."""
        active = self._active(j)
        saved = float(self.saved[j])
        if len(active) < LEAST_ACTIVE:
            return -saved
        missed = 0.0
        for count in _TRIAL_ROWS:
            some = active[:: max(1, len(active) // count)]
            left = self._without(j, some).log_posterior
            missed = float((self.log_posterior[some] - left).sum()) * len(active) / len(some)
            if missed - saved > _CLEAR * description_length:
                break
        return missed - saved

    def codes_without(self, j: int) -> Tensor:
        """Codes (n, c) with others in the place of one concept."""
        codes = self.z.clone()
        active = self._active(j)
        codes[active] = self._without(j, active).codes
        return codes

    def _active(self, j: int) -> Tensor:
        return (self.z[:, j] > 0).nonzero()[:, 0]

    def _without(self, j: int, rows: Tensor) -> Posterior:
        start = self.z[rows].clone()
        start[:, j] = 0.0
        prior = self.prior.rows(rows).without(j)
        return self.statistics.some(rows).codes(prior, start, _TRIAL_STEPS)

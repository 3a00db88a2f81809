"""Which losses make an edge: a decision taken from the losses themselves.

Two things must hold. The loss must be more than chance, and more than the leakage of a misspecified
regression: with enough rows every linear or quadratic approximation of the true gate gives the
neighbours of a parent a loss that is *significant* and yet tiny. Leakage and edges lie about two
orders of magnitude apart, so the threshold is where a mixture of two normals, fitted to the
logarithms of all significant losses, changes sides. Its posterior is the confidence.

Where parents leave a whole partly unexplained there is confounding besides: a cause that is missing
among the parts, or was measured badly, acts through parts that correlate with it. Codes of learned
dictionaries are like that. The confidence of an edge is therefore no higher than the posterior
against leakage in proportion to what is unexplained.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import f as f_ratio

# Chance: at most this many false edges are expected in a table of any size.
_EXPECTED_FALSE = 0.05
_RAREST_CHANCE = 1e-6

# The prior of leakage and of edges: mean and standard deviation of log loss share, and how many
# observations that knowledge counts for. Leakage lies near 0.1 %, edges near 15 % across gates,
# codes and correlations (tests/benchmarks/graphs.py).
_LEAK, _EDGE = (np.log(0.001), 0.9), (np.log(0.15), 1.1)
_PRIOR_WEIGHT = 20.0
# More data than this no longer outweigh the prior: in real codes losses form a continuum that two
# normals can only be made to describe.
_MOST_WEIGHT = 400.0
_ROUNDS = 60
# Median loss share of a part that only stands in for what is missing, over the unexplained share:
# the smallest of .02, .03, .05, .08, .12 with which 95 % of edges of .9 or more are right between
# well-learned concepts of twelve `vectors` worlds (97 %; with .05 94 %, without it 83 %).
_STAND_IN = 0.08


@dataclass(frozen=True)
class LossThreshold:
    """The fitted mixture: ``share`` is the loss share at which an edge is as likely as a leak."""

    share: float
    log_odds: tuple[float, float, float]
    trusted: tuple[float, float]

    def confidence(
        self, share: NDArray[np.float64], unexplained: float = 0.0
    ) -> NDArray[np.float64]:
        """Return the probability that losses of these shares are edges, increasing in share.

        ``unexplained`` is the share of the whole's variance that all its parents leave.
        """
        # The wider normal wins on both sides; outside the trusted range the ratio would turn back.
        x = np.clip(np.log(np.maximum(share, 1e-12)), *self.trusted)
        a, b, c = self.log_odds
        no_leak = expit(a * x * x + b * x + c)
        return np.asarray(np.minimum(no_leak, _no_stand_in(share, unexplained)))


def _no_stand_in(share: NDArray[np.float64], unexplained: float) -> NDArray[np.float64]:
    """Return the posterior of edges, in equal numbers, against stand-ins for what is missing."""
    leak = np.log(np.exp(_LEAK[0]) + _STAND_IN * unexplained)
    # Beyond either mean the odds go on as they must, since no normal has the tail of the other.
    x = np.log(np.maximum(share, 1e-12))
    over, under = np.maximum(x - leak, 0) / _LEAK[1], np.minimum(x - _EDGE[0], 0) / _EDGE[1]
    return np.asarray(expit(0.5 * (over**2 - under**2) + np.log(_LEAK[1] / _EDGE[1])))


def beyond_chance(
    evidence: NDArray[np.float64], freedom: NDArray[np.int64], n_pairs: int, n: int
) -> NDArray[np.bool_]:
    """Return whether evidence is too much for chance among ``n_pairs`` pairs in ``n`` rows.

    ``evidence`` over its degrees of freedom is an F ratio.
    """
    level = min(_RAREST_CHANCE, _EXPECTED_FALSE / n_pairs)
    most = int(freedom.max(initial=1))
    # The bases are kept small enough for the error to have at least this many degrees.
    thresholds = np.arange(1, most + 1) * f_ratio.isf(level, np.arange(1, most + 1), 0.85 * n)
    return np.asarray(evidence > thresholds[np.maximum(freedom, 1) - 1])


def fit_threshold(shares: NDArray[np.float64]) -> LossThreshold:
    """Fit the mixture of leaks and edges to significant loss shares, by EM with a prior."""
    x = np.log(np.maximum(shares, 1e-12))
    weight = min(1.0, _MOST_WEIGHT / max(len(x), 1))
    (m0, s0), (m1, s1) = _LEAK, _EDGE
    pi = 0.5
    for _ in range(_ROUNDS):
        a, b, c = _odds(m0, s0, m1, s1, pi)
        edge = expit(a * x * x + b * x + c) if len(x) else x
        r1, r0 = weight * edge, weight * (1.0 - edge)
        m0, s0 = _update(x, r0, *_LEAK)
        m1, s1 = _update(x, r1, *_EDGE)
        pi = (r1.sum() + _PRIOR_WEIGHT / 2) / (weight * len(x) + _PRIOR_WEIGHT)
    a, b, c = _odds(m0, s0, m1, s1, pi)
    grid = np.linspace(m0, m1, 512)
    odds = a * grid * grid + b * grid + c
    low, high = int(odds.argmin()), int(odds.argmax())
    above = np.flatnonzero(odds[low:] > 0)
    at = grid[low + above[0]] if len(above) else grid[high]
    trusted = (float(grid[low]), float(grid[high]) if a < 0 else np.inf)
    return LossThreshold(float(np.exp(at)), (a, b, c), trusted)


def _odds(m0: float, s0: float, m1: float, s1: float, pi: float) -> tuple[float, float, float]:
    """Return the quadratic a x² + b x + c that is the log odds of an edge at log share x."""
    a = 0.5 / s0**2 - 0.5 / s1**2
    b = m1 / s1**2 - m0 / s0**2
    c = 0.5 * (m0 / s0) ** 2 - 0.5 * (m1 / s1) ** 2 + np.log(s0 / s1) + np.log(pi / (1.0 - pi))
    return float(a), float(b), float(c)


def _update(
    x: NDArray[np.float64], r: NDArray[np.float64], mean: float, sd: float
) -> tuple[float, float]:
    total = _PRIOR_WEIGHT + r.sum()
    new_mean = (_PRIOR_WEIGHT * mean + r @ x) / total
    spread = _PRIOR_WEIGHT * (sd**2 + (mean - new_mean) ** 2) + r @ (x - new_mean) ** 2
    return float(new_mean), float(np.sqrt(spread / total))

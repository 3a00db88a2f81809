"""Non-negative rank of a table of counts, by a test that is right at finite samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

FloatArray = NDArray[np.float64]

_TINY = 1e-300
_RESIDUAL_STARTS = 4
_RANDOM_STARTS = 2
_FIRST_SWEEPS = 80
_LAST_SWEEPS = 250
_BOOTSTRAP_CHUNK = 10
_BOOTSTRAP_CHUNKS = 4
# A p-value of forty draws is known to a factor of ten at best: within that of the level, it takes
# more of them.
_UNDECIDED, _MOST_CHUNKS = 10.0, 24


@dataclass(frozen=True)
class RankStep:
    """One step of the sequence of tests: does one more state pay?

    Attributes
    ----------
    rank : int
        Rank of the null hypothesis.
    gain : float
        Likelihood ratio 2 (log L_{rank+1} - log L_rank), in nats.
    noise_gain : float
        What noise alone is expected to gain: the mean over bootstrap tables of this rank, or its
        asymptotic value if the gain was too far from it to need any.
    p_value : float
        Probability of such a gain at this rank; 0 if it was beyond need of a bootstrap.
    """

    rank: int
    gain: float
    noise_gain: float
    p_value: float


def nonnegative_rank(
    counts: ArrayLike, *, level: float = 0.005, max_rank: int | None = None, seed: int = 0
) -> int:
    """Fewest states w such that P(A, B) = sum_w P(w) P(A | w) P(B | w) explains the counts.

    Parameters
    ----------
    counts : (I, J) non-negative integers
        How often A = i went together with B = j.
    level : float
        Probability, at the true rank, of asking for one state too many.
    max_rank : int, optional
        Stop there. The default is the least dimension, which no non-negative rank exceeds.
    seed : int
        Same seed, same answer.

    Raises
    ------
    ValueError
        If the counts are no table of non-negative integers, or a setting is out of range.

    See Also
    --------
    rank_evidence : the same decision with its tests.

    Notes
    -----
    Ranks 1, 2, ... are tested in turn; the first that one more state does not improve beyond noise
    is the answer. The statistic is the likelihood ratio of rank r + 1 against r. It looks in the
    one direction in which a missing state shows, the largest singular value of the whitened
    residual, where an omnibus statistic spreads its power over (I - r)(J - r) degrees of freedom.
    At the true rank it is near (sqrt(I - r) + sqrt(J - r))^2, the edge of the Wishart spectrum;
    sparse cells and zeros of the factors lower that, so the null law is a parametric bootstrap from
    the fitted rank r, smoothed by a gamma law of equal mean and variance, and run only where the
    gain is within reach of the edge.

    Non-negative rank may exceed ordinary rank, e.g. 4 against 3 for the 4-cycle
    [[1,1,0,0],[0,1,1,0],[0,0,1,1],[1,0,0,1]]; the fits are non-negative and answer the former.
    """
    return rank_evidence(counts, level=level, max_rank=max_rank, seed=seed)[-1].rank


def rank_evidence(
    counts: ArrayLike, *, level: float = 0.005, max_rank: int | None = None, seed: int = 0
) -> tuple[RankStep, ...]:
    """The tests behind :func:`nonnegative_rank`, same arguments; the last step holds the answer."""
    table = _checked(counts)
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; give a probability between 0 and 1, e.g. 0.005.")
    if max_rank is not None and max_rank < 1:
        raise ValueError(f"max_rank is {max_rank}; give at least 1.")
    rng = np.random.default_rng(seed)
    ceiling = min(*table.shape, max_rank or min(table.shape))
    left, right = table.sum(axis=1)[None, :, None], (table.sum(axis=0) / table.sum())[None, None, :]
    steps = []
    for rank in range(1, ceiling):
        gain, larger = _gain(table[None], left, right, rng)
        step = _judge(table, left, right, rank, float(gain[0]), level, rng)
        steps.append(step)
        if step.p_value > level:
            return tuple(steps)
        left, right = _best_of(table, rank + 1, larger, rng)
    steps.append(RankStep(rank=ceiling, gain=0.0, noise_gain=0.0, p_value=1.0))
    return tuple(steps)


def _checked(counts: ArrayLike) -> FloatArray:
    table = np.asarray(counts)
    if table.ndim != 2 or table.size == 0:
        raise ValueError(f"counts has shape {table.shape}; give a table of two variables, (I, J).")
    if not np.issubdtype(table.dtype, np.number) or np.iscomplexobj(table):
        raise ValueError(f"counts is of type {table.dtype}; give non-negative integers.")
    bad = ~(np.isfinite(table) & (table >= 0) & (table == np.floor(table)))
    if bad.any():
        raise ValueError(f"counts holds {table[bad][0]}; give non-negative whole numbers.")
    if table.sum() == 0:
        raise ValueError("counts holds only zeros; give at least one sample.")
    occupied: FloatArray = table.astype(np.float64)
    occupied = occupied[occupied.sum(axis=1) > 0]
    return occupied[:, occupied.sum(axis=0) > 0]


def _judge(
    table: FloatArray,
    left: FloatArray,
    right: FloatArray,
    rank: int,
    gain: float,
    level: float,
    rng: np.random.Generator,
) -> RankStep:
    edge = float((np.sqrt(table.shape[0] - rank) + np.sqrt(table.shape[1] - rank)) ** 2)
    if gain > 2 * edge + 30:
        return RankStep(rank, gain, edge, 0.0)
    probabilities = (left @ right)[0]
    probabilities = probabilities / probabilities.sum()
    n = int(table.sum())
    null: list[float] = []
    for chunk in range(1, _MOST_CHUNKS + 1):
        drawn = rng.multinomial(n, probabilities.ravel(), size=_BOOTSTRAP_CHUNK)
        tables = drawn.reshape(-1, *table.shape).astype(np.float64)
        null.extend(_gain(tables, left, right, rng)[0])
        mean, spread = float(np.mean(null)), float(np.std(null, ddof=1))
        variance = max(spread**2, 1e-12)
        p_value = float(stats.gamma.sf(gain, mean**2 / variance, scale=variance / max(mean, 1e-12)))
        # Most gains are nowhere near the decision; ten draws then say what forty would.
        if gain < mean + spread or gain > mean + 8 * spread:
            break
        near = level / _UNDECIDED < p_value < level * _UNDECIDED
        if chunk >= _BOOTSTRAP_CHUNKS and not near:
            break
    return RankStep(rank, gain, mean, p_value)


def _gain(
    tables: FloatArray, left: FloatArray, right: FloatArray, rng: np.random.Generator
) -> tuple[FloatArray, tuple[FloatArray, FloatArray]]:
    """Gains (t,) of one more state over tables (t, I, J), and the larger fits."""
    t, rank = len(tables), left.shape[2]
    base = _sweep(tables, np.repeat(left, t, axis=0), np.repeat(right, t, axis=0), _LAST_SWEEPS)
    starts = [
        _joined(near, _random_starts(x, rank + 1, _RANDOM_STARTS, rng))
        for x, near in zip(tables, map(_residual_starts, tables, *base))
    ]
    count = _RESIDUAL_STARTS + _RANDOM_STARTS
    many = np.repeat(tables, count, axis=0)
    a, b = _sweep(many, *_joined(*starts), _FIRST_SWEEPS)
    best = _log_likelihood(many, a, b).reshape(t, count).argmax(axis=1) + count * np.arange(t)
    a, b = _sweep(tables, a[best], b[best], _LAST_SWEEPS)
    gains = 2 * (_log_likelihood(tables, a, b) - _log_likelihood(tables, *base))
    return np.maximum(gains, 0.0), (a, b)


def _joined(*fits: tuple[FloatArray, FloatArray]) -> tuple[FloatArray, FloatArray]:
    return np.concatenate([a for a, _ in fits]), np.concatenate([b for _, b in fits])


def _best_of(
    table: FloatArray, rank: int, grown: tuple[FloatArray, FloatArray], rng: np.random.Generator
) -> tuple[FloatArray, FloatArray]:
    a, b = _random_starts(table, rank, 8, rng)
    a, b = _sweep(table[None], a, b, 2 * _FIRST_SWEEPS)
    a, b = _joined(grown, (a, b))
    order = np.argsort(-_log_likelihood(table[None], a, b))[:3]
    a, b = _sweep(table[None], a[order], b[order], 2 * _LAST_SWEEPS)
    best = [int(_log_likelihood(table[None], a, b).argmax())]
    return a[best], b[best]


def _residual_starts(
    table: FloatArray, left: FloatArray, right: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Starts with one more state, along the leading singular vectors of the residual."""
    expected = left @ right
    residual = (table - expected) / np.sqrt(np.maximum(expected, 0.5))
    u, _, v = np.linalg.svd(residual, full_matrices=False)
    rows, columns = table.sum(axis=1) / table.sum(), table.sum(axis=0) / table.sum()
    share = 1.0 / (left.shape[1] + 1)
    a_all, b_all = [], []
    for start in range(_RESIDUAL_STARTS):
        which, sign = min(start // 2, len(v) - 1), 1 - 2 * (start % 2)
        a = np.sqrt(rows) * np.maximum(sign * u[:, which], 0.0) + 0.1 * rows
        b = np.sqrt(columns) * np.maximum(sign * v[which], 0.0) + 0.1 * columns
        a_all.append(np.column_stack([(1 - share) * left, share * table.sum() * a / a.sum()]))
        b_all.append(np.vstack([right, b / b.sum()]))
    return np.stack(a_all), np.stack(b_all)


def _random_starts(
    table: FloatArray, rank: int, count: int, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray]:
    a = rng.dirichlet(np.ones(table.shape[0]), size=(count, rank)).transpose(0, 2, 1)
    b = rng.dirichlet(np.ones(table.shape[1]), size=(count, rank))
    return a * (table.sum() / rank), b


def _sweep(
    tables: FloatArray, left: FloatArray, right: FloatArray, sweeps: int
) -> tuple[FloatArray, FloatArray]:
    """Multiplicative updates for the Kullback-Leibler divergence (Lee, Seung 2001), batched.

    Each half-step is an EM step of the mixture, so the likelihood never falls.
    """
    a, b = left, right
    for _ in range(sweeps):
        mass = np.maximum(b.sum(axis=2), _TINY)[:, None, :]
        a = a * (_ratio(tables, a, b) @ b.swapaxes(1, 2)) / mass
        mass = np.maximum(a.sum(axis=1), _TINY)[:, :, None]
        b = b * (a.swapaxes(1, 2) @ _ratio(tables, a, b)) / mass
    return a, b


def _ratio(tables: FloatArray, a: FloatArray, b: FloatArray) -> FloatArray:
    expected = a @ b
    np.maximum(expected, _TINY, out=expected)
    np.divide(tables, expected, out=expected)
    return expected


def _log_likelihood(tables: FloatArray, a: FloatArray, b: FloatArray) -> FloatArray:
    expected = a @ b
    expected /= expected.sum(axis=(1, 2), keepdims=True)
    total: FloatArray = (tables * np.log(np.maximum(expected, _TINY))).sum(axis=(1, 2))
    return total

"""Which concept of a new dictionary is which concept of the old one: identity over time.

Two concepts are as similar as their decoder directions (cosine) and, where the codes of the same
rows are at hand for both, their codes (Pearson correlation); the score is the mean of the two. The
assignment is one-to-one and optimal: it maximises the sum of ``score − threshold`` over the matched
pairs, so that a concept remains unmatched rather than taking a partner below the threshold, or one
whose direction is further than 60 degrees away: concepts that come and go together have the same
codes, and are two all the same. What is unmatched on the new side is *born*, on the old side
*gone*.

The threshold comes from the data. Every concept has a best wrong partner, and the runner-up of each
row and column is one: a true match has to stand out of what runner-ups reach, by four robust
standard deviations above their median, within 0.5 and 0.7. (0.7 is the fixed threshold common in
the literature on the consistency of dictionaries between seeds.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Alignment", "align", "carry_ids"]

_CANDIDATES = 8
_BLOCK = 2048
_LOWEST, _HIGHEST = 0.5, 0.7
_LEAST_COSINE = 0.5
_DEVIATIONS = 4.0
_MAD_TO_SIGMA = 1.4826

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Alignment:
    """The matched pairs of two dictionaries, and who has no partner.

    Attributes
    ----------
    old, new : ndarray of shape (m,)
        Indices of the matched concepts, sorted by `new`.
    score : ndarray of shape (m,)
        Similarity of each pair.
    threshold : float
        Pairs of a lower score were rejected.
    gone : ndarray
        Indices of old concepts without a partner.
    born : ndarray
        Indices of new concepts without a partner.
    """

    old: Indices
    new: Indices
    score: Floats
    threshold: float
    gone: Indices
    born: Indices


def align(
    old: NDArray[Any],
    new: NDArray[Any],
    *,
    old_codes: Any = None,
    new_codes: Any = None,
    old_alive: NDArray[np.bool_] | None = None,
    new_alive: NDArray[np.bool_] | None = None,
) -> Alignment:
    """Match the concepts of two dictionaries one to one.

    Parameters
    ----------
    old, new : ndarray of shape (n_old, d) and (n_new, d)
        Decoder directions; rows need not have unit norm.
    old_codes, new_codes : scipy.sparse matrix or array of shape (rows, n_old) and (rows, n_new)
        Codes of the same rows under both dictionaries; both or neither.
    old_alive, new_alive : ndarray of bool, optional
        Concepts that are ever active. Dead ones point anywhere, so they are neither matched nor
        counted as born or gone.

    Raises
    ------
    ValueError
        If widths, numbers of rows or of concepts do not fit, or a direction is not finite.
    """
    left, right = _unit_rows(old, "old"), _unit_rows(new, "new")
    if left.shape[1] != right.shape[1]:
        raise ValueError(
            f"old directions have the width {left.shape[1]} and new ones {right.shape[1]}: only "
            "dictionaries of the same activations can be aligned."
        )
    alive = (_mask(old_alive, len(left), "old"), _mask(new_alive, len(right), "new"))
    rows, columns = np.flatnonzero(alive[0]), np.flatnonzero(alive[1])
    correlation = _correlation(old_codes, new_codes, len(left), len(right))
    if correlation is not None:
        correlation = correlation[rows][:, columns]
    left, right = left[rows], right[columns]
    i, j, score, runner_ups = _candidates(left, right, correlation)
    threshold = _threshold(runner_ups)
    good = np.flatnonzero(score >= threshold)
    good = good[np.einsum("nd,nd->n", left[i[good]], right[j[good]]) >= _LEAST_COSINE]
    i, j, score = _best_matching(i[good], j[good], score[good], threshold)
    order = np.argsort(j, kind="stable")
    i, j, score = i[order], j[order], score[order]
    return Alignment(
        old=rows[i],
        new=columns[j],
        score=score,
        threshold=threshold,
        gone=rows[np.setdiff1d(np.arange(len(rows)), i)],
        born=columns[np.setdiff1d(np.arange(len(columns)), j)],
    )


def carry_ids(
    alignment: Alignment | None, old_ids: Sequence[str], n_new: int, *, level: int, origin: str
) -> list[str]:
    """Return the identities of the new concepts: the partner's, or one of their own.

    An identity is ``"{level}:{index}@{origin}"``: where and when the concept was first seen. It
    says nothing about where the concept lies now.

    Parameters
    ----------
    alignment : Alignment or None
        None if there is no older dictionary: every concept is new.
    old_ids : sequence of str
        Identities of the old concepts.
    n_new : int
        Size of the new dictionary.
    level : int
        Level of both dictionaries.
    origin : str
        Name of the version that is being made, e.g. the beginning of its fingerprint; no two
        versions share it.

    Raises
    ------
    ValueError
        If the origin has been used before, so that two concepts would share an identity.
    """
    ids = [f"{level}:{index}@{origin}" for index in range(n_new)]
    if alignment is not None:
        for old, new in zip(alignment.old.tolist(), alignment.new.tolist()):
            ids[new] = old_ids[old]
    if len(set(ids)) != len(ids):
        raise ValueError(f"origin {origin!r} was used before: give each version its own.")
    return ids


def _unit_rows(directions: NDArray[Any], which: str) -> NDArray[np.float32]:
    array = np.asarray(directions, dtype=np.float32)
    if array.ndim != 2 or not np.isfinite(array).all():
        raise ValueError(f"{which} directions must be a matrix of finite numbers.")
    norms = np.linalg.norm(array, axis=1, keepdims=True)
    return np.asarray(array / np.where(norms == 0, 1, norms), dtype=np.float32)


def _mask(alive: NDArray[np.bool_] | None, n: int, which: str) -> NDArray[np.bool_]:
    if alive is None:
        return np.ones(n, dtype=bool)
    mask = np.asarray(alive, dtype=bool)
    if mask.shape != (n,):
        raise ValueError(f"{which}_alive has the shape {mask.shape} instead of ({n},).")
    return mask


def _correlation(old_codes: Any, new_codes: Any, n_old: int, n_new: int) -> Any:
    """Pearson correlations of codes, as a sparse matrix that holds the co-active pairs only.

    Pairs that are never active together have a correlation of zero or a little below, and are left
    out; the product of sparse codes has no more entries than rows · k².
    """
    if old_codes is None and new_codes is None:
        return None
    if old_codes is None or new_codes is None:
        raise ValueError("codes are given for one dictionary only: give both or neither.")
    from scipy import sparse

    a, b = sparse.csr_matrix(old_codes, dtype=float), sparse.csr_matrix(new_codes, dtype=float)
    if a.shape[0] != b.shape[0] or a.shape[1] != n_old or b.shape[1] != n_new:
        raise ValueError(
            f"codes have the shapes {a.shape} and {b.shape}: expected the same rows and "
            f"{n_old} and {n_new} columns."
        )
    n = max(a.shape[0], 1)
    means, deviations = [], []
    for codes in (a, b):
        mean = np.asarray(codes.mean(axis=0)).ravel()
        square = np.asarray(codes.multiply(codes).mean(axis=0)).ravel()
        means.append(mean)
        deviations.append(np.sqrt(np.maximum(square - mean**2, 0)))
    product = sparse.coo_matrix(a.T @ b)
    covariance = product.data / n - means[0][product.row] * means[1][product.col]
    scale = deviations[0][product.row] * deviations[1][product.col]
    values = np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 0)
    return sparse.csr_matrix((values, (product.row, product.col)), shape=(n_old, n_new))


def _candidates(
    left: NDArray[np.float32], right: NDArray[np.float32], correlation: Any
) -> tuple[Indices, Indices, Floats, Floats]:
    """The pairs worth considering with their scores, and the runner-up of every row and column.

    Cosines are computed block by block, so that memory does not grow with n_old · n_new.
    """
    if not len(left) or not len(right):
        empty = np.zeros(0, dtype=np.int64)
        return empty, empty, np.zeros(0), np.zeros(0)
    pairs: list[tuple[Indices, Indices, Floats]] = []
    runner_ups = []
    for source, other, flipped in ((left, right, False), (right, left, True)):
        joined = correlation.T.tocsr() if flipped and correlation is not None else correlation
        for start in range(0, len(source), _BLOCK):
            cosine = source[start : start + _BLOCK] @ other.T
            block: Floats = cosine.astype(np.float64)
            if joined is not None:
                block = (block + joined[start : start + _BLOCK].toarray()) / 2
            kept = min(_CANDIDATES, block.shape[1])
            best = np.argpartition(block, -kept, axis=1)[:, -kept:]
            values = np.take_along_axis(block, best, axis=1)
            if kept > 1:
                runner_ups.append(np.partition(values, -2, axis=1)[:, -2])
            own = np.repeat(np.arange(start, start + len(block)), kept)
            ends = (best.ravel(), own) if flipped else (own, best.ravel())
            pairs.append((*ends, values.ravel()))
    i, j, score = (np.concatenate(part) for part in zip(*pairs))
    _, first = np.unique(i.astype(np.int64) * len(right) + j, return_index=True)
    everyone = np.concatenate(runner_ups) if runner_ups else np.zeros(0)
    return i[first].astype(np.int64), j[first].astype(np.int64), score[first], everyone


def _threshold(runner_ups: Floats) -> float:
    if not len(runner_ups):
        return _HIGHEST
    middle = float(np.median(runner_ups))
    sigma = _MAD_TO_SIGMA * float(np.median(np.abs(runner_ups - middle)))
    return float(np.clip(middle + _DEVIATIONS * sigma, _LOWEST, _HIGHEST))


def _best_matching(
    i: Indices, j: Indices, score: Floats, threshold: float
) -> tuple[Indices, Indices, Floats]:
    """Maximise the sum of ``score − threshold`` over one-to-one pairs; leaving out costs nothing.

    Every row gets a column of its own that stands for "no partner", so that a full matching of the
    rows exists and scipy's sparse solver (LAPJVsp) applies.
    """
    if not len(i):
        return i, j, score
    from scipy import sparse
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    rows, row = np.unique(i, return_inverse=True)
    columns, column = np.unique(j, return_inverse=True)
    alone = np.arange(len(rows))
    # Costs stay positive, since a stored zero would count as no edge.
    costs = np.concatenate([2.0 - (score - threshold), np.full(len(rows), 2.0)])
    graph = sparse.csr_matrix(
        (
            costs,
            (np.concatenate([row, alone]), np.concatenate([column, len(columns) + alone])),
        ),
        shape=(len(rows), len(columns) + len(rows)),
    )
    matched_row, matched_column = min_weight_full_bipartite_matching(graph)
    real = matched_column < len(columns)
    matched_row, matched_column = matched_row[real], matched_column[real]
    weight = 2.0 - np.asarray(graph[matched_row, matched_column]).ravel() + threshold
    return rows[matched_row], columns[matched_column], weight

"""Moves of single parts between wholes, judged with all other parts in view."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from compute.selection.discrete.latent_tree import LatentTree, TreeRows, infer

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_TINY = 1e-300
_CANDIDATES = 2
_EM_STEPS = 12


def reassigned(tree: LatentTree, rows: TreeRows, cards: IntArray) -> IntArray:
    """The whole (p,) of each part that best predicts it from all other parts; -1 where none does.

    A part is independent of everything else given its own whole, so no other whole can know more of
    it (data processing). What each whole knows is its posterior given all parts but this one; it is
    weighed by BIC, since wholes differ in their numbers of states.
    """
    n = len(rows.codes)
    likelihoods = [rows.likelihood(tree, k) for k in range(rows.n_latents)]
    complete = infer(tree, likelihoods).posteriors
    owner = rows.owner.copy()
    for part in np.flatnonzero(cards > 1):
        own = int(rows.owner[part])
        posteriors = complete
        if own >= 0:
            held_out = list(likelihoods)
            held_out[own] = rows.likelihood(tree, own, without=int(part))
            posteriors = infer(tree, held_out).posteriors
        column = rows.codes[:, part]
        order = np.argsort(column, kind="stable")
        bounds = np.searchsorted(column[order], np.arange(cards[part] + 1))
        known = [_information(q, column, int(cards[part])) for q in posteriors]
        candidates = set(np.argsort(known)[::-1][:_CANDIDATES].tolist()) | ({own} - {-1})
        scores = {}
        for k in sorted(candidates):
            gain = _gain(posteriors[k][order], bounds)
            free = (cards[part] - 1) * (posteriors[k].shape[1] - 1)
            if 2 * gain > stats.chi2.isf(0.01 / (len(cards) * rows.n_latents), free):
                scores[k] = gain - 0.5 * np.log(n) * free
        owner[part] = max(scores, key=lambda k: scores[k]) if scores else -1
    return owner


def _information(posterior: FloatArray, column: IntArray, card: int) -> float:
    joint = np.stack([np.bincount(column, q, card) for q in posterior.T]) / len(column)
    product = np.outer(joint.sum(axis=1), joint.sum(axis=0))
    return float((joint * np.log(np.maximum(joint, _TINY) / np.maximum(product, _TINY))).sum())


def _gain(posterior: FloatArray, bounds: IntArray) -> float:
    """Log-likelihood a part gains from a whole; rows are sorted by the part's state."""
    blocks = [posterior[low:high] for low, high in itertools.pairwise(bounds)]
    share = np.diff(bounds) / bounds[-1]
    table = np.stack([block.sum(axis=0) for block in blocks], axis=1)
    table /= np.maximum(table.sum(axis=1, keepdims=True), _TINY)
    score = 0.0
    for _ in range(_EM_STEPS):
        counts = np.empty_like(table)
        score = 0.0
        for state, block in enumerate(blocks):
            evidence = np.maximum(block @ table[:, state], _TINY)
            score += float(np.log(evidence).sum())
            counts[:, state] = table[:, state] * (block.T @ (1.0 / evidence))
        table = counts / np.maximum(counts.sum(axis=1, keepdims=True), _TINY)
    observed = share > 0
    return score - float(bounds[-1] * (share[observed] * np.log(share[observed])).sum())

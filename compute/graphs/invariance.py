"""Whether an edge is there in every environment."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import chi2

from compute.graphs.elimination import Basis, Regressions, standardise
from compute.graphs.level_pairs import Close

_FEWEST_ROWS = 50
# An edge is missing from an environment that holds less than this share of the loss it has where it
# is strongest, provided that rows were enough to see three times as much.
_MISSING = 0.1
_LEVEL = 1e-3


def check_environment(environment: ArrayLike, n: int) -> NDArray[np.int64]:
    """Return (n,) labels 0, 1, …, or refuse them.

    Raises
    ------
    ValueError
        If there are not n labels, or some environment has fewer than 50 rows.
    """
    labels = np.asarray(environment)
    if labels.shape != (n,):
        raise ValueError(
            f"environment has shape {labels.shape}; give one label for each of the {n} rows."
        )
    names, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if counts.min() < _FEWEST_ROWS:
        rarest = names[counts.argmin()]
        raise ValueError(
            f"environment {rarest!r} has {counts.min()} rows; merge it with another so that each "
            f"has {_FEWEST_ROWS} or more."
        )
    return np.asarray(codes, dtype=np.int64)


def invariant_parts(
    close: Close, environment: NDArray[np.int64], quadratic: bool, least: float
) -> NDArray[np.bool_]:
    """Return (k,) bool: which parents keep their edge in all environments.

    Each environment has its own regression, in which other parents may take whatever weight they
    need. An edge is variant if in some environment nothing is lost without its part.
    """
    k = close.values.shape[1]
    basis = Basis(k, close.controls.shape[1], quadratic)
    features = basis.features(*close)
    share, seen = [], []
    for e in range(int(environment.max()) + 1):
        mine = features[:, environment == e].astype(np.float64)
        n = mine.shape[1]
        moments = standardise((mine @ mine.T)[None], mine.sum(axis=1)[None], n)
        fit = Regressions.of(moments)
        loss, freedom = fit.block_losses(basis.blocks)
        explained = float(fit.explained(moments)[0])
        chance = (1.0 - explained) / n
        share.append((loss[0] - freedom[0] * chance) / max(explained, 1e-9))
        seen.append(chi2.isf(_LEVEL, np.maximum(freedom[0], 1)) * chance)
    shares, visible = np.stack(share), np.stack(seen)
    strongest = shares.max(axis=0)
    missing = (shares < np.maximum(_MISSING * strongest, least / 3)) & (
        3.0 * visible < np.maximum(strongest, least)
    )
    return np.asarray(~missing.any(axis=0))

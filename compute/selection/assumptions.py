"""What the theory needs, measured on the data at hand, and which guarantees therefore hold.

Four assumptions, each with its source:

- *Sparsity*: few concepts are active in a row (Kong et al. 2025). A code shorter than
  ``(1 + 1 / coherence) / 2`` is the only one of its size (Donoho & Elad 2003).
- *Conditional independence*: what the parents and siblings of a whole leave of its activity goes
  with no other part.
- *Anchor features* (Moran et al. 2022): every concept has two or more dimensions to itself.
- *Selection signature*: parts that are nearly independent become dependent given their whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

_MOST_ROWS = 20_000
_MOST_CONCEPTS = 1024
_MOST_WHOLES = 256
_MOST_PARENTS = 64
# Sparse enough: at most this share of the dimension is active in a row, the share at which
# compressed sensing begins to fail for an ideal dictionary twice as wide (Donoho & Tanner 2005).
_SPARSE_SHARE = 0.25
# A dimension belongs to a concept that holds this share of its squared loadings.
_ANCHOR_SHARE = 0.5
_ANCHORS = 2
# Correlations below this are called independence: effects of this size do not change a graph.
_NEGLIGIBLE = 0.1
# An assumption holds where it holds for this share of concepts.
_MOST = 0.8
_LEAST_ACTIVE = 20


@dataclass(frozen=True)
class SparsityFinding:
    """Activity of one level.

    ``active`` and ``active_95``: mean and 95th percentile of active concepts per row; ``share`` is
    the latter over the dimension. ``coherence``: largest |cosine| of two directions.
    ``unique_below``: codes shorter than this are the only ones of their size.
    """

    active: float
    active_95: float
    share: float
    coherence: float
    unique_below: float
    holds: bool


@dataclass(frozen=True)
class AnchorFinding:
    """Share of a level's concepts with two or more dimensions of their own."""

    anchored_share: float
    holds: bool


@dataclass(frozen=True)
class IndependenceFinding:
    """What parts that are no parents still say of wholes, between two levels.

    ``leftover``: median over ``wholes`` of the largest |correlation| of a non-parent with what
    the parents leave; ``explained_share``: share of wholes with a negligible one.
    """

    leftover: float
    explained_share: float
    wholes: int
    holds: bool


@dataclass(frozen=True)
class SelectionFinding:
    """Parts of wholes, between two levels.

    ``marginal`` and ``given_whole``: mean |correlation| of the activity of two parts of a whole, in
    all rows and in those where the whole is active; ``selection_share``: share of the ``wholes``
    looked at whose parts are more dependent given the whole than without.
    """

    marginal: float
    given_whole: float
    selection_share: float
    wholes: int
    holds: bool


@dataclass(frozen=True)
class AssumptionReport:
    """Findings by level and by pair of adjacent levels, lowest first, and what they allow to say.

    ``guarantees`` are sentences of what is identified; ``warnings`` of what is not, and why.
    """

    n_rows: int
    sparsity: tuple[SparsityFinding, ...]
    anchors: tuple[AnchorFinding, ...]
    independence: tuple[IndependenceFinding, ...]
    selection: tuple[SelectionFinding, ...]
    guarantees: tuple[str, ...]
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, lists, strings, numbers and booleans; NaN becomes None."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain


def assumption_report(
    codes: Sequence[Any], decoders: Sequence[ArrayLike], edges: Sequence[Any], seed: int = 0
) -> AssumptionReport:
    """Measure the assumptions on codes, directions and graph.

    Parameters
    ----------
    codes
        One (n, c_l) matrix of non-negative codes per level, lowest first, sparse or dense; rows
        are aligned. Of more than 20,000 rows, that many are drawn.
    decoders
        One (c_l, d_l) array of directions per level.
    edges
        One (c_l, c_{l+1}) boolean matrix per pair of adjacent levels, sparse or dense.
    seed
        Of the rows, concepts and wholes that are drawn where there are many.

    Raises
    ------
    ValueError
        If shapes do not fit one another or there are no rows.
    """
    levels = [sparse.csr_matrix(c, dtype=np.float32) for c in codes]
    directions = [np.asarray(d, dtype=np.float32) for d in decoders]
    graphs = [sparse.csc_matrix(e, dtype=bool) for e in edges]
    _check(levels, directions, graphs)
    rng = np.random.default_rng(seed)
    n = levels[0].shape[0]
    if n > _MOST_ROWS:
        rows = np.sort(rng.choice(n, _MOST_ROWS, replace=False))
        levels = [level[rows] for level in levels]
    active = [_active(level) for level in levels]
    sparsity = tuple(_sparsity(a, d, rng) for a, d in zip(active, directions, strict=True))
    anchors = tuple(_anchors(a, d) for a, d in zip(active, directions, strict=True))
    independence, selection = [], []
    for below, above, graph in zip(active[:-1], active[1:], graphs, strict=True):
        wholes = np.flatnonzero(np.diff(graph.indptr) > 0)
        often = np.asarray(above.sum(axis=0)).ravel()[wholes] >= _LEAST_ACTIVE
        wholes = wholes[often]
        if len(wholes) > _MOST_WHOLES:
            wholes = np.sort(rng.choice(wholes, _MOST_WHOLES, replace=False))
        independence.append(_independence(below, above, graph, wholes))
        selection.append(_selection(below, above, graph, wholes))
    guarantees, warnings = _conclusions(sparsity, anchors, independence, selection)
    return AssumptionReport(
        levels[0].shape[0],
        sparsity,
        anchors,
        tuple(independence),
        tuple(selection),
        tuple(guarantees),
        tuple(warnings),
    )


def _sparsity(
    active: sparse.csc_matrix, directions: NDArray[np.float32], rng: np.random.Generator
) -> SparsityFinding:
    per_row = np.asarray(active.sum(axis=1)).ravel()
    some = _unit(directions)
    if len(some) > _MOST_CONCEPTS:
        some = some[np.sort(rng.choice(len(some), _MOST_CONCEPTS, replace=False))]
    cosines = np.abs(some @ some.T)
    np.fill_diagonal(cosines, 0.0)
    coherence = float(cosines.max(initial=0.0))
    high = float(np.quantile(per_row, 0.95))
    share = high / directions.shape[1]
    unique = 0.5 * (1.0 + 1.0 / coherence) if coherence > 0 else float(directions.shape[1])
    return SparsityFinding(
        float(per_row.mean()), high, share, coherence, unique, share <= _SPARSE_SHARE
    )


def _anchors(active: sparse.csc_matrix, directions: NDArray[np.float32]) -> AnchorFinding:
    rate = np.asarray(active.mean(axis=0)).ravel()
    loadings = np.square(_unit(directions)) * rate[:, None]
    owned = loadings > _ANCHOR_SHARE * np.maximum(loadings.sum(axis=0), 1e-30)
    alive = rate > 0
    share = float((owned.sum(axis=1)[alive] >= _ANCHORS).mean()) if alive.any() else float("nan")
    return AnchorFinding(share, share >= _MOST)


def _independence(
    below: sparse.csc_matrix,
    above: sparse.csc_matrix,
    graph: sparse.csc_matrix,
    wholes: NDArray[np.intp],
) -> IndependenceFinding:
    n = below.shape[0]
    rate = np.asarray(below.mean(axis=0)).ravel()
    spread = np.sqrt(np.maximum(rate * (1.0 - rate), 1e-12))
    usable = rate * n >= _LEAST_ACTIVE
    largest = []
    for j in wholes:
        parents = graph.indices[graph.indptr[j] : graph.indptr[j + 1]]
        whole = np.asarray(above[:, [j]].todense(), np.float64).ravel()
        left = whole - _by_pattern(below, parents, whole)
        scale = left.std()
        if scale < 1e-9:
            largest.append(0.0)
            continue
        correlation = np.abs(below.T @ (left - left.mean())) / (n * spread * scale)
        correlation[parents] = 0.0
        correlation[~usable] = 0.0
        # The largest of many chance correlations is no finding.
        chance = np.sqrt(2.0 * np.log(max(int(usable.sum()), 2)) / n)
        largest.append(max(0.0, float(correlation.max(initial=0.0)) - chance))
    values = np.asarray(largest)
    share = float((values < _NEGLIGIBLE).mean()) if len(values) else float("nan")
    middle = float(np.median(values)) if len(values) else float("nan")
    return IndependenceFinding(middle, share, len(values), share >= _MOST)


def _by_pattern(
    below: sparse.csc_matrix, parents: NDArray[np.int32], whole: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Mean of a whole by the pattern of (at most ten of) its parents."""
    own = np.asarray(below[:, parents[:10]].todense(), np.int64)
    cell = own @ (1 << np.arange(own.shape[1]))
    size = 1 << own.shape[1]
    sums = np.bincount(cell, whole, minlength=size)
    return np.asarray((sums / np.maximum(np.bincount(cell, minlength=size), 1))[cell])


def _selection(
    below: sparse.csc_matrix,
    above: sparse.csc_matrix,
    graph: sparse.csc_matrix,
    wholes: NDArray[np.intp],
) -> SelectionFinding:
    marginal, given = [], []
    for j in wholes:
        parents = graph.indices[graph.indptr[j] : graph.indptr[j + 1]][:_MOST_PARENTS]
        if len(parents) < 2:
            continue
        own = np.asarray(below[:, parents].todense(), np.float64)
        on = np.asarray(above[:, [j]].todense()).ravel() > 0
        free, held = _dependence(own), _dependence(own[on])
        if np.isfinite(free) and np.isfinite(held):
            marginal.append(free)
            given.append(held)
    if not marginal:
        return SelectionFinding(float("nan"), float("nan"), float("nan"), 0, False)
    share = float((np.asarray(given) > np.asarray(marginal)).mean())
    return SelectionFinding(
        float(np.mean(marginal)), float(np.mean(given)), share, len(marginal), share >= _MOST
    )


def _dependence(own: NDArray[np.float64]) -> float:
    """Mean |correlation| between columns that vary; NaN if fewer than two do."""
    varying = own[:, own.std(axis=0) > 0]
    if varying.shape[1] < 2:
        return float("nan")
    correlation = np.asarray(np.corrcoef(varying, rowvar=False))
    return float(np.abs(correlation[np.triu_indices(varying.shape[1], 1)]).mean())


def _conclusions(
    sparsity: Sequence[SparsityFinding],
    anchors: Sequence[AnchorFinding],
    independence: Sequence[IndependenceFinding],
    selection: Sequence[SelectionFinding],
) -> tuple[list[str], list[str]]:
    guarantees, warnings = [], []
    for number, (few, anchored) in enumerate(zip(sparsity, anchors, strict=True), start=1):
        if few.holds:
            guarantees.append(
                f"Level {number}: concepts are identified up to order and scale by sparsity."
            )
        else:
            warnings.append(
                f"Level {number}: up to {few.active_95:.0f} concepts are active in a row, "
                f"{few.share:.0%} of the dimension; sparsity does not identify them."
            )
        if few.active_95 < few.unique_below:
            guarantees.append(f"Level {number}: codes are unique given the directions.")
        if anchored.holds:
            guarantees.append(
                f"Level {number}: concepts are identified by anchor features, sparse or not."
            )
    for number, (rest, sign) in enumerate(zip(independence, selection, strict=True), start=1):
        pair = f"Levels {number} → {number + 1}"
        if rest.holds and sparsity[number - 1].holds and sparsity[number].holds:
            guarantees.append(f"{pair}: edges are the minimal graph that keeps the dependence.")
        elif not rest.holds:
            warnings.append(
                f"{pair}: parts that are no parents still inform wholes; edges may be missing, or "
                "concepts may mix."
            )
        if not sign.holds:
            warnings.append(
                f"{pair}: parts are not more dependent given their wholes; nothing shows that the "
                "wholes are effects of the parts."
            )
        elif rest.holds:
            guarantees.append(f"{pair}: dependence has the signature of selection.")
    return guarantees, warnings


def _active(codes: sparse.csr_matrix) -> sparse.csc_matrix:
    active = codes.copy()
    active.data = (active.data > 0).astype(np.float32)
    active.eliminate_zeros()
    return active.tocsc()


def _unit(directions: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.linalg.norm(directions, axis=1, keepdims=True)
    return (directions / np.where(norms > 0, norms, 1.0)).astype(np.float32)


def _check(
    levels: Sequence[sparse.csr_matrix],
    directions: Sequence[NDArray[np.float32]],
    graphs: Sequence[sparse.csc_matrix],
) -> None:
    if not levels or len(directions) != len(levels) or len(graphs) != len(levels) - 1:
        raise ValueError(
            f"codes, decoders and edges have {len(levels)}, {len(directions)} and {len(graphs)} "
            "entries; give one code matrix and decoder per level, and edges between each pair."
        )
    if len({level.shape[0] for level in levels}) > 1 or levels[0].shape[0] == 0:
        raise ValueError(
            f"codes have {[c.shape[0] for c in levels]} rows; give aligned rows, one or more."
        )
    for number, (level, decoder) in enumerate(zip(levels, directions, strict=True), start=1):
        if decoder.ndim != 2 or len(decoder) != level.shape[1]:
            raise ValueError(
                f"the decoder of level {number} has shape {decoder.shape}; give "
                f"({level.shape[1]}, d), a row per concept."
            )
    for number, graph in enumerate(graphs):
        shape = (levels[number].shape[1], levels[number + 1].shape[1])
        if graph.shape != shape:
            raise ValueError(f"edges[{number}] have shape {graph.shape}; give {shape}.")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value.item() if isinstance(value, np.generic) else value

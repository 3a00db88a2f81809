"""The effect of every edge, measured: do(high) against do(0) at one end, read at the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from scipy.sparse import csr_matrix

from compute.verification.bench import Bench, Direction
from compute.verification.nulls import random_edges, shuffled_edges
from storage.graph.concept_graph import ConceptGraph

__all__ = ["EdgeScore", "Verification", "edge_matrix", "verify_edges"]

_LEVEL = 0.95
# Causes besides those of the tested edges, so that every effect has others to be compared with.
_FEWEST_CAUSES = 64


@dataclass(frozen=True, slots=True)
class EdgeScore:
    """How a set of pairs fares.

    Attributes
    ----------
    n : pairs that could be tested.
    confirmed, refuted : shares of them; the rest is undecided.
    effect : mean effect, along the sign of the edge, in mean active codes of the whole.
    """

    n: int
    confirmed: float
    refuted: float
    effect: float


@dataclass(frozen=True)
class Verification:
    """The graph with its effects, and how it fares beside graphs without structure.

    Attributes
    ----------
    graph : the same edges, with effect, its interval and verdict where they could be tested.
    edges, shuffled, random : scores of the edges above the confidence, of the same graph with its
        ends permuted, and of pairs that are no edges, all by one rule.
    by_level : the score of the edges into each level.
    """

    graph: ConceptGraph
    edges: EdgeScore
    shuffled: EdgeScore
    random: EdgeScore
    by_level: dict[int, EdgeScore]


@dataclass(frozen=True)
class _Effects:
    """Effects of concepts that were set on all concepts of a neighbouring level.

    Attributes
    ----------
    causes : ``(m,)`` the concepts that were set.
    mean, error : ``(m, n_effects)`` mean effect over samples and its standard error.
    samples : ``(m,)`` samples of each cause.
    """

    causes: NDArray[np.int64]
    mean: NDArray[np.float32]
    error: NDArray[np.float32]
    samples: NDArray[np.int64]


def verify_edges(
    bench: Bench,
    graph: ConceptGraph,
    *,
    min_confidence: float = 0.9,
    samples: int = 12,
    min_samples: int = 3,
    controls: int = 40,
    max_parts: int | None = None,
    direction: Direction | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Verification:
    """Test every edge between concepts by intervention, and write what was found to the graph.

    Upward, as a language model computes, the part is set and the whole is read. Downward the whole
    is set and the part is read: a diffusion model draws its wholes first, inverting the selection
    that made them, and what it draws later cannot change what came before.

    In samples in which the concept that is set (the *cause*) is active, its code becomes, in the
    rows in which it is active, the largest value the pool has seen, and 0. The *effect* on the
    concept that is read is the mean over those rows of the difference that this makes to its
    pre-activation, in units of its mean active code; its interval is Student's over samples (95 %).
    The pre-activation shows what a code hides that is kept, or not, for being among the k largest.

    An edge is **confirmed** if the interval lies on the side of the edge's sign, and the effect
    exceeds the effects on the same concept of 95 % of the *matched* causes: concepts of the cause's
    level that have no edge to it and are the nearest in frequency. It is **refuted** if the
    interval reaches neither. All else, and every edge of an observed variable, stays untested.

    All concepts of a level are read in the passes of a cause, and a batch holds many causes.

    Parameters
    ----------
    min_confidence : weaker edges are not tested.
    samples, min_samples : most and fewest samples of a cause.
    controls : matched causes of each edge.
    max_parts : most causes tested per level, chosen at random; the edges of others stay untested.
    direction : which end is set; by default, for every pair of levels, that which the model
        computes first.
    progress : told the causes that are done, and all of them, after every level.

    Raises
    ------
    ValueError : the graph has a level that the bench lacks, or numbers are out of range.
    """
    if not 2 <= min_samples <= samples:
        raise ValueError(
            f"min_samples is {min_samples} and samples {samples}: an interval needs at least 2 "
            "samples, and no more than there are"
        )
    rng = np.random.default_rng(seed)
    numbers = [level.level for level in bench.levels]
    downward = {part: (direction or bench.direction(part)) == "down" for part in numbers[:-1]}
    tested = {
        part: edge_matrix(graph, part, bench, min_confidence=min_confidence)
        for part in numbers[:-1]
    }
    chosen = {
        part: _choose_causes(
            bench,
            part + downward[part],
            edges.T if downward[part] else edges,
            min_samples,
            max_parts,
            rng,
        )
        for part, edges in tested.items()
    }
    total, done = sum(len(causes) for causes in chosen.values()), 0
    columns = {name: graph.edges[name].to_pylist() for name in graph.edges.column_names}
    row_of = {
        ends: row for row, ends in enumerate(zip(columns["source"], columns["target"], strict=True))
    }
    pairs: dict[str, list[tuple[int, float]]] = {"edges": [], "shuffled": [], "random": []}
    by_level: dict[int, EdgeScore] = {}
    for part, edges in tested.items():
        whole, down = part + 1, downward[part]
        cause, read = (whole, part) if down else (part, whole)
        effects = _measure(bench, cause, read, chosen[part], samples, rng)
        done += len(chosen[part])
        progress(done, total)
        frequency = np.diff(bench.pool.columns(cause).indptr)
        known = edge_matrix(graph, part, bench)
        judge = _Judge(effects, frequency, known.T if down else known, min_samples, controls)

        def judged(
            i: int, j: int, sign: int, judge: _Judge = judge, down: bool = down
        ) -> tuple[float, float, int] | None:
            return judge(j, i, sign) if down else judge(i, j, sign)

        found: list[tuple[int, float]] = []
        for i, j in zip(*edges.nonzero(), strict=True):
            row = row_of[f"{part}:{i}", f"{whole}:{j}"]
            sign = -1 if columns["sign"][row] == -1 else 1
            outcome = judged(int(i), int(j), sign)
            if outcome is None:
                continue
            effect, half, verdict = outcome
            columns["effect"][row] = effect
            columns["effect_low"][row] = effect - half
            columns["effect_high"][row] = effect + half
            columns["verdict"][row] = {1: "confirmed", -1: "refuted", 0: "untested"}[verdict]
            found.append((verdict, sign * effect))
        pairs["edges"] += found
        by_level[whole] = _score(found)
        for name, deal in (("shuffled", shuffled_edges), ("random", random_edges)):
            if not edges.nnz:
                continue
            null = deal(edges, rng)
            for i, j in zip(*null.nonzero(), strict=True):
                outcome = judged(int(i), int(j), 1)
                if outcome is not None:
                    pairs[name].append((outcome[2], outcome[0]))
    nodes = {name: graph.nodes[name].to_pylist() for name in graph.nodes.column_names}
    return Verification(
        ConceptGraph.from_columns(nodes, columns),
        _score(pairs["edges"]),
        _score(pairs["shuffled"]),
        _score(pairs["random"]),
        by_level,
    )


def edge_matrix(
    graph: ConceptGraph, part: int, bench: Bench, *, min_confidence: float = 0.0
) -> Any:
    """Return the edges from a level to the next, sparse bool ``(n_parts, n_wholes)``."""
    n_parts, n_wholes = (bench.level(n).dictionary.n_concepts for n in (part, part + 1))
    known = graph.subgraph(min_confidence=min_confidence, levels=(part, part + 1)).edges
    source, target = (
        np.array([int(name.partition(":")[2]) for name in known[end].to_pylist()], dtype=np.int64)
        for end in ("source", "target")
    )
    return csr_matrix(
        (np.ones(len(source), dtype=bool), (source, target)), shape=(n_parts, n_wholes)
    )


def _choose_causes(
    bench: Bench,
    level: int,
    edges: Any,
    min_samples: int,
    max_causes: int | None,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    causes = np.unique(edges.nonzero()[0])
    if max_causes is not None and len(causes) > max_causes:
        causes = np.sort(rng.choice(causes, max_causes, replace=False))
    codes = bench.pool.columns(level)
    alive = np.setdiff1d(np.flatnonzero(np.diff(codes.indptr) >= min_samples), causes)
    extra = min(len(alive), max(0, _FEWEST_CAUSES - len(causes)))
    causes = np.concatenate([causes, rng.choice(alive, extra, replace=False)])
    return np.sort(causes).astype(np.int64)


def _measure(
    bench: Bench,
    cause: int,
    read: int,
    causes: NDArray[np.int64],
    samples: int,
    rng: np.random.Generator,
) -> _Effects:
    pool, dictionary = bench.pool, bench.level(read).dictionary
    unit = _mean_active(pool.codes[read], pool.kept)
    n_effects = dictionary.n_concepts
    mean = np.zeros((len(causes), n_effects), dtype=np.float32)
    square = np.zeros_like(mean)
    count = np.zeros(len(causes), dtype=np.int64)
    jobs: list[tuple[int, int]] = []
    for row, concept in enumerate(causes.tolist()):
        items = pool.active_items(cause, concept)
        picked = rng.choice(items, min(samples, len(items)), replace=False)
        jobs += [(row, int(item)) for item in np.sort(picked)]
    # A job takes two places of a batch: one with the cause high, one without it.
    size = max(1, bench.batch_size // 2)
    kept = pool.kept.reshape(pool.n_items, -1)
    for start in range(0, len(jobs), size):
        some = jobs[start : start + size]
        rows = np.array([row for row, _ in some])
        items = np.array([item for _, item in some])
        codes = np.concatenate(
            [pool.code(cause, int(causes[row]), np.array([item])) for row, item in some]
        )
        where = (codes > 0) & kept[items]
        high = np.array([_largest(pool, cause, int(causes[row])) for row in rows], dtype=np.float32)
        up = np.where(where, high[:, None] - codes, 0).astype(np.float32)
        down = np.where(where, -codes, 0).astype(np.float32)
        x = bench.intervene(
            np.concatenate([items, items]),
            cause,
            np.concatenate([causes[rows], causes[rows]]),
            np.concatenate([up, down]),
            read,
        )
        places = torch.from_numpy(where).to(x.device)
        raised = dictionary.pre_activations(x[: len(some)][places].float())
        lowered = dictionary.pre_activations(x[len(some) :][places].float())
        difference = (raised - lowered).cpu().numpy()
        bounds = np.cumsum(where.sum(axis=1))[:-1]
        for row, rows_of_item in zip(rows, np.split(difference, bounds), strict=True):
            effect = rows_of_item.mean(axis=0) / unit
            mean[row] += effect
            square[row] += effect**2
            count[row] += 1
    n = np.maximum(count, 1)[:, None]
    mean /= n
    variance = np.maximum(square / n - mean**2, 0) * n / np.maximum(n - 1, 1)
    return _Effects(causes, mean, np.sqrt(variance / n), count)


class _Judge:
    """Decides about pairs of a cause and what is read, by one rule."""

    def __init__(
        self,
        effects: _Effects,
        frequency: NDArray[np.int64],
        linked: Any,
        min_samples: int,
        controls: int,
    ) -> None:
        self._effects = effects
        self._row = {int(cause): row for row, cause in enumerate(effects.causes)}
        self._linked = linked.tocsc()
        self._enough = effects.samples >= min_samples
        self._controls = controls
        self._log_frequency = np.log(np.maximum(frequency[effects.causes], 1))

    def __call__(self, cause: int, read: int, sign: int) -> tuple[float, float, int] | None:
        """Return effect, half the width of its interval, and +1, −1 or 0; None if untestable."""
        row = self._row.get(cause)
        if row is None or not self._enough[row]:
            return None
        matched = self._matched(row, read)
        if len(matched) < self._controls // 2:
            return None
        effect = float(self._effects.mean[row, read])
        freedom = int(self._effects.samples[row]) - 1
        quantile = float(stats.t.ppf((1 + _LEVEL) / 2, freedom))
        half = quantile * float(self._effects.error[row, read])
        bar = float(np.quantile(sign * self._effects.mean[matched, read], _LEVEL))
        low, high = sign * effect - half, sign * effect + half
        if low > 0 and sign * effect > bar:
            return effect, half, 1
        return effect, half, -1 if high <= max(bar, 0.0) else 0

    def _matched(self, row: int, read: int) -> NDArray[np.int64]:
        start, stop = self._linked.indptr[read : read + 2]
        own = self._linked.indices[start:stop]
        free = self._enough & ~np.isin(self._effects.causes, own)
        free[row] = False
        others = np.flatnonzero(free)
        gap = np.abs(self._log_frequency[others] - self._log_frequency[row])
        return others[np.argsort(gap, kind="stable")[: self._controls]]


def _largest(pool: Any, level: int, concept: int) -> float:
    column = pool.columns(level)[:, [concept]]
    inside = pool.kept[column.indices]
    return float(column.data[inside].max(initial=0.0))


def _mean_active(codes: Any, kept: NDArray[np.bool_]) -> NDArray[np.float32]:
    data = codes[kept]
    count = np.asarray((data > 0).sum(axis=0)).ravel()
    total = np.asarray(data.sum(axis=0)).ravel()
    # A whole that never fires here has no unit of its own: take the level's.
    usual = total.sum() / max(1, count.sum())
    unit = np.where(count > 0, total / np.maximum(count, 1), max(usual, 1e-12))
    return np.asarray(unit, dtype=np.float32)


def _score(found: Sequence[tuple[int, float]]) -> EdgeScore:
    if not found:
        return EdgeScore(0, float("nan"), float("nan"), float("nan"))
    verdicts = np.array([verdict for verdict, _ in found])
    return EdgeScore(
        len(found),
        float((verdicts == 1).mean()),
        float((verdicts == -1).mean()),
        float(np.mean([effect for _, effect in found])),
    )

"""The effect of every edge, measured: do(high) against do(0) at one end, read at the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

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
_VERDICTS = {1: "confirmed", -1: "refuted", 0: "untested"}
# Causes besides those of the tested edges, so that every effect has others to be compared with.
_FEWEST_CAUSES = 64


@dataclass(frozen=True, slots=True)
class EdgeScore:
    """Verdicts and mean effect of a set of pairs.

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
    """The graph with its effects, and the scores of graphs without structure beside it.

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
class _TestedPair:
    """What is tested between a level and the next.

    Attributes
    ----------
    part : number of the lower level.
    downward : whether the wholes are set and the parts read.
    edges : sparse bool ``(n_parts, n_wholes)``, those that are tested.
    causes : ``(m,)`` the concepts that are set.
    """

    part: int
    downward: bool
    edges: Any
    causes: NDArray[np.int64]

    @property
    def cause(self) -> int:
        """Number of the level that is set."""
        return self.part + self.downward

    @property
    def read(self) -> int:
        """Number of the level that is read."""
        return self.part + (not self.downward)


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
    pairs = [
        _plan(bench, graph, level.level, direction, min_confidence, min_samples, max_parts, rng)
        for level in bench.levels[:-1]
    ]
    total, done = sum(len(pair.causes) for pair in pairs), 0
    table = _EdgeTable(graph)
    found: dict[str, list[_Found]] = {"edges": [], "shuffled": [], "random": []}
    by_level: dict[int, EdgeScore] = {}
    for pair in pairs:
        effects = _measure(bench, pair.cause, pair.read, pair.causes, samples, rng)
        done += len(pair.causes)
        progress(done, total)
        judge = _Judge(bench, graph, pair, effects, min_samples, controls)
        own = table.write(pair, judge)
        found["edges"] += own
        by_level[pair.part + 1] = _score(own)
        if pair.edges.nnz:
            found["shuffled"] += _judged(shuffled_edges(pair.edges, rng), judge)
            found["random"] += _judged(random_edges(pair.edges, rng), judge)
    scores = {name: _score(outcomes) for name, outcomes in found.items()}
    return Verification(table.graph(), **scores, by_level=by_level)


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


def _plan(
    bench: Bench,
    graph: ConceptGraph,
    part: int,
    direction: Direction | None,
    min_confidence: float,
    min_samples: int,
    max_causes: int | None,
    rng: np.random.Generator,
) -> _TestedPair:
    """Decide which edges from a level to the next are tested, from which end, by which causes."""
    downward = (direction or bench.direction(part)) == "down"
    edges = edge_matrix(graph, part, bench, min_confidence=min_confidence)
    by_cause = edges.T if downward else edges
    causes = _choose_causes(bench, part + downward, by_cause, min_samples, max_causes, rng)
    return _TestedPair(part, downward, edges, causes)


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


class _Outcome(NamedTuple):
    """Effect, half the width of its interval, and +1 (confirmed), −1 (refuted) or 0."""

    effect: float
    half: float
    verdict: int


class _Found(NamedTuple):
    """The verdict on a pair, and its effect along the sign of the edge."""

    verdict: int
    effect: float


class _Judge:
    """Decides about pairs of a part and a whole, by one rule."""

    def __init__(
        self,
        bench: Bench,
        graph: ConceptGraph,
        pair: _TestedPair,
        effects: _Effects,
        min_samples: int,
        controls: int,
    ) -> None:
        known = edge_matrix(graph, pair.part, bench)
        frequency = np.diff(bench.pool.columns(pair.cause).indptr)
        self._downward = pair.downward
        self._effects = effects
        self._row = {int(cause): row for row, cause in enumerate(effects.causes)}
        self._linked = (known.T if pair.downward else known).tocsc()
        self._enough = effects.samples >= min_samples
        self._controls = controls
        self._log_frequency = np.log(np.maximum(frequency[effects.causes], 1))

    def __call__(self, part: int, whole: int, sign: int) -> _Outcome | None:
        """Return the outcome for an edge of this sign; None if it cannot be tested."""
        cause, read = (whole, part) if self._downward else (part, whole)
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
        threshold = float(np.quantile(sign * self._effects.mean[matched, read], _LEVEL))
        low, high = sign * effect - half, sign * effect + half
        if low > 0 and sign * effect > threshold:
            return _Outcome(effect, half, 1)
        return _Outcome(effect, half, -1 if high <= max(threshold, 0.0) else 0)

    def _matched(self, row: int, read: int) -> NDArray[np.int64]:
        start, stop = self._linked.indptr[read : read + 2]
        own = self._linked.indices[start:stop]
        free = self._enough & ~np.isin(self._effects.causes, own)
        free[row] = False
        others = np.flatnonzero(free)
        gap = np.abs(self._log_frequency[others] - self._log_frequency[row])
        return others[np.argsort(gap, kind="stable")[: self._controls]]


class _EdgeTable:
    """The edges of a graph by column, to which verdicts are written."""

    def __init__(self, graph: ConceptGraph) -> None:
        self._nodes = {name: graph.nodes[name].to_pylist() for name in graph.nodes.column_names}
        self._columns = {name: graph.edges[name].to_pylist() for name in graph.edges.column_names}
        ends = zip(self._columns["source"], self._columns["target"], strict=True)
        self._row = {pair: row for row, pair in enumerate(ends)}

    def write(self, pair: _TestedPair, judge: _Judge) -> list[_Found]:
        """Judge the tested edges of a pair of levels; return what was found of those that can."""
        found = []
        columns, part = self._columns, pair.part
        for i, j in zip(*pair.edges.nonzero(), strict=True):
            row = self._row[f"{part}:{i}", f"{part + 1}:{j}"]
            sign = -1 if columns["sign"][row] == -1 else 1
            outcome = judge(int(i), int(j), sign)
            if outcome is None:
                continue
            effect, half, verdict = outcome
            columns["effect"][row] = effect
            columns["effect_low"][row] = effect - half
            columns["effect_high"][row] = effect + half
            columns["verdict"][row] = _VERDICTS[verdict]
            found.append(_Found(verdict, sign * effect))
        return found

    def graph(self) -> ConceptGraph:
        """The graph with what was written."""
        return ConceptGraph.from_columns(self._nodes, self._columns)


def _judged(pairs: Any, judge: _Judge) -> list[_Found]:
    """What is found of pairs (sparse bool) that are no edges, as if they promoted their wholes."""
    outcomes = (judge(int(i), int(j), 1) for i, j in zip(*pairs.nonzero(), strict=True))
    return [_Found(found.verdict, found.effect) for found in outcomes if found is not None]


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


def _score(found: Sequence[_Found]) -> EdgeScore:
    if not found:
        return EdgeScore(0, float("nan"), float("nan"), float("nan"))
    verdicts = np.array([one.verdict for one in found])
    return EdgeScore(
        len(found),
        float((verdicts == 1).mean()),
        float((verdicts == -1).mean()),
        float(np.mean([one.effect for one in found])),
    )

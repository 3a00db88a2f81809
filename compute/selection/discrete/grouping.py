"""Which discrete parts share a whole: grouping by partial association, decided by likelihood."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, stats
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from compute.selection.discrete.latent_class import (
    Cards,
    LatentClass,
    choose_latent_class,
    distinct_rows,
    fit_two_classes,
)

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_RIDGE = 1e-3
_NEIGHBOURS = 3


@dataclass(frozen=True)
class Association:
    """Pairwise association (p, p): p-values of independence, and strengths given the rest."""

    p_values: FloatArray
    partial: FloatArray


def associate(codes: IntArray, cards: Cards) -> Association:
    """Chi-square p-values, and partial association given all other variables.

    Each variable's indicators are whitened; the blocks of the inverse correlation matrix are what
    remains between two variables given the rest. It is strong between parts of one whole and,
    unlike mutual information, weak between parts of two strongly dependent wholes.
    """
    n = len(codes)
    offsets = np.concatenate([[0], np.cumsum(cards)])
    hot = np.zeros((n, int(offsets[-1])))
    hot[np.arange(n)[:, None], codes + offsets[:-1]] = 1.0
    moments = hot.T @ hot / n
    means = np.diag(moments).copy()
    whiteners = []
    for low, high in itertools.pairwise(offsets):
        block = np.diag(means[low:high]) - np.outer(means[low:high], means[low:high])
        values, vectors = linalg.eigh(block)
        whiteners.append(vectors[:, 1:] / np.sqrt(np.maximum(values[1:], 1e-12)))
    white = linalg.block_diag(*whiteners)
    correlation = white.T @ (moments - np.outer(means, means)) @ white
    degrees = np.asarray(cards) - 1
    bounds = np.concatenate([[0], np.cumsum(degrees)])
    precision = linalg.inv(correlation + _RIDGE * np.eye(len(correlation)))
    roots = []
    for low, high in itertools.pairwise(bounds):
        values, vectors = linalg.eigh(precision[low:high, low:high])
        roots.append((vectors / np.sqrt(values)) @ vectors.T)
    root = linalg.block_diag(*roots)
    p_values = stats.chi2.sf(
        n * _block_norms(correlation, bounds), np.multiply.outer(degrees, degrees)
    )
    partial = _block_norms(root @ precision @ root, bounds)
    partial = np.sqrt(partial / np.minimum.outer(degrees, degrees))
    np.fill_diagonal(p_values, 1.0)
    np.fill_diagonal(partial, 0.0)
    return Association(p_values, partial)


def group_parts(
    codes: IntArray, cards: Cards, rng: np.random.Generator, max_states: int
) -> list[IntArray]:
    """Groups of variables (indices, each of two or more) that share a whole; loners are in none."""
    searcher = _Search(codes, np.asarray(cards), rng, max_states)
    association = associate(codes, cards)
    p = len(cards)
    dependent = np.flatnonzero((association.p_values < 0.01 / max(1, p * (p - 1) // 2)).any(axis=1))
    if len(dependent) < 2:
        return []
    partial = association.partial[np.ix_(dependent, dependent)]
    groups = [tuple(int(i) for i in dependent[g]) for g in _first_groups(partial)]
    groups = searcher.merge(groups, association.partial)
    groups = searcher.split(groups)
    groups = searcher.merge(groups, association.partial)
    return [np.array(g) for g in groups if len(g) > 1]


class _Search:
    """Merges and splits of groups by BIC on their own distinct rows, each fit done once."""

    def __init__(
        self, codes: IntArray, cards: IntArray, rng: np.random.Generator, max_states: int
    ) -> None:
        self._codes, self._cards, self._rng, self._max_states = codes, cards, rng, max_states
        self._models: dict[tuple[int, ...], LatentClass] = {}

    def model(self, group: tuple[int, ...], min_states: int = 1) -> LatentClass:
        if group not in self._models:
            rows, weights, _ = distinct_rows(self._codes[:, group])
            self._models[group] = choose_latent_class(
                rows,
                weights,
                self._cards[list(group)],
                self._rng,
                max_states=self._max_states,
                min_states=min_states,
            )
        return self._models[group]

    def merge(self, groups: list[tuple[int, ...]], partial: FloatArray) -> list[tuple[int, ...]]:
        """Join the closest groups as long as one whole explains both more simply than two."""
        refused: set[frozenset[tuple[int, ...]]] = set()
        while len(groups) > 1:
            closeness = np.array(
                [[partial[np.ix_(a, b)].mean() if a != b else -1.0 for b in groups] for a in groups]
            )
            order = np.argsort(-closeness, axis=1)[:, :_NEIGHBOURS]
            pairs = sorted(
                {
                    (min(a, int(b)), max(a, int(b)))
                    for a, row in enumerate(order)
                    for b in row
                    if a != b
                },
                key=lambda pair: -closeness[pair],
            )
            for a, b in pairs:
                key = frozenset((groups[a], groups[b]))
                if key in refused:
                    continue
                if self._one_whole(groups[a], groups[b], partial):
                    merged = tuple(sorted(groups[a] + groups[b]))
                    groups = [g for i, g in enumerate(groups) if i not in (a, b)] + [merged]
                    break
                refused.add(key)
            else:
                break
        return groups

    def _one_whole(self, a: tuple[int, ...], b: tuple[int, ...], partial: FloatArray) -> bool:
        # Two wholes mostly show on two or three parts of each, in tables quickly fitted.
        for size in (2, 3):
            first, second = _closest(a, partial, size), _closest(b, partial, size)
            if self._evidence_for_two(first, second) > 0:
                return False
        return (first, second) == (a, b) or self._evidence_for_two(a, b) <= 0

    def split(self, groups: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """Divide groups whose least explained pair is better off under a second whole."""
        done: list[tuple[int, ...]] = []
        todo = list(groups)
        while todo:
            group = todo.pop()
            halves = self._halves(group) if len(group) >= 4 else None
            if halves is None:
                done.append(group)
            else:
                todo.extend(halves)
        return sorted(done)

    def _halves(self, group: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        residual = residual_association(
            self._codes[:, group], self._cards[list(group)], self.model(group)
        )
        i, j = np.unravel_index(int(residual.argmax()), residual.shape)
        if residual[i, j] < stats.norm.isf(1e-4):
            return None
        second = tuple(sorted((group[i], group[j])))
        first = tuple(g for g in group if g not in second)
        others = np.array([k for k in range(len(group)) if k not in (i, j)])
        rest = residual[np.ix_(others, others)]
        k, m = others[list(np.unravel_index(int(rest.argmax()), rest.shape))]
        # The two worst-explained pairs show a second whole in a table small enough to fit at once.
        if self._evidence_for_two(tuple(sorted((group[k], group[m]))), second) <= 0:
            return None
        best = self._evidence_for_two(first, second)
        improved = True
        while improved and len(first) > 2:
            trials = []
            for g in first:
                left, right = tuple(x for x in first if x != g), tuple(sorted((*second, g)))
                trials.append((self._evidence_for_two(left, right), left, right))
            top = max(trials)
            improved = top[0] > best
            if improved:
                best, first, second = top
        return (first, second) if best > 0 else None

    def _evidence_for_two(self, a: tuple[int, ...], b: tuple[int, ...]) -> float:
        """BIC advantage, in nats, of two dependent wholes over one for the parts of both groups."""
        if len(a) == 1 or len(b) == 1:
            # A lone part under a whole of its own is the same model as a part of the other's whole.
            return 0.0
        union = tuple(sorted(a + b))
        rows, weights, _ = distinct_rows(self._codes[:, union])
        cards = self._cards[list(union)]
        first, second = self.model(a), self.model(b)
        one = self.model(union, max(first.n_states, second.n_states))
        in_second = np.isin(union, b)
        two = fit_two_classes(rows, weights, cards, in_second, first, second)
        size = int((cards - 1).sum())
        free_one = one.n_states * (size + 1) - 1
        free_two = two.joint.size - 1
        for side, table in ((~in_second, two.joint), (in_second, two.joint.T)):
            free_two += len(table) * int((cards[side] - 1).sum())
        penalty = 0.5 * np.log(len(self._codes)) * (free_two - free_one)
        return float(two.log_likelihood - one.log_likelihood - penalty)


def residual_association(codes: IntArray, cards: Cards, model: LatentClass) -> FloatArray:
    """Normal scores (p, p) of what the whole leaves unexplained between each two of its parts."""
    n, p = codes.shape
    scores = np.full((p, p), -np.inf)
    for i in range(p):
        for j in range(i):
            observed = np.zeros((cards[i], cards[j]))
            np.add.at(observed, (codes[:, i], codes[:, j]), 1.0)
            expected = n * (model.tables[i] * model.prior[:, None]).T @ model.tables[j]
            chi2 = float(((observed - expected) ** 2 / np.maximum(expected, 0.5)).sum())
            p_value = stats.chi2.sf(chi2, (cards[i] - 1) * (cards[j] - 1))
            scores[i, j] = scores[j, i] = stats.norm.isf(max(p_value, 1e-300))
            if p_value < 1e-300:
                scores[i, j] = scores[j, i] = np.sqrt(chi2)
    return scores


def _closest(group: tuple[int, ...], partial: FloatArray, size: int) -> tuple[int, ...]:
    """The ``size`` parts of the group that are most associated with the rest of it."""
    if len(group) <= size:
        return group
    order = np.argsort(-partial[np.ix_(group, group)].sum(axis=1), kind="stable")
    return tuple(sorted(group[i] for i in order[:size]))


def _first_groups(partial: FloatArray) -> list[IntArray]:
    """Average-linkage groups at the cut of best mean silhouette, which tends to cut too fine."""
    p = len(partial)
    if p < 4:
        return [np.arange(p)]
    distance = 1.0 - partial / partial.max()
    np.fill_diagonal(distance, 0.0)
    tree = linkage(squareform(distance, checks=False), "average")
    cuts = [fcluster(tree, k, "maxclust").astype(np.int64) for k in range(1, max(2, p // 2) + 1)]
    best = max(cuts, key=lambda labels: _silhouette(distance, labels))
    return [np.flatnonzero(best == label) for label in np.unique(best)]


def _silhouette(distance: FloatArray, labels: IntArray) -> float:
    members = labels[:, None] == np.unique(labels)[None, :]
    sizes = members.sum(axis=0)
    if len(sizes) == 1:
        return 0.0
    totals = distance @ members
    own_size = sizes[np.argmax(members, axis=1)]
    within = totals[members] / np.maximum(own_size - 1, 1)
    between = np.where(members, np.inf, totals / sizes).min(axis=1)
    scores = (between - within) / np.maximum(np.maximum(between, within), 1e-12)
    return float(np.where(own_size > 1, scores, 0.0).mean())


def _block_norms(matrix: FloatArray, bounds: IntArray) -> FloatArray:
    squares = np.add.reduceat(np.add.reduceat(matrix**2, bounds[:-1], axis=0), bounds[:-1], axis=1)
    return np.asarray(squares)

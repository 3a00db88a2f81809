"""Hierarchies of latent wholes over discrete parts: the fewest states that explain the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from compute.selection.discrete.assignment import reassigned
from compute.selection.discrete.grouping import group_parts, residual_association
from compute.selection.discrete.latent_class import LatentClass, choose_latent_class, distinct_rows
from compute.selection.discrete.latent_tree import (
    LatentTree,
    TreeRows,
    fit_tree,
    infer,
    spanning_forest,
)
from compute.selection.estimator import Estimator

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

# Any dependence of two wholes is explained by a third; it takes three to support one.
_LEAST_UPPER = 3
_EM_STEPS = 60
_TOLERANCE = 0.5


class DiscreteHierarchy(Estimator):
    """Recovers latent wholes over discrete parts: structure, numbers of states and tables.

    Parameters
    ----------
    max_states : int
        Most states a whole may have.
    max_levels : int
        Most levels of wholes. Levels end earlier where no further whole is supported.
    max_moves : int
        Most sweeps in which single parts may move between wholes.
    seed : int
        Same seed and rows, same model.

    Attributes
    ----------
    parents_ : tuple of (K_l,) int
        ``parents_[l][i]`` is the whole at level l + 1 of variable i at level l (level 0 = observed
        parts), -1 if it belongs to none. A two-level world has ``parents_[0]`` only.
    cardinalities_ : tuple of (K_{l+1},) int
        ``cardinalities_[l][k]`` is the number of states of whole k at level l + 1.
    conditionals_ : tuple of tuples of (states of the whole, states of the part) float
        ``conditionals_[l][i]`` is P(variable i of level l | its whole); a single row, its marginal,
        if it has none. Columns of observed parts follow ``categories_[i]``.
    priors_ : tuple of tuples of (c,) float
        Marginal of every whole, by level.
    categories_ : tuple of (c_i,) int
        The labels of each observed part, ascending.
    n_features_in_ : int
        Number of observed parts p.

    Notes
    -----
    1. Parts are grouped by their association given all other parts; groups merge or split by BIC.
    2. The states of each whole are the fewest that one more does not improve beyond noise.
    3. All wholes are joined in one latent tree and fitted by EM; each part then moves to the whole
       that best predicts it from all other parts, until none moves.
    4. The most probable states of the wholes are the parts of the next level: being functions of
       their own parts alone, they are independent given the whole above exactly if the wholes are.
       An upper whole needs three parts, and must leave no dependence between them.

    The likelihood does not tell part -> whole from whole -> part: both have this factorisation.
    """

    parents_: tuple[IntArray, ...]
    cardinalities_: tuple[IntArray, ...]
    conditionals_: tuple[tuple[FloatArray, ...], ...]
    priors_: tuple[tuple[FloatArray, ...], ...]
    categories_: tuple[IntArray, ...]
    n_features_in_: int

    def __init__(
        self, max_states: int = 8, max_levels: int = 4, max_moves: int = 3, seed: int = 0
    ) -> None:
        self.max_states = max_states
        self.max_levels = max_levels
        self.max_moves = max_moves
        self.seed = seed

    def fit(self, table: ArrayLike, y: None = None) -> Self:
        """Fit to ``table``, (n, p) of integer labels; rows are samples.

        Raises
        ------
        ValueError
            If the table is not a matrix of integers with at least two rows, or a setting is out of
            range.
        """
        for name, least in (("max_states", 2), ("max_levels", 1), ("max_moves", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; give at least {least}.")
        values = _checked(table)
        self.n_features_in_ = values.shape[1]
        uniques = [np.unique(column, return_inverse=True) for column in values.T]
        self.categories_ = tuple(labels for labels, _ in uniques)
        codes = np.stack([inverse.ravel() for _, inverse in uniques], axis=1).astype(np.int64)
        cards = np.array([len(labels) for labels in self.categories_], dtype=np.int64)
        rng = np.random.default_rng(self.seed)

        owner, models = self._first_level(codes, cards, rng)
        levels = self._upper_levels(codes, owner, models, rng)
        self._rows_owner = owner
        self._tree, self._depth = _grown(codes, cards, owner, models, levels)
        if models:
            rows = TreeRows(codes, owner, len(self._tree.parent))
            self._tree = fit_tree(self._tree, rows, _EM_STEPS, _TOLERANCE)
        self._publish(codes, cards)
        return self

    def posterior(self, table: ArrayLike) -> tuple[tuple[FloatArray, ...], ...]:
        """P(whole | parts) of every whole by level: arrays (n, c_k), all parts taken together."""
        codes = self._encoded(table)
        if not len(self._tree.parent):
            return ()
        rows = TreeRows(codes, self._tree.owner, len(self._tree.parent))
        beliefs = infer(self._tree, [rows.likelihood(self._tree, k) for k in range(rows.n_latents)])
        return tuple(
            tuple(beliefs.posteriors[k] for k in np.flatnonzero(self._depth == level))
            for level in range(len(self.parents_))
        )

    def predict(self, table: ArrayLike) -> tuple[IntArray, ...]:
        """Most probable state of every whole: one (n, K_l) int array per level, lowest first."""
        return tuple(
            np.stack([q.argmax(axis=1) for q in level], axis=1) for level in self.posterior(table)
        )

    def score(self, table: ArrayLike, y: None = None) -> float:
        """Mean log-likelihood of a row, in nats."""
        codes = self._encoded(table)
        total = np.zeros(len(codes))
        for i in np.flatnonzero(self._tree.owner < 0):
            total += np.log(np.maximum(self._tree.emissions[i][0, codes[:, i]], 1e-300))
        if len(self._tree.parent):
            rows = TreeRows(codes, self._tree.owner, len(self._tree.parent))
            likelihoods = [rows.likelihood(self._tree, k) for k in range(rows.n_latents)]
            total += infer(self._tree, likelihoods).row_log_likelihood
        return float(total.mean())

    def _first_level(
        self, codes: IntArray, cards: IntArray, rng: np.random.Generator
    ) -> tuple[IntArray, list[LatentClass]]:
        varying = np.flatnonzero(cards > 1)
        owner = np.full(len(cards), -1, dtype=np.int64)
        if len(varying) < 2:
            return owner, []
        groups = group_parts(codes[:, varying], cards[varying], rng, self.max_states)
        for k, group in enumerate(groups):
            owner[varying[group]] = k
        models = _models(codes, cards, owner, rng, self.max_states, None)
        for _ in range(self.max_moves):
            if not models:
                break
            tree, _ = _grown(codes, cards, owner, models, [])
            rows = TreeRows(codes, owner, len(models))
            tree = fit_tree(tree, rows, 8, _TOLERANCE)
            moved = _without_lone_parts(reassigned(tree, rows, cards))
            if (moved == owner).all():
                break
            owner = moved
            models = _models(codes, cards, owner, rng, self.max_states, None)
        # Other wholes are further views of each whole and may show states its own parts cannot.
        return owner, _models(codes, cards, owner, rng, self.max_states, models)

    def _upper_levels(
        self,
        codes: IntArray,
        owner: IntArray,
        models: list[LatentClass],
        rng: np.random.Generator,
    ) -> list[tuple[IntArray, list[LatentClass]]]:
        levels: list[tuple[IntArray, list[LatentClass]]] = []
        while len(models) >= 3 and len(levels) < self.max_levels - 1:
            codes = _summaries(codes, owner, models)
            cards = np.array([m.n_states for m in models])
            usable = np.flatnonzero((cards > 1) & (codes.max(axis=0) > 0))
            cards = np.maximum(codes.max(axis=0) + 1, 1)
            groups = group_parts(codes[:, usable], cards[usable], rng, self.max_states)
            owner = np.full(len(cards), -1, dtype=np.int64)
            models = []
            for group in (usable[g] for g in groups if len(g) >= _LEAST_UPPER):
                distinct, weights, _ = distinct_rows(codes[:, group])
                model = choose_latent_class(
                    distinct, weights, cards[group], rng, max_states=self.max_states
                )
                if model.n_states > 1 and _explains(codes[:, group], cards[group], model):
                    owner[group] = len(models)
                    models.append(model)
            if not models:
                break
            levels.append((owner, models))
        return levels

    def _publish(self, codes: IntArray, cards: IntArray) -> None:
        tree, depth = self._tree, self._depth
        marginals = _marginals(tree)
        parents, states, tables, priors = [], [], [], []
        first_of = [int(np.flatnonzero(depth == d)[0]) for d in range(depth.max(initial=-1) + 1)]
        for level, first in enumerate(first_of):
            if level == 0:
                above, own = tree.owner, list(tree.emissions)
            else:
                members = np.flatnonzero(depth == level - 1)
                is_part = depth[tree.parent[members]] == level
                is_part &= tree.parent[members] >= 0
                above = np.where(is_part, tree.parent[members], -1)
                own = [
                    tree.tables[k] if part else marginals[k][None]
                    for k, part in zip(members, is_part)
                ]
            parents.append(np.where(above >= 0, above - first, -1))
            tables.append(tuple(own))
            wholes = np.flatnonzero(depth == level)
            states.append(np.array([len(marginals[k]) for k in wholes], dtype=np.int64))
            priors.append(tuple(marginals[k] for k in wholes))
        if not first_of:
            parents.append(np.full(len(cards), -1, dtype=np.int64))
            states.append(np.empty(0, dtype=np.int64))
            tables.append(tuple(tree.emissions))
            priors.append(())
        self.parents_, self.cardinalities_ = tuple(parents), tuple(states)
        self.conditionals_, self.priors_ = tuple(tables), tuple(priors)

    def _encoded(self, table: ArrayLike) -> IntArray:
        if not hasattr(self, "categories_"):
            raise ValueError("The model is not fitted; call fit(table) first.")
        values = _checked(table, least_rows=1)
        if values.shape[1] != self.n_features_in_:
            raise ValueError(
                f"table has {values.shape[1]} columns; the model has {self.n_features_in_} parts."
            )
        codes = np.empty(values.shape, dtype=np.int64)
        for i, labels in enumerate(self.categories_):
            codes[:, i] = np.minimum(np.searchsorted(labels, values[:, i]), len(labels) - 1)
            unseen = labels[codes[:, i]] != values[:, i]
            if unseen.any():
                raise ValueError(
                    f"table holds {values[unseen, i][0]} in column {i}, a label not seen in fit; "
                    "drop such rows or fit to them."
                )
        return codes


def _checked(table: ArrayLike, least_rows: int = 2) -> IntArray:
    values = np.asarray(table)
    if values.ndim != 2 or values.shape[1] < 1 or values.shape[0] < least_rows:
        raise ValueError(
            f"table has shape {values.shape}; give (samples, parts), at least {least_rows} rows."
        )
    if not (np.issubdtype(values.dtype, np.number) or values.dtype == bool) or np.iscomplexobj(
        values
    ):
        raise ValueError(f"table is of type {values.dtype}; give integer labels.")
    if np.issubdtype(values.dtype, np.floating):
        odd = ~np.isfinite(values) | (values != np.floor(values))
        if odd.any():
            raise ValueError(
                f"table holds {values[odd][0]}; give integer labels, e.g. binned values."
            )
    return values.astype(np.int64)


def _summaries(codes: IntArray, owner: IntArray, models: Sequence[LatentClass]) -> IntArray:
    """Most probable state (n, K) of each whole given its own parts alone."""
    columns = []
    for k, model in enumerate(models):
        distinct, _, inverse = distinct_rows(codes[:, owner == k])
        columns.append(model.posterior(distinct).argmax(axis=1)[inverse])
    return np.stack(columns, axis=1)


def _models(
    codes: IntArray,
    cards: IntArray,
    owner: IntArray,
    rng: np.random.Generator,
    max_states: int,
    previous: list[LatentClass] | None,
) -> list[LatentClass]:
    """A latent class model of each whole.

    With previous ones, the state of the most dependent other whole is one more part: a function of
    other parts, it is independent of these given the whole. Two of them would depend on each other.
    """
    count = int(owner.max(initial=-1)) + 1
    views: list[list[int]] = [[]] * count
    summaries = np.empty((len(codes), 0), dtype=np.int64)
    if previous is not None and count > 1:
        summaries = _summaries(codes, owner, previous)
        views = _strongest_views(summaries)
    models = []
    for k in range(count):
        parts = np.flatnonzero(owner == k)
        columns = np.concatenate([codes[:, parts], summaries[:, views[k]]], axis=1)
        distinct, weights, _ = distinct_rows(columns)
        least = 1 if previous is None else previous[k].n_states
        model = choose_latent_class(
            distinct,
            weights,
            columns.max(axis=0) + 1,
            rng,
            max_states=max_states,
            min_states=least,
        )
        models.append(LatentClass(model.prior, model.tables[: len(parts)], model.log_likelihood))
    return models


def _strongest_views(summaries: IntArray) -> list[list[int]]:
    n, count = summaries.shape
    cards = summaries.max(axis=0) + 1
    views = []
    for k in range(count):
        strength = np.full(count, -np.inf)
        for j in range(count):
            if j != k and min(cards[j], cards[k]) > 1:
                joint = np.zeros((cards[k], cards[j]))
                np.add.at(joint, (summaries[:, k], summaries[:, j]), 1.0)
                expected = np.outer(joint.sum(axis=1), joint.sum(axis=0)) / n
                chi2 = float(((joint - expected) ** 2 / np.maximum(expected, 0.5)).sum())
                if stats.chi2.sf(chi2, (cards[k] - 1) * (cards[j] - 1)) < 1e-6:
                    strength[j] = chi2
        views.append([int(strength.argmax())] if np.isfinite(strength).any() else [])
    return views


def _explains(codes: IntArray, cards: IntArray, model: LatentClass) -> bool:
    residual = residual_association(codes, cards, model)
    pairs = max(1, codes.shape[1] * (codes.shape[1] - 1) // 2)
    return bool(residual.max() < stats.norm.isf(0.001 / pairs))


def _without_lone_parts(owner: IntArray) -> IntArray:
    """Wholes renumbered, those over fewer than two parts dissolved."""
    result = np.full_like(owner, -1)
    count = 0
    for k in np.unique(owner[owner >= 0]):
        if (owner == k).sum() > 1:
            result[owner == k] = count
            count += 1
    return result


def _grown(
    codes: IntArray,
    cards: IntArray,
    owner: IntArray,
    models: list[LatentClass],
    levels: list[tuple[IntArray, list[LatentClass]]],
) -> tuple[LatentTree, IntArray]:
    """A tree started from separate fits, and the level (L,) of each latent, counted from 0."""
    n = len(codes)
    emissions = [np.bincount(codes[:, i], minlength=c)[None] / n for i, c in enumerate(cards)]
    for k, model in enumerate(models):
        for i, table in zip(np.flatnonzero(owner == k), model.tables, strict=True):
            emissions[i] = table
    stack = [(owner, models), *levels]
    sizes = [len(own) for _, own in stack]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    depth = np.repeat(np.arange(len(stack)), sizes)
    parent = np.full(len(depth), -1, dtype=np.int64)
    tables = [model.prior[None] for _, own in stack for model in own]
    summary = codes
    for level, (above, own) in enumerate(stack):
        if level:
            for k, model in enumerate(own):
                for j, table in zip(np.flatnonzero(above == k), model.tables, strict=True):
                    latent = int(starts[level - 1]) + int(j)
                    parent[latent] = starts[level] + k
                    tables[latent] = _widened(table, tables[latent].shape[1])
        if own:
            summary = _summaries(summary, above, own)
            loose = np.flatnonzero(parent[starts[level] : starts[level + 1]] < 0)
            is_top = level == len(stack) - 1
            if is_top and len(loose) > 1:
                _link(summary, starts[level], parent, tables)
    return LatentTree(parent, tables, owner, emissions), depth


def _link(summary: IntArray, first: int, parent: IntArray, tables: list[FloatArray]) -> None:
    """Join the wholes of the highest level by their maximum spanning forest."""
    cards = [tables[first + k].shape[1] for k in range(summary.shape[1])]
    forest = spanning_forest(summary, cards, least=stats.chi2.isf(1e-4, 1))
    for k, above in enumerate(forest):
        if above >= 0:
            joint = np.full((cards[above], cards[k]), 0.5)
            np.add.at(joint, (summary[:, above], summary[:, k]), 1.0)
            parent[first + k] = first + above
            tables[first + k] = joint / joint.sum(axis=1, keepdims=True)


def _widened(table: FloatArray, states: int) -> FloatArray:
    """Columns for states that were never the most probable one."""
    missing = states - table.shape[1]
    if missing <= 0:
        return table
    wide = np.hstack([table, np.full((len(table), missing), 0.01)])
    return np.asarray(wide / wide.sum(axis=1, keepdims=True))


def _marginals(tree: LatentTree) -> list[FloatArray]:
    marginals: list[FloatArray] = [np.empty(0)] * len(tree.parent)
    pending = list(range(len(tree.parent)))
    while pending:
        for k in list(pending):
            above = int(tree.parent[k])
            if above < 0 or len(marginals[above]):
                prior = np.ones(1) if above < 0 else marginals[above]
                marginals[k] = prior @ tree.tables[k]
                pending.remove(k)
    return marginals

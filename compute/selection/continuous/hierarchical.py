"""Hierarchical selection models of continuous levels: the fewest concepts and edges that fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, pairwise
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from compute.dictionaries import Dictionary, fit_dictionary
from compute.dictionaries.architectures import Normalization
from compute.dictionaries.normalization import estimate_whitening
from compute.graphs import recover_edges
from compute.graphs.regression_columns import FEWEST_ROWS
from compute.selection.continuous.checked_rows import aligned_rows, checked_rows
from compute.selection.continuous.encoders import read_out
from compute.selection.continuous.facets import facet_codes
from compute.selection.continuous.level import SelectionLevel, least_squares
from compute.selection.continuous.logic_gates import FloatArray, pure_directions
from compute.selection.continuous.refinement import CHOICE, best_fit, settled, with_interactions
from compute.selection.estimator import Estimator

_BATCH_ROWS = 1024
# Rows on which levels are refined, and on which edges are recovered.
_REFINE_ROWS = 6000
_EDGE_ROWS = 20_000
# Isotropic noise among activations, and noise that is quiet where they are.
_SHRINKAGES = (0.3, 0.02)
_EVIDENCE_ROUNDS = 3
_LEAST_LENGTH = 1e-6
_MOST_PURE = 1.5
# How many compositions, as a multiple of the concepts asked for, and how near to one of them a
# direction of the dictionary is left out.
_STARTS = ((1.5, 0.9), (1.0, 0.7), (0.5, 0.7))


class HierarchicalSelectionModel(Estimator):
    """Dictionaries of all levels, joined by sparse gates from each level to the next.

    Parameters
    ----------
    n_concepts : sequence of int
        Most concepts per level, lowest first. What the data do not need is dropped.
    k : int or sequence of int
        Active concepts per row with which the dictionaries start, for all levels or each; the
        number that is active in the end is inferred for every row.
    seed : int
        Same seed and data, same model.
    steps : int
        Optimiser steps of the dictionaries from which the fit starts.
    rounds : int
        Rounds of refinement per level.
    coupled : bool
        False fits every level by itself, with everything else the same: the ablation.
    shrinkage : float, optional
        Share of the mean eigenvalue that is added to each before whitening. Much of it where
        activations hold isotropic noise, which less would blow up until some of it looks like
        concepts; little where they are functions of their inputs, as those of trained models are,
        whose quiet directions hold concepts too. Left out, it is that of 0.3 and 0.02 under which
        the activations of a level are more probable.

    Attributes
    ----------
    dictionaries_ : list of Dictionary
        One per level: directions (n_concepts_l, d_l), and the best encoder of one linear layer.
    edges_, strengths_ : lists of (n_concepts_l, n_concepts_{l+1}) bool and float
        Part → whole edges between adjacent levels; see
        :class:`compute.graphs.result.EdgeRecovery` for the meaning of a strength.
    n_concepts_ : tuple of int
        Concepts per level that were needed.
    shrinkage_ : tuple of float
        Per level, the shrinkage that was taken for the dictionaries.
    noise_ : list of float
        Per level, the standard deviation per coordinate of what the concepts leave.
    n_features_in_ : tuple of int
        Dimension of each level.

    Notes
    -----
    The model is ``x_l = b_l + z_l W_l + noise`` with ``z_{l+1,j} = g_j(z_{l,pa(j)}, noise)``. Where
    isotropic noise can be told, because some principal coordinates of the activations hold nothing
    else, these are left out and noise is isotropic in the others; elsewhere it is isotropic in
    coordinates in which the activations of the level are white.

    1. Every level gets two dictionaries of its own, in white coordinates: of as many directions as
       concepts are asked for, and of three times as many, for with no more than there are some
       merge two and never part again. Where noise could be told, the facets of the rows are
       looked for, too (:mod:`compute.selection.continuous.facets`).
    2. From the lowest level up, the directions to choose from are those of either dictionary, or
       those that belong to the facets. With the parts known, they are those of the best fit so far,
       or those of the wider dictionary and those that compositions of the parts point to
       (:mod:`compute.selection.continuous.logic_gates`).
    3. Codes, directions, parents and gates are refined in turn
       (:mod:`compute.selection.continuous.refinement`); the prior of a whole's code is its gate,
       given the codes of its parents. A concept stays if the level, refitted without it, would
       lose more than its description takes. The fits from all starts are crossed, as each finds
       some concepts that others miss, and the fit of the highest score is kept.
    4. Where activations are not a linear function of the codes, terms in products of two codes of a
       level are added, and noise that grows with a row's power, if that raises the level's score
       (:mod:`compute.selection.continuous.interactions`). Concepts that stood in for them are
       dropped. Directions are then what a code adds on average.
    5. Edges are the smallest parent sets that keep the fit (:mod:`compute.graphs`).

    Examples
    --------
    >>> from compute.worlds import SelectionWorld
    >>> rows = SelectionWorld.vectors(sizes=(12, 5), dim=16, seed=0).sample(2000)
    >>> model = HierarchicalSelectionModel(n_concepts=(12, 5), k=3, steps=100, rounds=3)
    >>> model.fit(rows.activations).encode(2, rows.activations[1]).shape[0]
    2000
    """

    dictionaries_: list[Dictionary]
    edges_: list[NDArray[np.bool_]]
    strengths_: list[NDArray[np.float64]]
    n_concepts_: tuple[int, ...]
    shrinkage_: tuple[float, ...]
    noise_: list[float]
    n_features_in_: tuple[int, ...]

    def __init__(
        self,
        n_concepts: Sequence[int] = (64, 24, 6),
        k: int | Sequence[int] = 8,
        seed: int = 0,
        steps: int = 1000,
        rounds: int = 9,
        coupled: bool = True,
        shrinkage: float | None = None,
    ) -> None:
        self.n_concepts = n_concepts
        self.k = k
        self.seed = seed
        self.steps = steps
        self.rounds = rounds
        self.coupled = coupled
        self.shrinkage = shrinkage

    def fit(
        self,
        levels: Sequence[ArrayLike | Tensor],
        y: None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Self:
        """Fit to activations, one (n, d_l) array per level, lowest first; rows are aligned.

        ``progress`` is told how many levels are fitted.

        Raises
        ------
        ValueError
            If levels differ in their rows or from ``n_concepts`` in number, there are too few rows,
            a value is not finite, or a setting is out of range.
        """
        raw = _checked(levels)
        widths, active = self._settings(len(raw))
        n = len(raw[0])
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(n, generator=generator)
        sample = order[:_REFINE_ROWS]
        self._seen: list[_Seen] = []
        taken: list[float] = []
        below: FloatArray | None = None
        for rows, most, k in zip(raw, widths, active, strict=True):
            first = self._first(rows, sample, most, k)
            parts = below if self.coupled else None
            level = self._fit_level(first, parts, n, most)
            self._seen.append(_Seen.of(level, first.whitening, first.x, parts))
            taken.append(first.white.shrinkage)
            below = level.encode(first.x, parts)
            if progress is not None:
                progress(len(taken))
        self.shrinkage_ = tuple(taken)
        self.n_features_in_ = tuple(rows.shape[1] for rows in raw)
        self.n_concepts_ = tuple(seen.level.n_concepts for seen in self._seen)
        some = order[:_EDGE_ROWS].sort().values
        shown = [rows[some] for rows in raw]
        codes_by_level = self.transform(shown)
        fits = list(zip(self._seen, shown, codes_by_level, strict=True))
        self.noise_ = [seen.noise(rows, codes) for seen, rows, codes in fits]
        self.dictionaries_ = [
            read_out(seen.directions, seen.bias, noise, rows, codes)
            for noise, (seen, rows, codes) in zip(self.noise_, fits)
        ]
        found = [recover_edges(a, b, self.seed) for a, b in pairwise(codes_by_level)]
        self.edges_ = [_dense(edges.adjacency) for edges in found]
        self.strengths_ = [_dense(edges.strength) for edges in found]
        return self

    def encode(self, level: int, x: ArrayLike | Tensor) -> FloatArray:
        """Codes (n, n_concepts_[level - 1]) of activations (n, d) of one level, 1 the lowest.

        The level is seen by itself; :meth:`transform` informs every level by the one below.

        Raises
        ------
        ValueError
            If the model is not fitted, there is no such level, or x is not of its dimension.
        """
        fitted = self._fitted()
        if not 1 <= level <= len(fitted):
            raise ValueError(f"level is {level}; give 1 (the lowest) to {len(fitted)}.")
        seen = fitted[level - 1]
        rows = checked_rows(level, x, self.n_features_in_[level - 1])
        return seen.level.encode(seen.whitening.rows(rows)) * seen.lengths

    def transform(self, levels: Sequence[ArrayLike | Tensor]) -> list[FloatArray]:
        """Codes of aligned activations of all levels, wholes informed by their parts.

        Raises
        ------
        ValueError
            If the model is not fitted, or levels are not as they were in :meth:`fit`.
        """
        fitted = self._fitted()
        rows = aligned_rows(levels, self.n_features_in_)
        codes: list[FloatArray] = []
        for seen, x in zip(fitted, rows, strict=True):
            below = codes[-1] if codes and self.coupled else None
            codes.append(seen.level.encode(seen.whitening.rows(x), below))
        return [z * seen.lengths for z, seen in zip(codes, fitted)]

    def _first(self, rows: Tensor, sample: Tensor, most: int, k: int) -> _First:
        """What the fit of a level starts from, given all its rows and those to refine it on."""

        def learnt(x: Tensor, width: int) -> Dictionary:
            batch = min(_BATCH_ROWS, len(x))
            active = min(k, width)
            return fit_dictionary(
                x, width, active, self.steps, self.seed, "batchtopk", batch_size=batch
            )

        def white(shrinkage: float) -> _White:
            whitening = estimate_whitening(rows, shrinkage, without_noise=True)
            x = whitening.rows(rows)
            learn = partial(learnt, x)
            return _White(shrinkage, whitening, x[sample], learn, (learn(most),))

        shrinkages = _SHRINKAGES if self.shrinkage is None else (self.shrinkage,)
        found = [white(shrinkage) for shrinkage in shrinkages]
        own = max(found, key=lambda one: one.evidence()) if len(found) > 1 else found[0]
        own = own.bounded(most)
        noise = own.noise(rows[sample])
        if noise is None:
            return _First.of(own, own.whitening, own.x, None)
        facets = facet_codes(own.x, noise, self.seed)
        whitening = estimate_whitening(rows, float("inf"), without_noise=True)
        return _First.of(own, whitening, whitening.rows(rows[sample]), facets)

    def _fit_level(
        self, first: _First, parts: FloatArray | None, n_total: int, most: int
    ) -> SelectionLevel:
        """The best level of ``most`` concepts or fewer, given codes (n, p) of the parts, if any."""

        def fit(most: int) -> SelectionLevel:
            bounded = first.bounded(most)
            level = best_fit(_own(bounded), first.x, None, self.rounds, n_total, most)
            if parts is None:
                return level
            starts = chain([level], _from_parts(bounded, parts, most))
            return best_fit(starts, first.x, parts, self.rounds, n_total, most)

        return with_interactions(fit, first.x, parts, n_total, most)

    def _settings(self, n_levels: int) -> tuple[list[int], list[int]]:
        widths = [int(width) for width in self.n_concepts]
        if len(widths) != n_levels:
            raise ValueError(
                f"n_concepts has {len(widths)} entries for {n_levels} levels; give one for each."
            )
        active = [self.k] * n_levels if isinstance(self.k, int) else [int(k) for k in self.k]
        if len(active) != n_levels:
            raise ValueError(f"k has {len(active)} entries for {n_levels} levels; give one each.")
        if min(widths) < 2 or min(active) < 1:
            raise ValueError(
                f"n_concepts={self.n_concepts} and k={self.k} must be at least 2 and at least 1."
            )
        for name in ("steps", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give at least 1.")
        if self.shrinkage is not None and not 0 <= self.shrinkage < float("inf"):
            raise ValueError(
                f"shrinkage is {self.shrinkage}; give 0 or more, or leave it out to have it chosen."
            )
        return widths, [min(k, width) for k, width in zip(active, widths, strict=True)]

    def _fitted(self) -> list[_Seen]:
        if not hasattr(self, "_seen"):
            raise ValueError("the model is not fitted; call fit first.")
        return self._seen


class _White(NamedTuple):
    """White coordinates of a level, its sampled rows in them (n, d), and dictionaries of these."""

    shrinkage: float
    whitening: Normalization
    x: Tensor
    learn: Callable[[int], Dictionary]
    dictionaries: tuple[Dictionary, ...]

    def bounded(self, most: int) -> _White:
        """With dictionaries for a level of ``most`` concepts: so wide, and wider."""
        own = self.dictionaries[0]
        if len(own.directions) != most:
            own = self.learn(most)
        return self._replace(dictionaries=(own, self.learn(int(CHOICE * most))))

    def evidence(self) -> float:
        """Log probability of the rows as activations, under a level refined for a few rounds.

        Rows are more probable where their coordinates are smaller: the determinant of the
        whitening makes up for it, so that coordinates can be compared.
        """
        assert self.whitening.into is not None
        into = self.whitening.into.double()
        stretch = 0.5 * float(torch.linalg.slogdet(into.T @ into)[1])
        first = _First.of(self, self.whitening, self.x, None)
        return settled(first.start(0), self.x, _EVIDENCE_ROUNDS).total + len(self.x) * stretch

    def noise(self, raw: Tensor) -> Tensor | None:
        """Variance (d,) of the noise along every coordinate, if rows (n, d_l) have told it."""
        into, back = self.whitening.into, self.whitening.back
        assert into is not None
        assert back is not None
        d, rank = into.shape
        if rank == d:
            return None
        left = raw - self.whitening.mean - self.x @ back
        return float(left.square().sum()) / (len(left) * (d - rank)) * into.square().sum(0)


class _First(NamedTuple):
    """The coordinates a level is fitted in, its sampled rows in them (n, d), and what they show.

    ``directions`` (c, d) and ``codes`` (n, c) are those of each dictionary; ``facets`` (n, f) are
    the codes by the facets of the rows, if the noise could be told.
    """

    white: _White
    whitening: Normalization
    x: Tensor
    directions: tuple[Tensor, ...]
    codes: tuple[Tensor, ...]
    facets: Tensor | None

    @classmethod
    def of(
        cls, white: _White, whitening: Normalization, x: Tensor, facets: Tensor | None
    ) -> _First:
        """What dictionaries of white coordinates show in others of the same rows."""
        directions, codes = [], []
        for dictionary in white.dictionaries:
            own = dictionary.directions
            if whitening is not white.whitening:
                assert whitening.into is not None
                own = white.whitening.directions(own) @ whitening.into
            lengths = torch.linalg.vector_norm(own, dim=1).clamp(min=1e-12)
            directions.append(own / lengths[:, None])
            codes.append(dictionary.encode(white.x) * lengths)
        return cls(white, whitening, x, tuple(directions), tuple(codes), facets)

    def bounded(self, most: int) -> _First:
        """The same for a level of ``most`` concepts."""
        if len(self.directions[0]) == most:
            return self
        return _First.of(self.white.bounded(most), self.whitening, self.x, self.facets)

    def start(self, dictionary: int) -> SelectionLevel:
        """The level as one of its dictionaries has it."""
        codes = self.codes[dictionary]
        # What a row is without active concepts.
        bias = least_squares(codes, self.x)[-1]
        return SelectionLevel.start(self.x, self.directions[dictionary], bias, codes)

    def at_facets(self, codes: Tensor) -> SelectionLevel:
        """The level as codes (n, f) have it."""
        solution = least_squares(codes, self.x)
        directions = torch.nn.functional.normalize(solution[:-1], dim=1)
        level = SelectionLevel.start(self.x, directions, solution[-1], codes)
        level.fit_prior(level.fit_directions(self.x, codes), None)
        return level


class _Seen(NamedTuple):
    """A level, which is fitted in whitened coordinates, and how it looks in those of activations.

    ``directions`` (c, d) are unit rows, ``bias`` is (d,), and ``lengths`` (c,) are what a code of
    1 in whitened coordinates adds along its direction.
    """

    level: SelectionLevel
    whitening: Normalization
    directions: Tensor
    bias: Tensor
    lengths: FloatArray

    @classmethod
    def of(
        cls, level: SelectionLevel, whitening: Normalization, x: Tensor, below: FloatArray | None
    ) -> _Seen:
        """Of a level that was fitted on rows ``x`` (n, d), given codes (n, p) of the one below.

        Where there are terms in products of codes, a direction is what a code adds on average.
        """
        own, middle = level.directions, level.bias
        if level.terms is not None:
            solution = least_squares(torch.from_numpy(level.encode(x, below)), x)
            middle = solution[-1]
            # A concept that is not active in these rows has no average.
            seen = torch.linalg.vector_norm(solution[:-1], dim=1, keepdim=True) > _LEAST_LENGTH
            own = torch.where(seen, solution[:-1], own)
        directions = whitening.directions(own)
        lengths = torch.linalg.vector_norm(directions, dim=1, keepdim=True).clamp(min=1e-12)
        bias = whitening.mean + whitening.directions(middle)
        return cls(level, whitening, directions / lengths, bias, lengths[:, 0].numpy())

    def noise(self, x: Tensor, codes: FloatArray) -> float:
        """Standard deviation per coordinate of what codes (n, c) leave of rows (n, d)."""
        left = x - self.bias - torch.from_numpy(codes) @ self.directions
        return float(left.square().mean().sqrt())


def _own(first: _First) -> Iterator[SelectionLevel]:
    """Levels to begin with, from what a level shows by itself."""
    yield from map(first.start, range(len(first.directions)))
    if first.facets is not None and first.facets.shape[1]:
        yield first.at_facets(first.facets)


def _from_parts(first: _First, parts: FloatArray, most: int) -> Iterator[SelectionLevel]:
    """Levels to begin with, from what codes of the parts (n, p) point to.

    Compositions of the parts are ranked by their evidence, but how many of them are true is not
    known before a fit; the fits from some numbers of them are compared.
    """
    found = pure_directions(parts, first.x.numpy(), int(_MOST_PURE * most))
    pure, bias = torch.from_numpy(found.directions), torch.from_numpy(found.bias)
    if not len(pure):
        return
    own = first.directions[-1]
    for share, same in _STARTS:
        some = pure[: max(1, int(share * most))]
        new = (own @ some.T).amax(1) < same
        chosen = torch.cat([some, own[new]])[: int(CHOICE * most)]
        yield SelectionLevel.start(first.x, chosen, bias)


def _dense(matrix: Any) -> NDArray[Any]:
    return np.asarray(matrix.toarray() if hasattr(matrix, "toarray") else matrix)


def _checked(levels: Sequence[ArrayLike | Tensor]) -> list[Tensor]:
    if len(levels) < 2:
        raise ValueError(f"levels holds {len(levels)} arrays; give two or more, lowest first.")
    x = [torch.as_tensor(rows).detach().to("cpu", torch.float32) for rows in levels]
    for number, rows in enumerate(x, start=1):
        if rows.ndim != 2 or rows.shape[1] == 0 or len(rows) != len(x[0]):
            raise ValueError(
                f"level {number} has shape {tuple(rows.shape)}; give (n, d) with "
                f"the {len(x[0])} rows of level 1."
            )
        if not bool(torch.isfinite(rows).all()):
            raise ValueError(f"level {number} holds NaN or infinite values; drop those rows first.")
    if len(x[0]) < FEWEST_ROWS:
        raise ValueError(f"levels hold {len(x[0])} rows; give {FEWEST_ROWS} or more.")
    return x

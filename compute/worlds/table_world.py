"""Discrete worlds with known answers: hierarchies of discrete variables, tables of known rank.

A selection hierarchy is sampled the way a generative model inverts it: the top wholes are drawn
first, then every lower variable given its whole. The joint distribution of the observed parts is
therefore the hierarchical non-negative decomposition P(A, B) = sum_w P(w) P(A | w) P(B | w) whose
shortest form a method has to find.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

_MAX_TOP_CELLS = 2_000_000
_TRIES = 2_000


@dataclass(frozen=True)
class TableSample:
    """Rows drawn from a :class:`TableWorld`.

    Attributes
    ----------
    parts : (n, p) int
        The observed variables, states counted from 0.
    wholes : tuple of (n, K_l) int
        The latent variables of each level, lowest first.
    """

    parts: IntArray
    wholes: tuple[IntArray, ...]


@dataclass(frozen=True)
class TableWorld:
    """A hierarchy of discrete variables with known structure, cardinalities and tables.

    Attributes
    ----------
    parents : tuple of (K_l,) int
        ``parents[l][i]`` is the whole at level l + 1 of variable i at level l (level 0 = observed
        parts); -1 for a variable that belongs to no whole.
    cardinalities : tuple of (K_{l+1},) int
        ``cardinalities[l][k]`` is the number of states of whole k at level l + 1.
    part_cardinalities : (p,) int
        Numbers of states of the observed parts.
    conditionals : tuple of tuples of (states of the whole, states of the part) float
        ``conditionals[l][i]`` is P(variable i of level l | its whole); a single row if it has none.
    top : (c_1, ..., c_K) float
        Joint probability of the wholes of the highest level.
    """

    parents: tuple[IntArray, ...]
    cardinalities: tuple[IntArray, ...]
    part_cardinalities: IntArray
    conditionals: tuple[tuple[FloatArray, ...], ...]
    top: FloatArray

    @classmethod
    def hierarchy(
        cls,
        n_wholes: int | tuple[int, ...] = 6,
        *,
        parts_per_whole: tuple[int, int] = (3, 5),
        part_states: tuple[int, int] = (2, 5),
        whole_states: tuple[int, int] = (2, 5),
        dependence: Literal["pairwise", "none"] = "pairwise",
        strength: float = 1.0,
        separation: float = 0.3,
        rarest_state: float = 0.1,
        n_loners: int = 0,
        seed: int = 0,
    ) -> TableWorld:
        """Draw a world at random.

        Parameters
        ----------
        n_wholes
            Number of wholes; a tuple gives several levels, lowest first, e.g. ``(6, 2)`` puts two
            upper wholes over six. Wholes of one level are divided evenly among those of the next.
        parts_per_whole, part_states, whole_states
            Inclusive ranges of the numbers of observed parts per lowest whole and of states. Draws
            are repeated until each lowest whole is :func:`identifiable` from its own parts.
        dependence, strength
            The wholes of the highest level depend pairwise, through a random log-linear table
            whose interactions have standard deviation ``strength``, or not at all.
        separation
            Least distance between any two states of a whole: total variation between their
            tables, averaged over its children.
        rarest_state
            Least probability of any state of a top whole when the top wholes are independent.
        n_loners
            Number of parts that belong to no whole; they come last.
        seed
            Same seed, same world.

        Raises
        ------
        ValueError
            If no such world exists or none was found, naming the setting to relax.
        """
        sizes = (n_wholes,) if isinstance(n_wholes, int) else tuple(n_wholes)
        _check_hierarchy(
            sizes, parts_per_whole, part_states, whole_states, separation, rarest_state
        )
        rng = np.random.default_rng(seed)
        blocks = [
            _draw_block(rng, parts_per_whole, part_states, whole_states) for _ in range(sizes[0])
        ]
        part_cards = np.array([c for parts, _ in blocks for c in parts], dtype=np.int64)
        parents = [np.repeat(np.arange(sizes[0]), [len(parts) for parts, _ in blocks])]
        cards = [np.array([states for _, states in blocks], dtype=np.int64)]
        for lower, upper in itertools.pairwise(sizes):
            parents.append(np.arange(lower, dtype=np.int64) * upper // lower)
            cards.append(rng.integers(whole_states[0], whole_states[1] + 1, size=upper))

        conditionals = [
            _draw_conditionals(rng, below, parents[level], cards[level], separation)
            for level, below in enumerate([part_cards, *cards[:-1]])
        ]
        loners = rng.integers(part_states[0], part_states[1] + 1, size=n_loners)
        conditionals[0] += [rng.dirichlet(np.full(c, 2.0))[None, :] for c in loners]
        parents[0] = np.concatenate([parents[0], np.full(n_loners, -1, dtype=np.int64)])
        return cls(
            parents=tuple(parents),
            cardinalities=tuple(cards),
            part_cardinalities=np.concatenate([part_cards, loners]),
            conditionals=tuple(tuple(tables) for tables in conditionals),
            top=_draw_top(
                rng, cards[-1], strength if dependence == "pairwise" else 0.0, rarest_state
            ),
        )

    def sample(self, n: int, seed: int = 0) -> TableSample:
        """Draw ``n`` independent rows; the same seed gives the same rows."""
        if n < 1:
            raise ValueError(f"n is {n}; ask for at least one row.")
        rng = np.random.default_rng(seed)
        flat = rng.choice(self.top.size, size=n, p=self.top.ravel())
        levels = [np.stack(np.unravel_index(flat, self.top.shape), axis=1).astype(np.int64)]
        for parents, tables in zip(self.parents[::-1], self.conditionals[::-1], strict=True):
            columns = []
            for whole, table in zip(parents, tables, strict=True):
                states = np.zeros(n, np.int64) if whole < 0 else levels[-1][:, whole]
                columns.append(_draw_rows(rng, table, states))
            levels.append(np.stack(columns, axis=1))
        return TableSample(parts=levels[-1], wholes=tuple(levels[-2::-1]))


@dataclass(frozen=True)
class RankTable:
    """One joint table P(A, B) = sum_w P(w) P(A | w) P(B | w) of known non-negative rank.

    Attributes
    ----------
    probabilities : (I, J) float, sums to 1
    rank : int
        The non-negative rank: fewest states of w. It may exceed the ordinary rank.
    """

    probabilities: FloatArray
    rank: int

    @classmethod
    def random(
        cls,
        rank: int,
        shape: tuple[int, int],
        *,
        concentration: float = 1.0,
        weight_concentration: float = 5.0,
        seed: int = 0,
    ) -> RankTable:
        """Dirichlet draws of P(w), P(A | w), P(B | w); both ranks almost surely ``rank``."""
        if not 1 <= rank <= min(shape):
            raise ValueError(f"rank is {rank}; a table of shape {shape} has 1 to {min(shape)}.")
        rng = np.random.default_rng(seed)
        weights = rng.dirichlet(np.full(rank, weight_concentration))
        left = rng.dirichlet(np.full(shape[0], concentration), size=rank)
        right = rng.dirichlet(np.full(shape[1], concentration), size=rank)
        return cls(probabilities=np.einsum("w,wi,wj->ij", weights, left, right), rank=rank)

    @classmethod
    def polygon(cls, n_sides: Literal[4, 5, 6, 8]) -> RankTable:
        """Slack matrix of a regular polygon, whose non-negative rank exceeds its rank 3.

        Notes
        -----
        It is 4, 5, 5, 6 for 4, 5, 6, 8 sides: the non-negative rank of a slack matrix is the
        extension complexity of its polytope (Yannakakis 1991), here from Fiorini, Rothvoss, Tiwary
        (2012).
        """
        ranks = {4: 4, 5: 5, 6: 5, 8: 6}
        if n_sides not in ranks:
            raise ValueError(
                f"n_sides is {n_sides}; the rank is tabulated for {sorted(ranks)} only."
            )
        angles = 2 * np.pi * np.arange(n_sides) / n_sides
        normals = angles + np.pi / n_sides
        slack = np.cos(np.pi / n_sides) - np.cos(normals[:, None] - angles[None, :])
        slack[slack < 1e-12] = 0.0
        return cls(probabilities=slack / slack.sum(), rank=ranks[n_sides])

    def sample(self, n: int, seed: int = 0) -> IntArray:
        """Counts of ``n`` independent pairs (A, B), of shape (I, J)."""
        rng = np.random.default_rng(seed)
        counts = rng.multinomial(n, self.probabilities.ravel())
        return counts.reshape(self.probabilities.shape).astype(np.int64)


def identifiable(part_states: IntArray | tuple[int, ...], whole_states: int) -> bool:
    """Whether a whole can, for almost all tables, be told from its own parts alone.

    Holds if the parts can be divided in three groups with
    min(r, |A|) + min(r, |B|) + min(r, |C|) >= 2 r + 2 (Allman, Matias, Rhodes 2009, Theorem 4).
    """
    cards = [int(c) for c in part_states]
    for code in range(3 ** len(cards)):
        sizes = [1, 1, 1]
        for card in cards:
            sizes[code % 3] *= card
            code //= 3
        if sum(min(whole_states, size) for size in sizes) >= 2 * whole_states + 2:
            return True
    return False


def _check_hierarchy(
    sizes: tuple[int, ...],
    parts_per_whole: tuple[int, int],
    part_states: tuple[int, int],
    whole_states: tuple[int, int],
    separation: float,
    rarest_state: float,
) -> None:
    """Refuse settings of which there is no world; see :meth:`TableWorld.hierarchy`."""
    if not sizes or any(size < 1 for size in sizes) or list(sizes) != sorted(sizes)[::-1]:
        raise ValueError(
            f"n_wholes is {sizes}; give positive counts, none above its lower level's."
        )
    for name, (low, high), least in (
        ("parts_per_whole", parts_per_whole, 1),
        ("part_states", part_states, 2),
        ("whole_states", whole_states, 2),
    ):
        if not least <= low <= high:
            raise ValueError(f"{name} is {(low, high)}; give {least} <= low <= high.")
    if not 0 <= separation < 1:
        raise ValueError(f"separation is {separation}; give a total variation in [0, 1).")
    if not 0 < rarest_state * whole_states[1] < 1:
        raise ValueError(
            f"rarest_state is {rarest_state}; give a value in (0, 1/{whole_states[1]})."
        )


def _draw_block(
    rng: np.random.Generator,
    parts_per_whole: tuple[int, int],
    part_states: tuple[int, int],
    whole_states: tuple[int, int],
) -> tuple[list[int], int]:
    for _ in range(_TRIES):
        count = int(rng.integers(parts_per_whole[0], parts_per_whole[1] + 1))
        parts = [int(c) for c in rng.integers(part_states[0], part_states[1] + 1, size=count)]
        states = int(rng.integers(whole_states[0], whole_states[1] + 1))
        if identifiable(tuple(parts), states):
            return parts, states
    raise ValueError(
        f"whole_states is {whole_states}, not identifiable from {parts_per_whole} parts of "
        f"{part_states} states; "
        "allow more parts or more states per part."
    )


def _draw_conditionals(
    rng: np.random.Generator,
    below: IntArray,
    parents: IntArray,
    cards: IntArray,
    separation: float,
) -> list[FloatArray]:
    tables: list[FloatArray] = [np.empty(0)] * len(below)
    for whole, states in enumerate(cards):
        children = np.flatnonzero(parents == whole)
        for _ in range(_TRIES):
            drawn = [rng.dirichlet(np.full(below[i], 0.7), size=states) for i in children]
            distance = np.mean(
                [0.5 * np.abs(t[:, None, :] - t[None, :, :]).sum(axis=2) for t in drawn], axis=0
            )
            each_speaks = min(0.5 * np.abs(t[:, None] - t[None]).sum(axis=2).max() for t in drawn)
            if (distance + np.eye(states)).min() >= separation and each_speaks >= separation:
                break
        else:
            raise ValueError(
                f"separation is {separation}, too much for {states} states over "
                f"{len(children)} children; lower it."
            )
        for i, table in zip(children, drawn, strict=True):
            tables[i] = table
    return tables


def _draw_top(
    rng: np.random.Generator, cards: IntArray, strength: float, rarest: float
) -> FloatArray:
    if np.prod(cards.astype(float)) > _MAX_TOP_CELLS:
        raise ValueError(
            f"n_wholes puts {len(cards)} wholes on the highest level, too many to tabulate "
            "jointly; add a level."
        )
    log_p = np.zeros(tuple(cards))
    for k, card in enumerate(cards):
        marginal = rarest + (1 - card * rarest) * rng.dirichlet(np.ones(card))
        log_p += np.log(marginal).reshape([-1 if axis == k else 1 for axis in range(len(cards))])
    if strength > 0:
        # Interactions shrink with the number of partners: the strength is per whole, not per pair.
        scale = strength / np.sqrt(max(1, len(cards) - 1))
        for k in range(len(cards)):
            for j in range(k):
                table = scale * rng.standard_normal((cards[j], cards[k]))
                table -= table.mean(axis=0) + table.mean(axis=1, keepdims=True) - table.mean()
                shape = [1] * len(cards)
                shape[j], shape[k] = int(cards[j]), int(cards[k])
                log_p += table.reshape(shape)
    p = np.exp(log_p - log_p.max())
    joint: FloatArray = p / p.sum()
    return joint


def _draw_rows(rng: np.random.Generator, table: FloatArray, states: IntArray) -> IntArray:
    edges = np.cumsum(table, axis=1)[states, :-1]
    drawn: IntArray = (rng.random((len(states), 1)) > edges).sum(axis=1)
    return drawn

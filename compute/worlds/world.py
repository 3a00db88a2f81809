"""The front door to the families of selection worlds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from compute.worlds.grammar import GrammarWorld
from compute.worlds.vectors import VectorWorld


class SelectionWorld:
    """Families of worlds in which wholes are effects of their parts and data are what is selected.

    Examples
    --------
    >>> from compute.worlds import SelectionWorld
    >>> world = SelectionWorld.vectors(sizes=(64, 24, 6), dim=128, seed=0)
    >>> rows = world.sample(1000)
    >>> [x.shape for x in rows.activations]
    [(1000, 128), (1000, 128), (1000, 128)]
    """

    @staticmethod
    def vectors(
        sizes: Sequence[int] = (64, 24, 6), dim: int = 128, seed: int = 0, **options: Any
    ) -> VectorWorld:
        """Return a world of continuous variables; ``options`` are those of :class:`VectorWorld`."""
        return VectorWorld(tuple(int(s) for s in sizes), dim, seed, **options)

    @staticmethod
    def grammar(
        n_symbols: int = 16, n_phrases: int = 12, n_sentences: int = 8, seed: int = 0
    ) -> GrammarWorld:
        """Return a world of texts; see :class:`GrammarWorld`."""
        return GrammarWorld(n_symbols, n_phrases, n_sentences, seed)

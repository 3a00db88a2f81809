"""What edge recovery returns: every edge with its evidence, every whole with what is left over."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Kind = Literal["selection", "common_cause", "undecided"]
Form = Literal["sum-threshold", "and", "or", "and-of-ors", "mixed", "single", "none"]
EdgeMatrix = NDArray[np.float64] | sparse.csr_array

# Above this many cells a matrix of edges is returned sparse: 16 million floats are 128 MB each.
DENSE_CELLS = 16_000_000


class RecoveredEdge(NamedTuple):
    """One edge part → whole with its evidence; see :class:`EdgeRecovery` for the terms."""

    part: int
    whole: int
    strength: float
    confidence: float
    sign: int
    stability: float
    invariant: bool | None


@dataclass(frozen=True)
class EdgeRecovery:
    """Edges from p parts to w wholes, in list form and as matrices.

    Attributes
    ----------
    shape
        ``(p, w)``.
    part, whole
        (n_edges,) int: the edges, ordered by whole, then by part.
    edge_strength
        (n_edges,) float in (0, 1]: share of the whole's explained variance that is lost when the
        part is withheld and all the other parents and the sibling wholes are kept.
    edge_confidence
        (n_edges,) float in [0, 1]: probability that the edge is one.
    edge_sign
        (n_edges,) int: +1 where the part promotes its whole, −1 where it inhibits it.
    edge_stability
        (n_edges,) float in [0, 1]: share of half-samples in which the whole selection,
        repeated, finds the edge again.
    edge_invariant
        (n_edges,) bool: whether the edge is the same in all environments; ``None`` when no
        environments were given.
    kind
        (w,) str: ``selection`` (the whole is an effect of its parts), ``common_cause`` (the parts
        are effects of the whole) or ``undecided``.
    form
        (w,) str: how the parts combine; ``single`` for one parent and ``none`` for no parent.
    unexplained
        (w,) float in [0, 1]: share of the whole's variance its parents leave; the error node.
    n_rows
        Number of samples.
    twins
        (t, 2) int: pairs of wholes that hardly differ (correlation above .9, of either sign). Each
        keeps its edges: held beside each other, they would leave their parts nothing to explain.
    identical_parts
        (e, 2) int: pairs of parts that these rows cannot tell apart (correlation above .9995, of
        either sign). The first stands for the second, which has no edges: an edge of the one may
        be the other's.
    left_out
        (w,) int: parts that the whole loses by more than chance, and by too little for an edge.
    limited
        (w,) bool: whether more parts may be parents than there were rows to weigh.
    """

    shape: tuple[int, int]
    part: NDArray[np.int64]
    whole: NDArray[np.int64]
    edge_strength: NDArray[np.float64]
    edge_confidence: NDArray[np.float64]
    edge_sign: NDArray[np.int64]
    edge_stability: NDArray[np.float64]
    edge_invariant: NDArray[np.bool_] | None
    kind: NDArray[np.str_]
    form: NDArray[np.str_]
    unexplained: NDArray[np.float64]
    n_rows: int
    twins: NDArray[np.int64]
    identical_parts: NDArray[np.int64]
    left_out: NDArray[np.int64]
    limited: NDArray[np.bool_]

    @property
    def n_edges(self) -> int:
        """Number of edges."""
        return len(self.part)

    @property
    def is_sparse(self) -> bool:
        """Whether the matrices below are ``scipy.sparse.csr_array`` rather than dense arrays."""
        return self.shape[0] * self.shape[1] > DENSE_CELLS

    @cached_property
    def adjacency(self) -> NDArray[np.bool_] | sparse.csr_array:
        """(p, w) bool: which edges there are."""
        return self._matrix(np.ones(self.n_edges, dtype=np.bool_))

    @cached_property
    def strength(self) -> EdgeMatrix:
        """(p, w) float: ``edge_strength`` where there is an edge, 0 elsewhere."""
        return self._matrix(self.edge_strength)

    @cached_property
    def confidence(self) -> EdgeMatrix:
        """(p, w) float: ``edge_confidence`` where there is an edge, 0 elsewhere."""
        return self._matrix(self.edge_confidence)

    @cached_property
    def sign(self) -> NDArray[np.int64] | sparse.csr_array:
        """(p, w) int: ``edge_sign`` where there is an edge, 0 elsewhere."""
        return self._matrix(self.edge_sign)

    @cached_property
    def stability(self) -> EdgeMatrix:
        """(p, w) float: ``edge_stability`` where there is an edge, 0 elsewhere."""
        return self._matrix(self.edge_stability)

    @cached_property
    def invariant(self) -> NDArray[np.bool_] | sparse.csr_array | None:
        """(p, w) bool: True on invariant edges; ``None`` when no environments were given."""
        return None if self.edge_invariant is None else self._matrix(self.edge_invariant)

    def edges(self) -> Iterator[RecoveredEdge]:
        """Yield the edges, ordered by whole, then by part."""
        for e in range(self.n_edges):
            invariant = None if self.edge_invariant is None else bool(self.edge_invariant[e])
            yield RecoveredEdge(
                int(self.part[e]),
                int(self.whole[e]),
                float(self.edge_strength[e]),
                float(self.edge_confidence[e]),
                int(self.edge_sign[e]),
                float(self.edge_stability[e]),
                invariant,
            )

    def parents(self, whole: int) -> NDArray[np.int64]:
        """Return the parts of one whole, ascending."""
        first, last = np.searchsorted(self.whole, [whole, whole + 1])
        return self.part[first:last]

    def _matrix(self, values: NDArray) -> NDArray | sparse.csr_array:  # type: ignore[type-arg]
        if self.is_sparse:
            return sparse.coo_array((values, (self.part, self.whole)), shape=self.shape).tocsr()
        dense = np.zeros(self.shape, dtype=values.dtype)
        dense[self.part, self.whole] = values
        return dense

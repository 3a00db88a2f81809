"""The skeleton of a selection world: which parts make which whole, and by which gate.

A whole is an *effect* of its parts, ``V_{l+1,j} = g_j(V_{l,pa(j)}, eps_j)``. The gates below are
the functions ``g_j``; each maps the non-negative values of a whole's parts to a *drive*, a number
that is positive where the composition is complete and grows with the strength of its weakest
necessary part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Gate = Literal["sum-threshold", "and", "or", "and-of-ors", "mixed"]
Kind = Literal["selection", "common_cause"]

GATES: tuple[Gate, ...] = get_args(Gate)

# A drive is compared with this threshold: parts have unit mean where active, so the threshold lies
# between "absent" (0) and "typically present" (1).
_THRESHOLD = 0.35


@dataclass(frozen=True, slots=True)
class Whole:
    """One whole: its parts, how they combine, and which way the arrow runs.

    Attributes
    ----------
    parts
        Indices of the parts in the level below, ascending.
    weights
        One positive weight per part; only sums use them.
    groups
        Partition of ``range(len(parts))``. ``and-of-ors`` needs one member of every group;
        ``mixed`` needs the sum over the first group *and* one member of the second.
    gate
        Name of the function ``g_j``.
    quorum
        Share of the summed weight a ``sum-threshold`` needs, in (0, 1).
    kind
        ``selection``: the whole is an effect of its parts. ``common_cause``: the parts are
        effects of the whole.
    """

    parts: tuple[int, ...]
    weights: tuple[float, ...]
    groups: tuple[tuple[int, ...], ...]
    gate: Gate
    quorum: float
    kind: Kind = "selection"

    def drive(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the drive, shape (n,), of part values of shape (n, len(parts))."""
        if self.gate == "sum-threshold":
            return _sum_drive(values, np.asarray(self.weights), self.quorum)
        if self.gate == "and":
            return np.asarray(values.min(axis=1) - _THRESHOLD)
        if self.gate == "or":
            return np.asarray(values.max(axis=1) - _THRESHOLD)
        if self.gate == "and-of-ors":
            strongest = [values[:, list(g)].max(axis=1) for g in self.groups]
            return np.asarray(np.min(strongest, axis=0) - _THRESHOLD)
        summed, alternatives = (list(g) for g in self.groups)
        total = _sum_drive(values[:, summed], np.asarray(self.weights)[summed], self.quorum)
        return np.asarray(np.minimum(total, values[:, alternatives].max(axis=1) - _THRESHOLD))


def _sum_drive(
    values: NDArray[np.float64], weights: NDArray[np.float64], quorum: float
) -> NDArray[np.float64]:
    # Scaled by the mean weight so that one part more or less moves the drive by about one unit,
    # as it does in the other gates.
    return np.asarray((values @ weights - quorum * weights.sum()) / weights.mean())


def draw_whole(
    rng: np.random.Generator, candidates: NDArray[np.intp], gate: Gate, kind: Kind
) -> Whole:
    """Draw one whole over all of ``candidates`` (2 or more part indices)."""
    parts = tuple(int(i) for i in np.sort(candidates))
    size = len(parts)
    # Three parts are too few to tell a mixed gate from one-and-either.
    if gate == "mixed" and size < 4:
        gate = "and-of-ors"
    if gate == "and-of-ors" and size < 3:
        gate = "and"
    order = [int(i) for i in rng.permutation(size)]
    groups: tuple[tuple[int, ...], ...] = (tuple(order),)
    if gate == "and-of-ors":
        cut = size // 2
        groups = (tuple(order[:cut]), tuple(order[cut:]))
    elif gate == "mixed":
        cut = max(1, size - 2)
        groups = (tuple(order[:cut]), tuple(order[cut:]))
    weights = tuple(float(w) for w in rng.uniform(0.8, 1.2, size))
    return Whole(parts, weights, groups, gate, float(rng.uniform(0.4, 0.6)), kind)


def adjacency(wholes: tuple[Whole, ...], n_parts: int) -> NDArray[np.bool_]:
    """Return the (n_parts, len(wholes)) bool matrix of true edges."""
    edges = np.zeros((n_parts, len(wholes)), dtype=np.bool_)
    for j, whole in enumerate(wholes):
        edges[list(whole.parts), j] = True
    return edges

"""Hierarchical selection models: the simplest wholes that explain the parts.

Discrete variables are compressed (:func:`nonnegative_rank`, :class:`DiscreteHierarchy`).
"""

from compute.selection.discrete import DiscreteHierarchy
from compute.selection.rank import RankStep, nonnegative_rank, rank_evidence

__all__ = ["DiscreteHierarchy", "RankStep", "nonnegative_rank", "rank_evidence"]

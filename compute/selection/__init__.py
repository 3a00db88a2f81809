"""Hierarchical selection models: the simplest wholes that explain the parts.

Continuous variables are made sparse (:class:`HierarchicalSelectionModel`), discrete ones compressed
(:func:`nonnegative_rank`, :class:`DiscreteHierarchy`). Torch is imported with the first only.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from compute.selection.discrete.hierarchy import DiscreteHierarchy
from compute.selection.discrete.rank import RankStep, nonnegative_rank, rank_evidence

if TYPE_CHECKING:
    from compute.selection.continuous.hierarchical import HierarchicalSelectionModel

__all__ = [
    "DiscreteHierarchy",
    "HierarchicalSelectionModel",
    "RankStep",
    "nonnegative_rank",
    "rank_evidence",
]


def __getattr__(name: str) -> Any:
    if name == "HierarchicalSelectionModel":
        return getattr(import_module("compute.selection.continuous.hierarchical"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

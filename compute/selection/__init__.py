"""Hierarchical selection models: the simplest wholes that explain the parts.

Continuous variables are made sparse (:class:`HierarchicalSelectionModel`), discrete ones compressed
(:func:`nonnegative_rank`, :class:`DiscreteHierarchy`). :func:`assumption_report` measures what
their guarantees need. Torch is imported with the first only.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from compute.selection.assumptions import AssumptionReport, assumption_report
from compute.selection.discrete.hierarchy import DiscreteHierarchy
from compute.selection.discrete.rank import RankStep, nonnegative_rank, rank_evidence

if TYPE_CHECKING:
    from compute.selection.continuous.hierarchical import HierarchicalSelectionModel
    from compute.selection.continuous.streamed import StreamedSelectionModel

__all__ = [
    "AssumptionReport",
    "DiscreteHierarchy",
    "HierarchicalSelectionModel",
    "RankStep",
    "StreamedSelectionModel",
    "assumption_report",
    "nonnegative_rank",
    "rank_evidence",
]

# Where the models of continuous levels are, which need torch.
_CONTINUOUS = {"HierarchicalSelectionModel": "hierarchical", "StreamedSelectionModel": "streamed"}


def __getattr__(name: str) -> Any:
    if name in _CONTINUOUS:
        return getattr(import_module(f"compute.selection.continuous.{_CONTINUOUS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

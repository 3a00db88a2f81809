"""Recovery of the causal graph between levels of concepts."""

from compute.graphs.recovery import recover_edges
from compute.graphs.result import Edge, EdgeRecovery

__all__ = ["Edge", "EdgeRecovery", "recover_edges"]

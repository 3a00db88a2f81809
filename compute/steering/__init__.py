"""Steering: a running model edited by its concepts, at several levels at once."""

from compute.steering.context import Steering, steer
from compute.steering.distance import Distance
from compute.steering.edits import Edit
from compute.steering.levels import ConceptLevel, concept_levels
from compute.steering.running import AlreadySteered
from compute.steering.traces import Trace, trace

__all__ = [
    "AlreadySteered",
    "ConceptLevel",
    "Distance",
    "Edit",
    "Steering",
    "Trace",
    "concept_levels",
    "steer",
    "trace",
]

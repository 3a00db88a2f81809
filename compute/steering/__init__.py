"""Steering: a running model edited by its concepts, at several levels at once.

`steer` is a context manager in which a model's activations carry the edits (`Edit`), exactly, and
`trace` one that records codes. Concepts to edit are found by a word, by contrast of samples or by
SAeUron's score; `propagate` carries an edit of a whole to its parts through the graph.
"""

from compute.steering.context import Steering, steer
from compute.steering.distance import Distance
from compute.steering.edits import Edit
from compute.steering.finding import (
    Found,
    contrast,
    find_by_word,
    mean_codes,
    saeuron_scores,
    strongest,
)
from compute.steering.propagation import propagate
from compute.steering.running import AlreadySteered
from compute.steering.steering_levels import ConceptLevel, concept_levels
from compute.steering.traces import Trace, trace

__all__ = [
    "AlreadySteered",
    "ConceptLevel",
    "Distance",
    "Edit",
    "Found",
    "Steering",
    "Trace",
    "concept_levels",
    "contrast",
    "find_by_word",
    "mean_codes",
    "propagate",
    "saeuron_scores",
    "steer",
    "strongest",
    "trace",
]

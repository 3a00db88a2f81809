"""Worlds with known ground truth: every latent variable and every edge can be checked.

`SelectionWorld` makes worlds of vectors and of texts; tables are those of `table_world.py`, and
pictures those of `sprites.py` and `digits.py`, with readers that tell what a drawing shows. No
model is known here.
"""

from compute.worlds.grammar import GrammarSample, GrammarWorld
from compute.worlds.structure import GATES, Gate, Kind, Whole
from compute.worlds.vectors import VectorSample, VectorWorld
from compute.worlds.world import SelectionWorld

__all__ = [
    "GATES",
    "Gate",
    "GrammarSample",
    "GrammarWorld",
    "Kind",
    "SelectionWorld",
    "VectorSample",
    "VectorWorld",
    "Whole",
]

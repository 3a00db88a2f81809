"""Worlds with known ground truth: every latent variable and every edge can be checked."""

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

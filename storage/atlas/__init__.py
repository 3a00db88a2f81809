"""The atlas: one self-contained page that shows a published concept hierarchy.

from storage.atlas import AtlasData, render
page = render(AtlasData(...))           # one HTML string, works offline and from file://
"""

from storage.atlas.data import (
    AtlasData,
    Changes,
    Concept,
    Edge,
    Example,
    Histogram,
    HistoryEntry,
    ImageExample,
    Level,
    Neighbour,
    SteeringStrip,
    TokenExample,
)
from storage.atlas.page import render

__all__ = [
    "AtlasData",
    "Changes",
    "Concept",
    "Edge",
    "Example",
    "Histogram",
    "HistoryEntry",
    "ImageExample",
    "Level",
    "Neighbour",
    "SteeringStrip",
    "TokenExample",
    "render",
]

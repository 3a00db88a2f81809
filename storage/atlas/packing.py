"""How an atlas travels inside its page: compressed blocks of JSON, the urgent ones first.

The page paints from ``core`` alone (the graph and the table), searches in ``words`` a moment later,
and inflates a ``detail`` block (examples, histograms, …) only when one of its concepts is opened.
So the first paint of a large atlas does not wait for examples that nobody has asked for yet.

- ``core``: ``{"run": {…}, "levels": […], "concepts": {column: […]}, "edges": {column: […]}}``;
  edges name their ends by position in ``concepts``, strongest edge first.
- ``words``: one string per concept, the distinct words of its examples, for search.
- ``detail-{b}``: a list of objects for the concepts ``b * DETAIL_BLOCK`` and following.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from typing import Any

from storage.atlas.data import AtlasData, Concept, Example, TokenExample
from storage.atlas.labels import words_of

__all__ = ["DETAIL_BLOCK", "pack"]

DETAIL_BLOCK = 128
"""Concepts per detail block: inflated within a frame, and still large enough to compress well."""

_VERDICTS = (None, "untested", "confirmed", "refuted")


def pack(data: AtlasData) -> dict[str, str]:
    """Return the blocks of the page by name, each raw-deflated JSON in base64.

    Base64 has neither ``<`` nor quotes, so no string of the data can end the element around it.
    """
    blocks: dict[str, Any] = {"core": _core(data), "words": [_words(c) for c in data.concepts]}
    for block, start in enumerate(range(0, len(data.concepts), DETAIL_BLOCK)):
        chunk = data.concepts[start : start + DETAIL_BLOCK]
        blocks[f"detail-{block}"] = [_detail(concept) for concept in chunk]
    return {name: _deflate(block) for name, block in blocks.items()}


def _deflate(block: Any) -> str:
    text = json.dumps(block, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # wbits −15 is the browser's "deflate-raw": no header, no checksum to disagree about.
    compressor = zlib.compressobj(level=6, wbits=-15)
    packed = compressor.compress(text.encode()) + compressor.flush()
    return base64.b64encode(packed).decode("ascii")


def _short(value: float | None) -> float | None:
    """Round to four significant digits: more than the eye can read, a third of the bytes."""
    if value is None:
        return None
    short = float(f"{value:.4g}")
    # The largest numbers would be rounded to infinity.
    return short if math.isfinite(short) else value


def _core(data: AtlasData) -> dict[str, Any]:
    position = {concept.id: row for row, concept in enumerate(data.concepts)}
    edges = sorted(data.edges, key=lambda edge: -edge.strength)
    return {
        "detailBlock": DETAIL_BLOCK,
        "run": {
            "name": data.name,
            "version": data.version,
            "createdAt": data.created_at,
            "title": data.title,
            "description": data.description,
            "facts": data.facts,
            "steps": data.steps,
            "changes": data.changes.model_dump() if data.changes is not None else None,
        },
        "levels": [level.model_dump() for level in sorted(data.levels, key=lambda lv: lv.level)],
        "concepts": {
            "level": [c.level for c in data.concepts],
            "index": [c.index for c in data.concepts],
            "label": [c.label for c in data.concepts],
            "frequency": [_short(c.frequency) for c in data.concepts],
            "mean": [_short(c.mean_activation) for c in data.concepts],
            "max": [_short(c.max_activation) for c in data.concepts],
            "kind": [c.kind for c in data.concepts],
            "form": [c.form for c in data.concepts],
            "unexplained": [_short(c.unexplained) for c in data.concepts],
            "recurrence": [_short(c.recurrence) for c in data.concepts],
            "status": [c.history[-1].status if c.history else None for c in data.concepts],
        },
        "edges": {
            "source": [position[e.source] for e in edges],
            "target": [position[e.target] for e in edges],
            "strength": [_short(e.strength) for e in edges],
            "confidence": [_short(e.confidence) for e in edges],
            "sign": [e.sign for e in edges],
            "stability": [_short(e.stability) for e in edges],
            "verdict": [_VERDICTS.index(e.verdict) for e in edges],
            "effect": [_short(e.effect) for e in edges],
        },
    }


def _words(concept: Concept) -> str:
    distinct = dict.fromkeys(
        word
        for example in concept.examples
        if isinstance(example, TokenExample)
        for word in words_of(example.tokens)
    )
    return " ".join(distinct)


def _detail(concept: Concept) -> dict[str, Any]:
    detail: dict[str, Any] = {}
    if concept.histogram is not None:
        detail["histogram"] = {
            "edges": [_short(edge) for edge in concept.histogram.edges],
            "counts": concept.histogram.counts,
        }
    if concept.examples:
        detail["examples"] = [_example(example) for example in concept.examples]
    if concept.neighbours:
        detail["neighbours"] = [[n.id, _short(n.cosine)] for n in concept.neighbours]
    if concept.history:
        detail["history"] = [[entry.version, entry.status] for entry in concept.history]
    if concept.steering is not None:
        detail["steering"] = concept.steering.model_dump()
    return detail


def _example(example: Example) -> dict[str, Any]:
    packed: dict[str, Any] = {"activation": _short(example.activation), "source": example.source}
    if isinstance(example, TokenExample):
        packed["tokens"] = example.tokens
        packed["values"] = [_short(value) for value in example.values]
        packed["peak"] = example.peak
    else:
        packed["image"] = example.image
        packed["patches"] = [[_short(value) for value in row] for row in example.patches]
    return packed

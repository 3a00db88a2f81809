"""Steering strips: what the model makes of a prompt before and after an edit of a concept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from compute.models.diffusion import Prompt
from compute.models.language import Context, beginning
from compute.steering.context import steer
from compute.steering.edits import Edit
from compute.steering.session import generate
from compute.steering.steering_levels import ConceptLevel
from storage.graph.concept_graph import ConceptGraph, concept_place

__all__ = ["steering_strips", "strong_concepts"]


def strong_concepts(graph: ConceptGraph, level: int, count: int) -> list[int]:
    """Return the concepts of a level with the strongest edges to other concepts, strongest first.

    The weight of a concept is the sum over those edges of strength times confidence.
    """
    weight: dict[int, float] = {}
    columns = (graph.edges[name].to_pylist() for name in _COLUMNS)
    for source, target, strength, confidence in zip(*columns, strict=True):
        ends = concept_place(source), concept_place(target)
        if ends[0][0] == 0:
            continue
        for number, concept in ends:
            if number == level:
                weight[concept] = weight.get(concept, 0.0) + abs(strength) * confidence
    return sorted(weight, key=lambda concept: (-weight[concept], concept))[:count]


_COLUMNS = ("source", "target", "strength", "confidence")


def steering_strips(
    adapter: Any,
    levels: Sequence[ConceptLevel],
    graph: ConceptGraph,
    pool: Any,
    items: Sequence[Any],
    *,
    per_level: int,
    scale: float,
    new_tokens: int = 24,
) -> dict[str, dict[str, Any]]:
    """Run the model with and without an edit of each strong concept, on its strongest sample.

    Parameters
    ----------
    adapter : `LanguageModel` or `DiffusionModel`.
    pool : codes of the samples, see `compute.verification.Pool`.
    items : the same samples: contexts or prompts. Pictures are no prompts and give no strips.
    per_level : strong concepts of each level.
    scale : factor of the code in the edited run.
    new_tokens : length of a text's continuation.

    Returns
    -------
    Id of the concept → ``media`` (text or image), ``prompt``, ``before``, ``after`` (a text, or a
    PNG as a data URL) and ``scale``.
    """
    strips = {}
    # Concepts are often strongest in the same sample.
    unchanged: dict[tuple[str, int], str] = {}

    def run(prompt: str, seed: int, edits: Sequence[Edit]) -> str:
        with torch.no_grad(), steer(adapter, levels, edits):
            return generate(adapter, [prompt], seed=seed, new_tokens=new_tokens)[0]

    for level in levels:
        for concept in strong_concepts(graph, level.level, per_level):
            asked = _prompt(adapter, pool, items, level.level, concept)
            if asked is None:
                continue
            if asked not in unchanged:
                unchanged[asked] = run(*asked, [])
            strips[f"{level.level}:{concept}"] = {
                "media": "image" if hasattr(adapter, "pipeline") else "text",
                "prompt": asked[0],
                "before": unchanged[asked],
                "after": run(*asked, [Edit(level.level, concept, scale, half="both")]),
                "scale": scale,
            }
    return strips


def _prompt(
    adapter: Any, pool: Any, items: Sequence[Any], level: int, concept: int
) -> tuple[str, int] | None:
    """Return the text and the seed of the sample in which the concept is strongest."""
    column = pool.columns(level)[:, [concept]].toarray().ravel() * pool.kept
    row = int(column.argmax())
    if column[row] <= 0:
        return None
    item, position = items[row // pool.n_positions], row % pool.n_positions
    if isinstance(item, Prompt):
        return item.text, item.seed
    if isinstance(item, Context):
        # A row counts from the token that begins every sequence, where there is one.
        end = position + 1 - len(beginning(adapter.bos, item.tokens))
        tokens = np.asarray(item.tokens)[: max(1, end)]
        return str(adapter.facts.tokenizer.decode(tokens)), 0
    return None

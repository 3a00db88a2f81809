"""Verification of a run's graph: its edges tested by intervention, its strong concepts steered."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import Any

from compute import verification
from compute.cluster import Progress, silent
from compute.inputs.sources import block_reader, load_samples, model_loader
from compute.settings import Recipe
from compute.steering import ConceptLevel
from compute.steering.strips import steering_strips
from compute.steps.learn import load_dictionaries
from compute.verification.items import held_out_items
from storage.graph.concept_graph import ConceptGraph
from storage.sealing.seals import SealedFolder

__all__ = ["VerifiedGraph", "verify_graph"]


@dataclass(frozen=True)
class VerifiedGraph:
    """What the intervention found.

    Attributes
    ----------
    graph : ConceptGraph
        The same edges, with their effects.
    strips : dict
        By concept, what the model makes of a prompt before and after an edit of it.
    scores : dict
        Plain JSON: how the edges, shuffled ones and random pairs did, and edges by level.
    """

    graph: ConceptGraph
    strips: dict[str, dict[str, Any]]
    scores: dict[str, Any]


def verify_graph(
    recipe: Recipe,
    activations: SealedFolder,
    dictionaries: SealedFolder,
    graph: ConceptGraph,
    *,
    dtype: str,
    progress: Progress = silent,
) -> VerifiedGraph:
    """Load the model, set parts in it while it runs, and measure their wholes.

    Parameters
    ----------
    activations, dictionaries : SealedFolder
        The finished folders of these steps; samples are read from the former.
    dtype : str
        The type in which the model ran when its activations were extracted.
    progress : callable
        Told the parts that are done, and all of them.
    """
    settings = recipe.verify
    samples = load_samples(activations)
    read = block_reader(samples, recipe.inputs, seed=recipe.extract.seed)
    items = held_out_items(samples, read, settings.items, settings.seed)
    found = load_dictionaries(dictionaries)
    levels = [
        ConceptLevel(number, level.name, level.hookpoint, found[level.name], level.timestep)
        for number, level in enumerate(recipe.levels, 1)
    ]
    logging.getLogger("strata").info("loads the model, to test edges in it")
    adapter = model_loader(recipe.model, recipe.levels, recipe.extract, dtype)()
    bench = verification.open_bench(adapter, levels, items)
    result = verification.verify_edges(
        bench,
        graph,
        min_confidence=settings.min_confidence,
        samples=settings.samples,
        controls=settings.controls,
        max_parts=settings.max_parts,
        seed=settings.seed,
        progress=progress,
    )
    strips = steering_strips(
        adapter,
        levels,
        graph,
        bench.pool,
        items,
        per_level=settings.strips,
        scale=settings.strip_scale,
    )
    scores = {kind: asdict(getattr(result, kind)) for kind in ("edges", "shuffled", "random")}
    scores["by_level"] = {str(n): asdict(score) for n, score in result.by_level.items()}
    return VerifiedGraph(result.graph, strips, scores)

"""Recovery as a Prefect task: from codes to the concept graph."""

from __future__ import annotations

from typing import Any

from prefect import task

from compute.cluster import Progress
from compute.settings import Recipe
from storage.graph.concept_graph import GRAPH_FILES
from storage.locations import Location
from storage.records import digest, fingerprint
from storage.references import Reference
from tasks.once import RETRIES, once

__all__ = ["recover"]

# Raised when the step comes to compute something else from the same settings.
RECOVER_VERSION = 4


@task(name="recover", task_run_name="recover the graph of {recipe.name}", **RETRIES)
def recover(recipe: Recipe, activations: Reference, codes: Reference) -> Reference:
    """Recover the graph: observed variables → level 1 → … → level L."""
    upstream = [activations.fingerprint, codes.fingerprint]
    name = fingerprint("recover", RECOVER_VERSION, recipe.recover.model_dump(), upstream)

    def work(location: Location, progress: Progress) -> dict[str, Any]:
        from compute.steps.recover import recover_from_codes
        from storage.tables.activations import ActivationSet
        from storage.tables.codes import CodeSet

        graph = recover_from_codes(
            ActivationSet(activations.open()),
            CodeSet(codes.open()),
            recipe.recover,
            resources=recipe.resources.recover,
            progress=progress,
        )
        for file, data in graph.to_parquet().items():
            location.put(file, data)
        return {
            "nodes": {str(level): count for level, count in graph.levels.items()},
            "edges_into": {str(level): count for level, count in graph.edges_by_level.items()},
        }

    def content(location: Location) -> str:
        return digest(location.get(file) for file in GRAPH_FILES)

    urls = [activations.url, codes.url]
    return once(
        recipe.store,
        "recover",
        name,
        "level pairs",
        work,
        content,
        urls,
        resources=recipe.resources.recover,
    )

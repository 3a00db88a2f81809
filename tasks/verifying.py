"""Verification as a Prefect task: from a recovered graph to one that was tested in the model."""

from __future__ import annotations

import json
from typing import Any

from prefect import task

from compute.cluster import Progress
from compute.settings import Recipe
from storage.graph.concept_graph import GRAPH_FILES, ConceptGraph
from storage.locations import Location
from storage.records import canonical_json, digest, fingerprint
from storage.references import Reference
from storage.registry.versions import STRIPS_FILE
from tasks.once import RETRIES, once

__all__ = ["read_strips", "verify"]

# Raised when the step comes to compute something else from the same settings.
VERIFY_VERSION = 4


@task(name="verify", task_run_name="verify the graph of {recipe.name}", **RETRIES)
def verify(
    recipe: Recipe, activations: Reference, dictionaries: Reference, graph: Reference
) -> Reference:
    """Set parts in the running model, measure their wholes, and write the verdicts to the graph.

    Strong concepts are steered, too, for the report to show.

    Returns
    -------
    Reference
        Of a graph with the same edges, to be used in place of the recovered one.
    """
    upstream = [step.fingerprint for step in (activations, dictionaries, graph)]
    name = fingerprint("verify", VERIFY_VERSION, recipe.verify.model_dump(), upstream)

    def work(location: Location, progress: Progress) -> dict[str, Any]:
        import torch

        from compute.report.provenance import made_on
        from compute.steps.verify import verify_graph

        tested = verify_graph(
            recipe,
            activations.open(),
            dictionaries.open(),
            ConceptGraph.read(graph.open()),
            dtype=activations.summary["model_dtype"],
            progress=progress,
        )
        files = tested.graph.to_parquet() | {STRIPS_FILE: canonical_json(tested.strips)}
        for file, data in files.items():
            location.put(file, data)
        # The model runs in this process.
        here = made_on(workers=1, threads=torch.get_num_threads())
        return graph.summary | {"verified": tested.scores, "made_on": here}

    def content(location: Location) -> str:
        return digest(location.get(file) for file in sorted((*GRAPH_FILES, STRIPS_FILE)))

    urls = [step.url for step in (activations, dictionaries, graph)]
    return once(recipe.store, "verify", name, "parts", work, content, urls)


def read_strips(reference: Reference) -> dict[str, dict[str, Any]]:
    """Steering strips by concept, if the graph has come with any."""
    files = reference.open()
    if not files.exists(STRIPS_FILE):
        return {}
    strips: dict[str, dict[str, Any]] = json.loads(files.get(STRIPS_FILE))
    return strips

"""The step that tests the graph's edges by intervention on the model, as a Prefect task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from prefect import task

from compute.cluster import Progress
from compute.settings import (
    ExtractSettings,
    InputSettings,
    LevelSettings,
    ModelSettings,
    VerifySettings,
)
from storage.locations import Location
from storage.records import canonical_json, digest, fingerprint
from storage.references import Reference
from storage.versions import STRIPS_FILE
from tasks.steps import RETRIES, once, read_graph

__all__ = ["verify"]

# Raised when the step comes to compute something else from the same settings.
VERIFY_VERSION = 4


@task(name="verify", **RETRIES)
def verify(
    store: str,
    model: ModelSettings,
    inputs: InputSettings,
    levels: Sequence[LevelSettings],
    extract: ExtractSettings,
    settings: VerifySettings,
    activations: Reference,
    dictionaries: Reference,
    graph: Reference,
) -> Reference:
    """Set parts in the running model, measure their wholes, and write the verdicts to the graph.

    Strong concepts are steered, too, for the report to show.

    Returns
    -------
    Reference
        Of a graph with the same edges, to be used in place of the recovered one.
    """
    upstream = [step.fingerprint for step in (activations, dictionaries, graph)]
    name = fingerprint("verify", VERIFY_VERSION, settings.model_dump(), upstream)

    def work(location: Location, progress: Progress) -> dict[str, Any]:
        from compute import verification
        from compute.learning import load_dictionaries
        from compute.sources import load_samples, look
        from compute.steering import ConceptLevel
        from compute.steering.strips import steering_strips
        from compute.verification.items import held_out_items

        sources = look(model, inputs, levels, seed=extract.seed)
        samples = load_samples(activations.open())
        items = held_out_items(samples, sources.items(samples), settings.items, settings.seed)
        found = load_dictionaries(dictionaries.open())
        measured = [
            ConceptLevel(number, level.name, level.hookpoint, found[level.name], level.timestep)
            for number, level in enumerate(levels, 1)
        ]
        adapter = sources.adapter(extract)()
        bench = verification.Bench.of(adapter, measured, items)
        recovered = read_graph(graph)
        result = verification.verify_edges(
            bench,
            recovered,
            min_confidence=settings.min_confidence,
            samples=settings.samples,
            controls=settings.controls,
            max_parts=settings.max_parts,
            seed=settings.seed,
            progress=progress,
        )
        strips = steering_strips(
            adapter,
            measured,
            recovered,
            bench.pool,
            items,
            per_level=settings.strips,
            scale=settings.strip_scale,
        )
        files = result.graph.to_parquet() | {STRIPS_FILE: canonical_json(strips)}
        for file, data in files.items():
            location.put(file, data)
        scores = {kind: asdict(getattr(result, kind)) for kind in ("edges", "shuffled", "random")}
        scores["by_level"] = {str(n): asdict(score) for n, score in result.by_level.items()}
        return graph.summary | {"verified": scores}

    def content(location: Location) -> str:
        files = ("edges.parquet", "nodes.parquet", STRIPS_FILE)
        return digest(location.get(file) for file in sorted(files))

    urls = [step.url for step in (activations, dictionaries, graph)]
    return once(store, "verify", name, "parts", work, content, urls)

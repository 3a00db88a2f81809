"""Encoding as a Prefect task: from dictionaries to sparse codes of every row."""

from __future__ import annotations

from typing import Any

from prefect import task

from compute.cluster import Progress
from compute.settings import Recipe
from storage.locations import Location
from storage.records import fingerprint
from storage.references import Reference
from tasks.once import RETRIES, once, table_content

__all__ = ["encode"]

# Raised when the step comes to compute something else from the same settings.
ENCODE_VERSION = 1


@task(name="encode", task_run_name="encode the rows of {recipe.name}", **RETRIES)
def encode(recipe: Recipe, activations: Reference, dictionaries: Reference) -> Reference:
    """Encode every row at every level into sparse codes."""
    upstream = [activations.fingerprint, dictionaries.fingerprint]
    name = fingerprint("encode", ENCODE_VERSION, recipe.encode.model_dump(), upstream)

    def work(location: Location, progress: Progress) -> dict[str, Any]:
        from compute.steps import encode as encoding
        from storage.tables.activations import ActivationSet

        codes = encoding.encode(
            ActivationSet(activations.open()),
            dictionaries.open(),
            location,
            recipe.encode,
            fingerprint=name,
            resources=recipe.resources.encode,
            progress=progress,
        )
        return {"rows": len(codes)}

    urls = [activations.url, dictionaries.url]
    return once(
        recipe.store,
        "encode",
        name,
        "rows",
        work,
        table_content,
        urls,
        resources=recipe.resources.encode,
    )

"""Extraction as a Prefect task: from inputs to an activation set."""

from __future__ import annotations

from typing import Any

from prefect import task

from compute.cluster import Progress
from compute.settings import Recipe
from compute.steps.plan import RunPlan
from storage.locations import Location
from storage.references import Reference
from tasks.once import RETRIES, once, table_content

__all__ = ["extract"]


@task(name="extract", task_run_name="extract from {recipe.model.source}", **RETRIES)
def extract(recipe: Recipe, plan: RunPlan) -> Reference:
    """Run the model over the inputs and store aligned, shuffled activations of all levels."""

    def work(location: Location, progress: Progress) -> dict[str, Any]:
        from compute.inputs.gallery import Gallery
        from compute.inputs.sources import block_reader, checked_samples, model_loader
        from compute.steps.extract import write_activations
        from compute.steps.plan import activation_plan

        samples = checked_samples(location)
        assert plan.stored_dtype is not None  # the preflight has chosen it
        stored = write_activations(
            location,
            activation_plan(recipe, plan, samples, plan.stored_dtype),
            block_reader(samples, recipe.inputs, seed=recipe.extract.seed),
            model_loader(recipe.model, recipe.levels, recipe.extract, plan.dtype),
            pictures=isinstance(samples, Gallery),
            resources=recipe.resources.extract,
            progress=progress,
        )
        return {
            "rows": len(stored),
            "train_rows": stored.plan.n_train,
            "samples": samples.n_samples,
            "bytes": stored.plan.disk_bytes,
            "weights_sha256": plan.weights_sha256,
            "inputs_sha256": plan.inputs_sha256,
            "model_dtype": plan.dtype,
            "stored_dtype": stored.plan.dtype,
            "architecture": plan.architecture,
            "preflight": None if plan.preflight is None else plan.preflight.model_dump(mode="json"),
        }

    outside = [f"model://{recipe.model.source}", f"inputs://{recipe.inputs.source}"]
    return once(
        recipe.store,
        "extract",
        plan.fingerprint,
        "rows",
        work,
        table_content,
        outside,
        resources=recipe.resources.extract,
    )

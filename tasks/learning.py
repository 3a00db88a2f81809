"""Learning as a Prefect task: from an activation set to one dictionary per level."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefect import task
from prefect.logging import get_run_logger

from compute.cluster import Progress
from compute.settings import Recipe
from storage.locations import Location
from storage.records import digest, fingerprint
from storage.references import Reference
from storage.registry.quality_gates import no_better_than_mean
from storage.sealing.seals import SealedFolder
from tasks.once import RETRIES, hash_below, once

if TYPE_CHECKING:
    from compute.dictionaries.imports import Imported

__all__ = ["learn"]

# Raised when the step comes to compute something else from the same settings.
LEARN_VERSION = 2
# The same of hierarchical selection models.
MODEL_VERSION = 5


@task(name="learn", task_run_name="learn the dictionaries of {recipe.name}", **RETRIES)
def learn(recipe: Recipe, activations: Reference) -> Reference:
    """Learn one dictionary per level from the activations."""
    settings, resources = recipe.learn, recipe.resources.learn
    imported = _imported(recipe)
    # How often a run is saved decides nothing about its result.
    deciding = settings.model_dump(exclude={"checkpoint_steps"})
    if settings.method == "independent":
        # As they were before there was a choice.
        del deciding["method"], deciding["seeds"]
        deciding["k"] = settings.active
        if settings.whiten:
            # Once it was the first batch.
            deciding["whitened_on"] = "all rows"
    if not settings.levels:
        del deciding["levels"]
    del deciding["source"]
    for own in deciding.get("levels", {}).values():
        del own["source"]
    if imported:
        # Neither what is said of training nor where the dictionaries lie.
        hashes = {name: digest(own.identity()) for name, own in imported.items()}
        deciding = {"method": settings.method, "outlier_norm": settings.outlier_norm}
        deciding["dictionaries"] = hashes
    threads = {"cpus": resources.cpus, "gpus": resources.gpus}
    version = MODEL_VERSION if settings.method == "hierarchical" else LEARN_VERSION
    name = fingerprint("learn", version, deciding | threads, [activations.fingerprint])

    def work(location: Location, progress: Progress) -> dict[str, Any]:
        from compute.steps.fidelity import measure_fidelity
        from compute.steps.learn import published_metadata, train
        from storage.tables.activations import ActivationSet

        stored = ActivationSet(activations.open())
        metadata = published_metadata(recipe)
        for level, own in imported.items():
            metadata[level]["imported_from"] = own.claims.told()
        scores = train(
            stored,
            location,
            settings,
            metadata=metadata,
            resources=resources,
            known=_known(location),
            imported=imported,
            progress=progress,
        )
        dtype = activations.summary["model_dtype"]
        kept = measure_fidelity(recipe, stored, location, dtype=dtype)
        return {"levels": {level: own | kept.get(level, {}) for level, own in scores.items()}}

    def content(location: Location) -> str:
        return hash_below(location, "dictionaries")

    unit = {"independent": "steps", "import": "levels"}.get(settings.method, "phases")
    read = [activations.url]
    found = once(recipe.store, "learn", name, unit, work, content, read, resources=resources)
    for reason in no_better_than_mean(found.summary["levels"].items()):
        get_run_logger().warning(
            "%s; a version of it is rejected: give more rows or, of dictionaries by themselves, "
            "lower learn.learning_rate or raise learn.steps",
            reason,
        )
    return found


def _imported(recipe: Recipe) -> dict[str, Imported]:
    """The trained dictionaries that the recipe takes, by level; none where it trains its own."""
    if recipe.learn.method != "import":
        return {}
    from compute.steps.importing import find_dictionaries

    return find_dictionaries(recipe)


def _known(location: Location) -> SealedFolder | None:
    """What a step's folder is known to hold, where the step is done to mend it."""
    reference = Reference.find(location)
    return reference.open() if reference is not None and reference.sha256 else None

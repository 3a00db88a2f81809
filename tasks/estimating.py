"""The estimate of a whole recipe: what it will take before it runs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from compute.settings import LearnSettings, Recipe
from storage.locations import Location
from storage.references import Reference

if TYPE_CHECKING:
    from compute.inputs.sources import Sources
    from compute.steps.estimate import StepEstimate
    from storage.tables.activations import ActivationPlan

__all__ = ["Estimate", "estimate"]

# Seconds per published concept: its examples, label and neighbours.
_PUBLISH_SECONDS = 2e-3


@dataclass(frozen=True)
class Estimate:
    """What a recipe will take.

    Attributes
    ----------
    rows : int
        Rows of activations: tokens or patches.
    bytes : dict of str to int
        By what lies in the store at the end: ``activations``, ``codes``, ``dictionaries``.
    peak_bytes : int
        Most that the run takes on disk at one time.
    free_bytes : int or None
        What the store has; None where there is no limit to be known.
    seconds, memory : dict of str to float and int
        By step, where they were rehearsed, which the fit of a hierarchical selection model is not;
        memory is of one worker, in bytes.
    done : bool
        Whether the activations are there already.
    """

    rows: int
    bytes: dict[str, int]
    peak_bytes: int
    free_bytes: int | None
    seconds: dict[str, float]
    memory: dict[str, int]
    done: bool

    @property
    def total_bytes(self) -> int:
        """What lies in the store at the end."""
        return sum(self.bytes.values())

    @property
    def total_seconds(self) -> float:
        """All rehearsed steps together."""
        return sum(self.seconds.values())


def estimate(recipe: Recipe, *, rehearse: bool = True) -> Estimate:
    """Say what a run will take.

    Parameters
    ----------
    rehearse : bool
        Load the model and try every step on a few rows, for seconds and memory.

    Raises
    ------
    ValueError
        If there is no input, no such model, or no such layer.
    """
    from compute.inputs.sources import resumed_samples
    from compute.steps.estimate import storage_of
    from compute.steps.importing import sized
    from compute.steps.plan import activation_plan, check_rows, disk_bytes, prepare
    from compute.steps.proving import stored_dtype, try_model

    location = Location(recipe.store)
    sources, found = prepare(recipe)
    learn = sized(recipe, found.widths)
    folder = found.folder(recipe.store)
    samples = resumed_samples(folder) or sources.arrange(recipe.extract)
    check_rows(recipe, found, samples)
    if rehearse:
        dtype = stored_dtype(recipe, try_model(recipe, found, samples))
    else:
        # Without the model nobody knows whether auto takes two bytes or four: the most is told.
        dtype = found.stored_dtype or ("float32" if found.dtype == "float32" else "float16")
    plan = activation_plan(recipe, found, samples, dtype)
    storage = storage_of(plan, learn)
    steps = _rehearse(recipe, learn, sources, plan) if rehearse else {}
    return Estimate(
        rows=plan.n_rows,
        bytes={
            "activations": storage.activations,
            "codes": storage.codes,
            # Kept once as learnt and once in the artifact.
            "dictionaries": 2 * storage.dictionaries,
        },
        peak_bytes=disk_bytes(plan, learn),
        free_bytes=location.free_bytes(),
        seconds={name: step.seconds for name, step in steps.items()},
        memory={name: step.memory for name, step in steps.items() if step.memory},
        done=Reference.find(folder) is not None,
    )


def _rehearse(
    recipe: Recipe, learn: LearnSettings, sources: Sources, plan: ActivationPlan
) -> dict[str, StepEstimate]:
    from compute.steps.estimate import (
        StepEstimate,
        fidelity_seconds,
        rehearse_extraction,
        rehearse_learning,
        rehearse_recovery,
    )

    resources = recipe.resources
    steps = {
        "extract": rehearse_extraction(
            sources,
            recipe.inputs,
            recipe.extract,
            plan.n_rows,
            dtype=plan.dtype,
            resources=resources.extract,
        )
    }
    steps["learn"], steps["encode"] = rehearse_learning(
        plan, learn, learning=resources.learn, encoding=resources.encode
    )
    asked = fidelity_seconds(recipe, steps["extract"], plan.n_rows)
    steps["learn"] = replace(steps["learn"], seconds=steps["learn"].seconds + asked)
    if learn.method != "independent":
        # How long it takes to drop what is not needed is not known before it is tried, and what is
        # trained already is only scored.
        del steps["learn"]
    steps["recover"] = rehearse_recovery(
        plan.n_train, len(plan.levels), learn, resources=resources.recover
    )
    published = len(plan.levels) * learn.n_concepts
    steps["publish"] = StepEstimate(_PUBLISH_SECONDS * published, 0)
    return steps

"""The estimate of a whole recipe: what it will take before it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compute.settings import (
    ExtractSettings,
    InputSettings,
    LearnSettings,
    LevelSettings,
    ModelSettings,
    ResourceSettings,
)
from storage.locations import Location
from storage.references import Reference
from tasks.planning import disk_bytes, plan_extraction

if TYPE_CHECKING:
    from compute.estimation import StepEstimate

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


def estimate(
    store: str,
    model: ModelSettings,
    inputs: InputSettings,
    levels: Sequence[LevelSettings],
    extract: ExtractSettings,
    learn: LearnSettings,
    resources: Mapping[str, ResourceSettings],
    *,
    rehearse: bool = True,
) -> Estimate:
    """Say what a run will take.

    Parameters
    ----------
    resources : mapping of str to ResourceSettings
        By step: ``extract``, ``learn``, ``encode``, ``recover``.
    rehearse : bool
        Load the model and try every step on a few rows, for seconds and memory.

    Raises
    ------
    ValueError
        If there is no input, no such model, or no such layer.
    """
    from compute.estimation import (
        StepEstimate,
        rehearse_extraction,
        rehearse_learning,
        rehearse_recovery,
        storage_of,
    )
    from compute.sources import look

    location = Location(store)
    sources = look(model, inputs, levels, seed=extract.seed)
    sources.check(extract)
    planned = plan_extraction(location, sources, extract)
    plan = planned.activations
    k = learn.k if learn.architecture == "topk" else min(4 * learn.k, learn.n_concepts)
    storage = storage_of(plan, learn, k)
    steps: dict[str, StepEstimate] = {}
    if rehearse:
        steps["extract"] = rehearse_extraction(
            sources, extract, plan.n_rows, resources=resources["extract"]
        )
        steps["learn"], steps["encode"] = rehearse_learning(
            plan, learn, learning=resources["learn"], encoding=resources["encode"]
        )
        if learn.method == "hierarchical":
            # How long it takes to drop what is not needed is not known before it is tried.
            del steps["learn"]
        steps["recover"] = rehearse_recovery(
            plan.n_train, len(plan.levels), learn, resources=resources["recover"]
        )
        published = len(plan.levels) * learn.n_concepts
        steps["publish"] = StepEstimate(_PUBLISH_SECONDS * published, 0)
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
        done=Reference.find(planned.location) is not None,
    )

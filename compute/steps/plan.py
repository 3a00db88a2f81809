"""The plan of a run: everything that can be known, and refused, before a model is loaded.

Model and inputs are looked at here, once. What was found travels as a :class:`RunPlan`; the
samples, tokenised or laid out, wait in the folder of the activation set that is made of them.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from compute.inputs.sources import Samples, Sources, look, resumed_samples, save_samples
from compute.settings import ExtractSettings, LearnSettings, Recipe
from compute.steps.importing import sized
from storage.locations import Location
from storage.records import fingerprint
from storage.references import Reference
from storage.sealing.condemned import read_condemned
from storage.tables.activations import ActivationPlan, LevelPlan

__all__ = [
    "RunPlan",
    "activation_plan",
    "check",
    "disk_bytes",
    "extraction_fingerprint",
    "prepare",
]

# Raised when extraction comes to compute something else from the same settings.
EXTRACT_VERSION = 3


class RunPlan(BaseModel):
    """What was found of a run's model and inputs.

    Attributes
    ----------
    fingerprint : str
        Of the activation set.
    weights_sha256, inputs_sha256 : str
    dtype : str
        The type in which the model runs.
    architecture : str
        The kind of model, such as ``llama`` or ``StableDiffusionPipeline``.
    widths : tuple of int
        Width of each level's activations.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    fingerprint: str
    weights_sha256: str
    inputs_sha256: str
    dtype: str
    architecture: str
    widths: tuple[int, ...]

    @classmethod
    def of(cls, sources: Sources, settings: ExtractSettings) -> RunPlan:
        """What is kept of a look at model and inputs."""
        return cls(
            fingerprint=extraction_fingerprint(sources, settings),
            weights_sha256=sources.weights_sha256,
            inputs_sha256=sources.inputs_sha256,
            dtype=sources.dtype,
            architecture=sources.architecture,
            widths=sources.widths,
        )

    def folder(self, store: str) -> Location:
        """Where the activation set lies, or will."""
        return Reference.folder(Location(store), "extract", self.fingerprint)


def extraction_fingerprint(sources: Sources, settings: ExtractSettings) -> str:
    """Name of the activation set that these sources give."""
    return fingerprint("extract", EXTRACT_VERSION, sources.identity(settings), [])


def prepare(recipe: Recipe) -> tuple[Sources, RunPlan]:
    """Look at the model and the inputs of a run, and write nothing.

    Raises
    ------
    ValueError
        If there is no input, no such model, no such layer, or the model cannot follow a setting.
    """
    sources = look(recipe.model, recipe.inputs, recipe.levels, seed=recipe.extract.seed)
    sources.check(recipe.extract)
    return sources, RunPlan.of(sources, recipe.extract)


def check(recipe: Recipe) -> RunPlan:
    """Refuse what cannot work, before any model is loaded, and lay the samples out.

    Raises
    ------
    ValueError
        If there is no input, no such model, no such layer, no such dictionary, or the disk is too
        small.
    PermissionError
        If the store cannot be written.
    """
    location = Location(recipe.store)
    location.check_writable()
    sources, plan = prepare(recipe)
    learn = sized(recipe, plan.widths)
    folder = plan.folder(recipe.store)
    if Reference.find(folder) is not None and not read_condemned(folder):
        return plan
    samples = resumed_samples(folder)
    if samples is not None:
        return plan
    samples = sources.arrange(recipe.extract)
    free = location.free_bytes()
    needed = disk_bytes(activation_plan(recipe, plan, samples), learn)
    if free is not None and free < needed:
        raise ValueError(
            f"store {location.url!r} has {free / 1e6:,.0f} MB free and the run needs about "
            f"{needed / 1e6:,.0f} MB: free some space, choose another store, or lower "
            "extract.max_rows."
        )
    save_samples(samples, folder)
    return plan


def activation_plan(recipe: Recipe, plan: RunPlan, samples: Samples) -> ActivationPlan:
    """The shape of the activation set that extraction writes."""
    settings = recipe.extract
    return ActivationPlan(
        fingerprint=plan.fingerprint,
        levels=tuple(
            LevelPlan(name=level.name, width=width)
            for level, width in zip(recipe.levels, plan.widths, strict=True)
        ),
        dtype=settings.dtype,
        n_train=samples.n_train,
        n_rows=samples.n_rows,
        blocks=samples.block_rows,
        shard_rows=settings.shard_rows,
        chunk_rows=settings.chunk_rows,
        seed=settings.seed,
        provenance=_provenance(recipe, plan),
    )


def _provenance(recipe: Recipe, plan: RunPlan) -> dict[str, Any]:
    return {
        "model": recipe.model.source,
        "architecture": plan.architecture,
        "weights_sha256": plan.weights_sha256,
        "model_dtype": plan.dtype,
        "inputs_sha256": plan.inputs_sha256,
        "levels": [level.model_dump(exclude_none=True) for level in recipe.levels],
        "context_length": recipe.extract.context_length,
    }


def disk_bytes(plan: ActivationPlan, learn: LearnSettings) -> int:
    """Most bytes that a run takes on disk at once, without what it shares with earlier runs."""
    # Weights, their Adam moments in two checkpoints, and the published copy, in float32.
    own = [learn.of_level(level.name) for level in plan.levels]
    values = sum(2 * o.n_concepts * level.width for o, level in zip(own, plan.levels, strict=True))
    weights = 4 * values
    codes = plan.n_rows * sum(one.active for one in own) * 6
    return plan.disk_bytes + max(plan.staging_bytes, codes + 8 * weights)

"""The plan of a run: everything that can be known, and refused, before a model is loaded.

Model and inputs are looked at here, once. What was found travels as a :class:`RunPlan`; the
samples, tokenised or laid out, wait in the folder of the activation set that is made of them.
"""

from __future__ import annotations

import logging
from typing import Any

from pydantic import BaseModel, ConfigDict

from compute.inputs.sources import Samples, Sources, look, resumed_samples, save_samples
from compute.models.proofs import Preflight
from compute.settings import ExtractSettings, LearnSettings, Recipe
from compute.steps.importing import sized
from storage.locations import Location
from storage.records import fingerprint
from storage.references import Reference
from storage.sealing.condemned import read_condemned
from storage.tables.activations import ActivationPlan, Dtype, LevelPlan

__all__ = [
    "RunPlan",
    "activation_plan",
    "check",
    "check_disk",
    "check_rows",
    "disk_bytes",
    "extraction_fingerprint",
    "prepare",
]

_log = logging.getLogger("strata")

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
    stored_dtype : str, optional
        The type in which activations are stored; None where the preflight is still to choose it.
    preflight : Preflight, optional
        What was proved on the model itself (`compute.steps.proving`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    fingerprint: str
    weights_sha256: str
    inputs_sha256: str
    dtype: str
    architecture: str
    widths: tuple[int, ...]
    stored_dtype: Dtype | None = None
    preflight: Preflight | None = None

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
            stored_dtype=None if settings.dtype == "auto" else settings.dtype,
        )

    def told(self) -> list[str]:
        """What the preflight proved, a line each; none where there was no preflight."""
        if self.preflight is None:
            return []
        lines = [f"{proof.name}: {proof.told}" for proof in self.preflight.proofs]
        largest = ", ".join(f"{most:,.1f} at {x}" for x, most in self.preflight.largest.items())
        return [*lines, f"range: at most {largest}; stored as {self.stored_dtype}"]

    def extracted(self, store: str) -> bool:
        """Whether the activation set is there, and nothing of it is to be made anew."""
        folder = self.folder(store)
        return Reference.find(folder) is not None and not read_condemned(folder)

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
    _log.info("reads the inputs, and the weights of %s for their hash", recipe.model.source)
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
    if plan.extracted(recipe.store):
        return plan
    resumed = resumed_samples(folder)
    if resumed is None:
        texts = recipe.inputs.text is not None
        _log.info("tokenises the texts" if texts else "lays the pictures out")
    samples = sources.arrange(recipe.extract) if resumed is None else resumed
    check_rows(recipe, plan, samples)
    if resumed is None:
        # What auto comes to is not known yet; it takes no less.
        dtype = plan.stored_dtype or "float16"
        check_disk(recipe, activation_plan(recipe, plan, samples, dtype), learn)
        save_samples(samples, folder)
    return plan


def check_rows(recipe: Recipe, plan: RunPlan, samples: Samples) -> None:
    """Refuse fewer rows than anything can be learnt from.

    Raises
    ------
    ValueError
        If there are fewer rows for training than edges need or, where something is trained, than a
        level has directions.
    """
    from compute.graphs.regression_columns import FEWEST_ROWS

    width = max(plan.widths) if recipe.learn.method != "import" else 0
    least = max(FEWEST_ROWS, width)
    if samples.n_train < least:
        why = "the width of a level" if width == least else "what an edge needs"
        raise ValueError(
            f"{samples.n_rows:,} rows leave {samples.n_train:,} for training, since whole samples "
            f"are held out, and {least:,} are the fewest, {why}: give more inputs, or raise "
            "extract.max_rows."
        )


def check_disk(recipe: Recipe, planned: ActivationPlan, learn: LearnSettings) -> None:
    """Refuse a store that is too small for the run.

    Raises
    ------
    ValueError
        If it has fewer bytes free than the run takes at once.
    """
    location = Location(recipe.store)
    free, needed = location.free_bytes(), disk_bytes(planned, learn)
    if free is not None and free < needed:
        raise ValueError(
            f"store {location.url!r} has {free / 1e6:,.0f} MB free and the run needs about "
            f"{needed / 1e6:,.0f} MB: free some space, choose another store, or lower "
            "extract.max_rows."
        )


def activation_plan(
    recipe: Recipe, plan: RunPlan, samples: Samples, dtype: Dtype
) -> ActivationPlan:
    """The shape of the activation set that extraction writes, in the type `dtype`."""
    settings = recipe.extract
    return ActivationPlan(
        fingerprint=plan.fingerprint,
        levels=tuple(
            LevelPlan(name=level.name, width=width)
            for level, width in zip(recipe.levels, plan.widths, strict=True)
        ),
        dtype=dtype,
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

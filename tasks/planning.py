"""Planning: everything that can be known, and refused, before a model is loaded."""

from __future__ import annotations

import importlib.metadata
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compute.settings import (
    ExtractSettings,
    InputSettings,
    LearnSettings,
    LevelSettings,
    ModelSettings,
)
from storage.locations import Location
from storage.records import fingerprint
from storage.references import Reference

if TYPE_CHECKING:
    from compute.sources import Samples, Sources
    from storage.activations import ActivationPlan

__all__ = [
    "ExtractionPlan",
    "check",
    "code_commit",
    "extraction_fingerprint",
    "package_versions",
    "plan_extraction",
]

# Raised when extraction comes to compute something else from the same settings.
EXTRACT_VERSION = 1


@dataclass(frozen=True)
class ExtractionPlan:
    """What extraction will do: its folder, its inputs, and the shape of what it writes."""

    location: Location
    fingerprint: str
    samples: Samples
    activations: ActivationPlan


def extraction_fingerprint(sources: Sources, settings: ExtractSettings) -> str:
    """Name of the activation set that these sources give."""
    return fingerprint("extract", EXTRACT_VERSION, sources.identity(settings), [])


def plan_extraction(store: Location, sources: Sources, settings: ExtractSettings) -> ExtractionPlan:
    """Lay out the inputs and the activation set; a plan once made is read again."""
    from compute.sources import resumed_samples
    from storage.activations import ActivationPlan, LevelPlan

    name = extraction_fingerprint(sources, settings)
    location = Reference.folder(store, "extract", name)
    samples = resumed_samples(location) or sources.arrange(settings)
    plan = ActivationPlan(
        fingerprint=name,
        levels=tuple(
            LevelPlan(name=level.name, width=width)
            for level, width in zip(sources.levels, sources.widths, strict=True)
        ),
        dtype=settings.dtype,
        n_train=samples.n_train,
        n_rows=samples.n_rows,
        blocks=samples.block_rows,
        shard_rows=settings.shard_rows,
        chunk_rows=settings.chunk_rows,
        seed=settings.seed,
        provenance={
            "model": sources.model.source,
            "architecture": sources.architecture,
            "weights_sha256": sources.weights_sha256,
            "model_dtype": sources.dtype,
            "inputs_sha256": sources.inputs_sha256,
            "levels": [level.model_dump(exclude_none=True) for level in sources.levels],
            "context_length": settings.context_length,
        },
    )
    return ExtractionPlan(location, name, samples, plan)


def check(
    store: str,
    model: ModelSettings,
    inputs: InputSettings,
    levels: Sequence[LevelSettings],
    extract: ExtractSettings,
    learn: LearnSettings,
) -> None:
    """Refuse what cannot work, before any model is loaded.

    Raises
    ------
    ValueError
        If there is no input, no such model, no such layer, or the disk is too small.
    PermissionError
        If the store cannot be written.
    """
    location = Location(store)
    location.check_writable()
    from compute.sources import look

    sources = look(model, inputs, levels, seed=extract.seed)
    sources.check(extract)
    folder = Reference.folder(location, "extract", extraction_fingerprint(sources, extract))
    if Reference.find(folder) is not None:
        return
    plan = plan_extraction(location, sources, extract).activations
    free = location.free_bytes()
    needed = disk_bytes(plan, learn)
    if free is not None and free < needed:
        raise ValueError(
            f"store {location.url!r} has {free / 1e6:,.0f} MB free and the run needs about "
            f"{needed / 1e6:,.0f} MB: free some space, choose another store, or lower "
            "extract.max_rows."
        )


def disk_bytes(plan: ActivationPlan, learn: LearnSettings) -> int:
    """Most bytes that a run takes on disk at once, without what it shares with earlier runs."""
    # Weights, their Adam moments in two checkpoints, and the published copy, in float32.
    weights = sum(2 * learn.n_concepts * level.width * 4 for level in plan.levels)
    codes = plan.n_rows * len(plan.levels) * learn.k * 6
    return plan.disk_bytes + max(plan.staging_bytes, codes + 8 * weights)


def package_versions() -> dict[str, str]:
    """Versions of the packages that the result depends on."""
    names = (
        "strata",
        "torch",
        "transformers",
        "diffusers",
        "zarr",
        "numpy",
        "scipy",
        "ray",
        "prefect",
    )
    return {name: importlib.metadata.version(name) for name in names}


def code_commit() -> str | None:
    """The git commit of this code, marked if it has been changed since; None outside a checkout."""
    folder = Path(__file__).resolve().parent

    def git(*arguments: str) -> Any:
        return subprocess.run(  # noqa: S603
            ["git", *arguments],  # noqa: S607
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )

    try:
        commit = git("rev-parse", "HEAD")
    except OSError:
        return None
    if commit.returncode:
        return None
    changed = bool(git("status", "--porcelain", "--untracked-files=no").stdout.strip())
    return str(commit.stdout.strip()) + ("+changed" if changed else "")

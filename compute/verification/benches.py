"""The bench that suits an adapter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from compute.models.diffusion import DiffusionModel
from compute.models.language import LanguageModel
from compute.steering.places import Target
from compute.steering.steering_levels import concept_levels, moved
from compute.verification.bench import Bench
from compute.verification.diffusion_bench import DiffusionBench
from compute.verification.language_bench import LanguageBench

__all__ = ["open_bench"]


def open_bench(
    adapter: Any, artifact: Any, items: Sequence[Any], *, batch_size: int | None = None
) -> Bench:
    """Put an adapter's model and samples on the bench.

    Parameters
    ----------
    adapter : `LanguageModel` or `DiffusionModel`.
    artifact : a loaded artifact, or levels.
    items : contexts, prompts or pictures, as the adapter extracts them.
    batch_size : samples in one pass; by default 16 windows or 32 pictures.

    Raises
    ------
    ValueError : there is no sample, or the adapter is of another kind.
    """
    target = Target.of(adapter, guided=False)
    levels = moved(concept_levels(artifact), target.device)
    if not items:
        raise ValueError("items is empty: verification needs samples to run the model on")
    if isinstance(adapter, LanguageModel):
        return LanguageBench(adapter, target, levels, items, batch_size or 16)
    if isinstance(adapter, DiffusionModel):
        return DiffusionBench(adapter, target, levels, items, batch_size or 32)
    raise ValueError(
        f"adapter is a {type(adapter).__name__}: give a LanguageModel or a DiffusionModel"
    )

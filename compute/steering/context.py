"""Steering: a model whose concepts are edited for as long as a block lasts."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

import torch

from compute.steering.distance import Distance, DistanceMeter
from compute.steering.editing import LevelEdits, check_edit
from compute.steering.edits import Edit
from compute.steering.places import Target
from compute.steering.running import Interventions
from compute.steering.steering_levels import concept_levels, find_level, moved

__all__ = ["Steering", "steer"]


def steer(
    model: Any,
    artifact: Any,
    edits: Iterable[Edit],
    *,
    guided: bool | None = None,
    residual: bool = False,
) -> Steering:
    """Edit concepts of a running model, at any number of levels at once.

    At each level the activations become ``x + decode(edited codes) − decode(codes)``. A row none
    of whose codes change is left as it is, bit for bit, so that an edit of scale 1 is no edit.
    Higher levels read what the edits below have left.

    Parameters
    ----------
    model : a causal language model of transformers, a diffusers pipeline, or an adapter of
        `compute.models`. The model itself is steered, for everybody who uses it during the block.
    artifact : a loaded artifact, or `ConceptLevel`\\ s.
    edits : see `Edit`.
    guided : diffusion: whether batches are (unconditional, conditional); by default as the
        pipeline's last call says. Give False where the denoiser is run without the pipeline.
    residual : measure the unexplained share of the edited activations, too; it costs time.

    Returns
    -------
    A context manager; its `Steering.distance` says how far the edits moved the activations.

    Raises
    ------
    ValueError : a level, concept or place does not exist, or an edit cannot be done there.
    AlreadySteered : on entering, if the model is being steered already.

    Examples
    --------
    >>> with steer(model, artifact, edits=[Edit(2, 417, 0)]) as steering:  # doctest: +SKIP
    ...     model.generate(**inputs)
    """
    return Steering(model, artifact, edits, guided=guided, residual=residual)


class Steering:
    """The context manager that `steer` returns; it can be entered any number of times."""

    def __init__(
        self,
        model: Any,
        artifact: Any,
        edits: Iterable[Edit],
        *,
        guided: bool | None,
        residual: bool,
    ) -> None:
        self._target = target = Target.of(model, guided=guided)
        levels = moved(concept_levels(artifact), target.device)
        by_level: dict[str, list[Edit]] = {level.name: [] for level in levels}
        for edit in edits:
            level = find_level(levels, edit.level)
            check_edit(edit, level, diffusion=target.diffusion)
            if not edit.changes_nothing:
                by_level[level.name].append(edit)
        timesteps = sorted({level.timestep for level in levels if level.timestep is not None})
        self._meters: dict[str, DistanceMeter] = {}
        work = []
        for level in levels:
            chosen = by_level[level.name]
            if not chosen:
                continue
            concepts = sorted({edit.index for edit in chosen})
            largest = torch.from_numpy(level.largest[concepts]).to(target.device)
            meter = DistanceMeter(level.dictionary, largest, residual=residual)
            self._meters[level.name] = meter
            work.append((level.hookpoint, LevelEdits(level, chosen, timesteps, meter)))
        self._interventions = Interventions(target, work)

    @property
    def distance(self) -> dict[str, Distance]:
        """How far the edits moved the activations, by level name, over all passes so far."""
        return {name: meter.distance for name, meter in self._meters.items()}

    def __enter__(self) -> Self:
        self._interventions.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._interventions.__exit__(kind, error, trace)

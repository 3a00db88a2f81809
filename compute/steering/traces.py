"""Traces: codes of chosen concepts, read while a model runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from compute.steering.concept_reader import ConceptReader
from compute.steering.places import Moment, PlaceRows, Target
from compute.steering.running import Interventions, Probe
from compute.steering.steering_levels import ConceptLevel, concept_levels, find_level, moved

__all__ = ["Trace", "trace"]


class Trace:
    """Codes of chosen concepts at every position (and timestep) of the passes that were recorded.

    A language model's passes follow one another in positions, as they do under ``generate()``; a
    pass that begins again at position 0 replaces what was recorded before. Of a diffusion model
    every timestep keeps its last pass.
    """

    def __init__(
        self, levels: Sequence[ConceptLevel], concepts: Mapping[int, Sequence[int]]
    ) -> None:
        self._concepts = {number: list(chosen) for number, chosen in concepts.items()}
        self._readers = {
            level.level: ConceptReader(level.dictionary, self._concepts[level.level])
            for level in levels
        }
        # Level → timestep (None for texts) → codes (b, p, m).
        self._seen: dict[int, dict[float | None, Tensor]] = {level.level: {} for level in levels}

    def probe(self, level: int) -> Probe:
        """Return what reads a level's rows."""

        def read(rows: PlaceRows, moment: Moment) -> None:
            batch, positions, width = rows.values.shape
            codes = self._readers[level].codes(rows.values.reshape(-1, width).float())
            codes = codes.reshape(batch, positions, -1)
            seen = self._seen[level]
            if moment.timestep is None and moment.offset:
                codes = torch.cat([seen[None][:, : moment.offset], codes], dim=1)
            seen[moment.timestep] = codes

        return read

    def timesteps(self, level: int) -> list[float]:
        """Return the timesteps that were recorded, in the order of the run."""
        return [timestep for timestep in self._seen[level] if timestep is not None]

    def has(self, level: int, concept: int) -> bool:
        """Whether the concept was traced."""
        return concept in self._concepts.get(level, ())

    def codes(self, level: int, concept: int, timestep: float | None = None) -> Tensor:
        """Return a concept's codes ``(b, p)``; of the recorded timestep nearest to the given one.

        Raises
        ------
        ValueError : the concept was not recorded, or nothing has run yet.
        """
        if not self.has(level, concept):
            raise ValueError(f"concept {level}:{concept} was not traced: name it when tracing")
        seen = self._seen[level]
        if not seen:
            raise ValueError(f"level {level} has no trace: run the model inside the block")
        known = self.timesteps(level)
        now = min(known, key=lambda t: abs(t - (timestep or 0.0))) if known else None
        return seen[now][..., self._concepts[level].index(concept)]

    def at(
        self, level: int, concept: int, rows: PlaceRows, moment: Moment
    ) -> tuple[Tensor, Tensor]:
        """Return the codes for a pass of another run, and where there are any, ``(b, p)`` each.

        Raises
        ------
        ValueError : the two runs differ in batch or patches.
        """
        codes = self.codes(level, concept, moment.timestep).to(rows.values.device)
        batch, positions, _ = rows.values.shape
        if codes.shape[0] not in (1, batch):
            raise ValueError(
                f"the donor of {level}:{concept} has a batch of {codes.shape[0]} and this run one "
                f"of {batch}: trace one sample, or as many"
            )
        if moment.timestep is None:
            codes = codes[:, moment.offset : moment.offset + positions]
        elif codes.shape[1] != positions:
            raise ValueError(
                f"the donor of {level}:{concept} has {codes.shape[1]} patches and this run "
                f"{positions}: draw both in one size"
            )
        codes = codes.expand(batch, -1)
        known = torch.zeros(batch, positions, dtype=torch.bool, device=codes.device)
        known[:, : codes.shape[1]] = True
        padded = torch.zeros(batch, positions, device=codes.device)
        padded[:, : codes.shape[1]] = codes
        return padded, known


@contextmanager
def trace(
    model: Any, artifact: Any, concepts: Mapping[int | str, Sequence[int]]
) -> Iterator[Trace]:
    """Record codes of chosen concepts while the model runs in the block.

    Inside a `steer` block it reads the edited activations.

    Parameters
    ----------
    model, artifact : as for `steer`.
    concepts : indices by level (number or name).

    Raises
    ------
    ValueError : a level, a concept or a place in the model does not exist.
    """
    target = Target.of(model)
    levels = moved(concept_levels(artifact), target.device)
    wanted: dict[int, Sequence[int]] = {}
    for given, chosen in concepts.items():
        level = find_level(levels, given)
        wrong = [c for c in chosen if not 0 <= c < level.dictionary.n_concepts]
        if wrong:
            raise ValueError(
                f"concept {wrong[0]} is not in level {level.name!r}, whose concepts are 0 to "
                f"{level.dictionary.n_concepts - 1}"
            )
        wanted[level.level] = chosen
    read = [level for level in levels if level.level in wanted]
    seen = Trace(read, wanted)
    with Interventions(target, (), [(level.hookpoint, seen.probe(level.level)) for level in read]):
        yield seen

"""A diffusion model on the bench: one level is changed in a denoising run, another is read.

Levels of one timestep at different places are computed in one pass, the lower first: the part is
set and the whole read in it. Levels at different timesteps are never computed in one pass, and the
generator runs from the noisy, high levels to the clean, low ones: it inverts the selection, whose
wholes are effects of their parts. What a whole does to its parts is read downward: the sample is
noised to the whole's timestep and denoised to that of its parts in a few DDIM steps, with the
whole's code changed at the steps of its level. What a part does to its wholes can only be asked
through the picture: the run goes on to its end with the part changed, and what comes out is noised
to the whole's timestep, with the noise that belongs to the sample, and read there. A part of the
last steps hardly changes the picture any more, so that the upward effects are small.

The text is a cause of every level, too: told of a house, the network reads it again at every step,
and effects that come through the picture are small beside it. To leave it out after the change is
no remedy, since the codes of drawings without a text are not those that the dictionaries know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from compute.dictionaries import Dictionary
from compute.models.denoisers import Flux
from compute.models.diffusion import DiffusionModel, Image, Prompt, noise_of
from compute.models.hooks import stream_out
from compute.models.patches import Grid, align, feature_map
from compute.steering.editing import nearest_timestep
from compute.steering.places import Moment, PlaceRows, Target
from compute.steering.running import Intervention, Interventions, RowChange
from compute.steering.steering_levels import ConceptLevel
from compute.verification.bench import Add, Bench, Direction

__all__ = ["DiffusionBench"]

_STEPS = 4


class DiffusionBench(Bench):
    """A pipeline on clean latents: those of pictures, or of drawings it made of prompts."""

    def __init__(
        self,
        adapter: DiffusionModel,
        target: Target,
        levels: Sequence[ConceptLevel],
        items: Sequence[Prompt | Image],
        batch_size: int,
    ) -> None:
        super().__init__(target, levels, batch_size)
        if isinstance(adapter.denoiser, Flux):
            raise ValueError(
                "Flux packs its latents, which verification does not undo: choose another pipeline"
            )
        missing = [level.name for level in levels if level.timestep is None]
        if missing:
            raise ValueError(f"level {missing[0]!r} has no timestep: it cannot be read")
        self._adapter = adapter
        self._texts = [item.text for item in items]
        chunks = [
            adapter.clean_latents(items[i : i + batch_size])
            for i in range(0, len(items), batch_size)
        ]
        self._clean = torch.cat(chunks)
        shape = self._clean.shape[1:]
        # Another noise than that from which a drawing came: a fresh look at the picture.
        self._noise = torch.cat([noise_of(item.seed + 1, shape) for item in items]).to(self._clean)
        self._timesteps = sorted({int(level.timestep or 0) for level in levels})

    @property
    def n_items(self) -> int:
        """Number of pictures."""
        return len(self._clean)

    def data_rows(self, items: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Every patch is data."""
        grid = self._adapter.grid
        return np.ones((len(items), grid.height * grid.width), dtype=bool)

    def direction(self, part: int) -> Direction:
        """Downward in time; upward between places of one timestep."""
        own, above = (self.level(number).timestep or 0 for number in (part, part + 1))
        return "down" if above > own else "up"

    @torch.inference_mode()
    def read(self, items: NDArray[np.int64]) -> dict[int, Tensor]:
        """One pass per timestep."""
        clean = self._clean[items]
        return {level.level: self._look(items, clean, level) for level in self.levels}

    @torch.inference_mode()
    def intervene(
        self,
        items: NDArray[np.int64],
        changed: int,
        concepts: NDArray[np.int64],
        changes: NDArray[np.float32],
        read: int,
    ) -> Tensor:
        """One pass where both levels have one timestep, else a short denoising run.

        The run has the one level changed, and goes down to the read level or to the end.
        """
        level, reader = self.level(changed), self.level(read)
        act = _Paint(level.dictionary, concepts, changes, self._adapter.grid)
        own, goal = int(level.timestep or 0), int(reader.timestep or 0)
        latents = self._noisy(items, self._clean[items], own)
        if goal == own:
            return self._read(items, latents, reader, [(level.hookpoint, act)])
        down = goal < own
        times = np.linspace(own, goal if down else 0, _STEPS + 1).astype(int).tolist()
        for time, then in pairwise(times):
            due = nearest_timestep(self._timesteps, time) == own
            work: list[tuple[str, Intervention]] = [(level.hookpoint, act)] if due else []
            with Interventions(self.target, work):
                output = self._denoise(items, latents, time)
            clean, noise = self._split(latents, output, time)
            latents = self._mix(clean, noise, then)
        if down:
            return self._read(items, latents, reader)
        return self._look(items, clean, reader)

    @torch.inference_mode()
    def score(
        self, items: NDArray[np.int64], change: Mapping[int, Any] | None
    ) -> NDArray[np.float64]:
        """Minus the mean squared error against the model's own prediction, over the levels."""
        total = torch.zeros(len(items), dtype=torch.float64)
        for number, act in (change or {}).items():
            level = self.level(number)
            time = int(level.timestep or 0)
            latents = self._noisy(items, self._clean[items], time)
            own = self._denoise(items, latents, time)
            work = [(level.hookpoint, _ReplaceOnGrid(level.dictionary, act, self._adapter.grid))]
            with Interventions(self.target, work):
                changed = self._denoise(items, latents, time)
            error = (changed - own).float().square().flatten(1).mean(1)
            total -= (error / own.float().square().flatten(1).mean(1)).double().cpu()
        return total.numpy()

    @torch.inference_mode()
    def loss(self, items: NDArray[np.int64], number: int, added: Tensor | None = None) -> float:
        """Squared error of the noise that the network says there is, summed."""
        level = self.level(number)
        time = int(level.timestep or 0)
        latents = self._noisy(items, self._clean[items], time)
        work: list[tuple[str, Intervention]] = (
            [] if added is None else [(level.hookpoint, _ShiftOnGrid(added, self._adapter.grid))]
        )
        with Interventions(self.target, work):
            output = self._denoise(items, latents, time)
        _, noise = self._split(latents, output, time)
        return float((noise - self._noise[items]).double().square().sum())

    def _look(self, items: NDArray[np.int64], clean: Tensor, level: ConceptLevel) -> Tensor:
        """Return a level's activations of clean latents, ``(b, grid, d)``."""
        noisy = self._noisy(items, clean, int(level.timestep or 0))
        return self._read(items, noisy, level)

    def _read(
        self,
        items: NDArray[np.int64],
        latents: Tensor,
        level: ConceptLevel,
        work: Sequence[tuple[str, Intervention]] = (),
    ) -> Tensor:
        """Return a level's activations of latents at its timestep, ``(b, grid, d)``."""
        seen: list[Tensor] = []

        def probe(rows: PlaceRows, moment: Moment) -> None:
            maps = feature_map(rows.tensor, level.hookpoint)
            seen.append(align(maps, self._adapter.grid).reshape(len(items), -1, maps.shape[1]))

        with Interventions(self.target, work, [(level.hookpoint, probe)]):
            self._denoise(items, latents, int(level.timestep or 0))
        return seen[0]

    def _noisy(self, items: NDArray[np.int64], clean: Tensor, time: int) -> Tensor:
        return self._mix(clean, self._noise[items], time)

    def _mix(self, clean: Tensor, noise: Tensor, time: int) -> Tensor:
        scheduler = self._adapter.pipeline.scheduler
        return self._adapter.denoiser.add_noise(scheduler, clean, noise, time)

    def _denoise(self, items: NDArray[np.int64], latents: Tensor, time: int) -> Tensor:
        """Run the network once on the conditional half alone, and return its output."""
        outputs: list[Tensor] = []

        def keep(module: nn.Module, args: Any, output: Any) -> None:
            outputs.append(stream_out(output))

        denoiser = self._adapter.denoiser
        condition = denoiser.condition(self._adapter.pipeline, [self._texts[i] for i in items])
        handle = self.target.root.register_forward_hook(keep)
        try:
            denoiser.run(latents, time, condition)
        finally:
            handle.remove()
        return outputs[0]

    def _split(self, latents: Tensor, output: Tensor, time: int) -> tuple[Tensor, Tensor]:
        """Return the clean latents and the noise that the network's output says there are.

        Raises
        ------
        ValueError : the pipeline predicts something that is not known here.
        """
        scheduler = self._adapter.pipeline.scheduler
        if "alphas_cumprod" not in vars(scheduler):
            share = time / scheduler.config.num_train_timesteps
            return latents - share * output, latents + (1 - share) * output
        kept = float(scheduler.alphas_cumprod[time])
        signal, noise = kept**0.5, (1 - kept) ** 0.5
        kind = scheduler.config.prediction_type
        if kind == "epsilon":
            return (latents - noise * output) / signal, output
        if kind == "v_prediction":
            return signal * latents - noise * output, noise * latents + signal * output
        if kind == "sample":
            return output, (latents - signal * output) / noise
        raise ValueError(f"prediction_type {kind!r} of the scheduler is not known")


class _Paint(Add):
    """Adds to one concept's code on the patches of every sample, at places of any size."""

    def __init__(
        self,
        dictionary: Dictionary,
        concepts: NDArray[np.int64],
        changes: NDArray[np.float32],
        grid: Grid,
    ) -> None:
        super().__init__(dictionary, concepts, changes)
        self._maps = self._changes.reshape(len(concepts), 1, grid.height, grid.width)

    def changes(self, rows: PlaceRows) -> Tensor:
        """Return the changes on a place's own patches, without blurring."""
        return functional.interpolate(self._maps, size=rows.grid).flatten(1)


class _ReplaceOnGrid:
    """Replaces codes on the patches on which the dictionary was learnt."""

    def __init__(self, dictionary: Dictionary, change: Any, grid: Grid) -> None:
        self._dictionary, self._change, self._grid = dictionary, change, grid

    def __call__(self, rows: PlaceRows, moment: Moment) -> RowChange | None:
        maps = feature_map(rows.tensor, "level").float()
        codes = self._dictionary.encode(align(maps, self._grid))
        delta = (self._change(codes) - codes) @ self._dictionary.W_dec
        return _painted(delta, self._grid, maps)


class _ShiftOnGrid:
    """Adds to the patches on which the dictionary was learnt, ``added (b, patches, d)``."""

    def __init__(self, added: Tensor, grid: Grid) -> None:
        self._added, self._grid = added, grid

    def __call__(self, rows: PlaceRows, moment: Moment) -> RowChange:
        return _painted(self._added, self._grid, feature_map(rows.tensor, "level"))


def _painted(delta: Tensor, grid: Grid, maps: Tensor) -> RowChange:
    """Return changes of patches, ``(b · patches, d)``, as those of a place's own, finer rows."""
    batch, width = maps.shape[:2]
    painted = delta.reshape(batch, grid.height, grid.width, width)
    painted = functional.interpolate(painted.permute(0, 3, 1, 2), size=tuple(maps.shape[-2:]))
    flat = painted.flatten(2).transpose(1, 2).reshape(-1, width)
    return RowChange(torch.arange(len(flat), device=flat.device), flat)

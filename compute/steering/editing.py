"""The edits of one level, as an intervention: x + (edited codes − codes) @ W_dec."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from compute.steering.concept_reader import ConceptReader
from compute.steering.distance import DistanceMeter
from compute.steering.edits import Edit
from compute.steering.places import Moment, PlaceRows
from compute.steering.running import RowChange
from compute.steering.steering_levels import ConceptLevel

__all__ = ["LevelEdits", "check_edit", "nearest_timestep"]


class LevelEdits:
    """All edits of one level.

    The edit is ``x + decode(edited codes) − decode(codes)``, of which only the rows of the decoder
    whose codes change are left: the part of ``x`` that the dictionary does not explain stays as it
    is, and a row none of whose codes change is not touched.

    Parameters
    ----------
    level : whose codes are edited.
    edits : of that level.
    timesteps : of all levels of the artifact, each once; they share out the denoising steps.
    """

    def __init__(
        self,
        level: ConceptLevel,
        edits: Sequence[Edit],
        timesteps: Sequence[int],
        meter: DistanceMeter,
    ) -> None:
        self._level = level
        self._edits = tuple(edits)
        self._timesteps = timesteps
        concepts = sorted({edit.index for edit in edits})
        self._column = {concept: column for column, concept in enumerate(concepts)}
        self._reader = ConceptReader(level.dictionary, concepts)
        self._meter = meter

    def __call__(self, rows: PlaceRows, moment: Moment) -> RowChange | None:
        """Return what the edits add to the rows of one forward pass.

        Raises
        ------
        ValueError : the activations are not as wide as the dictionary.
        """
        level, x = self._level, rows.values
        if x.shape[-1] != level.dictionary.d:
            raise ValueError(
                f"hookpoint {level.hookpoint!r} gives activations of width {x.shape[-1]} and the "
                f"dictionary of level {level.name!r} reads {level.dictionary.d}: this artifact is "
                "of another model"
            )
        due = [edit for edit in self._edits if self._is_due(edit, moment)]
        weights = [_weights(edit, rows, moment) for edit in due]
        places = torch.stack([w.reshape(-1) > 0 for w in weights]).any(0) if due else None
        flat = None if places is None else places.nonzero()[:, 0]
        if flat is None or not len(flat):
            return None
        self._meter.saw(x.shape[0] * x.shape[1])
        chosen = x.reshape(-1, x.shape[-1])[flat].float()
        codes = self._reader.codes(chosen)
        edited = codes.clone()
        for edit, weight in zip(due, weights, strict=True):
            column = self._column[edit.index]
            edited[:, column] = self._apply(
                edit, edited[:, column], weight.reshape(-1)[flat], rows, moment, flat
            )
        difference = edited - codes
        touched = difference.ne(0).any(dim=1).nonzero()[:, 0]
        if not len(touched):
            return None
        delta = difference[touched] @ self._reader.directions
        self._meter.took(chosen[touched], delta, edited[touched], codes[touched])
        return RowChange(flat[touched], delta)

    def _is_due(self, edit: Edit, moment: Moment) -> bool:
        if moment.timestep is None:
            return True
        if edit.timesteps is not None:
            lowest, highest = edit.timesteps
            return lowest <= moment.timestep <= highest
        own = self._level.timestep
        if own is None:
            return True
        return nearest_timestep(self._timesteps, moment.timestep) == own

    def _apply(
        self,
        edit: Edit,
        code: Tensor,
        weight: Tensor,
        rows: PlaceRows,
        moment: Moment,
        flat: Tensor,
    ) -> Tensor:
        """Return the new codes ``(r,)`` of one concept at the chosen rows."""
        where = weight > 0
        if edit.donor is not None:
            given, known = edit.donor.at(self._level.level, edit.index, rows, moment)
            wanted = given.reshape(-1)[flat].to(code)
            where &= known.reshape(-1)[flat]
        elif edit.value is not None:
            wanted = _spread(edit.value, rows, moment).reshape(-1)[flat].to(code)
        else:
            wanted = code * edit.scale + edit.add
        if edit.above is not None:
            where &= code > edit.above
        if edit.clamp:
            largest = self._level.largest_of(edit.index)
            wanted = torch.where(wanted == code, wanted, wanted.clamp(0, largest))
        wanted = torch.where(weight == 1, wanted, code + weight * (wanted - code))
        return torch.where(where, wanted, code)


def nearest_timestep(timesteps: Sequence[int], now: float) -> int:
    """Return which of the levels' timesteps a step belongs to; the lower one of two as near."""
    return min(timesteps, key=lambda timestep: abs(timestep - now))


def check_edit(edit: Edit, level: ConceptLevel, *, diffusion: bool) -> None:
    """Refuse what an edit asks for and this level or kind of model does not have.

    Raises
    ------
    ValueError : naming the field, its value and the remedy.
    """
    n = level.dictionary.n_concepts
    if not 0 <= edit.index < n:
        raise ValueError(
            f"concept {edit.index} is not in level {level.name!r}, whose concepts are 0 to {n - 1}"
        )
    if isinstance(edit.concept, str) and int(edit.concept.partition(":")[0]) != level.level:
        raise ValueError(f"concept {edit.concept!r} is not of level {level.level} ({level.name})")
    if diffusion and edit.positions is not None:
        raise ValueError(f"positions of the edit of {edit.id} are of texts: give a mask (h, w)")
    if not diffusion:
        for name in ("mask", "timesteps"):
            if getattr(edit, name) is not None:
                raise ValueError(
                    f"{name} of the edit of {edit.id} is of diffusion models: leave it out"
                )
    wanted_axes = (0, 2) if diffusion else (0, 1)
    if edit.value is not None and np.ndim(edit.value) not in wanted_axes:
        form = "(h, w)" if diffusion else "(positions,)"
        raise ValueError(
            f"value of the edit of {edit.id} has shape {np.shape(edit.value)}: give a number or "
            f"{form}"
        )
    if edit.clamp and not edit.changes_nothing:
        level.largest_of(edit.index)


def _weights(edit: Edit, rows: PlaceRows, moment: Moment) -> Tensor:
    """Return how much of an edit each row takes, ``(b, p)`` in 0..1."""
    batch, positions, _ = rows.values.shape
    device = rows.values.device
    weight = torch.ones(batch, positions, device=device)
    if moment.guided and edit.half == "conditional" and batch % 2 == 0:
        weight[: batch // 2] = 0
    if edit.positions is not None:
        absolute = np.arange(moment.offset, moment.offset + positions)
        if isinstance(edit.positions, slice):
            inside = np.isin(absolute, range(*_bounds(edit.positions, absolute)))
        else:
            inside = np.isin(absolute, np.asarray(edit.positions))
        weight *= torch.from_numpy(inside).to(weight)
    if edit.mask is not None:
        weight *= _resized(edit.mask, rows, device)
    return weight


def _bounds(positions: slice, absolute: Any) -> tuple[int, int, int]:
    """Resolve a slice over a sequence whose end is not known yet."""
    start, stop, step = positions.start or 0, positions.stop, positions.step or 1
    if start < 0 or (stop is not None and stop < 0) or step < 1:
        raise ValueError(f"positions {positions} count from the front: give none below 0")
    return start, int(absolute[-1]) + 1 if stop is None else stop, step


def _resized(values: Any, rows: PlaceRows, device: torch.device) -> Tensor:
    """Bring ``(h, w)`` to the level's patches, ``(p,)`` row-major."""
    grid = rows.grid
    picture = torch.as_tensor(np.asarray(values, dtype=np.float32), device=device)[None, None]
    if grid is not None and tuple(picture.shape[-2:]) != grid:
        finer = picture.shape[-2] >= grid[0] and picture.shape[-1] >= grid[1]
        picture = (
            functional.adaptive_avg_pool2d(picture, grid)
            if finer
            else functional.interpolate(picture, size=grid, mode="nearest")
        )
    return picture.reshape(-1)


def _spread(value: Any, rows: PlaceRows, moment: Moment) -> Tensor:
    """Return the value to set at every row, ``(b, p)``."""
    batch, positions, _ = rows.values.shape
    device = rows.values.device
    if np.ndim(value) == 0:
        return torch.full((batch, positions), float(value), device=device)
    if np.ndim(value) == 2:
        return _resized(value, rows, device).expand(batch, positions)
    series = np.asarray(value, dtype=np.float32)
    absolute = np.arange(moment.offset, moment.offset + positions)
    if absolute[-1] >= len(series):
        raise ValueError(
            f"value has {len(series)} positions and the text has reached {absolute[-1] + 1}: give "
            "one number, or values for every position"
        )
    return torch.from_numpy(series[absolute]).to(device).expand(batch, positions)

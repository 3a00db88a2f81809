"""What every model adapter offers: named levels in, aligned activation rows out."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

Item = TypeVar("Item")

_PATH_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")


@dataclass(frozen=True, slots=True)
class ModelLevel:
    """One level of a hierarchy: where in the model, and (diffusion) when in the denoising.

    A tuple of levels is ordered from the lowest (details) to the highest (wholes).

    Attributes
    ----------
    name : path-safe; it names folders in the stores.
    hookpoint : a name from the adapter's ``hookpoints()``.
    timestep : training timestep of a diffusion model (0 = clean); None for a language model.

    Raises
    ------
    ValueError : the name is not path-safe.
    """

    name: str
    hookpoint: str
    timestep: int | None = None

    def __post_init__(self) -> None:
        if not _PATH_SAFE.match(self.name):
            raise ValueError(
                f"level name {self.name!r} is not path-safe; use letters, digits, '.', '_' and '-'"
            )


@dataclass(frozen=True, slots=True)
class ActivationRows:
    """Aligned activation rows: row r is the same sample and position at every level.

    Attributes
    ----------
    activations : level name → tensor ``(n, d_level)`` on the CPU, in the adapter's dtype.
    sample : ``(n,)`` int64, index of the input (document, prompt or image).
    position : ``(n,)`` int32, token position in the document, or patch index (row-major).
    observed : ``(n,)`` int64, token id, prompt word id or patch position; -1 where there is none.
    pictures : sample → what was drawn or shown, ``(h, w, channels)`` uint8, where they are kept.
    """

    activations: dict[str, torch.Tensor]
    sample: NDArray[np.int64]
    position: NDArray[np.int32]
    observed: NDArray[np.int64]
    pictures: Mapping[int, NDArray[np.uint8]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.sample)


class ModelAdapter(ABC, Generic[Item]):
    """A loaded generative model that yields rows for items (contexts, prompts, images).

    The same list of items gives the same bytes on one machine: batches of ``batch_size`` items are
    cut from the list in its order, and nothing is drawn from global random state.
    """

    batch_size: int
    levels: tuple[ModelLevel, ...]
    widths: dict[str, int]

    @abstractmethod
    def hookpoints(self) -> list[str]:
        """Return the names a level's ``hookpoint`` may take, in the model's own order."""

    @abstractmethod
    def rows_of(self, item: Item) -> int:
        """Return the number of rows ``item`` yields, without a forward pass."""

    @abstractmethod
    def extract(self, items: Sequence[Item]) -> ActivationRows:
        """Return the rows of ``items``, in item order; one pass feeds all levels."""

    @abstractmethod
    def describe(self) -> Mapping[str, Any]:
        """Return JSON-ready provenance: model id, class, parameters, sha256, dtype, device."""


def check_levels(levels: Sequence[ModelLevel]) -> tuple[ModelLevel, ...]:
    """Return ``levels`` as a tuple, refusing none at all and two of one name.

    Raises
    ------
    ValueError : no level, or a name used twice.
    """
    if not levels:
        raise ValueError("levels is empty; name at least one hookpoint")
    names = [level.name for level in levels]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"level name {name!r} is used twice; give every level its own name")
    return tuple(levels)


def slug(text: str) -> str:
    """Return ``text`` as a path-safe name: ``layers.7.output`` → ``layer-07``."""
    if layer := re.fullmatch(r"layers\.(\d+)\.output", text):
        return f"layer-{int(layer[1]):02d}"
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-_") or "level"

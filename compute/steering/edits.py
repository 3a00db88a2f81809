"""Edits: what to do with the code of a concept, and where and when in a run to do it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from compute.steering.traces import Trace

__all__ = ["Edit"]

_ID = re.compile(r"(\d+):(\d+)\Z")


@dataclass(frozen=True, eq=False)
class Edit:
    """One concept whose code is changed wherever the edit applies.

    The new code is ``scale · code + add``, or ``value`` where it is given, or the donor's code.
    ``Edit(level, concept)`` changes nothing, ``Edit(level, concept, 0)`` ablates. Edits of one
    concept act one after another, in the order in which they are given.

    Attributes
    ----------
    level : number (1..L) or name of the level.
    concept : index of the concept in its level's dictionary, or its id ``"{level}:{index}"``.
    scale : factor of the code.
    add : what is added to the code after scaling, in the units of the activations (the decoder's
        rows have unit norm).
    value : the code to set; a number, or one per position: ``(positions,)`` for a language model
        (by position in the sequence), ``(h, w)`` for a picture (brought to the level's resolution).
    donor : codes recorded by `trace` in another run; position and timestep are those of this run.
    positions : language models: positions in the sequence, counted from 0 with padding and the
        prompt, as numbers or a slice; None is all, those that are generated included.
    mask : diffusion: ``(h, w)`` with weights in 0..1; the change of a patch is multiplied by it.
    timesteps : diffusion: lowest and highest training timestep at which to act. By default an edit
        acts at the steps whose timestep is nearer to its level's than to any other level's.
    half : diffusion under classifier-free guidance: act on the ``conditional`` half or on ``both``.
    above : act only where the code is larger than this.
    clamp : keep the new code within what was observed, 0 to the concept's largest code.

    Raises
    ------
    ValueError : a number is not finite, or the fields contradict one another.
    """

    level: int | str
    concept: int | str
    scale: float = 1.0
    add: float = 0.0
    value: ArrayLike | None = None
    donor: Trace | None = None
    positions: slice | Sequence[int] | None = None
    mask: ArrayLike | None = None
    timesteps: tuple[float, float] | None = None
    half: Literal["conditional", "both"] = "conditional"
    above: float | None = None
    clamp: bool = False

    def __post_init__(self) -> None:
        for name in ("scale", "add", "above"):
            number = getattr(self, name)
            if number is not None and not math.isfinite(number):
                raise ValueError(f"{name} {number} of the edit of {self.id} is not finite")
        if self.value is not None:
            value = np.asarray(self.value, dtype=np.float64)
            if value.ndim > 2 or not np.isfinite(value).all():
                raise ValueError(
                    f"value of the edit of {self.id} must be a finite number, or finite numbers "
                    "along positions (p,) or patches (h, w)"
                )
        sources = (self.scale != 1 or self.add != 0, self.value is not None, self.donor is not None)
        if sum(sources) > 1:
            raise ValueError(
                f"the edit of {self.id} has more than one source of its code: give scale and add, "
                "or value, or donor"
            )
        if self.mask is not None:
            mask = np.asarray(self.mask, dtype=np.float64)
            if mask.ndim != 2 or not ((mask >= 0) & (mask <= 1)).all():
                raise ValueError(f"mask of the edit of {self.id} must be (h, w) within 0..1")
        if isinstance(self.positions, Sequence) and any(p < 0 for p in self.positions):
            raise ValueError(
                f"positions {list(self.positions)} of the edit of {self.id} count from the front: "
                "give none below 0"
            )
        if self.timesteps is not None and not self.timesteps[0] <= self.timesteps[1]:
            raise ValueError(
                f"timesteps {self.timesteps} of the edit of {self.id} are (lowest, highest)"
            )
        if self.half not in ("conditional", "both"):
            raise ValueError(
                f"half {self.half!r} of the edit of {self.id} is neither 'conditional' nor 'both'"
            )
        # An id such as "2:417" says its level; a contradiction is refused here.
        found = _ID.match(self.concept) if isinstance(self.concept, str) else None
        if isinstance(self.concept, str) and found is None:
            raise ValueError(f"concept {self.concept!r} is no index and no id such as '2:417'")
        if found and isinstance(self.level, int) and int(found[1]) != self.level:
            raise ValueError(f"concept {self.concept!r} is not of level {self.level}")

    @property
    def id(self) -> str:
        """The concept's id, ``"{level}:{index}"``; the level by the name it was given."""
        return f"{self.level}:{self.index}"

    @property
    def index(self) -> int:
        """Index of the concept in its level."""
        return int(str(self.concept).rpartition(":")[2])

    @property
    def changes_nothing(self) -> bool:
        """Whether the edit leaves every code as it is, whatever the run."""
        return self.scale == 1 and self.add == 0 and self.value is None and self.donor is None

    @classmethod
    def of(cls, concept: str, scale: float = 1.0, **options: Any) -> Self:
        """Return the edit of a concept given by its id, such as ``"2:417"``.

        Raises
        ------
        ValueError : the id is not of that form.
        """
        found = _ID.match(concept)
        if found is None:
            raise ValueError(f"concept {concept!r} is not an id of the form '2:417'")
        return cls(int(found[1]), int(found[2]), scale, **options)

    @classmethod
    def set(cls, level: int | str, concept: int, value: ArrayLike, **options: Any) -> Self:
        """Return the edit that sets a code to ``value``, active or not."""
        return cls(level, concept, value=value, **options)

    @classmethod
    def swap(cls, level: int | str, concept: int, donor: Trace, **options: Any) -> Self:
        """Return the edit that takes a code from another run, recorded by `trace`."""
        return cls(level, concept, donor=donor, **options)

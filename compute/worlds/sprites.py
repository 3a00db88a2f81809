"""A selection world of pictures: strokes make objects, objects make scenes, and scenes are kept.

The canvas has four slots. In each slot every *part* (a stroke of fixed shape) is there or not,
independently of the rest; an *object* is the effect of its parts, and a *scene* of the objects on
the canvas. A picture is kept (S = 1) if in every slot the parts make up one object or nothing, and
the objects make a scene or stand alone. Parts are shared between objects (a house and a car both
have a box), so that no part gives its object away.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

PARTS = (
    "box", "triangle", "disc", "hull", "door", "window", "wheels", "stem", "eyes", "mouth",
)  # fmt: skip
OBJECTS = ("house", "car", "tree", "face", "boat")
SCENES = ("street", "harbour", "park", "forest", "crowd")
COLOURS = ("red", "green", "blue", "yellow", "purple")
SLOTS = ("top left", "top right", "bottom left", "bottom right")

SIZE = 32
SLOT = 16
BACKGROUND = (26, 26, 32)
DETAIL = (245, 245, 245)
RGB = ((220, 50, 47), (60, 170, 70), (50, 100, 220), (235, 200, 60), (160, 70, 190))
SHIFTS = (-1, 0, 1)

PARTS_OF: dict[str, tuple[str, ...]] = {
    "house": ("box", "triangle", "door"),
    "car": ("box", "window", "wheels"),
    "tree": ("disc", "stem"),
    "face": ("disc", "eyes", "mouth"),
    "boat": ("triangle", "hull", "stem"),
}
# A scene is there when the canvas holds at least these objects.
OBJECTS_OF: dict[str, tuple[str, ...]] = {
    "street": ("house", "car"),
    "harbour": ("house", "boat"),
    "park": ("tree", "face"),
    "forest": ("tree", "tree"),
    "crowd": ("face", "face"),
}
# Odds of an object against an empty slot. Parts are independent, with odds whose product over the
# parts of any object is this number; one, two and three objects are then about as common.
_OBJECT_ODDS = 1 / 4
_MOST_OBJECTS = 3


@dataclass(frozen=True, slots=True)
class SpriteFactors:
    """What is on n canvases.

    Attributes
    ----------
    parts : ``(n, 4, 10)`` bool, by slot and `PARTS`.
    colours : ``(n, 4)`` int, index in `COLOURS`; -1 where the slot is empty.
    objects : ``(n, 4)`` int, index in `OBJECTS`; -1 where the parts make none.
    scenes : ``(n, 5)`` bool, by `SCENES`.
    """

    parts: NDArray[np.bool_]
    colours: NDArray[np.int64]
    objects: NDArray[np.int64]
    scenes: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.parts)

    @classmethod
    def from_parts(cls, parts: NDArray[np.bool_], colours: NDArray[np.int64]) -> SpriteFactors:
        """Return the factors that follow from parts and colours: each whole from its parts."""
        objects = np.full(parts.shape[:2], -1, dtype=np.int64)
        for index, needed in enumerate(part_edges().T):
            objects[(parts == needed).all(axis=-1)] = index
        counts = (objects[..., None] == np.arange(len(OBJECTS))).sum(axis=1)
        needs = np.array([[OBJECTS_OF[scene].count(name) for name in OBJECTS] for scene in SCENES])
        scenes = (counts[:, None, :] >= needs).all(axis=-1)
        colours = np.where(parts.any(axis=-1), colours, -1).astype(np.int64)
        return cls(parts, colours, objects, scenes)

    @property
    def selected(self) -> NDArray[np.bool_]:
        """``(n,)``: whether the world keeps such a picture."""
        clean = ((self.objects >= 0) | ~self.parts.any(axis=-1)).all(axis=-1)
        n_objects = (self.objects >= 0).sum(axis=-1)
        kept = (n_objects == 1) | (self.scenes.any(axis=-1) & (n_objects <= _MOST_OBJECTS))
        return np.asarray(clean & kept)


class Sprites(NamedTuple):
    """Pictures ``(n, 32, 32, 3)`` uint8, their captions and their factors."""

    images: NDArray[np.uint8]
    captions: list[str]
    factors: SpriteFactors


class SpriteWorld:
    """Draws sprites; the same seed draws the same sprites.

    Parameters
    ----------
    seed : seeds the world's random numbers.

    Examples
    --------
    >>> images, captions, factors = SpriteWorld(seed=0).sample(2)
    >>> images.shape, factors.parts.shape
    ((2, 32, 32, 3), (2, 4, 10))
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def sample(self, n: int, *, stream: int = 0, held_out: bool | None = None) -> Sprites:
        """Draw ``n`` sprites.

        Parameters
        ----------
        stream : numbers independent draws (training batches, say).
        held_out : only captions that are (True) or are not (False) held out; None draws any.
            One caption in ten is held out, whatever the seed.
        """
        rng = np.random.default_rng([self.seed, stream])
        drawn: list[SpriteFactors] = []
        captions: list[str] = []
        while len(captions) < n:
            factors = _draw(rng, 4 * (n - len(captions)) + 16)
            factors = _take(factors, np.flatnonzero(factors.selected))
            texts = captions_of(factors)
            allowed = [held_out is None or is_held_out(text) == held_out for text in texts]
            wanted = np.flatnonzero(allowed)[: n - len(captions)]
            drawn.append(_take(factors, wanted))
            captions += [texts[i] for i in wanted]
        factors = SpriteFactors(
            *(
                np.concatenate([getattr(f, name) for f in drawn])
                for name in ("parts", "colours", "objects", "scenes")
            )
        )
        shifts = rng.choice(SHIFTS, size=(n, len(SLOTS), 2))
        return Sprites(render(factors.parts, factors.colours, shifts), captions, factors)


def part_edges() -> NDArray[np.bool_]:
    """Return the true edges part → object, ``(10, 5)``."""
    return np.array([[part in PARTS_OF[whole] for whole in OBJECTS] for part in PARTS])


def object_edges() -> NDArray[np.bool_]:
    """Return the true edges object → scene, ``(5, 5)``."""
    return np.array([[part in OBJECTS_OF[whole] for whole in SCENES] for part in OBJECTS])


def captions_of(factors: SpriteFactors) -> list[str]:
    """Return a caption per canvas: ``a red house top left and a blue car bottom right``."""
    return [
        " and ".join(
            f"a {COLOURS[colour]} {OBJECTS[which]} {SLOTS[slot]}"
            for slot, (which, colour) in enumerate(zip(objects, colours, strict=True))
            if which >= 0
        )
        for objects, colours in zip(factors.objects, factors.colours, strict=True)
    ]


def caption_words() -> tuple[str, ...]:
    """Return every word that captions use."""
    return tuple(dict.fromkeys(["a", "and", *COLOURS, *OBJECTS, *" ".join(SLOTS).split()]))


def is_held_out(caption: str) -> bool:
    """Return whether ``caption`` is kept from training: one in ten, by its sha256."""
    return hashlib.sha256(caption.encode()).digest()[0] % 10 == 0


def render(
    parts: NDArray[np.bool_], colours: NDArray[np.int64], shifts: NDArray[np.int64]
) -> NDArray[np.uint8]:
    """Paint canvases.

    Parameters
    ----------
    parts : ``(n, 4, 10)`` bool.
    colours : ``(n, 4)`` index in `COLOURS`.
    shifts : ``(n, 4, 2)`` pixels down and right, each of `SHIFTS`.

    Returns
    -------
    ``(n, 32, 32, 3)`` uint8.
    """
    n = len(parts)
    slots = render_slots(parts.reshape(n * 4, -1), colours.reshape(n * 4), shifts.reshape(n * 4, 2))
    grid = slots.reshape(n, 2, 2, SLOT, SLOT, 3)
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(n, SIZE, SIZE, 3)


def render_slots(
    parts: NDArray[np.bool_], colours: NDArray[np.int64], shifts: NDArray[np.int64]
) -> NDArray[np.uint8]:
    """Paint single slots ``(m, 16, 16, 3)``; fills take the object's colour, details are white."""
    masks = part_masks()
    palette = np.array(RGB, dtype=np.uint8)
    slots = np.empty((len(parts), SLOT, SLOT, 3), dtype=np.uint8)
    slots[:] = BACKGROUND
    for index, name in enumerate(PARTS):
        ink = palette[colours] if name in _FILLS else np.full_like(palette[colours], DETAIL[0])
        for down in SHIFTS:
            for right in SHIFTS:
                here = np.flatnonzero(parts[:, index] & (shifts == (down, right)).all(axis=-1))
                rows, columns = np.nonzero(np.roll(masks[index], (down, right), axis=(0, 1)))
                slots[here[:, None], rows, columns] = ink[here][:, None]
    return slots


_FILLS = ("box", "triangle", "disc", "hull")


def part_masks() -> NDArray[np.bool_]:
    """Return the pixels of every part in an unshifted slot, ``(10, 16, 16)``; fills come first."""
    down, right = np.mgrid[0:SLOT, 0:SLOT]
    # Distance of a column from the middle line of the slot, in half pixels.
    off = np.abs(2 * right - (SLOT - 1))

    def block(top: int, bottom: int, left: int, last: int) -> NDArray[np.bool_]:
        return np.asarray((down >= top) & (down <= bottom) & (right >= left) & (right <= last))

    shapes = {
        "box": block(8, 13, 3, 12),
        "triangle": (down >= 2) & (down <= 7) & (off < 2 * (down - 1)),
        "disc": (down - 6) ** 2 + (off / 2) ** 2 <= 5.3**2,
        "hull": (down >= 11) & (down <= 14) & (off <= 2 * (17 - down)),
        "door": block(10, 13, 7, 8),
        "window": block(9, 10, 4, 5) | block(9, 10, 10, 11),
        "wheels": block(13, 14, 3, 5) | block(13, 14, 10, 12),
        "stem": block(8, 14, 7, 8),
        "eyes": block(4, 5, 4, 5) | block(4, 5, 10, 11),
        "mouth": block(8, 9, 5, 10),
    }
    return np.stack([shapes[name] for name in PARTS])


def _draw(rng: np.random.Generator, n: int) -> SpriteFactors:
    """Draw canvases whose every slot makes up an object or nothing.

    Parts are independent with the odds of `_OBJECT_ODDS`; given that a slot is clean, it is empty
    with weight 1 and each object with the weight of its odds. That is what is drawn here.
    """
    n_slots, n_objects = len(SLOTS), len(OBJECTS)
    weights = np.array([1.0, *[_OBJECT_ODDS] * n_objects])
    states = rng.choice(n_objects + 1, size=(n, n_slots), p=weights / weights.sum()) - 1
    parts = np.zeros((n, n_slots, len(PARTS)), dtype=bool)
    parts[states >= 0] = part_edges().T[states[states >= 0]]
    return SpriteFactors.from_parts(parts, rng.integers(len(COLOURS), size=(n, n_slots)))


def _take(factors: SpriteFactors, rows: NDArray[np.int64]) -> SpriteFactors:
    return SpriteFactors(
        factors.parts[rows], factors.colours[rows], factors.objects[rows], factors.scenes[rows]
    )

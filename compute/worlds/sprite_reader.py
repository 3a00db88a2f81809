"""The factor reader of the sprite world: from a picture back to what is on it."""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from compute.worlds.sprites import (
    COLOURS,
    OBJECTS,
    PARTS,
    SHIFTS,
    SIZE,
    SLOT,
    SLOTS,
    SpriteFactors,
    part_edges,
    render_slots,
)

_BATCH = 256


class Reading(NamedTuple):
    """Factors read off pictures, and how well each slot fits what was read.

    Attributes
    ----------
    factors : parts, colours, objects and scenes, as the world gives them.
    error : ``(n, 4)`` root mean square distance of the slot's pixels to the nearest drawing, of 1.
    """

    factors: SpriteFactors
    error: NDArray[np.float32]


def read_sprites(images: NDArray[np.generic], *, any_parts: bool = False) -> Reading:
    """Read the factors of pictures by their nearest drawing, slot by slot.

    Parameters
    ----------
    images : ``(n, 32, 32, 3)``, uint8 or floats in [0, 1].
    any_parts : compare with every set of parts, and not only with objects and the empty slot; it
        reads pictures that the world would not keep (after an edit, say), at fifty times the cost.

    Raises
    ------
    ValueError : the pictures have another shape.
    """
    if images.ndim != 4 or images.shape[1:] != (SIZE, SIZE, 3):
        raise ValueError(f"images have shape {images.shape}; sprites are (n, {SIZE}, {SIZE}, 3)")
    scale = 255 if images.dtype == np.uint8 else 1
    pixels = images.astype(np.float32) / np.float32(scale)
    slots = pixels.reshape(-1, 2, SLOT, 2, SLOT, 3).transpose(0, 1, 3, 2, 4, 5)
    flat = slots.reshape(len(images) * len(SLOTS), -1)

    parts, colours, drawings = _templates(any_parts)
    length = (drawings**2).sum(axis=1)
    nearest = np.empty(len(flat), dtype=np.int64)
    distance = np.empty(len(flat), dtype=np.float32)
    for begin in range(0, len(flat), _BATCH):
        some = flat[begin : begin + _BATCH]
        squared = length - 2 * some @ drawings.T
        best = squared.argmin(axis=1)
        nearest[begin : begin + _BATCH] = best
        gap = some - drawings[best]
        distance[begin : begin + _BATCH] = np.sqrt((gap**2).mean(axis=1))
    shape = (len(images), len(SLOTS))
    factors = SpriteFactors.from_parts(
        parts[nearest].reshape(*shape, len(PARTS)), colours[nearest].reshape(shape)
    )
    return Reading(factors, distance.reshape(shape))


def shows(wanted: SpriteFactors, seen: SpriteFactors) -> NDArray[np.float64]:
    """Return, per canvas, the share of the wanted objects seen in their colour, anywhere on it.

    Two wanted objects of one kind and colour need two.

    Returns
    -------
    ``(n,)`` in [0, 1]; 1 is every named object in its named colour.
    """
    kinds = len(COLOURS) * len(OBJECTS)

    def counts(factors: SpriteFactors) -> NDArray[np.int64]:
        kind = np.where(factors.objects >= 0, factors.objects * len(COLOURS) + factors.colours, -1)
        return np.asarray((kind[..., None] == np.arange(kinds)).sum(axis=1))

    need, have = counts(wanted), counts(seen)
    return np.asarray(np.minimum(need, have).sum(axis=1) / np.maximum(need.sum(axis=1), 1))


@lru_cache(maxsize=2)
def _templates(
    any_parts: bool,
) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.float32]]:
    """Return parts ``(m, 10)``, colours ``(m,)`` and drawings ``(m, 768)`` of slots."""
    empty = np.zeros((1, len(PARTS)), dtype=bool)
    sets = (
        np.array(list(product((False, True), repeat=len(PARTS))))
        if any_parts
        else np.concatenate([empty, part_edges().T])
    )
    moves = np.array(list(product(SHIFTS, SHIFTS)))
    chosen, colours, move = (
        index.ravel() for index in np.indices((len(sets), len(COLOURS), len(moves)))
    )
    drawn = render_slots(sets[chosen], colours, moves[move])
    flat = drawn.reshape(len(drawn), -1).astype(np.float32) / np.float32(255)
    return sets[chosen], colours, flat

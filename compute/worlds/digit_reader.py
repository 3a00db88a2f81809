"""The reader of digits: from a picture to its digit, by its neighbours among real digits."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from compute.worlds.digits import Digits, digits

_NEIGHBOURS = 10
_BATCH = 500
CLASSES = 10


class DigitReading(NamedTuple):
    """What n pictures show.

    Attributes
    ----------
    labels : ``(n,)`` most common digit among the 10 nearest real digits.
    agreement : ``(n,)`` share of those that are this digit.
    distance : ``(n,)`` root mean square distance to the nearest, of 1 (white to black).
    """

    labels: NDArray[np.int64]
    agreement: NDArray[np.float64]
    distance: NDArray[np.float64]


def read_digits(images: NDArray[np.generic], known: Digits | None = None) -> DigitReading:
    """Read pictures ``(n, size, size)``, uint8 or floats in [0, 1].

    Parameters
    ----------
    known : the real digits to compare with; those not held out where it is None.

    Raises
    ------
    ValueError : the pictures are not of the size of the known digits.
    """
    size = images.shape[-1] if images.ndim == 3 else 0
    known = digits(size=size, held_out=False) if known is None and size else known
    if known is None or images.shape[1:] != known.images.shape[1:]:
        raise ValueError(f"images have shape {images.shape}; digits are (n, size, size)")
    reference, flat = _flat(known.images), _flat(images)
    labels = np.empty(len(flat), dtype=np.int64)
    agreement, distance = np.empty(len(flat)), np.empty(len(flat))
    for begin in range(0, len(flat), _BATCH):
        some = flat[begin : begin + _BATCH]
        squared = (some**2).mean(axis=1)[:, None] + (reference**2).mean(axis=1)
        squared -= 2 * some @ reference.T / some.shape[1]
        nearest = np.argpartition(squared, _NEIGHBOURS, axis=1)[:, :_NEIGHBOURS]
        votes = (known.labels[nearest][..., None] == np.arange(CLASSES)).sum(axis=1)
        here = slice(begin, begin + len(some))
        labels[here] = votes.argmax(axis=1)
        agreement[here] = votes.max(axis=1) / _NEIGHBOURS
        distance[here] = np.sqrt(np.maximum(squared.min(axis=1), 0))
    return DigitReading(labels, agreement, distance)


def _flat(images: NDArray[np.generic]) -> NDArray[np.float64]:
    scale = 255 if images.dtype == np.uint8 else 1
    return images.reshape(len(images), -1).astype(np.float64) / scale

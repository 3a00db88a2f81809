"""Whitening: activations in coordinates in which no direction is louder than another.

The activations of trained models have a few directions that hold most of the variance, and what
concepts leave is not alike in all directions either. In whitened coordinates isotropic noise is a
fair account of it, quiet concepts count as much as loud ones, and directions that share a loud
component are told apart (for dictionaries: Saraswatula and Klindt 2025, 2511.13981).
"""

from __future__ import annotations

from typing import NamedTuple, Self

import torch
from torch import Tensor

__all__ = ["Whitening"]

# Added to every eigenvalue, as a share of their mean: directions in which there is next to nothing
# are not blown up.
_SHRINKAGE = 0.02


class Whitening(NamedTuple):
    """A symmetric map into whitened coordinates, and back.

    ``mean`` (d,) is the centre, ``into`` and ``back`` (d, d) are inverse to each other.
    """

    mean: Tensor
    into: Tensor
    back: Tensor

    @classmethod
    def of(cls, x: Tensor) -> Self:
        """The whitening of rows (n, d), whose covariance is shrunk a little towards a sphere."""
        mean = x.double().mean(0)
        centred = x.double() - mean
        values, axes = torch.linalg.eigh(centred.T @ centred / len(x))
        values = values.clamp(min=0)
        # Where nothing varies at all, any scale is right.
        values = values + (_SHRINKAGE * values.mean()).clamp(min=1e-12)
        into, back = ((axes * values.pow(power)) @ axes.T for power in (-0.5, 0.5))
        return cls(mean.float(), into.float(), back.float())

    def rows(self, x: Tensor) -> Tensor:
        """Rows (n, d) in whitened coordinates."""
        return (x - self.mean) @ self.into

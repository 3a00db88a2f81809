"""Noise of a level whose variance may grow with the power of a row.

What concepts leave of a row is seldom the same everywhere: where activations are not quite a linear
function of the codes, loud rows are left with more. Taken for equally certain, they would pay for
concepts that explain nothing but that.
"""

from __future__ import annotations

from math import log
from typing import NamedTuple

import torch
from torch import Tensor

_ROUNDS = 12


class Noise(NamedTuple):
    """Variance per coordinate of the noise: its floor, and its growth with a row's mean square."""

    floor: float
    growth: float = 0.0

    def rows(self, centred: Tensor) -> Tensor:
        """Of rows (n, d) that are centred on the bias: (n,), or (1,) where it is that of all."""
        if self.growth == 0:
            return torch.tensor([self.floor])
        return self.floor + self.growth * centred.square().mean(1)


def fit_noise(left: Tensor, power: Tensor, d: int, least: float) -> Noise:
    """The most probable noise of n rows of d coordinates, with a floor of ``least`` or more.

    Mean squares ``left`` (n,) by concepts are gamma variables about a mean that is linear in the
    mean squares ``power`` (n,) of the rows: iteratively reweighted least squares (McCullagh and
    Nelder 1989, chapter 8). Noise grows if that raises the log probability by more than a number
    takes to describe, half the logarithm of the number of rows (Schwarz 1978).
    """
    y, s = left.double(), power.double()
    best = Noise(max(float(y.mean()), least))
    variance = torch.full_like(y, best.floor)
    lowest = _surprise(y, variance, d) - 0.5 * log(len(y))
    for _ in range(_ROUNDS):
        weight = variance.square().reciprocal()
        mean = float((weight * s).sum() / weight.sum())
        spread = float((weight * (s - mean).square()).sum())
        if spread <= 0:
            break
        growth = float((weight * (s - mean) * y).sum()) / spread
        floor = float((weight * y).sum() / weight.sum()) - growth * mean
        if floor < least:
            floor = least
            growth = float((weight * s * (y - least)).sum() / (weight * s * s).sum())
        if growth <= 0:
            break
        variance = floor + growth * s
        surprise = _surprise(y, variance, d)
        if surprise < lowest:
            best, lowest = Noise(floor, growth), surprise
    return best


def _surprise(left: Tensor, variance: Tensor, d: int) -> float:
    return 0.5 * d * float((variance.log() + left / variance).sum())

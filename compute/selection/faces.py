"""Faces of the data: hyperplanes on which many rows lie because one concept is inactive there.

Where a level has no more concepts than dimensions, a code is a linear function of the row, and the
rows without a concept lie on a hyperplane that bounds all others: a face of the cone they fill
(Ge and Zou 2015, arXiv:1507.02189). A face is found by itself, whatever else is active in its rows.
So faces show concepts that a dictionary, which wants few of them in a row, merges: those that are
active in half of the rows or more.

The search is robust regression: from many starts, the hyperplane that is nearest to the rows that
are near to it, with ever narrower weights (Welsch's, as graduated by Blake and Zisserman 1987).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_STARTS = 600
_BLOCK_STARTS = 64
_ROWS = 6000
# A search starts at a quantile of the rows, drawn in proportion to its inverse, with weights of a
# width in standard deviations of a coordinate, and ends with widths of some of the noise.
_QUANTILES = (0.002, 0.5)
_WIDTHS = (0.05, 0.5)
_NARROWEST = 2.0
_NARROWING = 0.85
_ROUNDS = 30
_SOLVER_STEPS = 8
# Rows further from a hyperplane than this many standard deviations of the noise are not on it.
_THICK = 3.0
# A face is new if its normal is this far from the span of those before it.
_NEW = 0.2


def face_codes(x: Tensor, noise: Tensor, seed: int) -> Tensor:
    """Codes (n, f) of white rows (n, r) by up to r of the faces on which most of them lie.

    A code is how far a row is from the face, 0 where it is on it. Faces are as thick as the noise,
    whose variance along every coordinate is ``noise`` (r,); none is a combination of the others.
    """
    generator = torch.Generator().manual_seed(seed)
    some = x[torch.randperm(len(x), generator=generator)[:_ROWS]]
    normals, places = _search(some, noise, generator)
    away = some @ normals.T - places
    thick = _THICK * (normals.square() @ noise).sqrt()
    above, below = ((sign * away > thick).float().mean(0) for sign in (1, -1))
    side = torch.where(above >= below, 1.0, -1.0)
    normals, places = normals * side[:, None], places * side
    # Rows on it, less those beyond it and those that would be in any such slice of a normal cloud.
    share = 1 - above - below - torch.minimum(above, below) - torch.erf(thick / 2**0.5)
    kept: list[int] = []
    span = x.new_zeros(0, x.shape[1])
    for j in share.argsort(descending=True, stable=True).tolist():
        if len(kept) == x.shape[1] or share[j] <= 0:
            break
        new = normals[j] - (normals[j] @ span.T) @ span
        size = torch.linalg.vector_norm(new)
        if size > _NEW:
            kept.append(j)
            span = torch.cat([span, new[None] / size])
    away = x @ normals[kept].T - places[kept]
    return torch.where(away > thick[kept], away, 0.0)


def _search(x: Tensor, noise: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Normals (s, r) and places (s,) of hyperplanes ``x @ normal = place`` near to many rows."""
    rows = torch.randint(len(x), (_STARTS,), generator=generator)
    normals, places = [], []
    low, high = np.log(_QUANTILES)
    for own in torch.split(rows, _BLOCK_STARTS):
        w = torch.nn.functional.normalize(x[own], dim=1)
        drawn = torch.rand(2, len(own), generator=generator)
        quantile = torch.exp(low + (high - low) * drawn[0])
        width = _WIDTHS[0] + (_WIDTHS[1] - _WIDTHS[0]) * drawn[1]
        y = x @ w.T
        t = y.sort(0).values[(quantile * (len(x) - 1)).long(), torch.arange(len(own))]
        for _ in range(_ROUNDS):
            least = _NARROWEST * (w.square() @ noise).sqrt()
            weight = torch.exp(-0.5 * ((y - t) / torch.maximum(width, least)).square())
            weight /= weight.sum(0).clamp(min=1e-12)
            w, t = _nearest(x, weight, w)
            y = x @ w.T
            width = _NARROWING * width
        normals.append(w)
        places.append(t)
    return torch.cat(normals), torch.cat(places)


def _nearest(x: Tensor, weight: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """The hyperplanes nearest to rows (n, r) of weights (n, s), from normals (s, r) near to them.

    One step of inverse iteration by conjugate gradients, which never builds the s covariances.
    """
    middle = weight.T @ x

    def spread(v: Tensor) -> Tensor:
        y = weight * (x @ v.T - (middle * v).sum(1))
        return y.T @ x - middle * y.sum(0)[:, None]

    v = torch.zeros_like(w)
    left, step = w.clone(), w.clone()
    size = left.square().sum(1)
    for _ in range(_SOLVER_STEPS):
        moved = spread(step)
        length = size / (step * moved).sum(1).clamp(min=1e-20)
        v += length[:, None] * step
        left -= length[:, None] * moved
        new = left.square().sum(1)
        step = left + (new / size.clamp(min=1e-20))[:, None] * step
        size = new
    w = torch.nn.functional.normalize(v, dim=1)
    return w, (middle * w).sum(1)

"""Facets of the data: hyperplanes on which many rows lie because one concept is inactive there.

Where a level has no more concepts than dimensions, a code is a linear function of the row, and the
rows without a concept lie on a hyperplane that bounds all others: a facet of the cone they
fill (Ge and Zou 2015, arXiv:1507.02189). A facet is found by itself, whatever else is active in its
rows. So facets show concepts that a dictionary, which wants few of them in a row, merges: those
that are active in half of the rows or more.

The search is robust regression: from many starts, the hyperplane that is nearest to the rows that
are near to it, with ever narrower weights (Welsch's, as graduated by Blake and Zisserman 1987).
"""

from __future__ import annotations

from typing import NamedTuple

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
# Rows beyond a facet, as a share of those on it: noise brings one in 700 there.
_BEYOND = 0.01
# Where a code is inactive that no facet was found for: at this quantile of what it may be.
_LOWEST = 0.01
# A facet is new if its normal is this far from the span of those before it.
_NEW = 0.2


def facet_codes(x: Tensor, noise: Tensor, seed: int) -> Tensor:
    """Codes (n, r) of white rows (n, r) by the facets on which most of them lie; (n, 0) if on none.

    A code is how far a row is from the facet, 0 where it is on it. Facets are as thick as the
    noise, whose variance along every coordinate is ``noise`` (r,); none is a combination of the
    others. Codes for which no facet was found come last, and are rough.

    Concepts that are seldom inactive draw few starts. So the search is repeated, from rows without
    much of what the facets found before hold, as long as it finds more.
    """
    generator = torch.Generator().manual_seed(seed)
    some = x[torch.randperm(len(x), generator=generator)[:_ROWS]]
    d = x.shape[1]
    found = _Facets.of(some, noise, x.new_zeros(0, d), x.new_zeros(0))
    kept: list[int] = []
    while len(kept) < d:
        known = torch.linalg.qr(found.normals[kept].T).Q.T
        found = found.joined(_search(some, noise, known, generator))
        before, kept = len(kept), found.bounding()
        if len(kept) == before:
            break
    away = x @ found.normals[kept].T - found.places[kept]
    thick = _THICK * _along(found.normals[kept], noise)
    codes = torch.where(away > thick, away, 0.0)
    return torch.cat([codes, _rest(x, noise, codes)], 1) if 0 < len(kept) < d else codes


def _rest(x: Tensor, noise: Tensor, codes: Tensor) -> Tensor:
    """Further codes (n, r - f) that, with codes (n, f), explain rows (n, r) as linear functions.

    What a regression on the codes leaves of a row lies in the span of the directions that go with
    the codes that are missing. If one is missing, that is its direction; else any axes of the span
    will do to begin with.
    """
    missing = x.shape[1] - codes.shape[1]
    design = torch.cat([codes, torch.ones(len(codes), 1)], 1).double()
    solution = torch.linalg.lstsq(design, x.double()).solution
    left = x - design @ solution
    axes = torch.linalg.eigh(left.T @ left).eigenvectors[:, x.shape[1] - missing :].T
    reader = torch.linalg.pinv(torch.cat([solution[:-1], axes]))[:, -missing:]
    read = (x - solution[-1]) @ reader
    thick = _THICK * _along(reader.T, noise.double())
    # More rows are at the end where the concept is inactive.
    ends = torch.stack(
        [(end - end.quantile(_LOWEST, dim=0) < thick).sum(0) for end in (read, -read)]
    )
    read = torch.where(ends[0] >= ends[1], read, -read)
    return (read - read.quantile(_LOWEST, dim=0)).clamp(min=0).float()


class _Facets(NamedTuple):
    """Hyperplanes ``x @ normal = place``, most rows above them: normals (s, r) and places (s,).

    Shares (s,) of the rows: ``on`` a facet, ``beyond`` it, and how many more are on it than beyond
    it and than would be in any such slice of a normal cloud, the ``excess``.
    """

    normals: Tensor
    places: Tensor
    on: Tensor
    beyond: Tensor
    excess: Tensor

    @classmethod
    def of(cls, x: Tensor, noise: Tensor, normals: Tensor, places: Tensor) -> _Facets:
        away = x @ normals.T - places
        thick = _THICK * _along(normals, noise)
        above, below = ((sign * away > thick).float().mean(0) for sign in (1, -1))
        side = torch.where(above >= below, 1.0, -1.0)
        on, beyond = 1 - above - below, torch.minimum(above, below)
        excess = on - beyond - torch.erf(thick / 2**0.5)
        return cls(normals * side[:, None], places * side, on, beyond, excess)

    def joined(self, others: _Facets) -> _Facets:
        return _Facets(*(torch.cat(pair) for pair in zip(self, others, strict=True)))

    def bounding(self) -> list[int]:
        """Facets with next to no rows beyond, by excess, none in the span of those before it."""
        allowed = (self.beyond < _BEYOND * self.on) & (self.excess > 0)
        d = self.normals.shape[1]
        chosen: list[int] = []
        span = self.normals[:0]
        for j in self.excess.argsort(descending=True, stable=True).tolist():
            if len(chosen) == d:
                break
            if not allowed[j]:
                continue
            new = self.normals[j] - (self.normals[j] @ span.T) @ span
            size = torch.linalg.vector_norm(new)
            if size > _NEW:
                chosen.append(j)
                span = torch.cat([span, new[None] / size])
        return chosen


def _along(normals: Tensor, noise: Tensor) -> Tensor:
    """Standard deviation (s,) along normals (s, r) of noise of variances (r,)."""
    return (normals.square() @ noise).sqrt()


def _search(x: Tensor, noise: Tensor, known: Tensor, generator: torch.Generator) -> _Facets:
    """Hyperplanes near to many rows (n, r), from starts away from orthonormal vectors (f, r)."""
    rows = torch.randint(len(x), (_STARTS,), generator=generator)
    normals, places = [], []
    low, high = np.log(_QUANTILES)
    for own in torch.split(rows, _BLOCK_STARTS):
        drawn = torch.rand(3, len(own), generator=generator)
        w = x[own] - (1 - drawn[2][:, None]) * (x[own] @ known.T) @ known
        w = torch.nn.functional.normalize(w, dim=1)
        quantile = torch.exp(low + (high - low) * drawn[0])
        width = _WIDTHS[0] + (_WIDTHS[1] - _WIDTHS[0]) * drawn[1]
        y = x @ w.T
        t = y.sort(0).values[(quantile * (len(x) - 1)).long(), torch.arange(len(own))]
        for _ in range(_ROUNDS):
            least = _NARROWEST * _along(w, noise)
            weight = torch.exp(-0.5 * ((y - t) / torch.maximum(width, least)).square())
            weight /= weight.sum(0).clamp(min=1e-12)
            w, t = _nearest(x, weight, w)
            y = x @ w.T
            width = _NARROWING * width
        normals.append(w)
        places.append(t)
    return _Facets.of(x, noise, torch.cat(normals), torch.cat(places))


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

"""What concepts of a level add to a row beyond their sum: terms in products of two codes.

Where activations are not a linear function of the codes – they bend as one grows, or saturate where
two meet – a sum of directions is made to fit by further concepts, each active just where others
are strong. They are no concepts: given the others they say nothing new. A term in the product of
two codes, or in the square of one, says the same at the description length of its direction.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Rows in which two codes must meet for their product to be looked at, and how many are.
_LEAST_MEETINGS = 30
_MOST_PAIRS = 512
# A product that others give to this accuracy is not looked at.
_DISTINCT = 1e-3


class Interactions(NamedTuple):
    """Terms in products of the codes ``first`` and ``second`` (t,), along ``directions`` (t, d)."""

    first: Tensor
    second: Tensor
    directions: Tensor

    def __call__(self, z: Tensor) -> Tensor:
        """What codes (n, c) add beyond their sum, (n, d)."""
        return self.products(z) @ self.directions

    def products(self, z: Tensor) -> Tensor:
        """Products (n, t) of codes (n, c)."""
        return products(z, self.first, self.second)

    def along(self, directions: Tensor, lengths: Tensor) -> Interactions:
        """The same terms along (t, d), when every code (c,) is ``lengths`` times what it was."""
        size = lengths[self.first] * lengths[self.second]
        return self._replace(directions=directions / size[:, None])

    def keep(self, kept: Tensor) -> Interactions:
        """The terms of some concepts, (k,) ascending, only."""
        own = torch.isin(self.first, kept) & torch.isin(self.second, kept)
        first, second = (torch.searchsorted(kept, side[own]) for side in (self.first, self.second))
        return Interactions(first, second, self.directions[own])


def products(z: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Products (n, t) of pairs of codes (n, c)."""
    return z[:, first] * z[:, second]


def needed_pairs(
    z: Tensor, x: Tensor, noise: Tensor, description_length: float
) -> tuple[Tensor, Tensor]:
    """Pairs of codes (n, c) whose terms explain rows (n, d) beside the codes, (t,) each.

    Chosen one by one, the one first that raises the log probability of the rows most, as long as it
    does by more than ``description_length``. ``noise`` is the variance of each row, (n,) or (1,).
    """
    first, second = _meeting(z)
    if not len(first):
        return first, second
    weight = noise.rsqrt()[:, None]
    design = torch.cat([z, torch.ones(len(z), 1)], 1) * weight
    terms = products(z, first, second) * weight
    size = torch.linalg.vector_norm(terms, dim=0)
    terms = terms / size
    gram = (design.T @ design).double()
    gram += 1e-6 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    shared = (design.T @ terms).double()
    target = x * weight
    solved = torch.linalg.solve(gram, torch.cat([shared, (design.T @ target).double()], 1))
    own, wanted = solved[:, : len(first)], solved[:, len(first) :]
    left = (terms.T @ terms).double() - shared.T @ own
    pull = (terms.T @ target).double() - shared.T @ wanted
    chosen = torch.tensor(_chosen(left, pull, description_length), dtype=torch.int64)
    return first[chosen], second[chosen]


def _chosen(left: Tensor, pull: Tensor, description_length: float) -> list[int]:
    """Which terms to take, given what the codes leave of their products (m, m) and (m, d)."""
    chosen: list[int] = []
    while len(chosen) < len(pull):
        own = left.diagonal()
        gain = torch.where(own > _DISTINCT, pull.square().sum(1) / (2 * own), 0.0)
        gain[chosen] = 0.0
        best = int(gain.argmax())
        if gain[best] <= description_length:
            break
        chosen.append(best)
        column = left[:, best] / own[best]
        pull = pull - column[:, None] * pull[best]
        left = left - column[:, None] * left[best]
    return sorted(chosen)


def _meeting(z: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs of codes, and codes with themselves, that are active together in most rows."""
    active = (z > 0).float()
    meetings = active.T @ active
    first, second = torch.triu_indices(z.shape[1], z.shape[1])
    often = meetings[first, second]
    kept = often.argsort(descending=True, stable=True)[:_MOST_PAIRS]
    kept = kept[often[kept] >= _LEAST_MEETINGS].sort().values
    return first[kept], second[kept]

"""One level of a hierarchical selection model: its concepts, and their fit to given codes.

Directions and bias are fitted by least squares, the noise by what is left, the prior by the
frequencies – of each concept by itself or, above a level, of each pattern of its parents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compute.graphs import EdgeRecovery, recover_edges
from compute.selection.coding import Slab, posterior_codes
from compute.selection.gates import FloatArray, Gates, fit_gates

# Refinement starts as if this share of the variance were noise, and as if concepts were active in
# one row of twelve: both are then estimated.
_FIRST_NOISE = 0.1
_FIRST_LOG_ODDS = -2.5
_LEAST_NOISE = 1e-6
# Concepts active in fewer rows of the sample than this keep their directions.
LEAST_ACTIVE = 5
_BLOCK_ROWS = 8192


class Likelihood(NamedTuple):
    """Codes (n, c), and the log probability of rows and codes: one number."""

    codes: Tensor
    total: float


@dataclass
class Level:
    """Concepts of one level.

    Attributes
    ----------
    directions : (c, d) unit rows
    bias : (d,) the activation of a row without active concepts
    noise : variance per coordinate of what the concepts leave
    slab : prior of every concept by itself
    gates : prior of every concept given the level below, if there is one
    """

    directions: Tensor
    bias: Tensor
    noise: float
    slab: Slab
    gates: Gates | None = None

    @classmethod
    def start(cls, x: Tensor, directions: Tensor, bias: Tensor) -> Level:
        """A level before refinement on rows ``x`` (n, d)."""
        power = float(x.var(0).sum())
        c = len(directions)
        slab = Slab(
            torch.full((c,), _FIRST_LOG_ODDS),
            torch.full((c,), 0.5 * power**0.5),
            torch.full((c,), 0.25 * power),
        )
        noise = max(_FIRST_NOISE * power / x.shape[1], _LEAST_NOISE * max(power, 1e-12))
        return cls(directions.clone(), bias.clone(), noise, slab)

    @property
    def n_concepts(self) -> int:
        """Number of concepts."""
        return len(self.directions)

    def prior(self, below: FloatArray | None) -> Slab:
        """The prior of rows whose codes of the level below are ``below`` (n, p), if known."""
        if self.gates is None or below is None:
            return self.slab
        return self.gates.prior(below, self.slab.variance)

    def encode(self, x: Tensor, below: FloatArray | None = None) -> FloatArray:
        """Codes (n, c) of rows (n, d), by blocks."""
        found = [np.zeros((0, self.n_concepts), np.float32)]
        for start in range(0, len(x), _BLOCK_ROWS):
            rows = slice(start, start + _BLOCK_ROWS)
            prior = self.prior(None if below is None else below[rows])
            posterior = posterior_codes(x[rows] - self.bias, self.directions, self.noise, prior)
            found.append(posterior.codes.numpy())
        return np.concatenate(found)

    def keep(self, kept: NDArray[np.int64]) -> None:
        """Keep some concepts only; gates have to be fitted anew."""
        index = torch.from_numpy(kept)
        self.directions = self.directions[index]
        self.slab = Slab(*(field[index] for field in self.slab))
        self.gates = None

    def likelihood(self, x: Tensor, below: FloatArray | None, start: Tensor) -> Likelihood:
        """Codes of rows (n, d) from a start (n, c), and the log probability of both together."""
        prior = self.prior(below)
        centred = x - self.bias
        codes, score = posterior_codes(centred, self.directions, self.noise, prior, start)
        total = float(score.double().sum()) - float(inactive(prior, codes).sum())
        total -= float(centred.double().square().sum()) / (2 * self.noise)
        total -= 0.5 * x.numel() * float(np.log(2 * np.pi * self.noise))
        return Likelihood(codes, total)

    def fit_directions(self, x: Tensor, z: Tensor) -> Tensor:
        """Least squares for directions and bias; returns the codes that go with unit directions."""
        n, c = z.shape
        design = torch.cat([z, torch.ones(n, 1)], 1).double()
        ridge = 1e-3 * torch.eye(c + 1, dtype=torch.float64)
        solution = torch.linalg.solve(design.T @ design + ridge, design.T @ x.double()).float()
        active = (z > 0).sum(0)
        norms = torch.linalg.vector_norm(solution[:c], dim=1)
        seen = (active >= LEAST_ACTIVE) & (norms > 1e-6)
        unit = solution[:c] / norms.clamp(min=1e-12)[:, None]
        self.directions = torch.where(seen[:, None], unit, self.directions)
        self.bias = solution[c]
        z = z * torch.where(seen, norms, 1.0)
        left = x - self.bias - z @ self.directions
        free = max(left.numel() - float(active.sum()) - c * x.shape[1], 0.1 * left.numel())
        power = float(x.var(0).sum())
        self.noise = max(float(left.square().sum()) / free, _LEAST_NOISE * max(power, 1e-12))
        return z

    def fit_prior(self, z: Tensor, below: FloatArray | None) -> None:
        """The prior by the frequencies of codes (n, c), given codes (n, p) of the level below."""
        codes = z.numpy()
        active = codes > 0
        share = (active.sum(0) + 0.5) / (len(codes) + 1.0)
        means = codes.sum(0) / np.maximum(active.sum(0), 1)
        nobody = [np.empty(0, np.int64)] * self.n_concepts
        parents = nobody if below is None else strongest_parents(recover_edges(below, codes))
        gates, variance = fit_gates(codes[:, :0] if below is None else below, codes, parents)
        self.gates = None if below is None else gates
        # A concept that was never active has shown no strength: it keeps the one it was given.
        mean = np.where(active.any(0), means, self.slab.mean.numpy()).astype(np.float32)
        spread = np.where(active.any(0), variance, self.slab.variance.numpy()).astype(np.float32)
        log_odds = np.log(share / (1.0 - share)).astype(np.float32)
        self.slab = Slab(*(torch.from_numpy(field) for field in (log_odds, mean, spread)))


def inactive(prior: Slab, codes: Tensor) -> Tensor:
    """Per concept (c,), what a prior pays over all rows of codes (n, c) to say ``not active``.

    Posteriors are against no active concept, so this is what they leave out.
    """
    log_odds = prior.log_odds.expand(codes.shape)
    return torch.nn.functional.softplus(log_odds.double()).sum(0)


def strongest_parents(edges: EdgeRecovery) -> list[NDArray[np.int64]]:
    """The parents of every whole, strongest first."""
    order = np.lexsort((-edges.edge_strength, edges.whole))
    cuts = np.cumsum(np.bincount(edges.whole, minlength=edges.shape[1]))[:-1]
    return [np.asarray(own) for own in np.split(edges.part[order], cuts)]

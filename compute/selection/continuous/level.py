"""One level of a hierarchical selection model: its concepts, and their fit to given codes.

Directions and bias are fitted by least squares, the noise by what is left, the prior by the
frequencies – of each concept by itself or, above a level, of each pattern of its parents.

The search for a row's codes climbs to a maximum near to where it starts. From no active concept it
ends, for some rows in a hundred, far below the best one where noise is small and directions are
alike; from a linear reading of the row it rarely does. Both are tried, and the better is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compute.graphs import EdgeRecovery, recover_edges
from compute.selection.continuous.coding import (
    Posterior,
    SpikeAndSlab,
    SufficientStatistics,
    better,
)
from compute.selection.continuous.interactions import Interactions, needed_pairs
from compute.selection.continuous.logic_gates import (
    FloatArray,
    LogicGates,
    fit_logic_gates,
    strength_variance,
)
from compute.selection.continuous.noise import Noise, fit_noise

# Refinement starts as if this share of the variance were noise, and as if concepts were active in
# one row of twelve: both are then estimated.
_FIRST_NOISE = 0.1
_FIRST_LOG_ODDS = -2.5
_LEAST_NOISE = 1e-6
# A reading starts as active where it exceeds this share of the concept's mean.
_READ = 0.5
# Concepts active in fewer rows of the sample than this keep their directions.
LEAST_ACTIVE = 5
_BLOCK_ROWS = 8192


class Likelihood(NamedTuple):
    """Codes (n, c), and the log probability of rows and codes: one number."""

    codes: Tensor
    total: float


@dataclass
class SelectionLevel:
    """Concepts of one level.

    Attributes
    ----------
    directions : (c, d) unit rows
    bias : (d,) the activation of a row without active concepts
    noise : what the concepts leave
    marginal_prior : of every concept by itself
    gates : prior of every concept given the level below, if there is one
    terms : what codes add beyond their sum, if they do
    reading : (d + 1, c) least-squares map from rows, and a constant, to codes
    """

    directions: Tensor
    bias: Tensor
    noise: Noise
    marginal_prior: SpikeAndSlab
    gates: LogicGates | None = None
    terms: Interactions | None = None
    reading: Tensor | None = None

    @classmethod
    def start(
        cls, x: Tensor, directions: Tensor, bias: Tensor, codes: Tensor | None = None
    ) -> SelectionLevel:
        """A level before refinement on rows ``x`` (n, d), whose codes may be known roughly."""
        power = float(x.var(0).sum())
        c = len(directions)
        marginal_prior = SpikeAndSlab(
            torch.full((c,), _FIRST_LOG_ODDS),
            torch.full((c,), 0.5 * power**0.5),
            torch.full((c,), 0.25 * power),
        )
        noise = max(_FIRST_NOISE * power / x.shape[1], _LEAST_NOISE * max(power, 1e-12))
        reading = None if codes is None else least_squares(x, codes)
        return cls(directions.clone(), bias.clone(), Noise(noise), marginal_prior, reading=reading)

    @property
    def n_concepts(self) -> int:
        """Number of concepts."""
        return len(self.directions)

    def prior(self, below: FloatArray | None) -> SpikeAndSlab:
        """The prior of rows whose codes of the level below are ``below`` (n, p), if known."""
        if self.gates is None or below is None:
            return self.marginal_prior
        return self.gates.prior(below, self.marginal_prior.variance)

    def encode(self, x: Tensor, below: FloatArray | None = None) -> FloatArray:
        """Codes (n, c) of rows (n, d), by blocks."""
        found = [np.zeros((0, self.n_concepts), np.float32)]
        for start in range(0, len(x), _BLOCK_ROWS):
            rows = slice(start, start + _BLOCK_ROWS)
            prior = self.prior(None if below is None else below[rows])
            found.append(self.infer(x[rows], prior).codes.numpy())
        return np.concatenate(found)

    def statistics(self, x: Tensor) -> SufficientStatistics:
        """Rows (n, d) as the search of their codes takes them."""
        centred = x - self.bias
        return SufficientStatistics.of(
            centred, self.directions, self.noise.rows(centred), self.terms
        )

    def infer(self, x: Tensor, prior: SpikeAndSlab, start: Tensor | None = None) -> Posterior:
        """The better codes of rows (n, d) found from ``start``, (n, c) or none, and a reading."""
        statistics = self.statistics(x)
        found = statistics.codes(prior, start)
        if self.reading is None:
            return found
        read = x @ self.reading[:-1] + self.reading[-1]
        read = torch.where(read > _READ * self.marginal_prior.mean, read, 0.0)
        return better(found, statistics.codes(prior, read))

    def keep(self, kept: NDArray[np.int64]) -> None:
        """Keep some concepts only."""
        index = torch.from_numpy(kept)
        self.directions = self.directions[index]
        self.marginal_prior = SpikeAndSlab(*(field[index] for field in self.marginal_prior))
        if self.gates is not None:
            self.gates = self.gates.keep(kept)
        if self.terms is not None:
            self.terms = self.terms.keep(index)
        if self.reading is not None:
            self.reading = self.reading[:, index]

    def likelihood(self, x: Tensor, below: FloatArray | None, start: Tensor) -> Likelihood:
        """Codes of rows (n, d) from a start (n, c), and the log probability of both together."""
        prior = self.prior(below)
        statistics = self.statistics(x)
        codes, log_posterior = statistics.codes(prior, start)
        total = float(log_posterior.double().sum()) - float(inactive(prior, codes).sum())
        noise = statistics.noise.double()
        total -= float(((x - self.bias).double().square().sum(1) / (2 * noise)).sum())
        total -= 0.5 * x.numel() * float((2 * np.pi * noise).log().mean())
        return Likelihood(codes, total)

    def fit_directions(self, x: Tensor, z: Tensor) -> Tensor:
        """Least squares for directions and bias; returns the codes that go with unit directions."""
        c = z.shape[1]
        noise = self.noise.rows(x - self.bias)
        features = z if self.terms is None else torch.cat([z, self.terms.products(z)], 1)
        weight = noise.mean() / noise if len(noise) > 1 else None
        solution = least_squares(features, x, weight=weight)
        active = (z > 0).sum(0)
        norms = torch.linalg.vector_norm(solution[:c], dim=1)
        seen = (active >= LEAST_ACTIVE) & (norms > 1e-6)
        unit = solution[:c] / norms.clamp(min=1e-12)[:, None]
        self.directions = torch.where(seen[:, None], unit, self.directions)
        self.bias = solution[-1]
        norms = torch.where(seen, norms, 1.0)
        z = z * norms
        left = x - self.bias - z @ self.directions
        taken = features.shape[1] * x.shape[1]
        if self.terms is not None:
            self.terms = self.terms.along(solution[c:-1], norms)
            left -= self.terms(z)
        free = max(left.numel() - float(active.sum()) - taken, 0.1 * left.numel())
        power = float(x.var(0).sum())
        least = _LEAST_NOISE * max(power, 1e-12)
        squares = left.square().mean(1) * (left.numel() / free)
        if self.terms is None:
            self.noise = Noise(max(float(squares.mean()), least))
        else:
            # Before it fits, a level would take for noise what it has no concepts for.
            self.noise = fit_noise(squares, (x - self.bias).square().mean(1), x.shape[1], least)
        return z

    def fit_terms(self, x: Tensor, z: Tensor, description_length: float) -> int:
        """Choose the terms that rows (n, d) need beside codes (n, c), for ``description_length``
        each.

        Their directions come with those of the concepts. Returns how many there are.
        """
        noise = self.noise.rows(x - self.bias)
        first, second = needed_pairs(z, x - self.bias, noise, description_length)
        self.terms = Interactions(first, second, x.new_zeros(len(first), x.shape[1]))
        return len(first)

    def fit_reading(self, x: Tensor, z: Tensor) -> None:
        """The map with which rows (n, d) are read as their codes (n, c)."""
        self.reading = least_squares(x, z)

    def fit_prior(self, z: Tensor, below: FloatArray | None, same_parents: bool = False) -> None:
        """The prior by the frequencies of codes (n, c), given codes (n, p) of the level below.

        Parents are recovered again, which takes longest, or left as they are.
        """
        codes = z.numpy()
        active = codes > 0
        share = (active.sum(0) + 0.5) / (len(codes) + 1.0)
        means = codes.sum(0) / np.maximum(active.sum(0), 1)
        if below is None:
            self.gates, variance = None, strength_variance(codes)
        else:
            if same_parents and self.gates is not None:
                parents = list(self.gates.parents)
            else:
                parents = strongest_parents(recover_edges(below, codes))
            self.gates, variance = fit_logic_gates(below, codes, parents)
        # A concept that was never active has shown no strength: it keeps the one it was given.
        mean = np.where(active.any(0), means, self.marginal_prior.mean.numpy()).astype(np.float32)
        spread = np.where(active.any(0), variance, self.marginal_prior.variance.numpy()).astype(
            np.float32
        )
        log_odds = np.log(share / (1.0 - share)).astype(np.float32)
        self.marginal_prior = SpikeAndSlab(
            *(torch.from_numpy(field) for field in (log_odds, mean, spread))
        )


def least_squares(
    x: Tensor, y: Tensor, ridge: float = 1e-3, weight: Tensor | None = None
) -> Tensor:
    """The map (a + 1, b), constant last, of ``x`` (n, a) to ``y`` (n, b); ``ridge`` adds to x'x.

    ``weight`` (n,) is what every row counts, the same if left out.
    """
    design = torch.cat([x.double(), torch.ones(len(x), 1, dtype=torch.float64)], 1)
    weighted = design if weight is None else design * weight[:, None].double()
    gram = weighted.T @ design + ridge * torch.eye(design.shape[1], dtype=torch.float64)
    solution: Tensor = torch.linalg.solve(gram, weighted.T @ y.double())
    return solution.float()


def inactive(prior: SpikeAndSlab, codes: Tensor) -> Tensor:
    """Per concept (c,), what the prior spends over all rows of codes (n, c) on ``not active``.

    Posteriors are against no active concept, so this is what they leave out.
    """
    log_odds = prior.log_odds.expand(codes.shape)
    return torch.nn.functional.softplus(log_odds.double()).sum(0)


def strongest_parents(edges: EdgeRecovery) -> list[NDArray[np.int64]]:
    """The parents of every whole, strongest first."""
    order = np.lexsort((-edges.edge_strength, edges.whole))
    cuts = np.cumsum(np.bincount(edges.whole, minlength=edges.shape[1]))[:-1]
    return [np.asarray(own) for own in np.split(edges.part[order], cuts)]

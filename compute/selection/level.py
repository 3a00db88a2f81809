"""One level of a hierarchical selection model: its concepts, and how they are refined.

Refinement alternates between the codes of a sample of rows, given everything else, and everything
else, given the codes: directions and bias by least squares, the noise by what is left, the prior
by the frequencies – of each concept by itself or, below a gate, of each pattern of its parents.
Between rounds, concepts that the data do not need are dropped: minimality in number.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from math import isclose

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compute.graphs import EdgeRecovery, recover_edges
from compute.selection.coding import Posterior, Slab, posterior_codes
from compute.selection.gates import FloatArray, Gates, fit_gates

# Refinement starts as if this share of the variance were noise, and as if concepts were active in
# one row of twelve: both are then estimated.
_FIRST_NOISE = 0.1
_FIRST_LOG_ODDS = -2.5
_LEAST_NOISE = 1e-6
# Concepts active in fewer rows of the sample than this keep their directions.
_LEAST_ACTIVE = 5
# Active rows on which dropping a concept is tried.
_TRIAL_ROWS = 256
_UNLIKE = 0.5
_BLOCK_ROWS = 8192


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

    def refine(
        self, x: Tensor, below: FloatArray | None, rounds: int, n_total: int, most: int
    ) -> None:
        """Refine on a sample ``x`` (n, d) of ``n_total`` rows, given ``below`` (n, p) if there is.

        A concept must save its description: half the logarithm of the number of rows for each of
        its numbers (Schwarz 1978), its direction, frequency, strength and spread. At the end there
        are ``most`` concepts or fewer.
        """
        price = 0.5 * (x.shape[1] + 3) * float(np.log(n_total)) * len(x) / n_total
        z: Tensor | None = None
        # What is left after the last drop is settled for one more round.
        last = max(rounds - 2, 0)
        for number in range(rounds):
            prior = self.prior(below)
            posterior = posterior_codes(x - self.bias, self.directions, self.noise, prior, z)
            z = posterior.codes
            if number % 3 == 2 or number == last:
                bound = most if number >= last else self.n_concepts
                z = self._drop_unneeded(x - self.bias, prior, posterior, price, bound)
            z = self._fit_directions(x, z)
            self._fit_prior(z, below if number > 0 else None)

    def keep(self, kept: NDArray[np.int64]) -> None:
        """Keep some concepts only; gates have to be fitted anew."""
        index = torch.from_numpy(kept)
        self.directions = self.directions[index]
        self.slab = Slab(*(field[index] for field in self.slab))
        self.gates = None

    def _fit_directions(self, x: Tensor, z: Tensor) -> Tensor:
        """Least squares for directions and bias; returns the codes that go with unit directions."""
        n, c = z.shape
        design = torch.cat([z, torch.ones(n, 1)], 1).double()
        ridge = 1e-3 * torch.eye(c + 1, dtype=torch.float64)
        solution = torch.linalg.solve(design.T @ design + ridge, design.T @ x.double()).float()
        active = (z > 0).sum(0)
        norms = torch.linalg.vector_norm(solution[:c], dim=1)
        seen = (active >= _LEAST_ACTIVE) & (norms > 1e-6)
        unit = solution[:c] / norms.clamp(min=1e-12)[:, None]
        self.directions = torch.where(seen[:, None], unit, self.directions)
        self.bias = solution[c]
        z = z * torch.where(seen, norms, 1.0)
        left = x - self.bias - z @ self.directions
        free = max(left.numel() - float(active.sum()) - c * x.shape[1], 0.1 * left.numel())
        power = float(x.var(0).sum())
        self.noise = max(float(left.square().sum()) / free, _LEAST_NOISE * max(power, 1e-12))
        return z

    def _fit_prior(self, z: Tensor, below: FloatArray | None) -> None:
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

    def _drop_unneeded(
        self, x: Tensor, prior: Slab, posterior: Posterior, price: float, most: int
    ) -> Tensor:
        """Drop concepts without which rows are explained as well, the least needed first.

        What a concept is needed for only grows as others go, so a loss that was measured earlier
        is a lower bound, and only the smallest has to be measured again.
        """
        z, score = posterior.codes.clone(), posterior.score.clone()
        log_odds = prior.log_odds.clone()
        pull = (x - z @ self.directions) @ self.directions.T + z / 2
        worth = (z * pull).sum(0) / self.noise
        likeness = self.directions @ self.directions.T
        likeness.fill_diagonal_(0.0)
        # Others can only stand in for a concept that is like them.
        unlike = (likeness.amax(1) <= _UNLIKE) & (worth > worth.median())

        def loss(j: int) -> float:
            active = (z[:, j] > 0).nonzero()[:, 0]
            if len(active) < _LEAST_ACTIVE:
                return 0.0
            some = active[:: max(1, len(active) // _TRIAL_ROWS)]
            trial = self._without(j, x, z, prior._replace(log_odds=log_odds), some)
            return float((score[some] - trial.score).sum()) * len(active) / len(some)

        queue = [(float(worth[j]) if unlike[j] else loss(j), j) for j in range(self.n_concepts)]
        heapify(queue)
        while len(queue) > 1:
            _, j = heappop(queue)
            now = loss(j)
            if now > queue[0][0] and not isclose(now, queue[0][0]):
                heappush(queue, (now, j))
                continue
            if now >= price and len(queue) + 1 <= most:
                heappush(queue, (now, j))
                break
            active = (z[:, j] > 0).nonzero()[:, 0]
            rest = self._without(j, x, z, prior._replace(log_odds=log_odds), active)
            z[active], score[active] = rest.codes, rest.score
            log_odds[..., j] = -torch.inf
        kept = np.sort(np.array([j for _, j in queue], dtype=np.int64))
        self.keep(kept)
        return z[:, torch.from_numpy(kept)]

    def _without(self, j: int, x: Tensor, z: Tensor, prior: Slab, rows: Tensor) -> Posterior:
        start = z[rows].clone()
        start[:, j] = 0.0
        return posterior_codes(
            x[rows], self.directions, self.noise, prior.rows(rows).without(j), start
        )


def strongest_parents(edges: EdgeRecovery) -> list[NDArray[np.int64]]:
    """The parents of every whole, strongest first."""
    order = np.lexsort((-edges.edge_strength, edges.whole))
    cuts = np.cumsum(np.bincount(edges.whole, minlength=edges.shape[1]))[:-1]
    return [np.asarray(own) for own in np.split(edges.part[order], cuts)]

"""Codes of rows: which of their candidates are active, and how strongly.

All is in the metric of the noise: rows are divided by its standard deviation, directions have unit
length there, so that a code counts standard deviations of noise. A code that turns on pays its log
odds and the Occam factor of its slab, ``-log(1 + variance) / 2`` (the evidence ratio of a normal
slab), which keeps out what noise alone would fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from compute.dictionaries.kernels import affine, largest
from compute.selection.continuous.ascent_on_candidates import ascend_rows
from compute.selection.continuous.coding import SpikeAndSlab

# The strongest candidates of a row that are searched: several times what is active in one.
CANDIDATES = 64
# A row is settled when no change of one code gains more.
_TOLERANCE = 1e-2
# Changes of a row, and changes in which others stand in for a concept that is taken out.
_STEPS = 256
_TRIAL_STEPS = 24
# Most concepts whose products with one another are kept.
MOST_PRODUCTS = 4096


@dataclass(frozen=True, slots=True)
class Codes:
    """Codes of n rows: ``values`` (n, C) of the concepts ``index`` (n, C), zero if not active.

    ``score`` (n,) is the log posterior against that of no active concept. ``losses`` (K,) sums over
    rows how much it falls without a concept, others standing in for it; none if not asked for.
    """

    index: Tensor
    values: Tensor
    score: Tensor
    losses: Tensor | None = None

    def dense(self, n_concepts: int) -> Tensor:
        """The codes (n, n_concepts)."""
        out = self.values.new_zeros(len(self.values), n_concepts)
        return out.scatter_(1, self.index, self.values)


def search(
    rows: Tensor,
    directions: Tensor,
    prior: SpikeAndSlab,
    losses: bool = False,
    compiled: bool = True,
) -> Codes:
    """The codes of rows (n, d) that a greedy coordinate ascent finds, one change at a time.

    Parameters
    ----------
    rows : (n, d) centred, in the metric of the noise
    directions : (K, d) unit rows
    prior : by concept, or by row and concept
    losses : whether to tell what each concept is worth
    compiled : False takes the eager path, which is the oracle, on a CPU too
    """
    n_concepts = len(directions)
    if n_concepts == 0 or len(rows) == 0:
        none = rows.new_zeros(len(rows), 0)
        score = rows.new_zeros(len(rows), dtype=torch.float64)
        return Codes(none.long(), none, score, score.new_zeros(n_concepts) if losses else None)
    pull = affine(rows.contiguous(), directions.contiguous())
    log_odds, mean = (field.reshape(-1, n_concepts) for field in prior[:2])
    if n_concepts > 2 * CANDIDATES:
        total = prior.variance + 1
        gain = torch.addcmul(mean / total, pull, 0.5 - 0.5 / total).mul_(pull)
        gain += log_odds - 0.5 * total.log() - mean.square() / (2 * total)
        index = largest(gain.masked_fill_(pull <= 0, -torch.inf), CANDIDATES).indices
        pull = pull.gather(1, index)
    else:
        index = torch.arange(n_concepts, device=rows.device).expand(len(rows), -1)
    if rows.device.type == "cpu" and compiled:
        return _compiled(pull, index.contiguous(), directions, prior, losses)
    return _eager(pull, index, directions, prior, losses)


def _compiled(
    pull: Tensor, index: Tensor, directions: Tensor, prior: SpikeAndSlab, losses: bool
) -> Codes:
    n_concepts = len(directions)
    few = n_concepts <= MOST_PRODUCTS
    gram = directions @ directions.T if few else directions.new_zeros(0, 0)
    values = torch.empty_like(pull)
    score = pull.new_empty(len(pull), dtype=torch.float64)
    lost = score.new_zeros(n_concepts if losses else 0)
    log_odds, mean = (field.reshape(-1, n_concepts).contiguous() for field in prior[:2])
    ascend_rows(
        *(t.numpy() for t in (pull.contiguous(), index, gram, directions.contiguous(), log_odds)),
        *(t.numpy() for t in (mean, prior.variance.contiguous(), values, score, lost)),
        _TOLERANCE,
        _STEPS,
        _TRIAL_STEPS,
    )
    return Codes(index, values, score, lost if losses else None)


class _State(NamedTuple):
    left: Tensor
    z: Tensor
    held: Tensor


@dataclass(frozen=True, slots=True)
class _Eager:
    """All that a search among candidates needs, as (n, C) tensors."""

    index: Tensor
    directions: Tensor
    mean: Tensor
    variance: Tensor
    base: Tensor

    def ascend(self, state: _State, steps: int, banned: Tensor | None = None) -> Tensor:
        """Every row makes its best change until none has one; the gains (n,)."""
        left, z, held = state
        spread = self.variance + 1
        curve, slope = 0.5 - 0.5 / spread, self.mean / spread
        gained = torch.zeros(len(z), dtype=torch.float64, device=z.device)
        every = torch.arange(len(z), device=z.device)
        for _ in range(steps):
            pull = left + z
            on = (curve * pull + slope) * pull + self.base
            on = torch.where((pull > 0) & (on > 0), on, 0.0)
            if banned is not None:
                on = on.masked_fill(banned, 0.0)
            gain = on - (held + z * pull - 0.5 * z * z)
            most, best = gain.max(1)
            moving = most > _TOLERANCE
            if not bool(moving.any()):
                break
            gained += torch.where(moving, most, 0.0).double()
            rows, c = every[moving], best[moving]
            at = (rows, c)
            new = (pull[at] * self.variance[at] + self.mean[at]) / spread[at]
            new = torch.where(on[at] > 0, new.clamp(min=0), 0.0)
            own = self.directions[self.index[at]]
            others = self.directions[self.index[rows]]
            left[rows] -= (new - z[at])[:, None] * (others @ own[:, :, None])[..., 0]
            away = new - self.mean[at]
            worth = self.base[at] + self.mean[at].square() / (2 * spread[at])
            worth = worth - away.square() / (2 * self.variance[at])
            z[at], held[at] = new, torch.where(new > 0, worth, 0.0)
        return gained


def _eager(
    pull: Tensor, index: Tensor, directions: Tensor, prior: SpikeAndSlab, losses: bool
) -> Codes:
    n_concepts = len(directions)

    def of_candidates(field: Tensor) -> Tensor:
        return field.reshape(-1, n_concepts).expand(len(pull), -1).gather(1, index)

    log_odds, mean, variance = (of_candidates(field) for field in prior)
    spread = variance + 1
    base = log_odds - 0.5 * spread.log() - mean.square() / (2 * spread)
    among = _Eager(index, directions, mean, variance, base)
    state = _State(pull.clone(), torch.zeros_like(pull), torch.zeros_like(pull))
    score = among.ascend(state, _STEPS)
    if not losses:
        return Codes(index, state.z, score)
    lost = score.new_zeros(n_concepts)
    for c in range(index.shape[1]):
        rows = (state.z[:, c] > 0).nonzero()[:, 0]
        if len(rows) == 0:
            continue
        some = _Eager(index[rows], directions, mean[rows], variance[rows], base[rows])
        left, z, held = (field[rows] for field in state)
        own = z[:, c].clone()
        worth = held[:, c] + own * (left[:, c] + own) - 0.5 * own.square()
        products = directions[some.index] @ directions[some.index[:, c]][:, :, None]
        left = left + own[:, None] * products[..., 0]
        z[:, c], held[:, c] = 0.0, 0.0
        banned = torch.zeros_like(z, dtype=torch.bool)
        banned[:, c] = True
        worth = worth.double() - some.ascend(_State(left, z, held), _TRIAL_STEPS, banned)
        lost.index_add_(0, some.index[:, c], worth)
    return Codes(index, state.z, score, lost)

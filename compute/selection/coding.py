"""Codes of rows under a spike-and-slab prior: which concepts are active, and how strongly.

Activations are ``x = b + z W + noise`` with unit directions ``W``, isotropic noise and codes ``z``
that are zero with some probability and otherwise normal, kept to positive values. The prior may
differ from row to row, which is how one level informs the next.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# A row is settled when no change of one code raises its log posterior by more than this.
_TOLERANCE = 1e-2


class Slab(NamedTuple):
    """Prior of the codes of c concepts.

    ``log_odds`` of being active and ``mean`` when active are (c,) or, by row, (n, c); ``variance``
    when active is (c,).
    """

    log_odds: Tensor
    mean: Tensor
    variance: Tensor

    def rows(self, index: Tensor) -> Slab:
        """The prior of some rows."""
        if self.log_odds.ndim == 1:
            return self
        return Slab(self.log_odds[index], self.mean[index], self.variance)

    def without(self, concept: int) -> Slab:
        """The prior if one concept could never be active."""
        log_odds = self.log_odds.clone()
        log_odds[..., concept] = -torch.inf
        return self._replace(log_odds=log_odds)


class Posterior(NamedTuple):
    """Codes (n, c) and, per row (n,), their log posterior against that of no active concept."""

    codes: Tensor
    score: Tensor


def posterior_codes(
    x: Tensor,
    directions: Tensor,
    noise: float,
    prior: Slab,
    start: Tensor | None = None,
    most_steps: int | None = None,
) -> Posterior:
    """Maximise the log posterior of every row by greedy coordinate ascent.

    In each step every row changes the one code that raises its log posterior most: on, off, or to
    another value. A code that turns on pays the evidence ratio of its slab, whose Occam factor
    ``-log(1 + variance / noise) / 2`` keeps out what noise alone would fit. Where no code would
    rather turn on or off, all active codes of the row move together to the values that are best
    for them: one by one, codes of like directions would take hundreds of steps.

    Parameters
    ----------
    x : (n, d), centred on the bias
    directions : (c, d) unit rows
    noise : variance of the noise per coordinate
    prior : of the codes
    start : (n, c) codes to start from; none active if left out
    most_steps : changes per row after which to stop; left out, when no change helps any more
    """
    n, c = len(x), len(directions)
    gram = directions @ directions.T
    residual = x @ directions.T
    z = torch.zeros_like(residual) if start is None else start.clone()
    if start is not None:
        residual -= z @ gram
    total = noise + prior.variance
    curve = 0.5 / noise - 0.5 / total
    mean = prior.mean.expand(n, c)
    entry = (prior.log_odds - 0.5 * torch.log1p(prior.variance / noise)).expand(n, c)
    slope, base = mean / total, entry - mean.square() / (2 * total)
    held = _held(z, mean, entry, prior.variance, noise)
    codes, score = torch.zeros_like(z), torch.zeros(n)
    index = torch.arange(n)
    for _ in range(most_steps or 8 * c + 32):
        pull = residual + z
        on = (curve * pull + slope).mul_(pull).add_(base)
        on.mul_(pull > 0).nan_to_num_(neginf=0.0, nan=0.0).clamp_(min=0)
        now = z * pull / noise + held
        gain, j = (on - now).max(1)
        go = gain > _TOLERANCE
        rows = torch.arange(len(z))
        value = (pull[rows, j] * prior.variance[j] + mean[rows, j] * noise) / total[j]
        new = torch.where(on[rows, j] > 0, value, 0.0).clamp_(min=0)
        new = torch.where(go, new, z[rows, j])
        together = (go & (on[rows, j] > 0) & (z[rows, j] > 0)).nonzero()[:, 0]
        if len(together):
            best, settled = _best_values(
                z[together], residual[together], mean[together], gram, prior.variance, noise
            )
            together = together[settled]
            residual[together] -= (best[settled] - z[together]) @ gram
            z[together] = best[settled]
            held[together] = _held(
                z[together], mean[together], entry[together], prior.variance, noise
            )
            new[together] = z[together, j[together]]
        residual -= (new - z[rows, j])[:, None] * gram[j]
        z[rows, j] = new
        held[rows, j] = _held(new, mean[rows, j], entry[rows, j], prior.variance[j], noise)
        left = int(go.sum())
        if left == 0:
            break
        if left < 0.7 * len(z):
            # What is settled takes no part in the next steps.
            codes[index[~go]] = z[~go]
            index, z, residual, held = index[go], z[go], residual[go], held[go]
            mean, entry, slope, base = mean[go], entry[go], slope[go], base[go]
    codes[index] = z
    log_odds = prior.log_odds - 0.5 * torch.log1p(prior.variance / noise)
    slab = _held(codes, prior.mean.expand(n, c), log_odds.expand(n, c), prior.variance, noise)
    explained = codes @ directions
    # The quadratic terms of ``slab`` are the diagonal of ||explained||² alone.
    slab += codes.square() / (2 * noise)
    score = ((x * explained).sum(1) - 0.5 * explained.square().sum(1)) / noise + slab.sum(1)
    return Posterior(codes, score)


def better(first: Posterior, second: Posterior) -> Posterior:
    """Of two searches of the same rows, the codes that are more probable, row by row."""
    kept = first.score >= second.score
    return Posterior(
        torch.where(kept[:, None], first.codes, second.codes),
        torch.where(kept, first.score, second.score),
    )


def _best_values(
    z: Tensor, residual: Tensor, mean: Tensor, gram: Tensor, variance: Tensor, noise: float
) -> tuple[Tensor, Tensor]:
    """The active codes of rows (n, c) that maximise their log posterior together.

    Returns them with a (n,) mask of the rows in which all of them are positive, as they must be.
    """
    most = int((z > 0).sum(1).max())
    old, place = z.topk(most, dim=1)
    on = old > 0
    pairs = (on[:, :, None] & on[:, None, :]).double()
    precision = gram[place[:, :, None], place[:, None, :]].double() * pairs / noise
    precision += torch.diag_embed(torch.where(on, 1.0 / variance[place], 1.0).double())
    # At the maximum the slope of the log posterior is zero; it is linear in the active codes.
    slope = residual.gather(1, place) / noise - (old - mean.gather(1, place)) / variance[place]
    step = torch.linalg.solve(precision, torch.where(on, slope, 0.0).double())
    new = torch.where(on, old + step.float(), 0.0)
    positive = ((new > 0) | ~on).all(1) & torch.isfinite(new).all(1)
    return torch.zeros_like(z).scatter_(1, place, new), positive


def _held(z: Tensor, mean: Tensor, entry: Tensor, variance: Tensor, noise: float) -> Tensor:
    """What an active code adds to the log posterior, apart from its pull on the residual."""
    own = entry - z.square() / (2 * noise) - (z - mean).square() / (2 * variance)
    return torch.where(z > 0, own, 0.0)

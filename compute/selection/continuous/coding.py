"""Codes of rows under a spike-and-slab prior: which concepts are active, and how strongly.

Activations are ``x = b + z W + noise`` with unit directions ``W``, isotropic noise and codes ``z``
that are zero with some probability and otherwise normal, kept to positive values. The prior may
differ from row to row, which is how one level informs the next.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from compute.selection.continuous.ascent import ascend
from compute.selection.continuous.bilinear import Terms, ascend_with_terms, terms_of
from compute.selection.continuous.interactions import Interactions

# A row is settled when no change of one code raises its log posterior by more than this.
_TOLERANCE = 1e-2
# Fewest rows for which a further thread is started.
_ROWS_PER_THREAD = 512


class SpikeAndSlab(NamedTuple):
    """Spike-and-slab prior of the codes of c concepts: zero, or normal about a mean.

    ``log_odds`` of being active and ``mean`` when active are (c,) or, by row, (n, c); ``variance``
    when active is (c,).
    """

    log_odds: Tensor
    mean: Tensor
    variance: Tensor

    def rows(self, index: Tensor) -> SpikeAndSlab:
        """The prior of some rows."""
        if self.log_odds.ndim == 1:
            return self
        return SpikeAndSlab(self.log_odds[index], self.mean[index], self.variance)

    def without(self, concept: int) -> SpikeAndSlab:
        """The prior if one concept could never be active."""
        log_odds = self.log_odds.clone()
        log_odds[..., concept] = -torch.inf
        return self._replace(log_odds=log_odds)


class Posterior(NamedTuple):
    """Codes (n, c) and, per row (n,), their log posterior against that of no active concept."""

    codes: Tensor
    log_posterior: Tensor


class SufficientStatistics(NamedTuple):
    """Sufficient statistics of rows: their products with the directions are all a search needs.

    ``projections`` is (n, c), ``gram`` (c, c); ``noise`` (n,) or (1,) is its variance per
    coordinate. Where there are ``terms`` in products of codes, their directions follow those of the
    concepts.
    """

    projections: Tensor
    gram: Tensor
    noise: Tensor
    terms: Terms | None = None

    @classmethod
    def of(
        cls, x: Tensor, directions: Tensor, noise: Tensor, terms: Interactions | None = None
    ) -> SufficientStatistics:
        """Of rows ``x`` (n, d), centred on the bias, and unit ``directions`` (c, d)."""
        if terms is None:
            return cls(x @ directions.T, directions @ directions.T, noise)
        pairs = terms_of(terms.first.numpy(), terms.second.numpy(), len(directions))
        both = torch.cat([directions, terms.directions])
        return cls(x @ both.T, (both @ both.T).double(), noise, pairs)

    def some(self, index: Tensor) -> SufficientStatistics:
        """Some of the rows."""
        noise = self.noise[index] if len(self.noise) > 1 else self.noise
        return self._replace(projections=self.projections[index], noise=noise)

    def codes(
        self, prior: SpikeAndSlab, start: Tensor | None = None, most_steps: int | None = None
    ) -> Posterior:
        """Maximise the log posterior of every row by greedy coordinate ascent.

        In each step every row changes the one code that raises its log posterior most: on, off, or
        to another value. For a code to turn on, the row must outweigh ``log_bayes_factor``: the
        prior log odds of activity and the slab's Occam factor ``-log(1 + variance / noise) / 2``,
        which keeps out what noise alone would fit. Where no code would rather turn on or off, all
        active codes of the row move together to the values that are best for them: one by one,
        codes of like directions would take hundreds of steps.

        Parameters
        ----------
        prior : of the codes
        start : (n, c) codes to start from; none active if left out
        most_steps : changes per row after which to stop; left out, when no change helps any more
        """
        n, c = len(self.projections), len(prior.variance)
        z = torch.zeros(n, c) if start is None else start.clone().contiguous()
        log_posterior = torch.zeros(n, dtype=torch.float64)
        log_bayes_factor = prior.log_odds - 0.5 * torch.log1p(prior.variance / self.noise[:, None])
        variance = prior.variance.numpy()
        steps = 8 * c + 32 if most_steps is None else most_steps
        rise: Callable[..., None] = ascend
        fixed: tuple[Any, ...] = (self.gram.numpy(),)
        if self.terms is not None:
            rise = ascend_with_terms
            fixed = (*fixed, self.terms)

        def search(rows: slice) -> None:
            mean, paid, noise = (
                field[rows] if len(field) == n else field
                for field in (prior.mean.view(-1, c), log_bayes_factor, self.noise)
            )
            rise(
                self.projections[rows].contiguous().numpy(),
                *fixed,
                noise.contiguous().numpy(),
                variance,
                mean.contiguous().numpy(),
                paid.contiguous().numpy(),
                z[rows].numpy(),
                log_posterior[rows].numpy(),
                _TOLERANCE,
                steps,
            )

        cuts = np.linspace(0, n, 1 + max(1, min(torch.get_num_threads(), n // _ROWS_PER_THREAD)))
        parts = [slice(int(a), int(b)) for a, b in pairwise(cuts)]
        if len(parts) == 1:
            search(parts[0])
        else:
            with ThreadPoolExecutor(len(parts)) as pool:
                list(pool.map(search, parts))
        return Posterior(z, log_posterior.float())


def better(first: Posterior, second: Posterior) -> Posterior:
    """Of two searches of the same rows, the codes that are more probable, row by row."""
    kept = first.log_posterior >= second.log_posterior
    return Posterior(
        torch.where(kept[:, None], first.codes, second.codes),
        torch.where(kept, first.log_posterior, second.log_posterior),
    )

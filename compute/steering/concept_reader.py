"""Codes of a few concepts out of thousands, exactly, without encoding all the others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from compute.dictionaries import Dictionary

__all__ = ["ConceptReader"]

# Two products of the same numbers differ in their last bits with the shape of the matrices; what
# is closer than this is decided by the full product, as the dictionary itself would.
_MARGIN = 1e-4
_SCREEN = 512


class ConceptReader:
    """Reads the codes of chosen concepts.

    In jumprelu and gated dictionaries a code depends on nothing but its own row of the encoder. In
    a topk dictionary it also matters whether k others are larger. That is decided in two steps,
    both exact: a concept that is not positive, or is exceeded by k of the few hundred concepts that
    were most often active so far (the *screen*), is not active; only rows in which some
    chosen concept passes are encoded in full. Which concepts are in the screen decides nothing but
    the time it takes.

    Parameters
    ----------
    dictionary : of the level.
    concepts : indices, in the order in which their codes are wanted.
    """

    def __init__(self, dictionary: Dictionary, concepts: Sequence[int]) -> None:
        self.concepts = torch.as_tensor(list(concepts), dtype=torch.int64, device=dictionary.device)
        self.directions = dictionary.W_dec[self.concepts]
        self._dictionary = dictionary
        self._topk = dictionary.architecture == "topk" and dictionary.k < dictionary.n_concepts
        # The dictionary of the chosen concepts alone, all of which may be active at once.
        chosen = list(concepts)
        few = {
            name: array[:, chosen] if name == "W_enc" else array[chosen]
            for name, array in dictionary.weights().items()
            if name != "b_dec"
        }
        few["b_dec"] = dictionary.b_dec.cpu().numpy()
        self._own = Dictionary.from_weights(dictionary.architecture, few, k=len(chosen)).to(
            dictionary.device
        )
        self._hits = torch.zeros(dictionary.n_concepts, device=dictionary.device)
        self._screen: Tensor | None = None
        self._screen_bias = dictionary.b_dec
        self._screen_at = 0

    @torch.no_grad()
    def codes(self, x: Tensor) -> Tensor:
        """Return codes ``(r, m)`` of activations ``x (r, d)`` in float32."""
        own = self._own.encode(x)
        if not self._topk:
            return own
        unsure = self._unsure(x, own)
        codes = torch.zeros_like(own)
        if len(unsure):
            full = self._dictionary.encode_sparse(x[unsure])
            self._learn(full.indices, full.values)
            for column, concept in enumerate(self.concepts.tolist()):
                codes[unsure, column] = ((full.indices == concept) * full.values).sum(-1)
        return codes

    def _unsure(self, x: Tensor, own: Tensor) -> Tensor:
        """Return the rows in which some chosen concept may be among the k largest."""
        rows = own.amax(dim=1).gt(0).nonzero()[:, 0]
        if self._screen is None or not len(rows):
            return rows
        some = x if len(rows) == len(x) else x[rows]
        others = torch.addmm(self._screen_bias, some, self._screen)
        threshold = others.topk(self._dictionary.k, dim=1).values[:, -1]
        limit = threshold - _MARGIN * threshold.abs()
        # A chosen concept may itself be in the screen: it then equals the threshold and passes.
        return rows[own[rows].amax(dim=1) >= limit]

    def _learn(self, indices: Tensor, values: Tensor) -> None:
        """Keep count of which concepts are active, and renew the screen as rows double."""
        self._hits.index_add_(0, indices.reshape(-1), values.gt(0).float().reshape(-1))
        seen = int(self._hits.sum())
        if seen < 2 * self._screen_at:
            return
        self._screen_at = max(1, seen)
        size = max(_SCREEN, 8 * self._dictionary.k)
        if size >= self._dictionary.n_concepts:
            return
        often = self._hits.topk(size).indices
        weights = self._dictionary.W_enc[:, often].contiguous()
        self._screen = weights
        self._screen_bias = self._dictionary.b_enc[often] - self._dictionary.b_dec @ weights

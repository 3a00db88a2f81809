"""Matryoshka: nested dictionaries that share concepts (Bussmann et al. 2025, 2503.17547)."""

import torch
from torch import Tensor

from compute.dictionaries.architectures.architecture import Tensors
from compute.dictionaries.architectures.batchtopk import BatchTopK
from compute.dictionaries.architectures.linear import Reconstruction
from compute.dictionaries.dictionary_settings import DictionarySettings
from compute.dictionaries.kernels import Entries, decode_entries, entry_products


class Matryoshka(BatchTopK):
    """BatchTopK whose first concepts must also rebuild the rows without the later ones.

    The loss is the mean of the squared errors of all nested prefixes, so that general concepts
    come first and are not absorbed into the special ones that imply them.
    """

    name = "matryoshka"

    def reconstruct(
        self, entries: Entries, parameters: Tensors, batch: Tensor, settings: DictionarySettings
    ) -> Reconstruction:
        """Rebuild the batch from every prefix; a concept learns from all prefixes it is in."""
        decoder = parameters["decoder"]
        b, n_groups = len(batch), len(settings.nested)
        group = groups(len(decoder), settings, entries.concepts.device)[entries.concepts]
        slope_rows = group * b + entries.rows
        order = slope_rows.sort(stable=True).indices
        counts = torch.bincount(slope_rows, minlength=n_groups * b)
        grouped = Entries(
            slope_rows[order],
            entries.concepts[order],
            entries.values[order],
            counts.cumsum(0) - counts,
        )
        parts = decode_entries(grouped, decoder).reshape(n_groups, b, -1)
        residuals = batch - parameters["decoder_bias"] - parts.cumsum(0)
        slopes = residuals * (-2 / residuals.numel())
        # The prefix of a group and every longer one contain it.
        reaching = slopes.flip(0).cumsum(0).flip(0).reshape(n_groups * b, -1)
        value_slopes = torch.empty_like(entries.values)
        value_slopes[order] = entry_products(grouped, reaching, decoder)
        return Reconstruction(
            loss=residuals[-1].square().mean(),
            residual=residuals[-1],
            value_slopes=value_slopes,
            slopes=reaching,
            slope_rows=slope_rows,
        )


def groups(n: int, settings: DictionarySettings, device: torch.device) -> Tensor:
    """(n,) int64: the first nested prefix that holds each of n concepts."""
    ends = torch.tensor([round(share * n) for share in settings.nested], device=device)
    return torch.bucketize(torch.arange(n, device=device), ends, right=True)

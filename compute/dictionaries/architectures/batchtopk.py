"""BatchTopK: the k b largest of a batch are active (Bussmann et al. 2024, 2412.06410)."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from compute.dictionaries.architectures.architecture import Normalization, Tensors
from compute.dictionaries.architectures.linear import LinearEncoder
from compute.dictionaries.dictionary_settings import ArchitectureName, DictionarySettings
from compute.dictionaries.kernels import Entries, entries_from_mask, largest

# How fast the threshold forgets: a memory of about thirty batches.
_RATE = 0.03


class BatchTopK(LinearEncoder):
    """Rows compete for the active entries of their batch; k is their average.

    A row must be encoded alike whatever the batch, so the published dictionary activates what
    exceeds a threshold: the moving average of the smallest pre-activation a batch let through.
    """

    name: ClassVar[ArchitectureName] = "batchtopk"

    def buffers(self, parameters: Tensors, batch: Tensor, settings: DictionarySettings) -> Tensors:
        """The threshold; negative until the first batch sets it."""
        return {"threshold": torch.tensor(-1.0, device=batch.device)}

    def select(
        self, pre: Tensor, parameters: Tensors, buffers: Tensors, settings: DictionarySettings
    ) -> Entries:
        """The k b largest of the batch, where positive."""
        smallest = batch_threshold(pre, settings.k)
        threshold = buffers["threshold"]
        rate = torch.where(threshold < 0, 1.0, _RATE)
        threshold.add_(rate * (smallest - threshold))
        return entries_from_mask(pre, pre >= smallest)

    def publish(
        self, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor], norm: Normalization
    ) -> tuple[str, Tensors]:
        """SAELens' jumprelu, with one threshold for all concepts."""
        weights = self._published(parameters, norm)
        threshold = buffers["threshold"].clamp(min=0) * norm.scale
        return "jumprelu", weights | {"threshold": threshold.expand_as(weights["b_enc"]).clone()}


def batch_threshold(pre: Tensor, k: int) -> Tensor:
    """The smallest positive value among the ``k b`` largest of ``pre`` (b, n)."""
    b, n = pre.shape
    flat = pre.reshape(-1)
    # No row of a useful batch takes more than its share many times over, and rows' own largest
    # are found far faster than the batch's; the rare batch that needs more gets it.
    width = min(n, 4 * k)
    top = largest(pre, width).values
    smallest = top.reshape(-1).kthvalue(top.numel() - k * b + 1).values if width > k else top.min()
    if width < n and bool((top.amin(1) >= smallest).any()):
        smallest = flat.kthvalue(flat.numel() - k * b + 1).values
    return smallest.clamp(min=torch.finfo(pre.dtype).tiny)

"""BatchTopK: the k b largest of a batch are active (Bussmann et al. 2024, 2412.06410)."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from compute.dictionaries.architectures.architecture import Normalization, Tensors
from compute.dictionaries.architectures.linear import LinearEncoder
from compute.dictionaries.dictionary_settings import ArchitectureName, DictionarySettings
from compute.dictionaries.kernels import Entries, entries_from_mask

# How fast the threshold forgets: a memory of about thirty batches.
_RATE = 0.03
# Rows of a batch that tell about where its threshold lies.
_TOLD_BY = 64


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
    values, wanted = pre.reshape(-1), k * b
    # Selecting from all of a batch is slow. Some of its rows tell above which value about half as
    # many again as are wanted lie; should fewer than are wanted do, all are selected from.
    some = pre[:: max(1, b // _TOLD_BY)].reshape(-1)
    likely = min(some.numel(), 1 + 3 * k * some.numel() // (2 * n))
    candidates = values[values >= some.kthvalue(some.numel() - likely + 1).values]
    if len(candidates) < wanted:
        candidates = values
    smallest = candidates.kthvalue(len(candidates) - wanted + 1).values
    return smallest.clamp(min=torch.finfo(pre.dtype).tiny)

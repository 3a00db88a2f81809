"""JumpReLU: a learnt threshold per concept (Rajamanoharan et al. 2024, 2407.14435)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from compute.dictionaries.architectures.architecture import Normalization, Tensors
from compute.dictionaries.architectures.batchtopk import batch_threshold
from compute.dictionaries.architectures.linear import LinearEncoder, encode
from compute.dictionaries.dictionary_settings import DictionarySettings
from compute.dictionaries.kernels import Entries, entries_from_mask, sum_values

# Width of the kernel that estimates the density of pre-activations at the threshold, as a share of
# the first threshold, which sets the scale.
_BANDWIDTH = 0.5
# Weight of the squared relative excess of active concepts, against an error of at most 1.
_SPARSITY = 1.0


class JumpReLU(LinearEncoder):
    """A concept is active where its pre-activation exceeds its own threshold.

    The loss is the reconstruction's plus ``(l0 / k - 1)²``, the form with a target that the paper
    proposes in its appendix; both reach the thresholds by the paper's straight-through estimator.
    """

    name = "jumprelu"

    def parameters(
        self, n: int, batch: Tensor, settings: DictionarySettings, generator: torch.Generator
    ) -> Tensors:
        """Thresholds start where k concepts a row are active, so codes are sparse at once."""
        made = super().parameters(n, batch, settings, generator)
        pre = encode(batch, made["encoder"], made["encoder_bias"], "float32")
        start = batch_threshold(pre, settings.k)
        return made | {"threshold": start.expand(n).clone()}

    def buffers(self, parameters: Tensors, batch: Tensor, settings: DictionarySettings) -> Tensors:
        """The bandwidth of the straight-through estimator."""
        return {"bandwidth": _BANDWIDTH * parameters["threshold"].mean()}

    def select(
        self, pre: Tensor, parameters: Tensors, buffers: Tensors, settings: DictionarySettings
    ) -> Entries:
        """Active entries, and with value 0 those that half a bandwidth more would activate."""
        threshold = parameters["threshold"]
        entries = entries_from_mask(pre, pre > threshold - buffers["bandwidth"] / 2)
        active = entries.values > threshold[entries.concepts].clamp(min=0)
        return entries._replace(values=entries.values * active)

    def threshold_gradients(
        self,
        entries: Entries,
        value_slopes: Tensor,
        parameters: Tensors,
        buffers: Tensors,
        settings: DictionarySettings,
    ) -> Tensors:
        """Straight-through estimate, with a rectangular kernel, for both terms of the loss."""
        threshold, width = parameters["threshold"], buffers["bandwidth"]
        own = threshold[entries.concepts]
        active = entries.values > 0
        near = ~active | (entries.values < own + width / 2)
        b = len(entries.starts)
        excess = active.sum() / (b * settings.k) - 1
        sparsity = 2 * _SPARSITY * excess / (b * settings.k)
        slopes = near * (own * value_slopes + sparsity) / -width
        return {"threshold": sum_values(entries.concepts, slopes, len(threshold))}

    def publish(
        self, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor], norm: Normalization
    ) -> tuple[str, Tensors]:
        """SAELens' jumprelu."""
        threshold = parameters["threshold"].clamp(min=0) * norm.scale
        return "jumprelu", self._published(parameters, norm) | {"threshold": threshold}

"""Gated: one path decides what is active, one how much (Rajamanoharan et al. 2024, 2404.16014)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from compute.dictionaries.architectures.architecture import (
    Architecture,
    Gradients,
    Normalization,
    Tensors,
    folded,
    unit_rows,
)
from compute.dictionaries.architectures.batchtopk import batch_threshold
from compute.dictionaries.architectures.linear import (
    GradientPath,
    encode,
    usage,
    weight_gradients,
    with_auxiliary,
)
from compute.dictionaries.dictionary_settings import DictionarySettings
from compute.dictionaries.kernels import (
    decode_entries,
    entries_from_mask,
    entry_products,
    sum_values,
)

# How fast the penalty follows the number of active concepts.
_RATE = 0.02


class Gated(Architecture):
    """Gates ``u @ encoder + gate_bias > 0``, magnitudes ``exp(gain) u @ encoder + magnitude_bias``.

    The loss is the paper's: the reconstruction from gated magnitudes, the reconstruction from the
    gates' own pre-activations with a frozen decoder, and an L1 penalty on the latter. Instead of a
    fixed coefficient, the penalty rises while more than k concepts a row are active, and falls
    while fewer are.
    """

    name = "gated"

    def parameters(
        self, n: int, batch: Tensor, settings: DictionarySettings, generator: torch.Generator
    ) -> Tensors:
        """Gates start where k concepts a row are active, so codes are sparse at once."""
        d = batch.shape[1]
        directions = unit_rows(torch.randn(n, d, generator=generator)).to(batch.device)
        zeros = torch.zeros(n, device=batch.device)
        start = batch_threshold(encode(batch, directions, zeros, "float32"), settings.k)
        return {
            "encoder": directions.clone(),
            "gate_bias": -start.expand(n).clone(),
            "magnitude_bias": zeros.clone(),
            "gain": zeros.clone(),
            "decoder": directions,
            "decoder_bias": torch.zeros(d, device=batch.device),
        }

    def buffers(self, parameters: Tensors, batch: Tensor, settings: DictionarySettings) -> Tensors:
        """The L1 penalty; it starts where it would shrink codes by half of the first gate bias."""
        return {"penalty": -parameters["gate_bias"].mean() / batch.shape[1]}

    def gradients(
        self,
        parameters: Tensors,
        buffers: Tensors,
        batch: Tensor,
        dead: Tensor,
        settings: DictionarySettings,
    ) -> Gradients:
        """Gradients of the three terms and of the auxiliary loss."""
        decoder, bias = parameters["decoder"], parameters["decoder_bias"]
        n, b = len(decoder), len(batch)
        centred = batch - bias
        pre = encode(centred, parameters["encoder"], parameters["gate_bias"], settings.precision)
        gates = entries_from_mask(pre, pre > 0)
        concepts = gates.concepts
        raw = gates.values - parameters["gate_bias"][concepts]
        gain = parameters["gain"].exp()[concepts]
        magnitudes = (gain * raw + parameters["magnitude_bias"][concepts]).relu_()
        entries = gates._replace(values=magnitudes)

        residual = centred - decode_entries(entries, decoder)
        slopes = residual * (-2 / residual.numel())
        value_slopes = entry_products(entries, slopes, decoder)
        magnitude_slopes = value_slopes * (magnitudes > 0)
        gate_residual = centred - decode_entries(gates, decoder)
        gate_slopes = entry_products(gates, gate_residual * (-2 / residual.numel()), decoder)
        gate_slopes = gate_slopes + buffers["penalty"] / b
        excess = len(concepts) / (b * settings.k) - 1
        buffers["penalty"].mul_(1 + _RATE * max(-1.0, min(1.0, excess)))

        path = GradientPath(
            concepts=concepts,
            rows=entries.rows,
            values=magnitudes,
            slope_rows=entries.rows,
            value_slopes=value_slopes,
            pre_slopes=gate_slopes + gain * magnitude_slopes,
        )
        path, slopes_and_aux, aux_loss = with_auxiliary(
            path, slopes, pre, dead, residual, decoder, settings
        )
        trained = weight_gradients(path, slopes_and_aux, centred, parameters)
        trained["decoder_bias"] += slopes.sum(0)
        trained["gain"] = sum_values(concepts, magnitude_slopes * gain * raw, n)
        trained["magnitude_bias"] = sum_values(concepts, magnitude_slopes, n)
        # What shifts the encoder's product also shifts the gate, but for the magnitudes' share.
        through_magnitudes = sum_values(concepts, gain * magnitude_slopes, n)
        trained["gate_bias"] = trained.pop("pre") - through_magnitudes
        fired, usefulness = usage(entries, value_slopes, batch.numel(), n)
        return Gradients(trained, fired, usefulness, residual.square().mean(), aux_loss)

    def publish(
        self, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor], norm: Normalization
    ) -> tuple[str, Tensors]:
        """SAELens' gated."""
        return "gated", folded(parameters, norm) | {
            "b_gate": parameters["gate_bias"] * norm.scale,
            "b_mag": parameters["magnitude_bias"] * norm.scale,
            "r_mag": parameters["gain"].clone(),
        }

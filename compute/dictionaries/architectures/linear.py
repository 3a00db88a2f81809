"""Architectures with a linear encoder: one dense product, then only the active entries."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from compute.dictionaries.architectures.base import (
    Architecture,
    Gradients,
    Normalization,
    Tensors,
    folded,
    unit_rows,
)
from compute.dictionaries.kernels import (
    Entries,
    decode_entries,
    entries_from_top,
    entry_products,
    sort_by_concept,
    sum_by_concept,
    sum_values,
)
from compute.dictionaries.settings import DictionarySettings


class Reconstruction(NamedTuple):
    """How well entries rebuild a batch of b rows.

    ``residual`` (b, d) is what the full reconstruction leaves. ``value_slopes`` (m,) are the
    derivatives of the loss by the values. ``slopes`` (t, d) are those by outputs, ``slope_rows``
    (m,) the row of ``slopes`` that each entry feeds; the first b rows of ``slopes`` sum to the
    gradient by the decoder bias.
    """

    loss: Tensor
    residual: Tensor
    value_slopes: Tensor
    slopes: Tensor
    slope_rows: Tensor


class LinearEncoder(Architecture):
    """Pre-activations ``(u - decoder_bias) @ encoder.T + encoder_bias``; subclasses select."""

    def parameters(
        self, n: int, batch: Tensor, settings: DictionarySettings, generator: torch.Generator
    ) -> Tensors:
        """Random unit directions, read by the encoder as they are written by the decoder."""
        d = batch.shape[1]
        directions = unit_rows(torch.randn(n, d, generator=generator)).to(batch.device)
        return {
            "encoder": directions.clone(),
            "encoder_bias": torch.zeros(n, device=batch.device),
            "decoder": directions,
            "decoder_bias": torch.zeros(d, device=batch.device),
        }

    @abstractmethod
    def select(self, pre: Tensor, buffers: Tensors, settings: DictionarySettings) -> Entries:
        """The active entries of pre-activations (b, n), with non-negative values."""

    def reconstruct(
        self, entries: Entries, parameters: Tensors, batch: Tensor, settings: DictionarySettings
    ) -> Reconstruction:
        """Rebuild the batch and differentiate the mean squared error per coordinate."""
        decoded = decode_entries(entries, parameters["decoder"]) + parameters["decoder_bias"]
        residual = batch - decoded
        slopes = residual * (-2 / residual.numel())
        return Reconstruction(
            loss=residual.square().mean(),
            residual=residual,
            value_slopes=entry_products(entries, slopes, parameters["decoder"]),
            slopes=slopes,
            slope_rows=entries.rows,
        )

    def gradients(
        self,
        parameters: Tensors,
        buffers: Tensors,
        batch: Tensor,
        dead: Tensor,
        settings: DictionarySettings,
    ) -> Gradients:
        """Reconstruction and auxiliary gradients, from the active entries alone."""
        encoder, decoder = parameters["encoder"], parameters["decoder"]
        n, b = len(decoder), len(batch)
        centred = batch - parameters["decoder_bias"]
        pre = encode(centred, encoder, parameters["encoder_bias"], settings.precision)
        entries = self.select(pre, buffers, settings)
        if settings.precision != "float32":
            entries = _with_exact_values(entries, centred, parameters)
        active = entries.values > 0
        rebuilt = self.reconstruct(entries, parameters, batch, settings)

        value_slopes = active * rebuilt.value_slopes
        fired = sum_values(entries.concepts, active.float(), n).long()
        # Without an entry the error rises by v² - v · numel · ∂L/∂v, the loss being quadratic.
        usefulness = sum_values(
            entries.concepts,
            entries.values * (entries.values - batch.numel() * value_slopes),
            n,
        )
        concepts, rows = entries.concepts, entries.rows
        values, slopes, slope_rows = entries.values, rebuilt.slopes, rebuilt.slope_rows
        aux_loss = torch.zeros((), device=batch.device)

        helped = dead.nonzero().squeeze(1)
        if (width := min(settings.auxiliary_width(batch.shape[1]), len(helped))) > 0:
            aux = _strongest(pre, helped, width)
            missed = rebuilt.residual - decode_entries(aux, decoder)
            aux_loss = missed.square().mean()
            aux_slopes = missed * (-2 * settings.aux_weight / missed.numel())
            value_slopes = torch.cat([value_slopes, entry_products(aux, aux_slopes, decoder)])
            concepts = torch.cat([concepts, aux.concepts])
            rows = torch.cat([rows, aux.rows])
            values = torch.cat([values, aux.values])
            slope_rows = torch.cat([slope_rows, aux.rows + slopes.shape[0]])
            slopes = torch.cat([slopes, aux_slopes])

        by = sort_by_concept(concepts, n)
        encoder_bias = sum_values(concepts, value_slopes, n)
        decoder_gradient = sum_by_concept(by, slope_rows, values, slopes)
        # A unit row has no radial gradient; the entries know its size already.
        radial = sum_values(concepts, values * value_slopes, n)
        decoder_gradient.addcmul_(decoder, radial[:, None], value=-1)
        return Gradients(
            by_parameter={
                "encoder": sum_by_concept(by, rows, value_slopes, centred),
                "encoder_bias": encoder_bias,
                "decoder": decoder_gradient,
                "decoder_bias": rebuilt.slopes[:b].sum(0) - encoder_bias @ encoder,
            },
            fired=fired,
            usefulness=usefulness,
            loss=rebuilt.loss,
            aux_loss=aux_loss,
        )

    def _published(self, parameters: Mapping[str, Tensor], norm: Normalization) -> Tensors:
        return folded(parameters, norm) | {"b_enc": parameters["encoder_bias"] * norm.scale}


def encode(centred: Tensor, encoder: Tensor, bias: Tensor, precision: str) -> Tensor:
    """Pre-activations (b, n) of centred rows (b, d) by an encoder (n, d)."""
    if precision == "bfloat16":
        return torch.addmm(bias.bfloat16(), centred.bfloat16(), encoder.bfloat16().T).float()
    return torch.addmm(bias, centred, encoder.T)


def _with_exact_values(entries: Entries, centred: Tensor, parameters: Tensors) -> Entries:
    """Recompute the kept pre-activations in float32: half precision may choose, not measure."""
    exact = entry_products(entries, centred, parameters["encoder"])
    exact = exact + parameters["encoder_bias"][entries.concepts]
    return entries._replace(values=torch.where(entries.values > 0, exact.clamp(min=0), 0))


def _strongest(pre: Tensor, concepts: Tensor, width: int) -> Entries:
    """The ``width`` largest pre-activations of each row among ``concepts``, of either sign.

    Negative ones are kept on purpose: a concept that no row makes positive could not return.
    """
    top = pre[:, concepts].topk(width, dim=1, sorted=False)
    return entries_from_top(top.values, concepts[top.indices])

"""Architectures with a linear encoder: one dense product, then only the active entries."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

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
from compute.dictionaries.dictionary_settings import DictionarySettings
from compute.dictionaries.kernels import (
    Entries,
    affine,
    decode_entries,
    entries_from_top,
    entry_products,
    largest,
    sort_by_concept,
    sum_by_concept,
    sum_values,
)

_ROW_STRIDE = 4


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
    def select(
        self, pre: Tensor, parameters: Tensors, buffers: Tensors, settings: DictionarySettings
    ) -> Entries:
        """The active entries of pre-activations (b, n); an entry of value 0 is not active."""

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

    def threshold_gradients(
        self,
        entries: Entries,
        value_slopes: Tensor,
        parameters: Tensors,
        buffers: Tensors,
        settings: DictionarySettings,
    ) -> Tensors:
        """Gradients of parameters of the selection itself; none unless it is trained."""
        return {}

    def gradients(
        self,
        parameters: Tensors,
        buffers: Tensors,
        batch: Tensor,
        dead: Tensor,
        settings: DictionarySettings,
    ) -> Gradients:
        """Reconstruction and auxiliary gradients, from the active entries alone."""
        decoder = parameters["decoder"]
        centred = batch - parameters["decoder_bias"]
        pre = encode(centred, parameters["encoder"], parameters["encoder_bias"], settings.precision)
        entries = self.select(pre, parameters, buffers, settings)
        if settings.precision != "float32":
            entries = _with_exact_values(entries, centred, parameters)
        rebuilt = self.reconstruct(entries, parameters, batch, settings)
        active = entries.values > 0
        path = GradientPath(
            concepts=entries.concepts,
            rows=entries.rows,
            values=entries.values,
            slope_rows=rebuilt.slope_rows,
            value_slopes=rebuilt.value_slopes,
            pre_slopes=active * rebuilt.value_slopes,
        )
        path, slopes, aux_loss = with_auxiliary(
            path, rebuilt.slopes, pre, dead, rebuilt.residual, decoder, settings
        )
        trained = weight_gradients(path, slopes, centred, parameters)
        trained["decoder_bias"] += rebuilt.slopes[: len(batch)].sum(0)
        trained["encoder_bias"] = trained.pop("pre")
        trained |= self.threshold_gradients(
            entries, rebuilt.value_slopes, parameters, buffers, settings
        )
        fired, usefulness = usage(entries, rebuilt.value_slopes, batch.numel(), len(decoder))
        return Gradients(trained, fired, usefulness, rebuilt.loss, aux_loss)

    def _published(self, parameters: Mapping[str, Tensor], norm: Normalization) -> Tensors:
        return folded(parameters, norm) | {"b_enc": parameters["encoder_bias"] * norm.scale}


class GradientPath(NamedTuple):
    """How entries reach the loss: everything the gradients of the weights are sums of.

    All (m,): entry i is ``values[i]`` times row ``concepts[i]`` of the decoder, added to an output
    whose gradient is row ``slope_rows[i]`` of a table of slopes. The loss has the derivative
    ``value_slopes[i]`` by that value, and ``pre_slopes[i]`` by the encoder's product of
    ``concepts[i]`` with row ``rows[i]``.
    """

    concepts: Tensor
    rows: Tensor
    values: Tensor
    slope_rows: Tensor
    value_slopes: Tensor
    pre_slopes: Tensor


def weight_gradients(
    path: GradientPath, slopes: Tensor, centred: Tensor, parameters: Tensors
) -> Tensors:
    """Gradients of encoder and decoder, and of the decoder bias as far as the encoder reads it.

    ``pre`` (n,) is the gradient by a constant added to all pre-activations of a concept.
    """
    encoder, decoder = parameters["encoder"], parameters["decoder"]
    n = len(decoder)
    by = sort_by_concept(path.concepts, n)
    pre = sum_values(path.concepts, path.pre_slopes, n)
    written = sum_by_concept(by, path.slope_rows, path.values, slopes)
    # The step is taken along the sphere of unit rows: what points outwards would be undone.
    outward = sum_values(path.concepts, path.values * path.value_slopes, n)
    return {
        "encoder": sum_by_concept(by, path.rows, path.pre_slopes, centred),
        "decoder": written.addcmul_(decoder, outward[:, None], value=-1),
        "decoder_bias": -(pre @ encoder),
        "pre": pre,
    }


def with_auxiliary(
    path: GradientPath,
    slopes: Tensor,
    pre: Tensor,
    dead: Tensor,
    residual: Tensor,
    decoder: Tensor,
    settings: DictionarySettings,
) -> tuple[GradientPath, Tensor, Tensor]:
    """Let the strongest dead concepts of a row learn what the row's reconstruction misses.

    Gao et al. 2024 (2406.04093), appendix A.2, estimated on every fourth row, which is as
    unbiased as the batch itself and brings concepts back as fast. Returns the path and the slopes
    with their entries added, and the auxiliary loss (a scalar, before its weight).
    """
    helped = dead.nonzero().squeeze(1)
    width = min(settings.auxiliary_width(residual.shape[1]), len(helped))
    if width == 0:
        return path, slopes, torch.zeros((), device=residual.device)
    residual, pre = residual[::_ROW_STRIDE], pre[::_ROW_STRIDE, helped]
    # Of either sign, on purpose: a concept that no row makes positive could not return.
    top = largest(pre, width)
    entries = entries_from_top(top.values, helped[top.indices])
    missed = residual - decode_entries(entries, decoder)
    aux_slopes = missed * (-2 * settings.aux_weight / missed.numel())
    value_slopes = entry_products(entries, aux_slopes, decoder)
    added = GradientPath(
        concepts=entries.concepts,
        rows=entries.rows * _ROW_STRIDE,
        values=entries.values,
        slope_rows=entries.rows + len(slopes),
        value_slopes=value_slopes,
        pre_slopes=value_slopes,
    )
    return (
        GradientPath(*(torch.cat(pair) for pair in zip(path, added, strict=True))),
        torch.cat([slopes, aux_slopes]),
        missed.square().mean(),
    )


def usage(entries: Entries, value_slopes: Tensor, numel: int, n: int) -> tuple[Tensor, Tensor]:
    """How often each concept is active and how useful it is; (n,) both.

    Without an entry the squared error rises by ``v² - v · numel · ∂L/∂v``: it is quadratic in v.
    """
    values = entries.values
    fired = sum_values(entries.concepts, (values > 0).float(), n).long()
    return fired, sum_values(entries.concepts, values * (values - numel * value_slopes), n)


def encode(centred: Tensor, encoder: Tensor, bias: Tensor, precision: str) -> Tensor:
    """Pre-activations (b, n) of centred rows (b, d) by an encoder (n, d)."""
    if precision == "bfloat16":
        return affine(centred.bfloat16(), encoder.bfloat16(), bias.bfloat16()).float()
    return affine(centred, encoder, bias)


def _with_exact_values(entries: Entries, centred: Tensor, parameters: Tensors) -> Entries:
    """Recompute the kept pre-activations in float32: half precision may choose, not measure."""
    exact = entry_products(entries, centred, parameters["encoder"])
    exact = exact + parameters["encoder_bias"][entries.concepts]
    return entries._replace(values=torch.where(entries.values > 0, exact.clamp(min=0), 0))

"""What an architecture is: parameters, one training step, and the weights it publishes."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from compute.dictionaries.dictionary_settings import ArchitectureName, DictionarySettings

Tensors = dict[str, Tensor]


class Normalization(NamedTuple):
    """The affine map under which training sees its rows: ``(x - mean) / scale``, or whitened.

    ``mean`` is (d,), ``scale`` a scalar tensor in units of the activations. If rows are whitened,
    ``into`` (d, r) and ``back`` (r, d) take the place of the scale, which is 1 then. They are
    symmetric and inverse to each other, or r < d and ``into`` leaves out coordinates of noise.
    """

    mean: Tensor
    scale: Tensor
    into: Tensor | None = None
    back: Tensor | None = None

    def rows(self, x: Tensor) -> Tensor:
        """Rows (n, d) of activations as training sees them, (n, d) or (n, r)."""
        centred = x - self.mean
        return centred / self.scale if self.into is None else centred @ self.into

    def directions(self, weights: Tensor) -> Tensor:
        """Directions (n, d) or (n, r), up to ``scale``, as they lie among activations, (n, d)."""
        return weights if self.back is None else weights @ self.back


@dataclass(frozen=True, slots=True)
class Gradients:
    """What one batch says about the parameters.

    Attributes
    ----------
    by_parameter
        A gradient for each trainable parameter, of its shape.
    fired
        (n,) int64, the number of rows of the batch in which each concept was active.
    usefulness
        (n,) by how much the squared error of the batch would rise without each concept, all other
        codes unchanged.
    loss
        Mean squared reconstruction error per coordinate, a scalar tensor.
    aux_loss
        The auxiliary loss before its weight, a scalar tensor.
    """

    by_parameter: Tensors
    fired: Tensor
    usefulness: Tensor
    loss: Tensor
    aux_loss: Tensor


class Architecture(ABC):
    """How codes are chosen and trained. Stateless: everything learnt is in the tensors passed in.

    ``parameters`` are trained by Adam; ``buffers`` are what a step updates by its own rule. All
    parameters live in normalised space (see :class:`Normalization`). Every architecture has at
    least ``decoder`` (n, d), whose rows the trainer keeps at unit norm, and
    ``decoder_bias`` (d,).
    """

    name: ClassVar[ArchitectureName]

    @abstractmethod
    def parameters(
        self, n: int, batch: Tensor, settings: DictionarySettings, generator: torch.Generator
    ) -> Tensors:
        """Initial parameters of n concepts; ``batch`` (b, d) is the first batch, normalised."""

    def buffers(self, parameters: Tensors, batch: Tensor, settings: DictionarySettings) -> Tensors:
        """Initial buffers: scalars, or one number per concept."""
        return {}

    @abstractmethod
    def gradients(
        self,
        parameters: Tensors,
        buffers: Tensors,
        batch: Tensor,
        dead: Tensor,
        settings: DictionarySettings,
    ) -> Gradients:
        """Gradients of the loss on one normalised batch (b, d); may update ``buffers`` in place.

        ``dead`` is (n,) bool. The number n of concepts is that of the parameters: it exceeds
        ``settings.n_concepts`` while there are spare ones.
        """

    @abstractmethod
    def publish(
        self, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor], norm: Normalization
    ) -> tuple[str, Tensors]:
        """The architecture's name among readers and its weights, normalisation folded in."""


def unit_rows(x: Tensor) -> Tensor:
    """``x`` (n, d) with rows of unit norm; a zero row stays zero."""
    return torch.nn.functional.normalize(x, dim=1)


def folded(parameters: Mapping[str, Tensor], norm: Normalization) -> Tensors:
    """Weights that every architecture publishes, for raw activations ``x``.

    With ``u = (x - mean) / scale`` and codes ``z = E (u - b) + c``, the codes of ``x`` in its own
    units are ``scale · z``: the encoder and the unit decoder are untouched, biases are scaled.
    With ``u = (x - mean) @ into`` both take one more matrix, and the decoder's rows lose unit norm.
    """
    encoder = parameters["encoder"].T
    return {
        "W_enc": (encoder if norm.into is None else norm.into @ encoder).contiguous(),
        "W_dec": norm.directions(parameters["decoder"]).clone(),
        "b_dec": norm.directions(parameters["decoder_bias"]) * norm.scale + norm.mean,
    }

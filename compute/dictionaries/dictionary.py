"""A trained dictionary: what encodes activations into concepts and back."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from compute.dictionaries.kernels import Entries, affine, decode_entries, entries_from_top

# Names and semantics are SAELens'; each is listed with the axes of its shape.
_SHAPES: dict[str, dict[str, tuple[str, ...]]] = {
    "topk": {"W_enc": ("d", "n"), "b_enc": ("n",), "W_dec": ("n", "d"), "b_dec": ("d",)},
}
_SHAPES["jumprelu"] = _SHAPES["topk"] | {"threshold": ("n",)}
_SHAPES["gated"] = {name: axes for name, axes in _SHAPES["topk"].items() if name != "b_enc"} | {
    "b_gate": ("n",),
    "b_mag": ("n",),
    "r_mag": ("n",),
}


class SparseCodes(NamedTuple):
    """Codes of fixed width: the concept and the value of each slot, (..., k) both.

    A slot of value 0 is not active; its index is a valid concept all the same.
    """

    indices: Tensor
    values: Tensor


@dataclass(frozen=True)
class DictionaryConfig:
    """The part of SAEBench's ``cfg`` that a dictionary knows about itself."""

    architecture: str
    d_in: int
    d_sae: int
    k: int
    dtype: str = "float32"
    device: str = "cpu"


class Dictionary:
    """Concepts of one level, as directions, with the encoder that reads them.

    Codes are in the units of the activations: ``decode(encode(x))`` approximates ``x``, and a
    concept's code is its contribution's length, since ``directions`` have unit norm.

    Parameters
    ----------
    architecture
        ``topk``, ``jumprelu`` or ``gated``: how codes follow from weights.
    weights
        Arrays of SAELens' names, shapes and semantics; decoder rows are scaled to unit norm.
    k
        Active concepts per row; for ``topk`` exactly, otherwise on average.
    """

    def __init__(self, architecture: str, weights: Mapping[str, Any], *, k: int) -> None:
        self.architecture = architecture
        self.k = k
        self._weights = _unit_norm(_checked(architecture, weights, k))

    @classmethod
    def from_weights(
        cls, architecture: str, weights: Mapping[str, NDArray[np.floating]], *, k: int
    ) -> Self:
        """A dictionary from the arrays that :meth:`weights` returns.

        Raises
        ------
        ValueError
            If the architecture is unknown, an array is missing, unknown, of another shape or not
            finite, or k is not between 1 and the number of concepts.
        """
        return cls(architecture, weights, k=k)

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """Arrays as SAELens stores them, float32 and contiguous.

        ``W_enc`` (d, n), ``W_dec`` (n, d) with unit rows, ``b_dec`` (d,); ``b_enc`` (n,) and, for
        jumprelu, ``threshold`` (n,); for gated ``b_gate``, ``b_mag``, ``r_mag`` (n,) instead.
        """
        return {name: tensor.cpu().numpy().copy() for name, tensor in self._weights.items()}

    @property
    def directions(self) -> Tensor:
        """Unit decoder rows, (n_concepts, d)."""
        return self._weights["W_dec"]

    @property
    def n_concepts(self) -> int:
        """Number of concepts."""
        return self.W_dec.shape[0]

    @property
    def d(self) -> int:
        """Dimension of the activations."""
        return self.W_dec.shape[1]

    @property
    def W_enc(self) -> Tensor:
        """Encoder, (d, n_concepts)."""
        return self._weights["W_enc"]

    @property
    def W_dec(self) -> Tensor:
        """Decoder, (n_concepts, d), unit rows."""
        return self._weights["W_dec"]

    @property
    def b_enc(self) -> Tensor:
        """Encoder bias, (n_concepts,); the gate's for a gated dictionary."""
        return self._weights["b_gate" if self.architecture == "gated" else "b_enc"]

    @property
    def b_dec(self) -> Tensor:
        """Decoder bias, (d,)."""
        return self._weights["b_dec"]

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.W_dec.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.W_dec.device

    @property
    def cfg(self) -> DictionaryConfig:
        """Shape and kind, under SAEBench's names."""
        return DictionaryConfig(
            self.architecture, self.d, self.n_concepts, self.k, device=str(self.device)
        )

    def to(self, device: str | torch.device) -> Self:
        """The same dictionary on another device."""
        moved = {name: tensor.to(device) for name, tensor in self._weights.items()}
        return type(self)(self.architecture, moved, k=self.k)

    @torch.no_grad()
    def encode(self, x: ArrayLike | Tensor) -> Tensor:
        """Codes (..., n_concepts) of activations (..., d), non-negative and mostly zero.

        Raises
        ------
        ValueError
            If the last axis is not d.
        """
        rows = self._rows(x)
        pre = self._pre_activations(rows)
        if self.architecture == "topk":
            top = pre.topk(self.k, dim=-1, sorted=False)
            codes = torch.zeros_like(pre).scatter_(-1, top.indices, top.values.relu_())
        elif self.architecture == "jumprelu":
            codes = pre.relu() * (pre > self._weights["threshold"])
        else:
            open_gate = pre + self._weights["b_gate"] > 0
            codes = self._magnitudes(pre).relu_() * open_gate
        return codes.reshape(*_leading(x), self.n_concepts)

    @torch.no_grad()
    def pre_activations(self, x: ArrayLike | Tensor) -> Tensor:
        """What codes would be if every concept were let through, (..., n_concepts), of any sign.

        An active concept's is its code.

        Raises
        ------
        ValueError
            If the last axis is not d.
        """
        pre = self._pre_activations(self._rows(x))
        if self.architecture == "gated":
            pre = self._magnitudes(pre)
        return pre.reshape(*_leading(x), self.n_concepts)

    @torch.no_grad()
    def encode_sparse(self, x: ArrayLike | Tensor, width: int | None = None) -> SparseCodes:
        """The strongest codes of each row, strongest first; indices and values (..., width).

        ``width`` defaults to k, which loses nothing of a topk dictionary. Other architectures
        activate k on average; what exceeds the width is dropped, weakest first.
        """
        width = self.k if width is None else width
        if not 1 <= width <= self.n_concepts:
            raise ValueError(
                f"width = {width} is not between 1 and {self.n_concepts}, the number of concepts:"
                " choose one that is"
            )
        if self.architecture == "topk" and width <= self.k:
            top = self._pre_activations(self._rows(x)).topk(width, dim=-1)
            shape = (*_leading(x), width)
            return SparseCodes(top.indices.reshape(shape), top.values.relu_().reshape(shape))
        top = self.encode(x).topk(width, dim=-1)
        return SparseCodes(top.indices, top.values)

    @torch.no_grad()
    def decode(self, codes: ArrayLike | Tensor) -> Tensor:
        """Activations (..., d) of codes (..., n_concepts)."""
        z = self._tensor(codes)
        if z.ndim == 0 or z.shape[-1] != self.n_concepts:
            raise ValueError(
                f"codes have shape {tuple(z.shape)}: the last axis must be {self.n_concepts}, the"
                " number of concepts"
            )
        return z @ self.W_dec + self.b_dec

    @torch.no_grad()
    def decode_sparse(self, indices: ArrayLike | Tensor, values: ArrayLike | Tensor) -> Tensor:
        """Activations (..., d) of codes given as indices and values, (..., k) both."""
        where = torch.as_tensor(indices, device=self.device, dtype=torch.int64)
        what = self._tensor(values)
        if where.shape != what.shape or where.ndim == 0:
            raise ValueError(
                f"indices have shape {tuple(where.shape)} and values {tuple(what.shape)}: pass two"
                " arrays of one shape (..., k)"
            )
        width = where.shape[-1]
        entries: Entries = entries_from_top(what.reshape(-1, width), where.reshape(-1, width))
        return (decode_entries(entries, self.W_dec) + self.b_dec).reshape(*where.shape[:-1], self.d)

    def forward(self, x: ArrayLike | Tensor) -> Tensor:
        """``decode(encode(x))``."""
        return self.decode(self.encode(x))

    __call__ = forward

    def __repr__(self) -> str:
        return (
            f"Dictionary({self.architecture}, n_concepts={self.n_concepts}, d={self.d}, k={self.k})"
        )

    def _pre_activations(self, rows: Tensor) -> Tensor:
        """(b, n) before selection; for a gated dictionary without either bias."""
        bias = None if self.architecture == "gated" else self._weights["b_enc"]
        return affine(rows - self.b_dec, self.W_enc.T, bias)

    def _magnitudes(self, pre: Tensor) -> Tensor:
        """What a gated dictionary lets through where its gates are open."""
        return pre * self._weights["r_mag"].exp() + self._weights["b_mag"]

    def _tensor(self, x: ArrayLike | Tensor) -> Tensor:
        return torch.as_tensor(x, device=self.device).to(self.dtype)

    def _rows(self, x: ArrayLike | Tensor) -> Tensor:
        rows = self._tensor(x)
        if rows.ndim == 0 or rows.shape[-1] != self.d:
            raise ValueError(
                f"activations have shape {tuple(rows.shape)}: the last axis must be {self.d}, the"
                " dimension this dictionary was trained on"
            )
        return rows.reshape(-1, self.d)


def _leading(x: ArrayLike | Tensor) -> tuple[int, ...]:
    return tuple(x.shape if isinstance(x, Tensor) else np.shape(x))[:-1]


def _checked(architecture: str, weights: Mapping[str, Any], k: int) -> dict[str, Tensor]:
    if architecture not in _SHAPES:
        known = ", ".join(sorted(_SHAPES))
        raise ValueError(f"architecture = {architecture!r} cannot be read: it must be {known}")
    expected = _SHAPES[architecture]
    if set(weights) != set(expected):
        raise ValueError(
            f"weights of a {architecture} dictionary are named {sorted(expected)}, not"
            f" {sorted(weights)}: pass exactly those"
        )
    tensors = {name: torch.as_tensor(weights[name]).detach().to(torch.float32) for name in expected}
    if tensors["W_dec"].ndim != 2:
        raise ValueError(
            f"W_dec has shape {tuple(tensors['W_dec'].shape)}: it must be (n_concepts, d)"
        )
    size = dict(zip("nd", tensors["W_dec"].shape, strict=True))
    for name, tensor in tensors.items():
        shape = tuple(size[axis] for axis in expected[name])
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}: it must be {shape}")
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} holds values that are not finite: the weights are damaged")
    if not 1 <= k <= size["n"]:
        raise ValueError(
            f"k = {k} is not between 1 and {size['n']}, the number of concepts: choose one that is"
        )
    return tensors


def _unit_norm(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Move the norm of decoder rows into everything that scales codes."""
    norms = torch.linalg.vector_norm(weights["W_dec"], dim=1)
    # Rounding alone must not move weights: a round trip has to return the same bits.
    if bool(((norms - 1).abs() < 1e-5).all()):
        return {name: tensor.contiguous() for name, tensor in weights.items()}
    if bool((norms == 0).any()):
        dead = int((norms == 0).nonzero()[0])
        raise ValueError(f"row {dead} of W_dec is zero: a concept needs a direction")
    scaled = dict(weights)
    scaled["W_dec"] = weights["W_dec"] / norms[:, None]
    scaled["W_enc"] = weights["W_enc"] * norms
    for name in ("b_enc", "threshold", "b_gate", "b_mag"):
        if name in weights:
            scaled[name] = weights[name] * norms
    return {name: tensor.contiguous() for name, tensor in scaled.items()}

"""A dictionary as it was found, and what becomes of it here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from compute.dictionaries.dictionary import Dictionary

# Rounding to bfloat16 moves the norm of a row by less; more would change which concepts TopK keeps.
_EQUAL_NORMS = 5e-3
_BIASES = ("b_enc", "b_gate", "b_mag", "threshold")
_COLUMNS = 4096


@dataclass(frozen=True)
class Claims:
    """What a dictionary's own files say of it; None where they say nothing.

    Attributes
    ----------
    layout : name of the layout that it was found in.
    model, hook : the model and the place in it that it was trained on, in the words of its files.
    timestep : of a dictionary of a diffusion model.
    explained_variance, l0 : what it reached where it was trained.
    """

    layout: str
    model: str | None = None
    hook: str | None = None
    timestep: int | None = None
    explained_variance: float | None = None
    l0: float | None = None

    def told(self) -> dict[str, Any]:
        """What is known, as plain JSON."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class FoundDictionary:
    """Tensors of SAELens' names and shapes, with all that decides how codes follow from them.

    With ``s = x * input_scale - b_dec`` (or without ``b_dec``, see below) codes are those of the
    architecture, and ``x_hat = ((codes * code_scale) @ W_dec + b_dec) / input_scale``.

    Attributes
    ----------
    architecture : topk, jumprelu, gated, or standard (a rectifier alone).
    tensors : by name, of any floating type.
    k : active concepts per row; on average for all but topk, or None where that is not known.
    subtract_b_dec : whether the encoder sees activations less ``b_dec``.
    input_scale : the one number by which activations are multiplied.
    code_scale : (n,) factors of codes in decoding, or None.
    by_norm : whether codes are chosen as if decoder rows had unit norm.
    """

    architecture: str
    tensors: dict[str, Tensor]
    claims: Claims
    k: int | None = None
    subtract_b_dec: bool = True
    input_scale: float = 1.0
    code_scale: Tensor | None = field(default=None, repr=False)
    by_norm: bool = False

    def imported(self) -> Imported:
        """The same dictionary with everything folded into its weights.

        Raises
        ------
        ValueError
            If the tensors do not fit together, or TopK would choose other concepts with decoder
            rows of unit norm.
        """
        w = {name: tensor.detach().float() for name, tensor in self.tensors.items()}
        _check_shapes(w, self.code_scale)
        norms = torch.linalg.vector_norm(w["W_dec"], dim=1)
        if self.architecture == "topk" and not self.by_norm:
            _check_equal(norms, self.code_scale)
        if self.architecture == "standard":
            w["threshold"] = torch.zeros_like(w["b_enc"])
        if self.by_norm and "threshold" in w:
            w["threshold"] = w["threshold"] / norms.clamp(min=1e-30)
        if not self.subtract_b_dec:
            _shift_biases(w)
        if self.code_scale is not None:
            w["W_dec"] = w["W_dec"] * self.code_scale.float()[:, None]
        if self.input_scale != 1:
            w["W_enc"] = w["W_enc"] * self.input_scale
            w["W_dec"] = w["W_dec"] / self.input_scale
            w["b_dec"] = w["b_dec"] / self.input_scale
        _silence(w)
        architecture = "jumprelu" if self.architecture == "standard" else self.architecture
        whole = Dictionary(architecture, w, k=self.k or 1)
        return Imported(whole, self.claims, self.k is not None)


@dataclass(frozen=True)
class Imported:
    """A dictionary of this project's kind, with what was said of the one that it was.

    ``k_is_known`` is false where no file says how many concepts are active in a row; the
    dictionary's own k is 1 then and means nothing.
    """

    dictionary: Dictionary
    claims: Claims
    k_is_known: bool

    @property
    def likely_k(self) -> int:
        """Active concepts per row, as far as can be said before any row is read."""
        if self.k_is_known:
            return self.dictionary.k
        return max(1, min(round(self.claims.l0 or 32), self.dictionary.n_concepts))

    def with_k(self, k: int) -> Dictionary:
        """The dictionary with the k that was measured, where none is known."""
        if self.k_is_known:
            return self.dictionary
        own = self.dictionary
        return Dictionary(own.architecture, own.weights(), k=max(1, min(k, own.n_concepts)))

    def identity(self) -> Iterable[bytes]:
        """The bytes that decide its codes, for a fingerprint."""
        yield f"{self.dictionary.architecture} {self.dictionary.k} {self.k_is_known}".encode()
        for name, array in sorted(self.dictionary.weights().items()):
            yield name.encode()
            yield array.tobytes()


def _check_shapes(w: dict[str, Tensor], code_scale: Tensor | None) -> None:
    if w["W_dec"].ndim != 2:
        raise ValueError(f"W_dec has the shape {tuple(w['W_dec'].shape)}: it must be (n, d)")
    n, d = w["W_dec"].shape
    expected = dict.fromkeys(w, (n,)) | {"W_enc": (d, n), "W_dec": (n, d), "b_dec": (d,)}
    found = w if code_scale is None else w | {"scaling_factor": code_scale}
    for name, tensor in found.items():
        shape = expected.get(name, (n,))
        if tuple(tensor.shape) != shape:
            raise ValueError(
                f"{name} has the shape {tuple(tensor.shape)}, and W_dec of {(n, d)} asks for"
                f" {shape}: the weights are of two dictionaries, or of one that reads one place"
                " and writes another"
            )


def _check_equal(norms: Tensor, code_scale: Tensor | None) -> None:
    scaled = norms if code_scale is None else norms * code_scale.float()
    if bool(((scaled / scaled.mean() - 1).abs() > _EQUAL_NORMS).any()):
        raise ValueError(
            f"W_dec has rows of norms from {float(scaled.min()):.4g} to {float(scaled.max()):.4g},"
            " and its k strongest concepts are chosen before they are multiplied with them: codes"
            " in the units of activations cannot say that; give a dictionary whose rows have one"
            " norm"
        )


def _shift_biases(w: dict[str, Tensor]) -> None:
    """Have the encoder see activations less ``b_dec``, and give back what that takes away."""
    centre = w["b_dec"].double()
    parts = torch.split(w["W_enc"], _COLUMNS, dim=1)
    shift = torch.cat([centre @ part.double() for part in parts])
    for name in ("b_enc", "b_gate"):
        if name in w:
            w[name] = (w[name].double() + shift).float()
    if "b_mag" in w:
        w["b_mag"] = (w["b_mag"].double() + shift * w["r_mag"].double().exp()).float()


def _silence(w: dict[str, Tensor]) -> None:
    """Give concepts whose decoder row is zero a direction, and let them never be active."""
    dead = torch.linalg.vector_norm(w["W_dec"], dim=1) == 0
    if bool(dead.any()):
        w["W_dec"], w["W_enc"] = w["W_dec"].clone(), w["W_enc"].clone()
        w["W_dec"][dead, 0] = 1.0
        w["W_enc"][:, dead] = 0.0
        for name in _BIASES:
            if name in w:
                w[name] = torch.where(dead, torch.zeros_like(w[name]), w[name])

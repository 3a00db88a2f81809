"""One dictionary as a folder in SAELens' native layout, written and read with numpy alone.

The layout is that of ``sae_lens`` 6: ``cfg.json``, ``sae_weights.safetensors`` and, optionally,
``sparsity.safetensors``. With ``d`` the width of the activations and ``n`` the number of concepts,
the tensors and their meaning are, for an input ``x`` of shape ``(..., d)``:

======================  ====================================================================
topk                    ``relu(top_k((x - b_dec) @ W_enc + b_enc))``
jumprelu                ``p * (p > threshold)``, ``p = relu((x - b_dec) @ W_enc + b_enc)``
standard                ``relu((x - b_dec) @ W_enc + b_enc)``
gated                   ``(s @ W_enc + b_gate > 0) * relu(s @ (W_enc * exp(r_mag)) + b_mag)``,
                        ``s = x - b_dec``
transcoder              ``relu(x @ W_enc + b_enc)``, decoded to another width ``d_out``
======================  ====================================================================

and decoding is ``codes @ W_dec + b_dec`` throughout. BatchTopK and Matryoshka dictionaries are
published as ``jumprelu``, an input normalisation is folded into the weights beforehand.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from storage.records import read_json

__all__ = [
    "Architecture",
    "SaeLensDictionary",
    "fold_decoder_norms",
    "from_saelens",
    "read_saelens_folder",
    "to_saelens",
]

Architecture = Literal["topk", "jumprelu", "gated", "standard", "transcoder"]

# The release whose layout this is. Without a version of at least 6.0.0 in the metadata SAELens
# takes the folder for an old one and drops the whole of its metadata.
SAELENS_VERSION = "6.54.12"
CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = "sae_weights.safetensors"
SPARSITY_FILE = "sparsity.safetensors"

_BIASES: dict[str, tuple[str, ...]] = {
    "topk": ("b_enc",),
    "jumprelu": ("b_enc", "threshold"),
    "gated": ("b_gate", "b_mag", "r_mag"),
    "standard": ("b_enc",),
    "transcoder": ("b_enc",),
}
_DTYPES = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16)}
_NORM_TOLERANCE = {"float32": 1e-4, "float16": 5e-3}
# Attributes of SAELens' metadata object, which a key of the same name would hide.
_RESERVED_METADATA = frozenset(
    {
        "get",
        "items",
        "keys",
        "setdefault",
        "sae_lens_training_version",
        "to_dict",
        "update",
        "values",
    }
)
_SPARSITY_FLOOR = 1e-10

Array = NDArray[Any]


@dataclass(frozen=True)
class SaeLensDictionary:
    """A published dictionary: its weights, what they mean, and what was said about them.

    Attributes
    ----------
    architecture : str
        One of the architectures in the table above.
    weights : dict of str to ndarray
        Exactly the tensors of the architecture: ``W_enc (d, n)``, ``W_dec (n, d_out)``,
        ``b_dec (d_out,)`` and the biases ``(n,)``.
    k : int or None
        Active concepts per row of a ``topk`` dictionary, None for every other architecture.
    metadata : dict
        Free JSON; ours carries level, hookpoint and timestep.
    log10_frequency : ndarray of shape (n,) or None
        log10 of the share of rows in which each concept is active.
    """

    architecture: Architecture
    weights: dict[str, Array]
    k: int | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    log10_frequency: Array | None = None

    @property
    def directions(self) -> Array:
        """Decoder rows, ``(n, d_out)``, of unit norm."""
        return self.weights["W_dec"]

    @property
    def n_concepts(self) -> int:
        """Number of concepts."""
        return int(self.weights["W_enc"].shape[1])

    @property
    def d_in(self) -> int:
        """Width of the activations that are encoded."""
        return int(self.weights["W_enc"].shape[0])

    def encode(self, x: Array) -> Array:
        """Codes ``(..., n)`` of activations ``x`` of shape ``(..., d)``, non-negative."""
        w = self.weights
        if self.architecture == "transcoder":
            return cast(Array, np.maximum(x @ w["W_enc"] + w["b_enc"], 0))
        centred = x - w["b_dec"]
        projected = centred @ w["W_enc"]
        if self.architecture == "gated":
            magnitude = projected * np.exp(w["r_mag"]) + w["b_mag"]
            return cast(Array, np.maximum(magnitude, 0) * (projected + w["b_gate"] > 0))
        pre = projected + w["b_enc"]
        codes = cast(Array, np.maximum(pre, 0))
        if self.architecture == "jumprelu":
            return codes * (pre > w["threshold"])
        if self.architecture == "topk":
            return _keep_largest(codes, cast(int, self.k))
        return codes

    def decode(self, codes: Array) -> Array:
        """Reconstructions ``(..., d_out)`` of `codes` of shape ``(..., n)``."""
        return codes @ self.weights["W_dec"] + self.weights["b_dec"]


def to_saelens(
    weights: Mapping[str, Array],
    *,
    architecture: Architecture,
    k: int | None = None,
    metadata: Mapping[str, Any] | None = None,
    frequency: Array | None = None,
) -> dict[str, bytes]:
    """Return the files of one dictionary, by their names inside its folder.

    The bytes depend on nothing but the arguments, so that equal dictionaries have equal hashes.

    Parameters
    ----------
    weights : mapping of str to ndarray
        The tensors of the architecture and no other (SAELens refuses extra ones), all of one dtype,
        float32 or float16; the rows of ``W_dec`` have unit norm (see :func:`fold_decoder_norms`).
    architecture : str
        One of topk, jumprelu, gated, standard and transcoder.
    k : int, optional
        Active concepts per row; needed for topk and refused otherwise.
    metadata : mapping, optional
        Any JSON: model_name, hook_name, context_size, level, timestep, …
    frequency : ndarray of shape (n,), optional
        Share of rows in which each concept is active, between 0 and 1; stored as its log10.

    Raises
    ------
    ValueError
        If a tensor is missing, extra, of a wrong shape or dtype or not finite, if a decoder row is
        not of unit norm, or if `k` or `metadata` do not fit.
    """
    arrays = {name: np.ascontiguousarray(array) for name, array in weights.items()}
    _check_weights(arrays, architecture)
    dtype = arrays["W_enc"].dtype.name
    _check_unit_norms(arrays["W_dec"], dtype)
    d_in, n_concepts = arrays["W_enc"].shape
    _check_k(k, architecture, n_concepts)
    config: dict[str, Any] = {
        "architecture": architecture,
        "d_in": d_in,
        "d_sae": n_concepts,
        "dtype": dtype,
        "device": "cpu",
        "apply_b_dec_to_input": architecture != "transcoder",
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": _published_metadata(metadata or {}),
    }
    if architecture == "topk":
        config |= {"k": k, "rescale_acts_by_decoder_norm": False}
    if architecture == "transcoder":
        config["d_out"] = arrays["W_dec"].shape[1]

    from safetensors.numpy import save

    files = {
        CONFIG_FILE: (
            json.dumps(config, indent=2, sort_keys=True, allow_nan=False) + "\n"
        ).encode(),
        WEIGHTS_FILE: bytes(save(arrays)),
    }
    if frequency is not None:
        log10 = _log10_frequency(frequency, n_concepts)
        files[SPARSITY_FILE] = bytes(save({"sparsity": log10}))
    return files


def from_saelens(files: Mapping[str, bytes]) -> SaeLensDictionary:
    """Read one dictionary from the files of its folder.

    Raises
    ------
    ValueError
        If a file is missing or malformed, or if the folder holds a dictionary whose meaning is not
        in the table above (another architecture, or a normalisation that was not folded in).
    """
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if name not in files:
            raise ValueError(f"dictionary folder has no {name}: it is not in SAELens' layout.")
    config = _read_config(files[CONFIG_FILE])
    architecture = config["architecture"]
    weights = _load_tensors(files[WEIGHTS_FILE], WEIGHTS_FILE)
    _check_weights(weights, architecture)
    shape = weights["W_enc"].shape
    if shape != (config["d_in"], config["d_sae"]):
        raise ValueError(
            f"W_enc has the shape {shape}, but {CONFIG_FILE} says "
            f"({config['d_in']}, {config['d_sae']}): the folder mixes two dictionaries."
        )
    k = config.get("k") if architecture == "topk" else None
    _check_k(k, architecture, shape[1])
    sparsity = None
    if SPARSITY_FILE in files:
        sparsity = _load_tensors(files[SPARSITY_FILE], SPARSITY_FILE).get("sparsity")
        if sparsity is None or sparsity.shape != (shape[1],):
            raise ValueError(f"{SPARSITY_FILE} holds no tensor 'sparsity' of shape ({shape[1]},).")
    return SaeLensDictionary(architecture, weights, k, config.get("metadata") or {}, sparsity)


def read_saelens_folder(folder: str | Path) -> SaeLensDictionary:
    """Read one dictionary from its folder on disk; see :func:`from_saelens`."""
    names = (CONFIG_FILE, WEIGHTS_FILE, SPARSITY_FILE)
    paths = {name: Path(folder) / name for name in names}
    return from_saelens({name: path.read_bytes() for name, path in paths.items() if path.is_file()})


def fold_decoder_norms(
    weights: Mapping[str, Array], architecture: Architecture
) -> dict[str, Array]:
    """Scale decoder rows to unit norm and the encoder inversely, keeping every reconstruction.

    Code j is multiplied by the norm of decoder row j. A rectifier, a threshold or a gate commutes
    with such a scaling; the choice of the k largest does not, so topk is refused unless all norms
    are equal. Rows of zero norm, of concepts that never reconstruct anything, become a unit vector
    with a silent encoder.

    Raises
    ------
    ValueError
        If the weights do not fit the architecture, or if folding would change which concepts topk
        keeps.
    """
    folded = {name: np.array(array) for name, array in weights.items()}
    _check_weights(folded, architecture)
    w_dec = folded["W_dec"]
    norms = np.linalg.norm(w_dec.astype(np.float64), axis=1)
    if architecture == "topk" and not np.allclose(norms, norms[0], rtol=1e-3):
        raise ValueError(
            f"W_dec rows have norms from {norms.min():.3g} to {norms.max():.3g}: folding them "
            "would change which concepts topk keeps; train with unit norms or publish as jumprelu."
        )
    dtype = w_dec.dtype
    silent = norms == 0
    folded["W_dec"] = (w_dec / np.where(silent, 1.0, norms)[:, None]).astype(dtype)
    folded["W_dec"][silent, 0] = 1.0
    folded["W_enc"] = (folded["W_enc"] * norms).astype(dtype)
    for name in ("b_enc", "threshold", "b_gate", "b_mag"):
        if name in folded:
            folded[name] = (folded[name] * norms).astype(dtype)
    return folded


def _keep_largest(codes: Array, k: int) -> Array:
    """Zero all but the k largest entries of the last axis."""
    if k >= codes.shape[-1]:
        return codes
    kept = np.argpartition(codes, -k, axis=-1)[..., -k:]
    sparse = np.zeros_like(codes)
    np.put_along_axis(sparse, kept, np.take_along_axis(codes, kept, axis=-1), axis=-1)
    return sparse


def _check_weights(weights: Mapping[str, Array], architecture: str) -> None:
    if architecture not in get_args(Architecture):
        raise ValueError(
            f"architecture {architecture!r} is unknown: use one of {', '.join(_BIASES)} "
            "(BatchTopK and Matryoshka publish as jumprelu)."
        )
    expected = {"W_enc", "W_dec", "b_dec", *_BIASES[architecture]}
    if set(weights) != expected:
        missing, extra = sorted(expected - set(weights)), sorted(set(weights) - expected)
        raise ValueError(
            f"weights of a {architecture} dictionary lack {missing} and have the extra {extra}: "
            f"give exactly {sorted(expected)}."
        )
    dtype = weights["W_enc"].dtype
    for name, array in weights.items():
        if array.dtype != dtype or dtype not in _DTYPES.values():
            raise ValueError(
                f"{name} has the dtype {array.dtype}: cast all weights to float32 (or float16)."
            )
        if not np.isfinite(array).all():
            raise ValueError(f"{name} has values that are not finite: the training has diverged.")
    if weights["W_enc"].ndim != 2 or weights["W_dec"].ndim != 2:
        raise ValueError("W_enc and W_dec must be matrices, (d_in, n) and (n, d_out).")
    d_in, n_concepts = weights["W_enc"].shape
    d_out = weights["W_dec"].shape[1] if architecture == "transcoder" else d_in
    shapes: dict[str, tuple[int, ...]] = {"W_dec": (n_concepts, d_out), "b_dec": (d_out,)}
    shapes |= dict.fromkeys(_BIASES[architecture], (n_concepts,))
    for name, shape in shapes.items():
        if weights[name].shape != shape:
            raise ValueError(
                f"{name} has the shape {weights[name].shape}, but W_enc {weights['W_enc'].shape} "
                f"asks for {shape}."
            )


def _check_unit_norms(w_dec: Array, dtype: str) -> None:
    norms = np.linalg.norm(w_dec.astype(np.float64), axis=1)
    worst = int(np.abs(norms - 1).argmax())
    if abs(norms[worst] - 1) > _NORM_TOLERANCE[dtype]:
        raise ValueError(
            f"W_dec row {worst} has the norm {norms[worst]:.6g} instead of 1: pass the weights "
            "through fold_decoder_norms first."
        )


def _check_k(k: object, architecture: str, n_concepts: int) -> None:
    if architecture != "topk":
        if k is not None:
            raise ValueError(f"k = {k} has no meaning for {architecture}: leave it out.")
    elif isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= n_concepts:
        raise ValueError(f"k = {k!r} must be a whole number from 1 to {n_concepts} for topk.")


def _published_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    clash = sorted(_RESERVED_METADATA & set(metadata))
    if clash:
        raise ValueError(f"metadata keys {clash} are reserved by SAELens: rename them.")
    try:
        text = json.dumps(dict(metadata), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"metadata is not plain JSON ({error}).") from None
    return {
        **read_json(text.encode()),
        "sae_lens_version": SAELENS_VERSION,
        "sae_lens_training_version": SAELENS_VERSION,
    }


def _log10_frequency(frequency: Array, n_concepts: int) -> Array:
    share = np.asarray(frequency, dtype=np.float64)
    if share.shape != (n_concepts,) or not ((share >= 0) & (share <= 1)).all():
        raise ValueError(f"frequency must be {n_concepts} shares between 0 and 1.")
    return np.log10(np.maximum(share, _SPARSITY_FLOOR)).astype(np.float32)


def _read_config(data: bytes) -> dict[str, Any]:
    try:
        config = read_json(data)
    except ValueError as error:
        raise ValueError(f"{CONFIG_FILE} is not JSON ({error}).") from None
    if not isinstance(config, dict):
        raise ValueError(f"{CONFIG_FILE} is not a JSON object.")
    for key in ("architecture", "d_in", "d_sae"):
        if key not in config:
            raise ValueError(f"{CONFIG_FILE} lacks {key!r}.")
    if not isinstance(config.get("metadata") or {}, dict):
        raise ValueError(f"metadata in {CONFIG_FILE} is not a JSON object.")
    if config["architecture"] not in get_args(Architecture):
        raise ValueError(
            f"architecture {config['architecture']!r} in {CONFIG_FILE} is not one of "
            f"{', '.join(_BIASES)}."
        )
    if config.get("normalize_activations", "none") != "none":
        raise ValueError(
            f"{CONFIG_FILE} asks for the input normalisation "
            f"{config['normalize_activations']!r}: fold it into the weights first."
        )
    if config.get("rescale_acts_by_decoder_norm", False):
        raise ValueError(f"{CONFIG_FILE} rescales codes by decoder norms: fold the norms first.")
    if config["architecture"] != "transcoder" and not config.get("apply_b_dec_to_input", True):
        raise ValueError(
            f"{CONFIG_FILE} does not subtract b_dec: fold it into the encoder bias first."
        )
    return config


def _load_tensors(data: bytes, name: str) -> dict[str, Array]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return dict(load(data))
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{name} is not a readable safetensors file ({error}).") from None

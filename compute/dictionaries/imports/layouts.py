"""The layouts in which people have dictionaries, each read as its own tool means it.

===================  ===============================================================================
SAELens              ``cfg.json`` of any version and ``sae_weights.safetensors``
sparsify             ``cfg.json`` and ``sae.safetensors``
Gemma Scope          ``params.npz``; what else is known stands in the path
Gemma Scope 2        ``config.json`` and ``params.safetensors``
dictionary_learning  ``config.json`` and ``ae.pt``, of which tensors are read and nothing else
===================  ===============================================================================
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compute.dictionaries.imports.imported import Claims, FoundDictionary, Imported
from compute.dictionaries.imports.locating import WEIGHT_FILES, locate


def import_dictionary(source: str, level: str = "") -> Imported:
    """Read the dictionary of a level.

    Parameters
    ----------
    source, level : str
        See :func:`~compute.dictionaries.imports.locating.locate`.

    Raises
    ------
    ValueError
        In one sentence, if there is none, its files are damaged, or it is of a kind whose codes
        cannot be had here.
    """
    file = locate(source, level)
    try:
        return _READERS[WEIGHT_FILES[file.name]](file, f"{source}/{file.parent}").imported()
    except ValueError as error:
        raise ValueError(f"the dictionary {source!r} cannot be taken: {error}") from None


def _saelens(file: Path, _: str) -> FoundDictionary:
    config = _json(file.parent / "cfg.json")
    about = config | _mapping(config, "metadata")
    tensors = _safetensors(file)
    architecture, k = _saelens_architecture(config)
    scale = tensors.pop("scaling_factor", None)
    if scale is not None and bool((scale == 1).all()):
        scale = None
    if scale is not None and not config.get("finetuning_scaling_factor"):
        raise ValueError("it has a scaling_factor, and cfg.json says that it has none")
    if architecture in ("batchtopk", "matryoshka_batchtopk"):
        threshold = tensors.pop("topk_threshold", None)
        if threshold is not None:
            tensors["threshold"] = threshold
            _spread_threshold(tensors)
        architecture = "jumprelu"
    _check_tensors(tensors, architecture)
    d_in, shape = config.get("d_in"), tuple(tensors["W_enc"].shape)
    if d_in is not None and shape[:1] != (d_in,):
        raise ValueError(
            f"cfg.json says d_in = {d_in} and W_enc has the shape {shape}: the folder mixes two"
            " dictionaries"
        )
    return FoundDictionary(
        architecture,
        tensors,
        Claims(
            "SAELens",
            model=_text(about.get("model_name")),
            hook=_saelens_hook(about),
            timestep=_natural(about.get("timestep")),
            explained_variance=_number(about.get("explained_variance")),
            l0=_number(about.get("l0")),
        ),
        # Where k is a mean, this project's own files tell it.
        k=_whole(about.get("k")) if k is None else k,
        subtract_b_dec=bool(config.get("apply_b_dec_to_input", True)),
        input_scale=_input_scale(about),
        code_scale=scale,
        by_norm=bool(config.get("rescale_acts_by_decoder_norm", False)),
    )


def _saelens_hook(about: Mapping[str, Any]) -> str | None:
    """The place; this project's own name of it comes first, and old ones lack their layer."""
    names = (_text(about.get(name)) for name in ("hookpoint", "hook_name", "hook_point"))
    hook = next((name for name in names if name is not None), None)
    layer = about.get("hook_layer", about.get("hook_point_layer"))
    return hook if hook is None or layer is None else hook.replace("{layer}", str(layer))


def _saelens_architecture(config: Mapping[str, Any]) -> tuple[str, int | None]:
    """Architecture and, of TopK, k; older releases call TopK a standard one with an activation."""
    architecture = str(config.get("architecture") or "standard")
    activation = config.get("activation_fn_str") or config.get("activation_fn") or "relu"
    kwargs = _mapping(config, "activation_fn_kwargs")
    if activation == "topk" and architecture in ("standard", "topk"):
        architecture = "topk"
    elif activation != "relu":
        raise ValueError(f"its activation_fn {activation!r} is not one of relu and topk")
    if "transcoder" in architecture:
        raise ValueError(
            f"it is a {architecture}, which reads one place and writes another: a level is one"
            " place; give a dictionary of the activations themselves"
        )
    known = ("standard", "topk", "jumprelu", "gated", "batchtopk", "matryoshka_batchtopk")
    if architecture not in known:
        raise ValueError(
            f"its architecture {architecture!r} has codes of another kind: {', '.join(known)} can"
            " be taken"
        )
    if architecture != "topk":
        return architecture, None
    k = _whole(config.get("k") or kwargs.get("k"))
    if k is None:
        raise ValueError("it is a topk dictionary, and cfg.json gives no k: write the true one")
    return architecture, k


def _input_scale(about: Mapping[str, Any]) -> float:
    """The number by which activations are multiplied, of dictionaries trained on scaled ones."""
    if about.get("reshape_activations", "none") not in ("none", "hook_z", None):
        raise ValueError(f"its reshape_activations is {about['reshape_activations']!r}: unknown")
    normalised = about.get("normalize_activations") or "none"
    if normalised is True:
        # The releases before there was a choice.
        normalised = "expected_average_only_in"
    if normalised == "none":
        return 1.0
    scale = _number(about.get("norm_scaling_factor"))
    if normalised == "expected_average_only_in" and scale is not None and scale > 0:
        return scale
    if normalised == "expected_average_only_in":
        raise ValueError(
            "it was trained on activations times a number (normalize_activations ="
            " expected_average_only_in) that its files do not hold: write it into cfg.json as"
            " norm_scaling_factor, the square root of d_in over the mean norm of its activations"
        )
    raise ValueError(
        f"it normalises each row by itself or as no file here tells (normalize_activations ="
        f" {normalised}), which no direction in the units of activations does: take one without"
    )


def _sparsify(file: Path, _: str) -> FoundDictionary:
    config = _json(file.parent / "cfg.json")
    tensors = _safetensors(file)
    for name, refused in (("transcode", True), ("skip_connection", True), ("signed", True)):
        if config.get(name) == refused:
            raise ValueError(
                f"cfg.json says {name} = true: only dictionaries of the activations themselves,"
                " with codes that are not negative, can be taken"
            )
    if config.get("activation", "topk") != "topk":
        raise ValueError(f"its activation {config['activation']!r} is not topk")
    k = _whole(config.get("k"))
    if k is None:
        raise ValueError("cfg.json gives no k")
    above = file.parent.parent / "config.json"
    model = _text(_json(above).get("model")) if above.is_file() else None
    return FoundDictionary(
        "topk",
        _renamed(tensors, {"b_dec": "b_dec", "W_dec": "W_dec"}),
        Claims("sparsify", model=model, hook=file.parent.name),
        k=k,
    )


def _gemma_scope(file: Path, path: str) -> FoundDictionary:
    import zipfile

    import numpy as np

    try:
        with np.load(file, allow_pickle=False) as arrays:
            tensors = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except (ValueError, OSError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{file.name} is not a readable file of arrays ({error})") from None
    kind = re.search(r"gemma-scope-(\w+)-(pt|it)-(res|mlp|att|transcoders)", path)
    if (kind and kind[3] == "transcoders") or "transcoder" in path or "embedding" in path:
        raise ValueError("it is a transcoder or of the embedding: a level is a place in a block")
    layer, l0 = re.search(r"layer_(\d+)", path), re.search(r"average_l0_(\d+)", path)
    hook = f"layer_{layer[1]}" if layer else None
    if kind and layer:
        suffix = {"res": "hook_resid_post", "mlp": "hook_mlp_out", "att": "attn.hook_z"}[kind[3]]
        hook = f"blocks.{layer[1]}.{suffix}"
    return _gemma(
        tensors,
        Claims(
            "Gemma Scope",
            model=f"gemma-2-{kind[1]}" + ("-it" if kind[2] == "it" else "") if kind else None,
            hook=hook,
            l0=float(l0[1]) if l0 else None,
        ),
    )


def _gemma_scope_2(file: Path, path: str) -> FoundDictionary:
    config = _json(file.parent / "config.json")
    if config.get("architecture") != "jump_relu":
        raise ValueError(f"its architecture {config.get('architecture')!r} is not jump_relu")
    if config.get("hf_hook_point_out") not in (None, config.get("hf_hook_point_in")) or re.search(
        "transcoder|/clt", path
    ):
        raise ValueError("it is a transcoder, which reads one place and writes another")
    claims = Claims(
        "Gemma Scope 2",
        model=(_text(config.get("model_name")) or "").replace("-v3", "-3") or None,
        hook=_text(config.get("hf_hook_point_in")),
    )
    return _gemma(_safetensors(file), claims)


def _gemma(tensors: dict[str, Tensor], claims: Claims) -> FoundDictionary:
    named = {re.sub("^w_", "W_", name): tensor for name, tensor in tensors.items()}
    scale = named.pop("scaling_factor", None)
    if scale is not None and not bool((scale == 1).all()):
        raise ValueError("it has a scaling_factor, of which nothing says where it belongs")
    _check_tensors(named, "jumprelu")
    return FoundDictionary("jumprelu", named, claims, subtract_b_dec=False)


# Class of dictionary_learning → architecture and what the tensors of its biases are called there.
_LEARNED: dict[str, tuple[str, dict[str, str]]] = {
    "AutoEncoder": ("standard", {"b_dec": "bias"}),
    "AutoEncoderNew": ("standard", {"b_dec": "decoder.bias"}),
    "AutoEncoderTopK": ("topk", {"b_dec": "b_dec"}),
    "BatchTopKSAE": ("jumprelu", {"b_dec": "b_dec", "threshold": "threshold"}),
    "MatryoshkaBatchTopKSAE": ("jumprelu", {"b_dec": "b_dec", "threshold": "threshold"}),
    "JumpReluAutoEncoder": ("jumprelu", {"b_dec": "b_dec", "threshold": "threshold"}),
    "GatedAutoEncoder": (
        "gated",
        {"b_dec": "decoder_bias", "b_gate": "gate_bias", "b_mag": "mag_bias", "r_mag": "r_mag"},
    ),
}
# Those whose encoder sees the activations as they are.
_UNCENTRED = ("AutoEncoderNew", "JumpReluAutoEncoder")


def _dictionary_learning(file: Path, _: str) -> FoundDictionary:
    config = _mapping(_json(file.parent / "config.json"), "trainer")
    name = str(config.get("dict_class"))
    if name not in _LEARNED:
        raise ValueError(
            f"trainer.dict_class in config.json is {name}: {', '.join(_LEARNED)} can be taken"
        )
    architecture, names = _LEARNED[name]
    found = _tensors_alone(file)
    tensors = _renamed(found, names)
    _spread_threshold(tensors)
    reached = file.parent / "eval_results.json"
    scores = _json(reached) if reached.is_file() else {}
    layer = config.get("layer")
    return FoundDictionary(
        architecture,
        tensors,
        Claims(
            "dictionary_learning",
            model=_text(config.get("lm_name")),
            hook=_text(config.get("submodule_name"))
            or (None if layer is None else f"layer_{layer}"),
            explained_variance=_number(scores.get("frac_variance_explained")),
            l0=_number(scores.get("l0")),
        ),
        k=_whole(
            float(found["k"]) if "k" in found and found["k"].numel() == 1 else config.get("k")
        ),
        subtract_b_dec=name not in _UNCENTRED,
    )


_READERS: dict[str, Callable[[Path, str], FoundDictionary]] = {
    "SAELens": _saelens,
    "sparsify": _sparsify,
    "Gemma Scope": _gemma_scope,
    "Gemma Scope 2": _gemma_scope_2,
    "dictionary_learning": _dictionary_learning,
}


def _renamed(found: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Tensors under SAELens' names; a linear layer's weight is (out, in)."""
    wanted: dict[str, Tensor | None] = {
        "W_enc": found["encoder.weight"].T if "encoder.weight" in found else found.get("W_enc"),
        "W_dec": found["decoder.weight"].T if "decoder.weight" in found else found.get("W_dec"),
        **{ours: found.get(theirs) for ours, theirs in names.items()},
    }
    if "b_gate" not in names:
        wanted["b_enc"] = found.get("encoder.bias", found.get("b_enc"))
    if missing := [name for name, tensor in wanted.items() if tensor is None]:
        raise ValueError(
            f"its file has no tensor for {missing[0]}: it has {', '.join(sorted(found))}"
        )
    return {name: tensor for name, tensor in wanted.items() if tensor is not None}


def _check_tensors(tensors: Mapping[str, Tensor], architecture: str) -> None:
    biases = {"gated": {"b_gate", "b_mag", "r_mag"}, "jumprelu": {"b_enc", "threshold"}}
    expected = {"W_enc", "W_dec", "b_dec"} | biases.get(architecture, {"b_enc"})
    if set(tensors) != expected:
        raise ValueError(
            f"a {architecture} dictionary has the tensors {sorted(expected)}, and its file has"
            f" {sorted(tensors)}"
        )


def _spread_threshold(tensors: dict[str, Tensor]) -> None:
    """Give each concept a threshold of its own where one number holds for all."""
    threshold, w_enc = tensors.get("threshold"), tensors.get("W_enc")
    if threshold is not None and w_enc is not None and threshold.ndim == 0 and w_enc.ndim == 2:
        tensors["threshold"] = threshold.float().expand(w_enc.shape[1]).clone()


def _safetensors(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{file.name} is not a readable safetensors file ({error})") from None


def _tensors_alone(file: Path) -> dict[str, Tensor]:
    """Tensors by name of a file of torch, read so that nothing in it can be run."""
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        # Damage and refusal come as errors of many kinds, with advice to read objects after all.
        raise ValueError(
            f"{file.name} is damaged or holds more than tensors ({type(error).__name__}), and"
            " nothing else is ever read: save its state_dict by itself"
        ) from None
    if not isinstance(found, dict) or not all(isinstance(t, Tensor) for t in found.values()):
        raise ValueError(f"{file.name} is not tensors by name: save a state_dict by itself")
    return dict(found)


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"it has no {file.name}") from None
    except (ValueError, OSError) as error:
        raise ValueError(f"{file.name} is not JSON ({error})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{file.name} is not a JSON object")
    return found


def _mapping(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = config.get(name) or {}
    if not isinstance(found, dict):
        raise ValueError(f"{name} is {found!r}: it must be a mapping")
    return found


def _number(value: object) -> float | None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else None  # type: ignore[arg-type]


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _natural(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _whole(value: object) -> int | None:
    """The number, rounded up where it is a mean; None where there is none."""
    number = _number(value)
    return None if number is None else max(1, math.ceil(number))

"""Reading GGUF files: the header in milliseconds, plain decoder weights in seconds.

transformers reads a GGUF's vocabulary several times over while it loads one model. For the plain
decoder architectures below the same steps are taken here once, with the tensor names and the
dequantisation of the `gguf` package. Every other architecture is left to
``from_pretrained(gguf_file=…)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM

# No public reader serves: gguf.GGUFReader takes seconds for a header, as it visits every token.
from transformers.integrations.gguf.reader import (
    GgufHeader,
    load_gguf_state_dict,
    read_gguf_metadata,
)

from compute.models.shared_weights import made_once

# transformers is typed only in part.
_Model: Any = AutoModelForCausalLM
_MODEL_CLASSES: Any = MODEL_FOR_CAUSAL_LM_MAPPING
_state_dict: Any = load_gguf_state_dict

_DIRECT = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2}
# Keys of a GGUF header, below the architecture's name, and what a transformers config calls them.
_DECODER_NAMES = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "embedding_length": "hidden_size",
    "rope.freq_base": "rope_theta",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
_CONFIG_NAMES = {
    "llama": _DECODER_NAMES | {"rope.dimension_count": "head_dim"},
    "qwen2": _DECODER_NAMES,
}
_TOKEN_NAMES = {
    "tokenizer.ggml.bos_token_id": "bos_token_id",
    "tokenizer.ggml.eos_token_id": "eos_token_id",
    "tokenizer.ggml.unknown_token_id": "unk_token_id",
    "tokenizer.ggml.padding_token_id": "pad_token_id",
}


@dataclass(frozen=True, slots=True)
class GgufFacts:
    """What the header of a GGUF file says.

    Attributes
    ----------
    architecture : llama.cpp's name of it (``llama``, ``gemma2`` …).
    n_layers, hidden_size, context_length : sizes of the decoder.
    vocabulary_size : number of token ids.
    metadata : every scalar of the header.
    tensors : names of the tensors.
    """

    architecture: str
    n_layers: int
    hidden_size: int
    context_length: int
    vocabulary_size: int
    metadata: dict[str, Any]
    tensors: tuple[str, ...]


def read_header(path: Path) -> GgufFacts:
    """Return the facts in the header of the GGUF file at ``path``.

    Raises
    ------
    ValueError : the file is not a GGUF, or lacks the facts of a decoder.
    """
    metadata, tensors = read_gguf_metadata(str(path))
    architecture = str(metadata["general.architecture"])

    def fact(name: str) -> int:
        key = f"{architecture}.{name}"
        if key not in metadata:
            raise ValueError(f"GGUF file {path.name} lacks {key!r}, so it is no language model")
        return int(metadata[key])

    return GgufFacts(
        architecture=architecture,
        n_layers=fact("block_count"),
        hidden_size=fact("embedding_length"),
        context_length=fact("context_length"),
        # In the absence of a size the reader leaves the length of the vocabulary.
        vocabulary_size=int(
            metadata.get(f"{architecture}.vocab_size") or metadata["tokenizer.ggml.tokens"]
        ),
        metadata={k: v for k, v in metadata.items() if not isinstance(v, list)},
        tensors=tensors,
    )


def gguf_config(path: Path) -> Any:
    """Return the transformers config of the GGUF file at ``path``."""
    facts = read_header(path)
    if facts.architecture not in _DIRECT or _is_mistral(facts):
        return AutoConfig.from_pretrained(str(path.parent), gguf_file=path.name)
    own = {f"{facts.architecture}.{k}": v for k, v in _CONFIG_NAMES[facts.architecture].items()}
    settings: dict[str, Any] = {
        name: facts.metadata[key]
        for key, name in (own | _TOKEN_NAMES).items()
        if facts.metadata.get(key) is not None
    }
    settings["vocab_size"] = facts.vocabulary_size
    settings["tie_word_embeddings"] = "output.weight" not in facts.tensors
    return AutoConfig.for_model(facts.architecture, **settings)


def load_gguf(path: Path, config: Any, dtype: torch.dtype) -> torch.nn.Module:
    """Return the causal language model of the GGUF file at ``path``, dequantised to ``dtype``.

    The weights are bit for bit those of ``from_pretrained(gguf_file=…, dtype=dtype)``. The workers
    of a run on one machine dequantise them once.

    Raises
    ------
    ValueError : the file lacks a tensor that the model has.
    """
    facts = read_header(path)
    if facts.architecture not in _DIRECT or _is_mistral(facts):
        model: torch.nn.Module = _Model.from_pretrained(
            str(path.parent), gguf_file=path.name, config=config, dtype=dtype
        )
        return model
    file = path.stat()
    weights = made_once(
        f"{path.resolve()} {file.st_size} {file.st_mtime_ns} {dtype}",
        lambda: _dequantised(path, facts, config, dtype),
    )
    # Without a path the weights come from state_dict; buffers and tied weights are set as ever.
    built: torch.nn.Module = _MODEL_CLASSES[type(config)].from_pretrained(
        None, config=config, state_dict=weights, dtype=dtype
    )
    return built


def _is_mistral(facts: GgufFacts) -> bool:
    # llama.cpp files Mistral models under llama; transformers tells them apart by their name.
    return "mistral" in str(facts.metadata.get("general.name", "")).lower()


def _dequantised(
    path: Path, facts: GgufFacts, config: Any, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Return parameter name → tensor, in the layout transformers expects."""
    with torch.device("meta"):
        model = _Model.from_config(config)
    names = gguf.get_tensor_name_map(_DIRECT[facts.architecture], facts.n_layers)
    parameters: dict[str, str] = {}
    for parameter in model.state_dict():
        module, _, suffix = parameter.rpartition(".")
        if (name := names.get_name(module)) is not None:
            parameters[f"{name}.{suffix}"] = parameter
    missing = sorted(set(parameters) - set(facts.tensors))
    if missing and not (config.tie_word_embeddings and missing == ["output.weight"]):
        raise ValueError(f"GGUF file {path.name} lacks the tensor {missing[0]!r}")

    weights: dict[str, torch.Tensor] = {}
    for name, stored in _state_dict(GgufHeader.from_file(str(path))).items():
        if name not in parameters:
            continue
        kind = gguf.GGMLQuantizationType(stored.ggml_type)
        array = gguf.dequantize(stored.data.reshape(*stored.shape[:-1], -1), kind)
        if facts.architecture == "llama" and ".attn_q." in name:
            array = _halves_joined(array, config.num_attention_heads)
        elif facts.architecture == "llama" and ".attn_k." in name:
            array = _halves_joined(array, config.num_key_value_heads)
        weights[parameters[name]] = torch.from_numpy(array.copy()).to(dtype)
    return weights


def _halves_joined(weights: NDArray[np.float32], n_heads: int) -> NDArray[np.float32]:
    """Undo how llama.cpp stores the rows of a projection to rotated queries or keys.

    It puts the two numbers that are rotated together side by side, while transformers puts the
    first of every pair of a head before all the second (``permute`` of its convert_hf_to_gguf.py).
    """
    half = len(weights) // n_heads // 2
    pairs = weights.reshape(n_heads, half, 2, *weights.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weights.shape)

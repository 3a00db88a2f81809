from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
)

WORDS = [
    "a", "the", "cat", "dog", "sat", "ran", "on", "in", "mat",
    "house", "and", "then", "it", "was", "red", "blue", "big", "small",
]  # fmt: skip
SPECIAL = ("<unk>", "<s>", "</s>", "<pad>")
DECODER = {
    "vocab_size": 32,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
FAMILIES = {
    "gpt2": {"vocab_size": 32, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64},
    "llama": DECODER,
    "gemma2": DECODER | {"head_dim": 8, "sliding_window": 8},
    "gemma3_text": DECODER | {"head_dim": 8, "sliding_window": 8},
    "qwen2": DECODER,
    "qwen3": DECODER | {"head_dim": 8},
    "mistral": DECODER | {"sliding_window": 8},
    "gpt_neox": {k: v for k, v in DECODER.items() if k != "num_key_value_heads"},
    "opt": {
        "vocab_size": 32,
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
    },
}


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def save_language_model(tmp_path_factory):
    """A tiny random model of a real class, saved with a tokenizer as a standard folder."""
    folders: dict[str, Path] = {}

    def save(family: str) -> Path:
        if family not in folders:
            folder = tmp_path_factory.mktemp(family)
            config = AutoConfig.for_model(family, **FAMILIES[family], **TOKENS)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                model = AutoModelForCausalLM.from_config(config)
            # The usual initialisation is so small that attention hardly acts.
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.ndim == 2:
                        parameter.mul_(8)
            model.save_pretrained(folder)
            word_tokenizer().save_pretrained(folder)
            folders[family] = folder
        return folders[family]

    return save


def word_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate((*SPECIAL, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
    )

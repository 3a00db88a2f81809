"""A tiny real language model with a tokenizer, texts for it, and a recipe that reads them."""

_TEXT = "the a red blue green small large old new house tree river cloud stone bird fish runs sees"
_TEXT += " holds finds and or not under over near with without quickly slowly one two three"
WORDS = _TEXT.split()


def make_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", ".", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


def make_model(folder):
    """A random Llama with 4 layers of width 16 in a folder, with safetensors and a tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def make_texts(folder):
    """A folder of 24 documents of about 100 words, some with a special token among them."""
    import numpy as np

    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(24):
        words = rng.choice(WORDS, size=int(rng.integers(60, 140)), p=zipf(len(WORDS)))
        if number % 3 == 0:
            words = np.insert(words, [0, 40], "<eos>")
        (folder / f"document-{number:02d}.txt").write_text(" ".join(words) + " .")
    return folder


def zipf(n):
    import numpy as np

    weights = 1 / np.arange(1, n + 1)
    return weights / weights.sum()


def tiny_values(model, texts):
    """Values of a recipe that runs in seconds; `store` is left to who runs it."""
    return {
        "name": "tiny",
        "title": "A tiny model",
        # Also where the processor computes in bfloat16: rows are compared with the model.
        "model": {"source": str(model), "dtype": "float32"},
        "inputs": {"text": str(texts)},
        "levels": [
            {"name": "layer-00", "hookpoint": "layers.0.output"},
            {"name": "layer-02", "hookpoint": "layers.2.output"},
        ],
        "extract": {
            "context_length": 32,
            "block_rows": 256,
            "shard_rows": 512,
            "chunk_rows": 128,
            "dtype": "float32",
        },
        "learn": {
            "method": "independent",
            "n_concepts": 48,
            "k": 4,
            "steps": 60,
            "batch_size": 256,
            "checkpoint_steps": 20,
        },
        "encode": {"examples": 3, "window": 4},
        "recover": {"min_token_count": 5},
        # One worker each: most of a tiny run is the start of its workers.
        "resources": {"extract": {"workers": 1}, "encode": {"workers": 1}, "learn": {"cpus": 1}},
    }

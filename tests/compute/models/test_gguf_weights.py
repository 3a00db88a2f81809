from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from compute.models.conformance import check_adapter
from compute.models.gguf_weights import gguf_config, load_gguf, read_header
from compute.models.language import Context, LanguageModel

SIZES = {"width": 64, "inner": 96, "layers": 2, "heads": 4, "key_heads": 2, "words": 40}


def write_gguf(path, architecture="llama", *, tied=True, omit=(), kind="Q4_1"):
    """A small random decoder, its matrices quantised as llama.cpp does."""
    rng = np.random.default_rng(0)
    width, inner = SIZES["width"], SIZES["inner"]
    keys = width // SIZES["heads"] * SIZES["key_heads"]
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_block_count(SIZES["layers"])
    writer.add_context_length(32)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(SIZES["heads"])
    writer.add_head_count_kv(SIZES["key_heads"])
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(5000.0)
    writer.add_vocab_size(SIZES["words"])
    writer.add_tokenizer_model("gpt2")
    letters = [chr(ord("!") + i) for i in range(SIZES["words"] - 1)]
    letters.append(letters[5] + letters[6])
    writer.add_token_list(letters)
    writer.add_token_types([3, 3, *[1] * (SIZES["words"] - 2)])
    writer.add_token_merges([f"{letters[5]} {letters[6]}"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)

    def add(name, *shape):
        if name in omit:
            return
        values = rng.normal(0, 0.3, shape).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(name, values)
            return
        quantisation = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, gguf.quantize(values, quantisation), raw_dtype=quantisation)

    add("token_embd.weight", SIZES["words"], width)
    add("output_norm.weight", width)
    if not tied:
        add("output.weight", SIZES["words"], width)
    for i in range(SIZES["layers"]):
        add(f"blk.{i}.attn_norm.weight", width)
        add(f"blk.{i}.ffn_norm.weight", width)
        for part, rows in (("q", width), ("k", keys), ("v", keys)):
            add(f"blk.{i}.attn_{part}.weight", rows, width)
            if architecture == "qwen2":
                add(f"blk.{i}.attn_{part}.bias", rows)
        add(f"blk.{i}.attn_output.weight", width, width)
        add(f"blk.{i}.ffn_gate.weight", inner, width)
        add(f"blk.{i}.ffn_up.weight", inner, width)
        add(f"blk.{i}.ffn_down.weight", width, inner)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_parts_inside_transformers_that_are_used_do_what_they_did(tmp_path):
    from transformers.integrations.gguf.reader import (
        GgufHeader,
        load_gguf_state_dict,
        read_gguf_metadata,
    )

    path = str(write_gguf(tmp_path / "tiny.gguf"))
    metadata, tensors = read_gguf_metadata(path)
    assert metadata["llama.embedding_length"] == SIZES["width"]
    assert metadata["tokenizer.ggml.tokens"] == SIZES["words"]
    stored = load_gguf_state_dict(GgufHeader.from_file(path))
    assert set(stored) == set(tensors)
    matrix = stored["blk.0.ffn_up.weight"]
    assert matrix.ggml_type == gguf.GGMLQuantizationType.Q4_1
    packed = matrix.data.reshape(*matrix.shape[:-1], -1)
    shape = gguf.dequantize(packed, gguf.GGMLQuantizationType.Q4_1).shape
    assert shape == (SIZES["inner"], SIZES["width"])


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize(("tied", "kind"), [(True, "Q4_1"), (False, "F16"), (False, "BF16")])
def test_the_short_way_gives_what_transformers_gives(tmp_path, architecture, tied, kind):
    path = write_gguf(tmp_path / "tiny.gguf", architecture, tied=tied, kind=kind)
    config = gguf_config(path)
    theirs = AutoConfig.from_pretrained(str(tmp_path), gguf_file=path.name)
    different = {
        key
        for key in theirs.to_dict() | config.to_dict()
        if theirs.to_dict().get(key) != config.to_dict().get(key)
    }
    assert different <= {"_name_or_path", "_model_name_or_path"}

    mine = load_gguf(path, config, torch.float32).state_dict()
    model = AutoModelForCausalLM.from_pretrained(
        str(tmp_path), gguf_file=path.name, dtype=torch.float32
    )
    assert mine.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(mine[name], tensor), name


def test_a_missing_tensor_is_refused(tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", omit={"blk.1.ffn_up.weight"})
    with pytest.raises(ValueError, match=r"lacks the tensor 'blk\.1\.ffn_up\.weight'"):
        load_gguf(path, gguf_config(path), torch.float32)


def test_the_header_alone_tells_the_sizes(tmp_path):
    facts = read_header(write_gguf(tmp_path / "tiny.gguf"))
    assert (facts.architecture, facts.n_layers, facts.hidden_size) == ("llama", 2, 64)
    assert (facts.vocabulary_size, facts.context_length) == (40, 32)


def test_a_gguf_is_an_adapter_like_any_other(tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf")
    for source in (tmp_path, path):
        adapter = LanguageModel.load(
            source, levels=["layers.0.output", "layers.1.mlp"], dtype="float32", context_length=8
        )
        assert type(adapter.model).__name__ == "LlamaForCausalLM"
        items = [Context(0, 0, (2, 3, 4, 5)), Context(1, 0, (9, 8, 7)), Context(1, 3, (1, 6))]
        assert [adapter.rows_of(item) for item in items] == [4, 3, 1]
        check_adapter(adapter, items)


def test_what_another_worker_has_dequantised_is_the_same(tmp_path, monkeypatch):
    from compute.machine.leftovers import MARK
    from compute.models import gguf_weights

    path = write_gguf(tmp_path / "tiny.gguf")
    config = gguf_config(path)
    alone = load_gguf(path, config, torch.bfloat16).state_dict()
    monkeypatch.setenv(MARK, str(tmp_path))
    for number in range(2):
        shared = load_gguf(path, config, torch.bfloat16).state_dict()
        assert shared.keys() == alone.keys()
        assert all(torch.equal(shared[name], alone[name]) for name in alone), number
        # The second finds what the first has made.
        monkeypatch.setattr(gguf_weights, "_dequantised", None)

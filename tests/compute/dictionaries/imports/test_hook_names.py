"""Which names of places and models may mean one."""

import pytest

from compute.dictionaries.imports.hook_names import may_be_one_model, may_be_one_place


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("blocks.8.hook_resid_post", "layers.8.output"),
        ("blocks.9.hook_resid_pre", "layers.8.output"),
        ("blocks.8.hook_mlp_out", "layers.8.mlp"),
        ("blocks.8.hook_attn_out", "layers.8.attn"),
        ("model.layers.8.output", "layers.8.output"),
        ("model.layers.8", "layers.8.output"),
        ("gpt_neox.layers.8", "layers.8.output"),
        ("transformer.h.8", "layers.8.output"),
        ("layers.8", "layers.8.output"),
        ("layers.8.mlp", "layers.8.mlp"),
        ("resid_post_layer_8", "layers.8.output"),
        ("layer_8", "layers.8.output"),
        ("up_blocks.1.attentions.1", "up_blocks.1.attentions.1"),
        ("a place of its own", "layers.8.output"),
    ],
)
def test_one_place(theirs, ours):
    assert may_be_one_place(theirs, ours)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("blocks.8.hook_resid_post", "layers.9.output"),
        ("blocks.8.hook_resid_pre", "layers.8.output"),
        ("blocks.8.hook_mlp_out", "layers.8.output"),
        ("blocks.8.hook_resid_mid", "layers.8.output"),
        ("blocks.8.attn.hook_z", "layers.8.attn"),
        ("layers.8", "layers.8.mlp"),
        ("layer_8", "layers.7.output"),
        ("mlp_out_layer_8", "layers.8.output"),
    ],
)
def test_other_places(theirs, ours):
    assert not may_be_one_place(theirs, ours)


@pytest.mark.parametrize(
    ("theirs", "ours", "one"),
    [
        ("gemma-2-2b", "google/gemma-2-2b", True),
        ("gemma-2-2b", "google/gemma-2-2b-it", True),
        ("gpt2-small", "openai-community/gpt2", True),
        ("EleutherAI/pythia-70m-deduped", "EleutherAI/pythia-70m-deduped", True),
        ("gemma-2-2b", "google/gemma-2-9b", False),
        ("gpt2-small", "HuggingFaceTB/SmolLM2-135M", False),
    ],
)
def test_models(theirs, ours, one):
    assert may_be_one_model(theirs, ours) == one

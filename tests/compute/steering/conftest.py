"""Tiny random models with hand-made levels, so that every edit can be worked out by hand."""

import diffusers
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from compute.dictionaries import Dictionary
from compute.steering import ConceptLevel

DECODER = {
    "vocab_size": 32,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
}
FAMILIES = {
    "llama": DECODER,
    "gpt2": {"vocab_size": 32, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64},
    "opt": {k: v for k, v in DECODER.items() if k not in ("intermediate_size", "eos_token_id")}
    | {"ffn_dim": 48, "word_embed_proj_dim": 32, "eos_token_id": 2},
}


def random_dictionary(d, n=48, k=6, architecture="topk", seed=0):
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((n, d)).astype(np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    weights = {
        "W_enc": directions.T.copy(),
        "b_enc": np.full(n, 0.01, np.float32),
        "W_dec": directions,
        "b_dec": rng.standard_normal(d).astype(np.float32) / 10,
    }
    if architecture == "jumprelu":
        weights["threshold"] = np.full(n, 0.3, np.float32)
    if architecture == "gated":
        del weights["b_enc"]
        weights |= {
            "b_gate": np.full(n, -0.2, np.float32),
            "b_mag": np.full(n, 0.1, np.float32),
            "r_mag": np.full(n, 0.05, np.float32),
        }
    return Dictionary.from_weights(architecture, weights, k=k)


def make_language_model(family):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **FAMILIES[family]))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8)
    return model.eval()


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def language_model():
    return make_language_model("llama")


@pytest.fixture(scope="session")
def levels():
    """Two levels of the tiny language model."""
    return (
        ConceptLevel(
            1,
            "layer-00",
            "layers.0.output",
            random_dictionary(32),
            largest=np.full(48, 3.0, np.float32),
        ),
        ConceptLevel(2, "layer-01", "layers.1.output", random_dictionary(32, seed=1)),
    )


def unconditional():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = diffusers.UNet2DModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            layers_per_block=1,
            block_out_channels=(16, 32),
            norm_num_groups=4,
            attention_head_dim=4,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        )
    pipeline = diffusers.DDIMPipeline(unet, diffusers.DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def text_to_image():
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    letters = sorted(set("abcdeghinorstu"))
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{x}</w>" for x in letters)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline = diffusers.StableDiffusionPipeline(
            vae=diffusers.AutoencoderKL(
                block_out_channels=(8, 8),
                down_block_types=("DownEncoderBlock2D",) * 2,
                up_block_types=("UpDecoderBlock2D",) * 2,
                latent_channels=4,
                norm_num_groups=4,
                sample_size=16,
            ),
            text_encoder=CLIPTextModel(
                CLIPTextConfig(
                    vocab_size=64,
                    hidden_size=16,
                    intermediate_size=24,
                    num_hidden_layers=2,
                    num_attention_heads=2,
                    max_position_embeddings=12,
                    projection_dim=16,
                    bos_token_id=0,
                    eos_token_id=1,
                    pad_token_id=1,
                )
            ),
            tokenizer=CLIPTokenizer(
                vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=12
            ),
            unet=diffusers.UNet2DConditionModel(
                sample_size=8,
                in_channels=4,
                out_channels=4,
                layers_per_block=1,
                block_out_channels=(16, 32),
                norm_num_groups=4,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
                attention_head_dim=4,
                cross_attention_dim=16,
            ),
            scheduler=diffusers.DDIMScheduler(
                beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="session")
def pipeline():
    return unconditional()


@pytest.fixture(scope="session")
def prompted():
    return text_to_image()


@pytest.fixture(scope="session")
def diffusion_levels():
    return (
        ConceptLevel(1, "late", "up_blocks.0", random_dictionary(32), timestep=200),
        ConceptLevel(2, "early", "mid_block", random_dictionary(32, seed=1), timestep=700),
    )

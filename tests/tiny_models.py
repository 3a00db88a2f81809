"""Tiny random models of the real classes, all with the same weights every time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
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
    "olmo2": DECODER,
    "glm4": DECODER | {"head_dim": 8},
    "granite": DECODER | {"residual_multiplier": 0.25},
    "bloom": {"vocab_size": 32, "hidden_size": 32, "n_layer": 3, "n_head": 4},
    "mpt": {"vocab_size": 32, "d_model": 32, "n_layers": 3, "n_heads": 4, "max_seq_len": 64},
    "falcon": {
        "vocab_size": 32,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
    },
    "qwen3_moe": DECODER
    | {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    # As an encoder, which sees what follows.
    "bert": {k: v for k, v in DECODER.items() if k != "num_key_value_heads"},
    "gemma3n_text": DECODER
    | {
        "head_dim": 8,
        "vocab_size_per_layer_input": 32,
        "hidden_size_per_layer_input": 8,
        "num_kv_shared_layers": 0,
        "laurel_rank": 4,
        "layer_types": ["full_attention"] * 3,
        "activation_sparsity_pattern": [0.0] * 3,
    },
}


def tiny_language_model(family: str) -> PreTrainedModel:
    """A random decoder of one of ``FAMILIES``."""
    config = AutoConfig.for_model(family, **FAMILIES[family], **TOKENS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
    # The usual initialisation is so small that attention hardly acts.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8)
    return model.eval()


def tiny_pipeline(family: str) -> diffusers.DiffusionPipeline:
    """A random pipeline, one of ``PIPELINES``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return PIPELINES[family]()


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


UNET = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 1,
    "block_out_channels": (16, 32),
    "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 4,
    "cross_attention_dim": 16,
}


def clip_tokenizer() -> CLIPTokenizer:
    letters = sorted({letter for word in WORDS for letter in word})
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{x}</w>" for x in letters)]
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=12
    )


def clip_text(projection: bool = False, width: int = 16) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=64,
        hidden_size=width,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=12,
        projection_dim=width,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def vae(shift: float | None = None) -> diffusers.AutoencoderKL:
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
        shift_factor=shift,
    )


def stable_diffusion() -> diffusers.StableDiffusionPipeline:
    return diffusers.StableDiffusionPipeline(
        vae=vae(),
        text_encoder=clip_text(),
        tokenizer=clip_tokenizer(),
        unet=diffusers.UNet2DConditionModel(**UNET),
        scheduler=diffusers.DDIMScheduler(
            beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_xl() -> diffusers.StableDiffusionXLPipeline:
    unet = UNET | {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 16,
        "cross_attention_dim": 32,
    }
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=clip_text(),
        text_encoder_2=clip_text(projection=True),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=diffusers.UNet2DConditionModel(**unet),
        scheduler=diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear"),
    )


def stable_diffusion_3() -> diffusers.StableDiffusion3Pipeline:
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=32,
        out_channels=4,
    )
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(shift=0.1),
        text_encoder=clip_text(projection=True),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip_text(projection=True),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=None,
        tokenizer_3=None,
    )


def flux() -> diffusers.FluxPipeline:
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 8),
    )
    t5 = T5Config(
        vocab_size=32, d_model=32, d_kv=8, d_ff=24, num_layers=1, num_heads=4, pad_token_id=3
    )
    return diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae(shift=0.1),
        text_encoder=clip_text(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=T5EncoderModel(t5),
        tokenizer_2=word_tokenizer(),
        transformer=transformer,
    )


def unconditional() -> diffusers.DDIMPipeline:
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
    return diffusers.DDIMPipeline(unet, diffusers.DDIMScheduler())


PIPELINES: dict[str, Callable[[], Any]] = {
    "sd": stable_diffusion,
    "sdxl": stable_diffusion_xl,
    "sd3": stable_diffusion_3,
    "flux": flux,
    "ddim": unconditional,
}

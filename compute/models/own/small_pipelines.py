"""Small untrained pipelines of the standard diffusers classes, and a tokenizer of whole words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch


def new_text_to_image(
    words: Sequence[str], *, size: int = 32, longest: int = 24, seed: int = 0
) -> Any:
    """Return an untrained `StableDiffusionPipeline` of about 1.3 million parameters.

    Pictures of 32 pixels become latents ``(4, 8, 8)``; text is attended to where the denoiser is
    4×4. It predicts velocities, and its last timestep is noise alone (Lin et al. 2023,
    arXiv 2305.08891), so that what is drawn is decided by the caption from the first step on.

    Parameters
    ----------
    words : what captions are made of; each becomes one token.
    size : side of the pictures in pixels, a multiple of 8.
    longest : most tokens of a caption, its two markers included.
    seed : of the weights.

    Raises
    ------
    ValueError : the size is no multiple of 8.
    """
    import diffusers

    if size < 8 or size % 8:
        raise ValueError(f"size is {size}; it must be a multiple of 8 pixels")
    tokenizer = word_tokenizer(words, longest)
    parts: Any = diffusers
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # Weights are drawn in this order.
        vae = _new_autoencoder(size)
        text_encoder = _new_text_encoder(tokenizer, longest)
        unet = _new_denoiser(size // 4)
    pipeline = parts.StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _new_autoencoder(size: int) -> Any:
    import diffusers

    parts: Any = diffusers
    return parts.AutoencoderKL(
        block_out_channels=(8, 16, 32),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=size,
        mid_block_add_attention=False,
    )


def _new_text_encoder(tokenizer: Any, longest: int) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=96,
            intermediate_size=192,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=longest,
            projection_dim=96,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _new_denoiser(latent_size: int) -> Any:
    import diffusers

    parts: Any = diffusers
    return parts.UNet2DConditionModel(
        sample_size=latent_size,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(32, 64),
        norm_num_groups=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        cross_attention_dim=96,
    )


def new_unconditional(*, size: int = 16, seed: int = 0) -> Any:
    """Return an untrained `DDIMPipeline` of grey pictures, of about 300,000 parameters.

    Parameters
    ----------
    size : side of the pictures in pixels, a multiple of 4.
    seed : of the weights.

    Raises
    ------
    ValueError : the size is no multiple of 4.
    """
    import diffusers

    if size < 4 or size % 4:
        raise ValueError(f"size is {size}; it must be a multiple of 4 pixels")
    parts: Any = diffusers
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = parts.UNet2DModel(
            sample_size=size,
            in_channels=1,
            out_channels=1,
            layers_per_block=1,
            block_out_channels=(16, 32, 32),
            norm_num_groups=8,
            down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
            attention_head_dim=16,
        )
    pipeline = parts.DDIMPipeline(unet=unet, scheduler=_scheduler())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _scheduler() -> Any:
    import diffusers

    parts: Any = diffusers
    return parts.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        # Of no effect with trailing steps; the pipeline warns of any other value.
        steps_offset=1,
    )


def word_tokenizer(words: Sequence[str], longest: int) -> Any:
    """Return a `CLIPTokenizer` whose tokens are ``words``, what they are merged of, and markers."""
    from transformers import CLIPTokenizer

    merges = _merges(words)
    letters = sorted({letter for word in words for letter in word})
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{x}</w>" for x in letters)]
    tokens += [left + right for left, right in merges]
    tokenizer_class: Any = CLIPTokenizer
    return tokenizer_class(
        vocab={token: index for index, token in enumerate(dict.fromkeys(tokens))},
        merges=merges,
        model_max_length=longest,
    )


def _merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """Return byte-pair merges, most frequent pair first, that make one token of every word."""
    spelt = [[*word[:-1], f"{word[-1]}</w>"] for word in words]
    merges: list[tuple[str, str]] = []
    while pairs := Counter(pair for symbols in spelt for pair in pairwise(symbols)):
        # Ties are broken by the alphabet, so that the vocabulary is always the same.
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for symbols in spelt:
            at = 0
            while at < len(symbols) - 1:
                if (symbols[at], symbols[at + 1]) == best:
                    symbols[at : at + 2] = [best[0] + best[1]]
                at += 1
    return merges

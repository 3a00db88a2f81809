"""Training of small text-to-image pipelines, from nothing to a standard diffusers folder.

Everything random in step s follows from the seed and s, and a checkpoint holds all that training
changes: a run that is stopped and started again ends in the same weights.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from compute.models.checkpoints import load_checkpoint, save_checkpoint

Progress = Callable[[str, int, int, float], None]


class Captioned(NamedTuple):
    """Pictures ``(n, size, size, 3)`` uint8 and a caption for each."""

    images: NDArray[np.uint8]
    captions: Sequence[str]


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """How long and how fast a pipeline is trained.

    Attributes
    ----------
    autoencoder_steps, denoiser_steps : optimiser steps of the two stages.
    autoencoder_batch, denoiser_batch : pictures per step.
    autoencoder_rate, denoiser_rate : peak learning rates; they rise for the first steps and then
        fall to zero along half a cosine.
    unconditional : share of captions left empty, for classifier-free guidance.
    average : decay of the running average of the denoiser's weights, which is what is kept.
    checkpoint_every : steps between checkpoints.
    seed : of the weights, the order of the pictures and the noise.
    """

    autoencoder_steps: int = 1200
    denoiser_steps: int = 5000
    autoencoder_batch: int = 32
    denoiser_batch: int = 64
    autoencoder_rate: float = 2e-3
    denoiser_rate: float = 1e-3
    unconditional: float = 0.1
    average: float = 0.998
    checkpoint_every: int = 250
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 0 or (name not in ("seed", "unconditional", "average") and value == 0):
                raise ValueError(f"{name} is {value}; it must be positive")
        if not self.unconditional < 1 or not self.average < 1:
            raise ValueError("unconditional and average are shares; they must be below 1")


def new_pipeline(words: Sequence[str], *, size: int = 32, longest: int = 32, seed: int = 0) -> Any:
    """Return an untrained `StableDiffusionPipeline` of about four million parameters.

    Parameters
    ----------
    words : what captions are made of; each becomes one token.
    size : side of the pictures in pixels, a multiple of 8.
    longest : most tokens of a caption, its two markers included.

    Raises
    ------
    ValueError : the size is no multiple of 8.
    """
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel

    if size < 8 or size % 8:
        raise ValueError(f"size is {size}; it must be a multiple of 8 pixels")
    tokenizer = word_tokenizer(words, longest)
    parts: Any = diffusers
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = parts.AutoencoderKL(
            block_out_channels=(24, 48, 64),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=8,
            sample_size=size,
        )
        text_encoder = CLIPTextModel(
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
        unet = parts.UNet2DConditionModel(
            sample_size=size // 4,
            in_channels=4,
            out_channels=4,
            layers_per_block=1,
            block_out_channels=(64, 96),
            norm_num_groups=16,
            down_block_types=("CrossAttnDownBlock2D",) * 2,
            up_block_types=("CrossAttnUpBlock2D",) * 2,
            attention_head_dim=4,
            cross_attention_dim=96,
        )
    scheduler = parts.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    pipeline = parts.StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


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


def train_text_to_image(
    pipeline: Any,
    data: Captioned,
    settings: TrainingSettings,
    checkpoints: Path,
    progress: Progress | None = None,
) -> None:
    """Train a pipeline's autoencoder, then its denoiser and text encoder together, in place.

    Parameters
    ----------
    pipeline : a `StableDiffusionPipeline`, as `new_pipeline` makes it.
    data : training pictures and captions.
    checkpoints : folder for checkpoints; training goes on from those it holds.
    progress : called with the stage, the step, the number of steps and the loss.

    Raises
    ------
    ValueError : the data are empty, or a checkpoint is of another training.
    """
    if len(data.images) == 0 or len(data.images) != len(data.captions):
        raise ValueError(
            f"data hold {len(data.images)} images and {len(data.captions)} captions; "
            "they need one caption per image and at least one"
        )
    pixels = torch.from_numpy(data.images).permute(0, 3, 1, 2)
    train_autoencoder(pipeline.vae, pixels, settings, checkpoints, progress)
    moments = encode_all(pipeline.vae, pixels)
    scale = float(1 / moments[:, : moments.shape[1] // 2].std())
    pipeline.vae.register_to_config(scaling_factor=scale)
    ids = pipeline.tokenizer(
        list(data.captions), padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids
    train_denoiser(pipeline, moments * scale, ids, settings, checkpoints, progress)


def train_autoencoder(
    vae: Any,
    pixels: torch.Tensor,
    settings: TrainingSettings,
    checkpoints: Path,
    progress: Progress | None = None,
) -> None:
    """Train the autoencoder on pictures ``(n, 3, h, w)`` uint8: squared error, and a little KL."""
    loop = _Loop(
        "autoencoder",
        {"vae": vae},
        settings,
        checkpoints,
        steps=settings.autoencoder_steps,
        rate=settings.autoencoder_rate,
    )

    def loss(generator: torch.Generator) -> torch.Tensor:
        rows = torch.randint(len(pixels), (settings.autoencoder_batch,), generator=generator)
        wanted = pixels[rows].float() / 127.5 - 1
        distribution = vae.encode(wanted).latent_dist
        noise = torch.randn(distribution.mean.shape, generator=generator)
        made = vae.decode(distribution.mean + distribution.std * noise).sample
        # The KL term only keeps the latents in bounds; it is divided by the number of pixels.
        divergence = distribution.kl().mean() / wanted[0].numel()
        error = functional.mse_loss(made, wanted)
        return error + 1e-4 * torch.as_tensor(divergence)

    loop.run(loss, progress)


def train_denoiser(
    pipeline: Any,
    moments: torch.Tensor,
    ids: torch.Tensor,
    settings: TrainingSettings,
    checkpoints: Path,
    progress: Progress | None = None,
) -> None:
    """Train the denoiser and the text encoder to predict the noise in latents.

    Parameters
    ----------
    moments : ``(n, 2·c, h, w)``, mean and standard deviation of every picture's latents, scaled.
    ids : ``(n, longest)`` token ids of the captions.
    """
    unet, text_encoder, scheduler = pipeline.unet, pipeline.text_encoder, pipeline.scheduler
    loop = _Loop(
        "denoiser",
        {"unet": unet, "text_encoder": text_encoder},
        settings,
        checkpoints,
        steps=settings.denoiser_steps,
        rate=settings.denoiser_rate,
        average=settings.average,
    )
    empty = pipeline.tokenizer("", padding="max_length", return_tensors="pt").input_ids[0]
    n_timesteps = scheduler.config.num_train_timesteps

    def loss(generator: torch.Generator) -> torch.Tensor:
        batch = settings.denoiser_batch
        rows = torch.randint(len(moments), (batch,), generator=generator)
        mean, deviation = moments[rows].chunk(2, dim=1)
        clean = mean + deviation * torch.randn(mean.shape, generator=generator)
        noise = torch.randn(mean.shape, generator=generator)
        timesteps = torch.randint(n_timesteps, (batch,), generator=generator)
        dropped = torch.rand(batch, generator=generator) < settings.unconditional
        text = text_encoder(torch.where(dropped[:, None], empty, ids[rows]))[0]
        noisy = scheduler.add_noise(clean, noise, timesteps)
        guess: torch.Tensor = unet(noisy, timesteps, text).sample
        return functional.mse_loss(guess, noise)

    loop.run(loss, progress)


@torch.inference_mode()
def encode_all(vae: Any, pixels: torch.Tensor, batch: int = 256) -> torch.Tensor:
    """Return mean and standard deviation of all pictures' latents, ``(n, 2·c, h, w)``."""
    vae.eval()
    moments = []
    for begin in range(0, len(pixels), batch):
        some = pixels[begin : begin + batch]
        distribution = vae.encode(some.float() / 127.5 - 1).latent_dist
        moments.append(torch.cat([distribution.mean, distribution.std], dim=1))
    return torch.cat(moments).clone()


@torch.inference_mode()
def draw(
    pipeline: Any,
    captions: Sequence[str],
    seeds: Iterable[int],
    *,
    steps: int = 25,
    guidance: float = 3.0,
    batch: int = 50,
) -> NDArray[np.float32]:
    """Return one picture per caption, ``(n, h, w, 3)`` in [0, 1]; each from its own seed."""
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    drawn: list[NDArray[np.float32]] = []
    for begin in range(0, len(captions), batch):
        result = pipeline(
            list(captions[begin : begin + batch]),
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generators[begin : begin + batch],
            output_type="np",
        )
        drawn.append(np.asarray(result.images, dtype=np.float32))
    return np.concatenate(drawn)


class _Loop:
    """The optimiser's loop of one stage: schedule, average, checkpoints."""

    def __init__(
        self,
        stage: str,
        modules: dict[str, nn.Module],
        settings: TrainingSettings,
        checkpoints: Path,
        *,
        steps: int,
        rate: float,
        average: float = 0.0,
    ) -> None:
        self.stage = stage
        self.settings = settings
        self.steps = steps
        self.rate = rate
        self.average = average
        self.folder = checkpoints / stage
        self.parameters = {
            f"{module}.{name}": parameter
            for module, owner in modules.items()
            for name, parameter in owner.named_parameters()
        }
        self.modules = modules
        self.kept = {name: value.detach().clone() for name, value in self.parameters.items()}
        self.optimiser = torch.optim.AdamW(
            self.parameters.values(), lr=rate, betas=(0.9, 0.99), weight_decay=1e-4
        )

    def run(
        self, loss_of: Callable[[torch.Generator], torch.Tensor], progress: Progress | None
    ) -> None:
        """Run the steps that are left, and leave the averaged weights in the modules."""
        for module in self.modules.values():
            module.train()
        first = load_checkpoint(
            self.folder, asdict(self.settings), self.parameters, self.kept, self.optimiser
        )
        for step in range(first, self.steps):
            for group in self.optimiser.param_groups:
                group["lr"] = self.rate * self._rise_and_fall(step)
            seed = np.random.SeedSequence([self.settings.seed, step]).generate_state(1, np.uint64)
            generator = torch.Generator().manual_seed(int(seed[0] >> 1))
            loss = loss_of(generator)
            self.optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
            self.optimiser.step()
            self._keep(step)
            done = step + 1
            if done % self.settings.checkpoint_every == 0 or done == self.steps:
                save_checkpoint(
                    self.folder,
                    done,
                    asdict(self.settings),
                    self.parameters,
                    self.kept,
                    self.optimiser,
                )
                if progress is not None:
                    progress(self.stage, done, self.steps, float(loss.detach()))
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(self.kept[name])
        for module in self.modules.values():
            module.eval()

    @torch.no_grad()
    def _keep(self, step: int) -> None:
        # Early on, the average follows more closely, or it would keep the first random weights.
        decay = min(self.average, (1 + step) / (10 + step))
        for name, parameter in self.parameters.items():
            self.kept[name].lerp_(parameter, 1 - decay)

    def _rise_and_fall(self, step: int) -> float:
        warm = min(100, max(1, self.steps // 10))
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, self.steps - warm)))

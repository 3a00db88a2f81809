"""Training of small diffusion pipelines, from nothing to a standard diffusers folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from compute.models.own.training_loop import Checkpoints, Progress, TrainingLoop
from compute.models.own.training_settings import (
    AutoencoderSettings,
    DenoiserSettings,
    TextSettings,
)

_ENCODE_BATCH = 256


class Samples(NamedTuple):
    """What a denoiser learns to make.

    Attributes
    ----------
    mean : ``(n, c, h, w)`` pixels or scaled latents.
    deviation : of the same shape, the latents' standard deviation; None where there is none.
    """

    mean: torch.Tensor
    deviation: torch.Tensor | None = None

    def draw(self, rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return one draw of each row, ``(b, c, h, w)``."""
        mean = self.mean[rows]
        if self.deviation is None:
            return mean
        return mean + self.deviation[rows] * torch.randn(mean.shape, generator=generator)


class Texts:
    """Captions as a denoiser's conditioning, some of them left empty.

    Parameters
    ----------
    tokenizer, encoder : of the pipeline; the encoder is trained along.
    captions : one per sample.
    unconditional : share of the captions left empty at each step.
    """

    def __init__(
        self, tokenizer: Any, encoder: Any, captions: Sequence[str], unconditional: float
    ) -> None:
        self.encoder: nn.Module = encoder
        self.ids = _token_ids(tokenizer, captions)
        self.empty = _token_ids(tokenizer, [""])[0]
        self.unconditional = unconditional

    def draw(self, rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return the encoded captions of some rows, ``(b, longest, width)``."""
        dropped = torch.rand(len(rows), generator=generator) < self.unconditional
        ids = torch.where(dropped[:, None], self.empty, self.ids[rows])
        encoded: torch.Tensor = self.encoder(ids)[0]
        return encoded


def train_autoencoder(
    vae: Any,
    images: NDArray[np.uint8],
    settings: AutoencoderSettings,
    checkpoints: Checkpoints,
    progress: Progress | None = None,
) -> None:
    """Train an autoencoder on pictures ``(n, h, w, 3)``, in place: squared error and a little KL.

    Its `scaling_factor` is set so that latents have unit standard deviation. Training goes on from
    the checkpoint that the folder holds.

    Raises
    ------
    ValueError : there are no pictures, or the checkpoint is of another training.
    """
    if len(images) == 0:
        raise ValueError("images hold no picture; an autoencoder needs at least one")
    loop = TrainingLoop(
        "autoencoder",
        {"vae": vae},
        checkpoints,
        steps=settings.autoencoder_steps,
        rate=settings.autoencoder_rate,
        seed=settings.seed,
    )
    pixels = _pixels(images)

    def loss(generator: torch.Generator) -> torch.Tensor:
        rows = torch.randint(len(pixels), (settings.autoencoder_batch,), generator=generator)
        wanted = _centred(pixels[rows])
        distribution = vae.encode(wanted).latent_dist
        noise = torch.randn(distribution.mean.shape, generator=generator)
        made = vae.decode(distribution.mean + distribution.std * noise).sample
        # The KL term only keeps the latents in bounds; it is divided by the number of pixels.
        divergence = distribution.kl().mean() / wanted[0].numel()
        error = functional.mse_loss(made, wanted)
        return error + 1e-4 * torch.as_tensor(divergence)

    loop.run(loss, progress)
    some = encode_images(vae, images[: 4 * _ENCODE_BATCH], scale=1.0)
    vae.register_to_config(scaling_factor=float(1 / some.mean.std()))


def train_text_encoder(
    pipeline: Any,
    captions: Sequence[str],
    factors: NDArray[np.int64],
    settings: TextSettings,
    checkpoints: Checkpoints,
    progress: Progress | None = None,
) -> None:
    """Train a text encoder to tell what its captions name, in place.

    Real pipelines bring a text encoder that has learnt what words mean; this stands for it, and
    spares the denoiser most of its training. From the encoding of a caption's end, one linear
    layer per factor, thrown away after, says the factor's value: cross entropy.

    Parameters
    ----------
    factors : ``(n, f)`` int ≥ 0, value of each factor that the captions name.

    Raises
    ------
    ValueError : there is not one row of factors per caption, or the checkpoint is of another
        training.
    """
    if len(captions) == 0 or len(captions) != len(factors):
        raise ValueError(
            f"data hold {len(captions)} captions and {len(factors)} rows of factors; "
            "they need one row per caption and at least one"
        )
    encoder, n_factors = pipeline.text_encoder, factors.shape[1]
    n_values = int(factors.max()) + 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        head = nn.Linear(encoder.config.hidden_size, n_factors * n_values)
    loop = TrainingLoop(
        "text_encoder",
        {"text_encoder": encoder, "head": head},
        checkpoints,
        steps=settings.text_steps,
        rate=settings.text_rate,
        seed=settings.seed,
    )
    ids, wanted = _token_ids(pipeline.tokenizer, captions), torch.from_numpy(factors)

    def loss(generator: torch.Generator) -> torch.Tensor:
        rows = torch.randint(len(ids), (settings.text_batch,), generator=generator)
        told = head(encoder(ids[rows]).pooler_output).reshape(-1, n_values)
        return functional.cross_entropy(told, wanted[rows].ravel())

    loop.run(loss, progress)


def train_denoiser(
    denoiser: Any,
    scheduler: Any,
    samples: Samples,
    settings: DenoiserSettings,
    checkpoints: Checkpoints,
    progress: Progress | None = None,
    *,
    texts: Texts | None = None,
) -> None:
    """Train a denoiser in place, and the text encoder with it if there is one.

    The squared error of what the scheduler's `prediction_type` says is predicted: the noise, or the
    velocity √ᾱ·noise − √(1−ᾱ)·sample (Salimans & Ho 2022, arXiv 2202.00512).

    Parameters
    ----------
    denoiser : a `UNet2DModel`, or a `UNet2DConditionModel` with ``texts``.

    Raises
    ------
    ValueError : there are no samples, not one caption per sample, or the checkpoint is of another
        training.
    """
    n = len(samples.mean)
    if n == 0 or (texts is not None and len(texts.ids) != n):
        n_texts = "no" if texts is None else len(texts.ids)
        raise ValueError(
            f"data hold {n} images and {n_texts} captions; "
            "they need one caption per image and at least one image"
        )
    modules = {"unet": denoiser} | ({"text_encoder": texts.encoder} if texts else {})
    loop = TrainingLoop(
        "denoiser",
        modules,
        checkpoints,
        steps=settings.denoiser_steps,
        rate=settings.denoiser_rate,
        seed=settings.seed,
        average=settings.average,
        falls=False,
    )
    n_timesteps = scheduler.config.num_train_timesteps
    target_of = _TARGETS[scheduler.config.prediction_type]

    def loss(generator: torch.Generator) -> torch.Tensor:
        rows = torch.randint(n, (settings.denoiser_batch,), generator=generator)
        clean = samples.draw(rows, generator)
        noise = torch.randn(clean.shape, generator=generator)
        timesteps = torch.randint(n_timesteps, (len(rows),), generator=generator)
        condition = () if texts is None else (texts.draw(rows, generator),)
        noisy = scheduler.add_noise(clean, noise, timesteps)
        guess: torch.Tensor = denoiser(noisy, timesteps, *condition).sample
        return functional.mse_loss(guess, target_of(scheduler, clean, noise, timesteps))

    loop.run(loss, progress)


_Target = Callable[[Any, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
_TARGETS: dict[str, _Target] = {
    "epsilon": lambda scheduler, clean, noise, timesteps: noise,
    "v_prediction": lambda scheduler, clean, noise, timesteps: scheduler.get_velocity(
        clean, noise, timesteps
    ),
}


@torch.inference_mode()
def encode_images(vae: Any, images: NDArray[np.uint8], *, scale: float | None = None) -> Samples:
    """Return the latents of pictures ``(n, h, w, 3)``, scaled by the autoencoder's own factor.

    Parameters
    ----------
    scale : used in place of the autoencoder's `scaling_factor`.
    """
    vae.eval()
    factor = vae.config.scaling_factor if scale is None else scale
    pixels = _pixels(images)
    means, deviations = [], []
    for begin in range(0, len(pixels), _ENCODE_BATCH):
        latents = vae.encode(_centred(pixels[begin : begin + _ENCODE_BATCH])).latent_dist
        means.append(latents.mean * factor)
        deviations.append(latents.std * factor)
    # Copies, since tensors made in inference mode cannot be used in training.
    with torch.inference_mode(False):
        return Samples(torch.cat(means).clone(), torch.cat(deviations).clone())


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


def _token_ids(tokenizer: Any, texts: Sequence[str]) -> torch.Tensor:
    ids: torch.Tensor = tokenizer(
        list(texts), padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids
    return ids


def _pixels(images: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def _centred(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.float() / 127.5 - 1

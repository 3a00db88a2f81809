"""The project's own unconditional model: trained on MNIST digits, and scored by a digit reader."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from compute.models.own.diffusion_training import Samples, train_denoiser
from compute.models.own.small_pipelines import new_unconditional
from compute.models.own.training_loop import Checkpoints, Progress
from compute.models.own.training_settings import DigitSettings
from compute.worlds.digit_reader import CLASSES, DigitReading, read_digits
from compute.worlds.digits import digits

SIZE = 16


def digit_samples() -> Samples:
    """Return the digits to train on, ``(4000, 1, 16, 16)`` in [-1, 1]."""
    images = torch.from_numpy(digits(size=SIZE, held_out=False).images)
    return Samples(images[:, None].float() / 127.5 - 1)


def train_digits(
    settings: DigitSettings, checkpoints: Checkpoints, progress: Progress | None = None
) -> Any:
    """Train the digit pipeline; a run that was stopped goes on from its checkpoint.

    Parameters
    ----------
    progress : called with the stage, the step, the number of steps and the loss.

    Returns
    -------
    The trained `DDIMPipeline`.
    """
    pipeline = new_unconditional(size=SIZE, seed=settings.seed)
    train_denoiser(
        pipeline.unet,
        pipeline.scheduler,
        digit_samples(),
        settings,
        checkpoints,
        progress,
    )
    return pipeline


class DigitScore(NamedTuple):
    """How well drawings pass for digits, by the reader that knows the training digits.

    A picture passes where at least 9 of its 10 nearest training digits are the same digit, and it
    is no farther from the nearest than 95 % of the held-out digits are.

    Attributes
    ----------
    recognised : share of the drawings that pass.
    recognised_real : share of the held-out digits that pass; what perfect drawings would reach.
    rarest : share of the digit that is read least often on drawings; 0.1 is perfect balance.
    copied : share of the drawings nearer to a training digit than 99 % of the held-out digits are;
        about 0.01 where nothing was learnt by heart.
    n : number of drawings.
    """

    recognised: float
    recognised_real: float
    rarest: float
    copied: float
    n: int


def judge_digits(drawings: NDArray[np.float32]) -> DigitScore:
    """Score drawings ``(n, 16, 16)`` in [0, 1]."""
    real = read_digits(digits(size=SIZE, held_out=True).images)
    drawn = read_digits(drawings)
    near, far = np.quantile(real.distance, (0.01, 0.95))

    def passing(reading: DigitReading) -> float:
        return float(((reading.agreement >= 0.9) & (reading.distance <= far)).mean())

    counts = np.bincount(drawn.labels, minlength=CLASSES)
    return DigitScore(
        recognised=passing(drawn),
        recognised_real=passing(real),
        rarest=float(counts.min() / len(drawings)),
        copied=float((drawn.distance < near).mean()),
        n=len(drawings),
    )


@torch.inference_mode()
def draw_digits(pipeline: Any, n: int, *, steps: int = 25, seed: int = 0) -> NDArray[np.float32]:
    """Return ``n`` drawings, ``(n, 16, 16)`` in [0, 1]."""
    generator = torch.Generator("cpu").manual_seed(seed)
    images = pipeline(
        batch_size=n, num_inference_steps=steps, generator=generator, output_type="np"
    ).images
    return np.asarray(images, dtype=np.float32)[..., 0]

"""How the denoiser of each diffusion family is called: its conditioning, latents and noise."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

Condition = dict[str, Any]


@dataclass(frozen=True)
class Denoiser(ABC):
    """One family's denoiser; ``size`` is the side of its latents ``(b, channels, size, size)``.

    The methods that take no pipeline need only the network, so that a network without weights (on
    the meta device) can be asked for its shapes.
    """

    network: Any
    size: int

    @property
    def config(self) -> Any:
        """The network's configuration."""
        return self.network.config

    @property
    def channels(self) -> int:
        """Number of channels of the latents."""
        return int(self.config.in_channels)

    @abstractmethod
    def blank(self, batch: int, device: torch.device, dtype: torch.dtype) -> Condition:
        """Return a conditioning of the right shapes, all zero."""

    @abstractmethod
    def condition(self, pipeline: Any, texts: Sequence[str]) -> Condition:
        """Return the conditioning on ``texts``, as the family's pipeline computes it."""

    @abstractmethod
    def run(self, latents: torch.Tensor, timestep: float, condition: Condition) -> None:
        """Run the network once on noisy latents."""

    def add_noise(
        self, scheduler: Any, latents: torch.Tensor, noise: torch.Tensor, timestep: int
    ) -> torch.Tensor:
        """Return the latents as they stand at ``timestep`` of the forward process."""
        steps = torch.full((len(latents),), timestep, device=latents.device, dtype=torch.long)
        noisy: torch.Tensor = scheduler.add_noise(latents, noise, steps)
        return noisy


class Unconditional(Denoiser):
    """`UNet2DModel`: pixels (or latents) and a timestep."""

    def blank(self, batch: int, device: torch.device, dtype: torch.dtype) -> Condition:
        """Return zeros in the shapes of this family."""
        classes = self.config.num_class_embeds
        return (
            {}
            if classes is None
            else {"class_labels": torch.zeros(batch, dtype=torch.long, device=device)}
        )

    def condition(self, pipeline: Any, texts: Sequence[str]) -> Condition:
        """Return the conditioning of this family\'s pipeline."""
        return self.blank(len(texts), self.network.device, self.network.dtype)

    def run(self, latents: torch.Tensor, timestep: float, condition: Condition) -> None:
        """Run the network once on noisy latents."""
        self.network(latents, timestep, **condition)


class StableDiffusion(Denoiser):
    """`UNet2DConditionModel` with one text encoder."""

    def blank(self, batch: int, device: torch.device, dtype: torch.dtype) -> Condition:
        """Return zeros in the shapes of this family."""
        width = self.config.cross_attention_dim
        width = width if isinstance(width, int) else width[0]
        return {"encoder_hidden_states": torch.zeros(batch, 4, width, device=device, dtype=dtype)}

    def condition(self, pipeline: Any, texts: Sequence[str]) -> Condition:
        """Return the conditioning of this family\'s pipeline."""
        embeddings, _ = pipeline.encode_prompt(list(texts), self.network.device, 1, False)
        return {"encoder_hidden_states": embeddings}

    def run(self, latents: torch.Tensor, timestep: float, condition: Condition) -> None:
        """Run the network once on noisy latents."""
        self.network(latents, timestep, **condition)


class StableDiffusionXL(StableDiffusion):
    """`UNet2DConditionModel` with two text encoders, a pooled text and image sizes."""

    def blank(self, batch: int, device: torch.device, dtype: torch.dtype) -> Condition:
        """Return zeros in the shapes of this family."""
        config = self.config
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        return super().blank(batch, device, dtype) | {
            "added_cond_kwargs": {
                "text_embeds": torch.zeros(batch, pooled, device=device, dtype=dtype),
                "time_ids": torch.zeros(batch, 6, device=device, dtype=dtype),
            }
        }

    def condition(self, pipeline: Any, texts: Sequence[str]) -> Condition:
        """Return the conditioning of this family\'s pipeline."""
        embeddings, _, pooled, _ = pipeline.encode_prompt(
            list(texts), device=self.network.device, do_classifier_free_guidance=False
        )
        side = float(self.size * pipeline.vae_scale_factor)
        sizes = torch.tensor([[side, side, 0.0, 0.0, side, side]]).repeat(len(texts), 1)
        return {
            "encoder_hidden_states": embeddings,
            "added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes.to(embeddings)},
        }


class _Flow(Denoiser):
    """Rectified flow: at timestep t of 1000 the latents are ``(1 - t/1000) x + t/1000 noise``."""

    def add_noise(
        self, scheduler: Any, latents: torch.Tensor, noise: torch.Tensor, timestep: int
    ) -> torch.Tensor:
        share = timestep / scheduler.config.num_train_timesteps
        return torch.lerp(latents, noise, share)


class StableDiffusion3(_Flow):
    """`SD3Transformer2DModel`."""

    def blank(self, batch: int, device: torch.device, dtype: torch.dtype) -> Condition:
        """Return zeros in the shapes of this family."""
        text, pooled = self.config.joint_attention_dim, self.config.pooled_projection_dim
        return {
            "encoder_hidden_states": torch.zeros(batch, 4, text, device=device, dtype=dtype),
            "pooled_projections": torch.zeros(batch, pooled, device=device, dtype=dtype),
        }

    def condition(self, pipeline: Any, texts: Sequence[str]) -> Condition:
        """Return the conditioning of this family\'s pipeline."""
        embeddings, _, pooled, _ = pipeline.encode_prompt(
            list(texts), None, None, self.network.device, do_classifier_free_guidance=False
        )
        return {"encoder_hidden_states": embeddings, "pooled_projections": pooled}

    def run(self, latents: torch.Tensor, timestep: float, condition: Condition) -> None:
        """Run the network once on noisy latents."""
        steps = torch.full((len(latents),), timestep, device=latents.device)
        self.network(hidden_states=latents, timestep=steps, **condition)


class Flux(_Flow):
    """`FluxTransformer2DModel`: 2×2 patches of latents as tokens."""

    @property
    def channels(self) -> int:
        """Number of channels of the latents, before they are packed in patches."""
        return int(self.config.in_channels) // 4

    def blank(self, batch: int, device: torch.device, dtype: torch.dtype) -> Condition:
        """Return zeros in the shapes of this family."""
        text, pooled = self.config.joint_attention_dim, self.config.pooled_projection_dim
        condition = {
            "encoder_hidden_states": torch.zeros(batch, 4, text, device=device, dtype=dtype),
            "pooled_projections": torch.zeros(batch, pooled, device=device, dtype=dtype),
            "txt_ids": torch.zeros(4, 3, device=device, dtype=dtype),
        }
        return condition | self._guidance(batch, 3.5, device)

    def condition(self, pipeline: Any, texts: Sequence[str]) -> Condition:
        """Return the conditioning of this family\'s pipeline."""
        embeddings, pooled, text_ids = pipeline.encode_prompt(
            list(texts), None, device=self.network.device
        )
        condition = {
            "encoder_hidden_states": embeddings,
            "pooled_projections": pooled,
            "txt_ids": text_ids,
        }
        return condition | self._guidance(len(texts), 3.5, self.network.device)

    def run(self, latents: torch.Tensor, timestep: float, condition: Condition) -> None:
        """Run the network once on noisy latents."""
        batch, channels, height, width = latents.shape
        patches = latents.reshape(batch, channels, height // 2, 2, width // 2, 2)
        tokens = patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * 4)
        rows, columns = torch.meshgrid(
            torch.arange(height // 2), torch.arange(width // 2), indexing="ij"
        )
        places = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3)
        steps = torch.full((batch,), timestep / 1000, device=latents.device, dtype=latents.dtype)
        self.network(hidden_states=tokens, timestep=steps, img_ids=places.to(latents), **condition)

    def _guidance(self, batch: int, scale: float, device: torch.device) -> Condition:
        if not self.config.guidance_embeds:
            return {"guidance": None}
        return {"guidance": torch.full((batch,), scale, device=device, dtype=torch.float32)}


DENOISERS: dict[str, type[Denoiser]] = {
    "StableDiffusionPipeline": StableDiffusion,
    "StableDiffusionXLPipeline": StableDiffusionXL,
    "StableDiffusion3Pipeline": StableDiffusion3,
    "FluxPipeline": Flux,
    "DDIMPipeline": Unconditional,
    "DDPMPipeline": Unconditional,
}

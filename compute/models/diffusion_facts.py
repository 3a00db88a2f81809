"""What is known of a diffusion model without loading its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from compute.models.adapter import ModelLevel, check_levels
from compute.models.denoisers import DENOISERS, Denoiser
from compute.models.hooks import (
    Hookpoint,
    Recorder,
    StopForward,
    expand_levels,
    find_hookpoint,
    module_hookpoints,
)
from compute.models.patches import feature_map
from compute.models.weight_files import Source, resolve_source

# Bytes of the longest file of JSON that describes a model or a part of it.
_MOST_JSON = 2**24


@dataclass(frozen=True)
class DiffusionFacts:
    """A diffusion model's configuration; no weight is read.

    Attributes
    ----------
    source : where its files are.
    pipeline : name of the diffusers pipeline class.
    train_timesteps : number of timesteps of the noise process.
    denoiser : the denoising network without weights, and how it is called.
    """

    source: Source
    pipeline: str
    train_timesteps: int
    denoiser: Denoiser

    @classmethod
    def read(cls, source: str | Path, *, size: int | None = None) -> Self:
        """Read the facts; ``size`` is the side of the image in pixels, by default the model's own.

        Raises
        ------
        ValueError : no such source, no diffusion model in it, or a pipeline that is not supported.
        """
        import diffusers

        resolved = resolve_source(source)
        index = read_json(resolved, "model_index.json", required=False)
        if index is None:
            config, name, scheduler = read_json(resolved, "config.json"), "DDIMPipeline", None
        else:
            name = str(index["_class_name"])
            part = "transformer" if "transformer" in index else "unet"
            config = read_json(resolved, f"{part}/config.json")
            scheduler = read_json(resolved, "scheduler/scheduler_config.json", required=False)
        if name not in DENOISERS or "_class_name" not in config:
            raise ValueError(
                f"source {resolved.name!r} is a {name}; supported are {', '.join(DENOISERS)} "
                "and a folder of one UNet2DModel"
            )
        network_class: Any = getattr(diffusers, config["_class_name"])
        with torch.device("meta"):
            network = network_class.from_config(
                {key: value for key, value in config.items() if not key.startswith("_")}
            )
        denoiser = DENOISERS[name](network, _latent_size(resolved, name, config, size))
        return cls(
            resolved, name, int((scheduler or {}).get("num_train_timesteps", 1000)), denoiser
        )

    @property
    def picture_shape(self) -> tuple[int, int]:
        """Side in pixels and number of channels of the pictures it makes."""
        if self.pipeline in ("DDIMPipeline", "DDPMPipeline"):
            return self.denoiser.size, self.denoiser.channels
        vae = read_json(self.source, "vae/config.json")
        scale = 2 ** (len(vae["block_out_channels"]) - 1)
        return self.denoiser.size * scale, int(vae.get("out_channels", 3))

    def points(self) -> dict[str, Hookpoint]:
        """Return every hookpoint of the denoiser by name."""
        return module_hookpoints(self.denoiser.network)

    def hookpoints(self) -> list[str]:
        """Return the names a level's hookpoint may take (each also as ``.input``, ``.update``)."""
        return list(self.points())

    def check(self, levels: Sequence[ModelLevel]) -> tuple[ModelLevel, ...]:
        """Return ``levels`` with patterns spelt out.

        Raises
        ------
        ValueError : no such hookpoint, or a timestep that is missing or out of range.
        """
        for level in levels:
            if level.timestep is None or not 0 <= level.timestep < self.train_timesteps:
                raise ValueError(
                    f"level {level.name!r} has timestep {level.timestep}; a diffusion level needs "
                    f"one from 0 to {self.train_timesteps - 1}"
                )
        return check_levels(expand_levels(self.points(), levels))

    def shapes(self, levels: Sequence[ModelLevel]) -> dict[str, tuple[int, int, int]]:
        """Return level name → (width, patches down, patches across), by a run without weights.

        Raises
        ------
        ValueError : as `check`, or a hookpoint without spatial positions.
        """
        return probe(self.denoiser, self.check(levels), torch.device("meta"), torch.float32)


@torch.inference_mode()
def probe(
    denoiser: Denoiser,
    levels: Sequence[ModelLevel],
    device: torch.device,
    dtype: torch.dtype,
    batch: int = 1,
) -> dict[str, tuple[int, int, int]]:
    """Return level name → (width, height, width) of its feature map, by one run on zeros."""
    points = module_hookpoints(denoiser.network)
    places = {level.name: find_hookpoint(points, level.hookpoint) for level in levels}
    shape = (batch, denoiser.channels, denoiser.size, denoiser.size)
    latents = torch.zeros(shape, device=device, dtype=dtype)
    with Recorder(denoiser.network, set(places.values())) as recorder:
        with suppress(StopForward):
            denoiser.run(latents, 0, denoiser.blank(batch, device, dtype))
        seen = recorder.take()
    shapes = {}
    for name, place in places.items():
        _, width, down, across = feature_map(seen[place.name], place.name).shape
        shapes[name] = (int(width), int(down), int(across))
    return shapes


def _latent_size(source: Source, pipeline: str, config: Mapping[str, Any], size: int | None) -> int:
    """Return the side of the latents for images of ``size`` pixels."""
    if pipeline in ("DDIMPipeline", "DDPMPipeline"):
        return int(size or config["sample_size"])
    blocks = read_json(source, "vae/config.json")["block_out_channels"]
    scale = 2 ** (len(blocks) - 1)
    own = config.get("sample_size") or 128  # Flux names no size; its pipeline draws 128
    latent = int(own) if size is None else size // scale
    even = latent - latent % 2 if pipeline == "FluxPipeline" else latent
    if size is not None and (size % scale or even != latent or not even):
        raise ValueError(f"size is {size}; it must be a positive multiple of {scale} pixels")
    return even


def read_json(source: Source, name: str, *, required: bool = True) -> Any:
    """Return a JSON file of the model, from its folder or the hub's cache."""
    if source.folder is not None:
        path = source.folder / name
        if path.is_file():
            return _parsed(path, source)
    else:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        try:
            return _parsed(Path(hf_hub_download(source.location, name)), source)
        except EntryNotFoundError:
            pass
        except OSError as error:
            raise ValueError(
                f"source {source.name!r} is no folder here and not on the hub or in its cache; "
                "check the name, or go online"
            ) from error
    if required:
        raise ValueError(f"source {source.name!r} holds no {name}, so it is no diffusers model")
    return None


def _parsed(path: Path, source: Source) -> Any:
    size = path.stat().st_size
    if size > _MOST_JSON:
        raise ValueError(
            f"{path.name} of {source.name!r} has {size:,} bytes: it describes no model"
        )
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise ValueError(f"{path.name} of {source.name!r} is not readable JSON") from None

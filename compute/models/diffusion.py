"""Diffusion models: blocks of a denoiser read at given timesteps, patch by patch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from compute.models.adapter import ActivationRows, ModelAdapter, ModelLevel
from compute.models.denoisers import Denoiser
from compute.models.devices import choose_device, choose_dtype, largest_batch
from compute.models.diffusion_facts import DiffusionFacts, probe, read_json
from compute.models.hooks import (
    Hookpoint,
    Recorder,
    StopForward,
    find_hookpoint,
    module_hookpoints,
)
from compute.models.patches import Grid, align, feature_map
from compute.models.weight_files import weights_hash


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text to draw, and the seed of the noise that the drawing starts from."""

    sample: int
    text: str
    seed: int


@dataclass(frozen=True, slots=True)
class Image:
    """A picture to add noise to.

    Attributes
    ----------
    array : ``(h, w)`` or ``(h, w, channels)``; uint8, or floats in [0, 1].
    seed : seed of the noise.
    text : caption that conditions the denoiser; empty for none.
    """

    sample: int
    array: NDArray[Any]
    seed: int
    text: str = ""


@dataclass(eq=False)
class DiffusionModel(ModelAdapter[Prompt | Image]):
    """A diffusion pipeline whose denoiser is read at given blocks and timesteps.

    Build it with `load`. A `Prompt` is drawn along the pipeline's own denoising trajectory
    (*generate*) and read at the step nearest each level's timestep; an `Image` is noised to exactly
    each level's timestep (*noise*) and denoised once. Every item's noise comes from its own seed,
    drawn on the CPU: it depends neither on the batch nor on the device. Under classifier-free
    guidance the conditional half is read.

    Attributes
    ----------
    pipeline : the diffusers pipeline.
    facts : what is known without the weights.
    grid : patches of every level, row-major; a row's ``position`` and ``observed`` are its patch.
    steps, guidance : number of denoising steps and guidance scale (None: the pipeline's default).
    batch_size : items per forward pass.
    keep_pictures : whether rows come with the pictures; a drawing is then finished and decoded.
    """

    pipeline: Any
    facts: DiffusionFacts
    denoiser: Denoiser
    levels: tuple[ModelLevel, ...]
    dtype: torch.dtype
    device: torch.device
    steps: int
    guidance: float | None
    batch_size: int
    grid: Grid
    widths: dict[str, int]
    keep_pictures: bool = False
    _points: dict[str, Hookpoint] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        points = module_hookpoints(self.denoiser.network)
        self._points = {
            level.name: find_hookpoint(points, level.hookpoint) for level in self.levels
        }

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        levels: Sequence[ModelLevel],
        dtype: str | torch.dtype = "auto",
        device: str | torch.device = "auto",
        steps: int = 50,
        guidance: float | None = None,
        size: int | None = None,
        grid: int | tuple[int, int] | None = None,
        batch_size: int = 4,
        keep_pictures: bool = False,
    ) -> Self:
        """Load a diffusers pipeline, or a folder of one `UNet2DModel`, for extraction.

        Parameters
        ----------
        source : hub id, folder, or ``package:NAME``.
        levels : lowest first; each with a hookpoint of the denoiser and a timestep.
        steps : denoising steps of a drawing.
        guidance : guidance scale; None is the pipeline's own default.
        size : side of the image in pixels; by default the model's own.
        grid : patches per side (or down and across); by default the coarsest level's resolution.
        batch_size : items per forward pass.
        keep_pictures : finish every drawing, and return the pictures with the rows.

        Raises
        ------
        ValueError : no such source, hookpoint, timestep, dtype or device.
        """
        facts = DiffusionFacts.read(source, size=size)
        shapes = facts.shapes(levels)
        expanded = facts.check(levels)
        chosen_device = choose_device(device)
        chosen_dtype = choose_dtype(dtype, chosen_device)
        if steps < 1:
            raise ValueError(f"steps is {steps}; at least one denoising step is needed")
        pipeline = _load_pipeline(facts, chosen_dtype).to(chosen_device)
        network = getattr(pipeline, "transformer", None) or pipeline.unet
        return cls(
            pipeline=pipeline,
            facts=facts,
            denoiser=type(facts.denoiser)(network.eval(), facts.denoiser.size),
            levels=expanded,
            dtype=chosen_dtype,
            device=chosen_device,
            steps=steps,
            guidance=guidance,
            batch_size=batch_size,
            grid=common_grid(shapes, grid),
            widths={level.name: shapes[level.name][0] for level in expanded},
            keep_pictures=keep_pictures,
        )

    @staticmethod
    def inspect(source: str | Path, *, size: int | None = None) -> DiffusionFacts:
        """Return what is known of a model without its weights; see `DiffusionFacts`."""
        return DiffusionFacts.read(source, size=size)

    def hookpoints(self) -> list[str]:
        """Return the names a level may use; each may be followed by ``.input`` or ``.update``."""
        return self.facts.hookpoints()

    def rows_of(self, item: Prompt | Image) -> int:
        """Return the number of patches of the grid."""
        return self.grid.height * self.grid.width

    def extract(self, items: Sequence[Prompt | Image]) -> ActivationRows:
        """Return one row per item and patch, in item order.

        Raises
        ------
        ValueError : prompts and images mixed, or an image of the wrong size.
        """
        n_patches = self.grid.height * self.grid.width
        activations = {
            level.name: torch.empty(
                (len(items) * n_patches, self.widths[level.name]), dtype=self.dtype
            )
            for level in self.levels
        }
        pictures: dict[int, NDArray[np.uint8]] = {}
        for begin in range(0, len(items), self.batch_size):
            batch = items[begin : begin + self.batch_size]
            prompts = [item for item in batch if isinstance(item, Prompt)]
            images = [item for item in batch if isinstance(item, Image)]
            if prompts and images:
                raise ValueError("items mix prompts and images; extract them apart")
            if prompts:
                seen, drawn = self._generate(prompts)
                pictures |= drawn
            else:
                seen = self._noise(images)
                pictures |= {i.sample: _bytes(i.array) for i in images if self.keep_pictures}
            for name, rows in seen.items():
                activations[name][begin * n_patches : begin * n_patches + len(rows)] = rows
        samples = np.array([item.sample for item in items], dtype=np.int64)
        patches = np.tile(np.arange(n_patches), len(items))
        return ActivationRows(
            activations,
            np.repeat(samples, n_patches),
            patches.astype(np.int32),
            patches.astype(np.int64),
            pictures,
        )

    def describe(self) -> Mapping[str, Any]:
        """Return the model's provenance, JSON-ready."""
        network = self.denoiser.network
        return {
            "source": self.facts.source.name,
            "class": self.facts.pipeline,
            "denoiser": type(network).__name__,
            "scheduler": type(self.pipeline.scheduler).__name__,
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "weights_sha256": weights_hash(self.facts.source.name),
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": self.device.type,
            "steps": self.steps,
            "guidance": self.guidance,
            "grid": list(self.grid),
            "batch_size": self.batch_size,
        }

    def fit_batch_size(self, *, limit: int = 256) -> int:
        """Set ``batch_size`` to the largest power of two that fits the device's memory."""

        def one_pass(size: int) -> None:
            # A guided drawing runs both halves of a batch at once.
            probe(self.denoiser, self.levels, self.device, self.dtype, batch=2 * size)

        self.batch_size = largest_batch(one_pass, limit=limit)
        return self.batch_size

    @torch.inference_mode()
    def _generate(
        self, prompts: Sequence[Prompt]
    ) -> tuple[dict[str, torch.Tensor], dict[int, NDArray[np.uint8]]]:
        arguments = self.drawing(prompts, "np" if self.keep_pictures else "latent")
        trajectory = _Trajectory(self, len(prompts))
        drawn: dict[int, NDArray[np.uint8]] = {}
        with trajectory, suppress(StopForward):
            finished = self.pipeline(**arguments).images
            if self.keep_pictures:
                drawn = {p.sample: _bytes(x) for p, x in zip(prompts, finished, strict=True)}
        return trajectory.rows, drawn

    def drawing(self, prompts: Sequence[Prompt], output_type: str = "np") -> dict[str, Any]:
        """Return the arguments with which the pipeline draws prompts, each from its own noise."""
        arguments: dict[str, Any] = {
            "num_inference_steps": self.steps,
            "generator": [torch.Generator("cpu").manual_seed(item.seed) for item in prompts],
            "output_type": output_type,
        }
        if not hasattr(self.pipeline, "encode_prompt"):
            return arguments | {"batch_size": len(prompts), "output_type": "np"}
        side = self.denoiser.size * self.pipeline.vae_scale_factor
        arguments |= {"prompt": [p.text for p in prompts], "height": side, "width": side}
        if self.guidance is not None:
            arguments["guidance_scale"] = self.guidance
        return arguments

    @torch.inference_mode()
    def clean_latents(self, items: Sequence[Prompt | Image]) -> torch.Tensor:
        """Return latents ``(b, c, h, w)`` without noise: of pictures, or drawn from prompts.

        Raises
        ------
        ValueError : an image has the wrong size.
        """
        images = [item for item in items if isinstance(item, Image)]
        if images:
            return self._encode(images)
        prompts = [item for item in items if isinstance(item, Prompt)]
        drawn = self.pipeline(**self.drawing(prompts, "latent")).images
        if isinstance(drawn, torch.Tensor):
            return drawn.to(self.dtype)
        return torch.stack([_pixels(x) for x in drawn]).to(self.device, self.dtype)

    @torch.inference_mode()
    def _noise(self, images: Sequence[Image]) -> dict[str, torch.Tensor]:
        clean = self._encode(images)
        noise = torch.cat([noise_of(item.seed, clean.shape[1:]) for item in images]).to(clean)
        condition = self.denoiser.condition(self.pipeline, [item.text for item in images])
        rows: dict[str, torch.Tensor] = {}
        for timestep in sorted(
            {level.timestep for level in self.levels if level.timestep is not None}
        ):
            names = [level.name for level in self.levels if level.timestep == timestep]
            noisy = self.denoiser.add_noise(self.pipeline.scheduler, clean, noise, timestep)
            with Recorder(self.denoiser.network, {self._points[n] for n in names}) as recorder:
                with suppress(StopForward):
                    self.denoiser.run(noisy, timestep, condition)
                rows |= self._align(recorder.take(), names, len(images))
        return rows

    def _encode(self, images: Sequence[Image]) -> torch.Tensor:
        """Return the clean latents ``(b, c, h, w)`` of images, or their pixels in [-1, 1]."""
        pixels = torch.stack([_pixels(item.array) for item in images]).to(self.device)
        vae = getattr(self.pipeline, "vae", None)
        if vae is not None:
            # The mode, not a draw: the only chance in a row is the noise of its timestep.
            pixels = vae.encode(pixels.to(vae.dtype)).latent_dist.mode()
            shift = getattr(vae.config, "shift_factor", None) or 0.0
            pixels = (pixels - shift) * vae.config.scaling_factor
        expected = (self.denoiser.channels, self.denoiser.size, self.denoiser.size)
        if tuple(pixels.shape[1:]) != expected:
            raise ValueError(
                f"an image gives latents of shape {tuple(pixels.shape[1:])}; this model takes "
                f"{expected}: resize the images, or load the model with their size"
            )
        return pixels.to(self.dtype)

    def _align(
        self, seen: Mapping[str, torch.Tensor], names: Sequence[str], batch: int
    ) -> dict[str, torch.Tensor]:
        """Return level name → rows of the common grid on the CPU, the conditional half only."""
        rows = {}
        for name in names:
            hookpoint = self._points[name].name
            # Pipelines run (unconditional, conditional) as one batch.
            maps = feature_map(seen[hookpoint][-batch:], hookpoint)
            rows[name] = align(maps, self.grid).cpu()
        return rows


class _Trajectory:
    """Reads the levels while a pipeline draws, and ends the drawing after the last of them.

    Where pictures are kept, the drawing is finished.
    """

    def __init__(self, adapter: DiffusionModel, batch: int) -> None:
        self.rows: dict[str, torch.Tensor] = {}
        self._adapter = adapter
        self._batch = batch
        self._step = 0
        network = adapter.denoiser.network
        self._recorder = Recorder(network, set(adapter._points.values()), stop=False)
        self._network = network
        self._handle: torch.utils.hooks.RemovableHandle | None = None

    def __enter__(self) -> _Trajectory:
        self._recorder.__enter__()
        self._handle = self._network.register_forward_hook(self._after)
        return self

    def __exit__(self, *exc: object) -> None:
        self._recorder.__exit__(*exc)
        if self._handle is not None:
            self._handle.remove()

    def _after(self, module: nn.Module, args: Any, output: Any) -> None:
        adapter = self._adapter
        timesteps = adapter.pipeline.scheduler.timesteps.double().cpu()
        seen = self._recorder.take()
        due = [
            level.name
            for level in adapter.levels
            if int((timesteps - (level.timestep or 0)).abs().argmin()) == self._step
        ]
        self.rows |= adapter._align(seen, due, self._batch)
        self._step += 1
        if len(self.rows) == len(adapter.levels) and not adapter.keep_pictures:
            raise StopForward


def common_grid(
    shapes: Mapping[str, tuple[int, int, int]], grid: int | tuple[int, int] | None
) -> Grid:
    """Return the grid on which all levels are read: ``grid``, or that of the coarsest level.

    Parameters
    ----------
    shapes : level name → (width, patches down, patches across).

    Raises
    ------
    ValueError : the grid has no patch.
    """
    if isinstance(grid, int):
        grid = (grid, grid)
    if grid is None:
        grid = (min(s[1] for s in shapes.values()), min(s[2] for s in shapes.values()))
    if min(grid) < 1:
        raise ValueError(f"grid is {grid}; it needs at least one patch each way")
    return Grid(*grid)


def _pixels(array: NDArray[Any]) -> torch.Tensor:
    """Return an image as ``(c, h, w)`` float32 in [-1, 1]."""
    values = np.asarray(array)
    scaled = values / np.float32(255) if values.dtype == np.uint8 else values
    scaled = scaled[..., None] if scaled.ndim == 2 else scaled
    return torch.from_numpy(np.ascontiguousarray(scaled, dtype=np.float32)).permute(2, 0, 1) * 2 - 1


def _bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Return a picture of floats in [0, 1], or of bytes, as bytes."""
    values = np.asarray(array)
    if values.dtype == np.uint8:
        return values
    return np.asarray(np.rint(np.clip(values, 0, 1) * 255), dtype=np.uint8)


def noise_of(seed: int, shape: Sequence[int]) -> torch.Tensor:
    """Return the noise ``(1, *shape)`` of a seed, drawn on the CPU."""
    return torch.randn((1, *shape), generator=torch.Generator("cpu").manual_seed(seed))


def _load_pipeline(facts: DiffusionFacts, dtype: torch.dtype) -> Any:
    """Return the pipeline with its weights; a bare `UNet2DModel` gets a DDIM scheduler."""
    import diffusers

    pipelines: Any = diffusers
    folder = facts.source.folder
    if folder is not None and not (folder / "model_index.json").is_file():
        network = pipelines.UNet2DModel.from_pretrained(folder, dtype=dtype)
        scheduler = pipelines.DDIMScheduler(num_train_timesteps=facts.train_timesteps)
        pipeline = pipelines.DDIMPipeline(network, scheduler)
    else:
        index = read_json(facts.source, "model_index.json")
        # A safety checker judges finished pictures; none is finished here. Parts that were left
        # out when the pipeline was saved must be named, or diffusers misses them.
        absent = {name: None for name, value in index.items() if value == [None, None]}
        if "safety_checker" in index:
            absent["safety_checker"] = None
        pipeline = pipelines.DiffusionPipeline.from_pretrained(
            facts.source.location, dtype=dtype, **absent
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline

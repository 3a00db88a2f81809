"""Which network of a model is steered, where its levels are, and where a forward pass stands."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from compute.models.hooks import (
    Hookpoint,
    find_hookpoint,
    language_hookpoints,
    module_hookpoints,
)
from compute.models.patches import feature_map

__all__ = ["Moment", "PlaceRows", "Target"]


@dataclass(frozen=True, slots=True)
class Moment:
    """Where a forward pass stands.

    Attributes
    ----------
    offset : language models: number of positions that lie before this pass (in the KV cache).
    shape : language models: ``(batch, positions)`` of this pass.
    timestep : diffusion: training timestep of this pass.
    guided : diffusion: the batch is (unconditional, conditional), one half each.
    """

    offset: int = 0
    shape: tuple[int, int] | None = None
    timestep: float | None = None
    guided: bool = False


@dataclass(frozen=True, slots=True)
class PlaceRows:
    """A place's activations as rows, and the way back.

    Attributes
    ----------
    values : ``(b, p, d)``; a view of ``tensor``.
    grid : patches down and across, or None for positions of a text.
    """

    tensor: Tensor
    values: Tensor
    grid: tuple[int, int] | None

    @classmethod
    def of(cls, tensor: Tensor, point: Hookpoint, moment: Moment, diffusion: bool) -> PlaceRows:
        """Lay out what a place gives: ``(b, t, d)``, ``(b·t, d)``, ``(b, d, h, w)`` or tokens.

        Raises
        ------
        ValueError : the tensor has another form.
        """
        if diffusion:
            maps = feature_map(tensor, point.name)
            height, width = maps.shape[-2:]
            return cls(tensor, maps.permute(0, 2, 3, 1).flatten(1, 2), (height, width))
        if tensor.ndim == 2 and moment.shape is not None:
            return cls(tensor, tensor.reshape(*moment.shape, -1), None)
        if tensor.ndim == 3:
            return cls(tensor, tensor, None)
        raise ValueError(
            f"hookpoint {point.name!r} gives {tuple(tensor.shape)}: a level of a language model is "
            "(batch, positions, width)"
        )

    def replaced(self, flat: Tensor, rows: Tensor) -> Tensor:
        """Return a copy of the tensor in which the rows at ``flat (r,)`` are ``rows (r, d)``."""
        new = self.tensor.clone()
        if self.grid is not None and self.tensor.ndim == 4:
            height, width = self.grid
            item, patch = flat // (height * width), flat % (height * width)
            new.permute(0, 2, 3, 1)[item, patch // width, patch % width] = rows
            return new
        new.reshape(-1, new.shape[-1])[flat] = rows
        return new


@dataclass(eq=False)
class Target:
    """The network that is steered: a language model's decoder or a pipeline's denoiser.

    Build it with `of`. As a context manager it keeps track of where every forward pass stands, for
    each thread on its own.
    """

    root: nn.Module
    diffusion: bool
    points: Mapping[str, Hookpoint]
    guided: Callable[[], bool] = lambda: False
    _moments: threading.local = field(default_factory=threading.local, repr=False)
    _handles: list[Any] = field(default_factory=list, repr=False)

    @classmethod
    def of(cls, model: Any, *, guided: bool | None = None) -> Target:
        """Find the network of a transformers model, a diffusers pipeline or one of our adapters.

        Raises
        ------
        ValueError : the model is none of these.
        """
        pipeline = getattr(model, "pipeline", model)
        denoiser = getattr(pipeline, "transformer", None) or getattr(pipeline, "unet", None)
        if isinstance(denoiser, nn.Module) and hasattr(pipeline, "scheduler"):

            def ask() -> bool:
                try:
                    return bool(getattr(pipeline, "do_classifier_free_guidance", False))
                except AttributeError:
                    # The pipeline has drawn nothing yet, so it knows no guidance scale.
                    return False

            known = ask if guided is None else (lambda: guided)
            return cls(denoiser, True, module_hookpoints(denoiser), known)
        network = getattr(model, "model", model) if hasattr(model, "facts") else model
        config: Any = getattr(network, "config", None)
        if not isinstance(network, nn.Module) or not hasattr(config, "get_text_config"):
            raise ValueError(
                f"model is a {type(model).__name__}: give a causal language model of transformers, "
                "a diffusers pipeline, or an adapter of compute.models"
            )
        n_layers = int(config.get_text_config(decoder=True).num_hidden_layers)
        return cls(network, False, language_hookpoints(network, n_layers))

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.root.parameters()).device

    def place(self, hookpoint: str) -> tuple[Hookpoint, nn.Module]:
        """Return a hookpoint by name and its module.

        Raises
        ------
        ValueError : there is no such place.
        """
        point = find_hookpoint(self.points, hookpoint)
        return point, self.root.get_submodule(point.path)

    @property
    def moment(self) -> Moment:
        """Where the forward pass of this thread stands."""
        return getattr(self._moments, "now", Moment())

    def watch(self) -> None:
        """Begin to keep track of forward passes."""
        for entry in {self.root} if self.diffusion else _decoders(self.root):
            self._handles.append(
                entry.register_forward_pre_hook(self._begins(entry), with_kwargs=True)
            )

    def unwatch(self) -> None:
        """Stop keeping track."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _begins(self, entry: nn.Module) -> Callable[..., None]:
        names = list(inspect.signature(entry.forward).parameters)
        # Flux is told the share of its thousand timesteps.
        scale = 1000.0 if type(entry).__name__ == "FluxTransformer2DModel" else 1.0

        def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = dict(zip(names, args)) | kwargs
            self._moments.now = (
                Moment(timestep=_number(given["timestep"]) * scale, guided=self.guided())
                if self.diffusion
                else _text_moment(given)
            )

        return begin


def _decoders(model: nn.Module) -> set[nn.Module]:
    """Return the modules by which a pass may enter: with the head, without, or (OPT) further in."""
    entries = [model, getattr(model, "base_model", None)]
    entries.append(getattr(entries[-1], "decoder", None))
    return {entry for entry in entries if isinstance(entry, nn.Module)}


def _number(value: Any) -> float:
    return float(value.reshape(-1)[0]) if isinstance(value, Tensor) else float(value)


def _text_moment(given: Mapping[str, Any]) -> Moment:
    cache = given.get("past_key_values")
    offset = 0 if cache is None else int(cache.get_seq_length())
    tokens = given.get("input_ids")
    if tokens is None:
        tokens = given.get("inputs_embeds")
    shape = None if tokens is None else (int(tokens.shape[0]), int(tokens.shape[1]))
    return Moment(offset=offset, shape=shape)

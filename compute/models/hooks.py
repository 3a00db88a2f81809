"""Hookpoints: names for places in a model, and a recorder that reads them in one forward pass."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import nn

from compute.models.adapter import ModelLevel, check_levels, slug

Take = Literal["output", "input", "update"]

_LAYER_LISTS = ("layers", "h", "blocks", "block")
_ATTENTION = (
    "self_attn", "attn", "attention", "self_attention", "linear_attn", "mixer", "mamba",
)  # fmt: skip
# OPT has no module around its feed-forward part; what its second linear map returns is the same.
_FEED_FORWARD = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "fc2")
# Families that norm what a part gives before they add it, by the names of the two norms.
_POST_NORMS = (
    ("post_attention_layernorm", "post_feedforward_layernorm"),
    ("post_self_attn_layernorm", "post_mlp_layernorm"),
)

# Blocks that carry a text and an image stream, and return the pair in this order.
TEXT_FIRST = {"JointTransformerBlock", "FluxTransformerBlock", "FluxSingleTransformerBlock"}


@dataclass(frozen=True, slots=True)
class Hookpoint:
    """A tensor of a running model: what a module takes in, gives out, or adds to its input.

    Attributes
    ----------
    name : the name a user asked for.
    path : dotted path of the module, as in ``model.named_modules()``.
    take : ``output``, ``input``, or ``update`` (output minus input, the residual update).
    scale : factor by which the model multiplies the tensor before it adds it to the stream.
    """

    name: str
    path: str
    take: Take = "output"
    scale: float = 1.0


def language_hookpoints(model: nn.Module, n_layers: int) -> dict[str, Hookpoint]:
    """Return every named hookpoint of a causal language model, family names first.

    ``layers.N.input|output|attn|mlp`` mean the same in every family: what enters a layer, what
    leaves it, and what its two parts add to the residual stream. Every dotted module path is a
    hookpoint too (its output).
    """
    points: dict[str, Hookpoint] = {}
    layers = _layer_list(model, n_layers)
    for index in range(n_layers if layers else 0):
        path = f"{layers}.{index}"
        name = f"layers.{index}"
        points[f"{name}.input"] = Hookpoint(f"{name}.input", path, "input")
        for part, (inside, scale) in _parts(model.get_submodule(path)).items():
            full = f"{name}.{part}"
            points[full] = Hookpoint(full, f"{path}.{inside}", scale=scale)
        points[f"{name}.output"] = Hookpoint(f"{name}.output", path)
    return points | module_hookpoints(model)


def _parts(layer: nn.Module) -> dict[str, tuple[str, float]]:
    """Return ``attn`` and ``mlp`` → path in the layer of what is added to the stream, and factor.

    That is a part's own output; the output of the norm behind it where the family has one; of its
    last linear map where the part itself adds the stream that it is handed (BLOOM, MPT).
    """
    children = dict(layer.named_children())
    scale = float(getattr(layer, "residual_multiplier", 1.0))
    norms = next((pair for pair in _POST_NORMS if pair[1] in children), None)
    parts: dict[str, tuple[str, float]] = {}
    for index, (part, candidates) in enumerate((("attn", _ATTENTION), ("mlp", _FEED_FORWARD))):
        inside = next((child for child in candidates if child in children), None)
        if inside is None:
            continue
        if norms is not None and norms[index] in children:
            inside = norms[index]
        elif "residual" in inspect.signature(children[inside].forward).parameters:
            maps = [n for n, m in children[inside].named_children() if isinstance(m, nn.Linear)]
            inside = f"{inside}.{maps[-1]}" if maps else inside
        parts[part] = (inside, scale)
    return parts


def module_hookpoints(model: nn.Module) -> dict[str, Hookpoint]:
    """Return the output of every module of ``model``, by dotted path."""
    return {
        path: Hookpoint(path, path)
        for path, module in model.named_modules()
        if path and not isinstance(module, nn.ModuleList | nn.ModuleDict)
    }


def find_hookpoint(points: Mapping[str, Hookpoint], name: str) -> Hookpoint:
    """Return the hookpoint called ``name``; ``PATH.input|output|update`` works for any module.

    Raises
    ------
    ValueError : the model has no such place; the nearest names are given.
    """
    if name in points:
        return points[name]
    path, _, take = name.rpartition(".")
    if path in points and points[path].take == "output":
        _refuse_moved(points[path], take)
        if take == "output":
            return replace(points[path], name=name)
        if take == "input":
            return replace(points[path], name=name, take="input")
        if take == "update":
            return replace(points[path], name=name, take="update")
    near = difflib.get_close_matches(name, points, n=4, cutoff=0.5) or list(points)[:4]
    layers = [int(m[1]) for p in points if (m := re.match(r"layers\.(\d+)\.output$", p))]
    range_note = f" (layers 0 to {max(layers)})" if layers else ""
    raise ValueError(
        f"hookpoint {name!r} is not in this model{range_note}; the nearest are {', '.join(near)}"
    )


def _refuse_moved(point: Hookpoint, take: str) -> None:
    """Refuse the input of a part that is read elsewhere than at the part's own module."""
    own = point.path.rpartition(".")[2] in (*_ATTENTION, *_FEED_FORWARD)
    part = point.name.rpartition(".")[2] in ("attn", "mlp") and point.name != point.path
    if part and take in ("input", "update") and (point.scale != 1.0 or not own):
        raise ValueError(
            f"hookpoint '{point.name}.{take}' is not defined in this model, which adds to its "
            f"stream what {point.path!r} gives; name the module whose {take} you want by its path"
        )


def expand_levels(
    points: Mapping[str, Hookpoint], levels: Sequence[ModelLevel | str]
) -> tuple[ModelLevel, ...]:
    """Return ``levels`` with names made and fnmatch patterns spelt out, in the given order.

    A string is a hookpoint or a pattern (``layers.*.output``); a pattern stands for its matches in
    the model's own order. The level of hookpoint ``layers.7.output`` is called ``layer-07``.

    Raises
    ------
    ValueError : nothing matches, or two levels come out with one name.
    """
    expanded: list[ModelLevel] = []
    for wanted in levels:
        level = ModelLevel(slug(wanted), wanted) if isinstance(wanted, str) else wanted
        if not any(character in level.hookpoint for character in "*?["):
            find_hookpoint(points, level.hookpoint)
            expanded.append(level)
            continue
        matches = [name for name in points if fnmatchcase(name, level.hookpoint)]
        if not matches:
            find_hookpoint(points, level.hookpoint)
        for name in matches:
            when = "" if level.timestep is None else f"-t{level.timestep:03d}"
            own_name = len(matches) == 1 and not isinstance(wanted, str)
            expanded.append(
                ModelLevel(level.name if own_name else slug(name) + when, name, level.timestep)
            )
    return check_levels(expanded)


class StopForward(Exception):
    """Ends a forward pass once nothing further is wanted of it."""


class Recorder:
    """Reads hookpoints while a model runs, and can end the run after the last of them.

    Use as a context manager; ``take()`` hands over what was recorded since the last call, in the
    order in which the model passed the hookpoints. A value is what was there when it was passed:
    it is copied, since a model may go on to write into it, unless the pass ends there.

    Parameters
    ----------
    model : the module whose ``named_modules()`` the hookpoints refer to.
    hookpoints : the places to read.
    stop : raise `StopForward` inside the model once every hookpoint has been read.
    """

    def __init__(
        self,
        model: nn.Module,
        hookpoints: Iterable[Hookpoint],
        *,
        stop: bool = True,
    ) -> None:
        self._hookpoints = {point.name: point for point in hookpoints}
        self._model = model
        self._stop = stop
        self._seen: dict[str, torch.Tensor] = {}
        self._before: dict[str, torch.Tensor] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Recorder:
        for point in self._hookpoints.values():
            module = self._model.get_submodule(point.path)
            if point.take == "update":
                self._handles.append(
                    module.register_forward_pre_hook(self._before_update(point), with_kwargs=True)
                )
            self._handles.append(
                module.register_forward_pre_hook(self._on_input(point), with_kwargs=True)
                if point.take == "input"
                else module.register_forward_hook(self._on_output(point), with_kwargs=True)
            )
        return self

    def __exit__(self, *exc: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._seen.clear()
        self._before.clear()

    def take(self) -> dict[str, torch.Tensor]:
        """Return hookpoint name → tensor recorded since the last call, and forget it.

        Raises
        ------
        RuntimeError : the model ran without passing one of the hookpoints.
        """
        missing = [name for name in self._hookpoints if name not in self._seen]
        if missing:
            raise RuntimeError(f"the forward pass never reached hookpoint {missing[0]!r}")
        seen, self._seen = self._seen, {}
        return seen

    def _on_input(self, point: Hookpoint) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._keep(point, stream_in(args, kwargs))

        return hook

    def _before_update(self, point: Hookpoint) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            # The module may write into its input.
            self._before[point.name] = stream_in(args, kwargs).clone()

        return hook

    def _on_output(self, point: Hookpoint) -> Any:
        def hook(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
        ) -> None:
            value = stream_out(output, text_first=type(module).__name__ in TEXT_FIRST)
            if point.take == "update":
                before = self._before.pop(point.name)
                if before.shape != value.shape:
                    raise ValueError(
                        f"hookpoint {point.name!r} has no residual update: it turns "
                        f"{tuple(before.shape)} into {tuple(value.shape)}; use '.output'"
                    )
                value = value - before
            self._keep(point, value)

        return hook

    def _keep(self, point: Hookpoint, value: torch.Tensor) -> None:
        # A module that runs twice in one pass (tied layers) is read the first time.
        if point.name in self._seen:
            return
        last = self._stop and len(self._seen) == len(self._hookpoints) - 1
        if point.scale != 1.0:
            value = value * point.scale
        elif not last and point.take != "update":
            value = value.clone()
        self._seen[point.name] = value
        if last:
            raise StopForward


def token_rows(tensor: torch.Tensor, shape: tuple[int, int], name: str) -> torch.Tensor:
    """Return what a place of a language model gives as ``(b, t, d)``, one row per token.

    Parameters
    ----------
    tensor : ``(b, t, ...)`` or ``(b·t, d)``; axes after the tokens are laid out as one.
    shape : ``(b, t)``, the tokens that the model was given.

    Raises
    ------
    ValueError : the tensor has another form.
    """
    if tensor.ndim >= 3 and tuple(tensor.shape[:2]) == shape:
        return tensor.flatten(2)
    if tensor.ndim == 2 and tensor.shape[0] == shape[0] * shape[1]:
        return tensor.reshape(*shape, -1)
    raise ValueError(
        f"hookpoint {name!r} gives {tuple(tensor.shape)} for {shape[0]} x {shape[1]} tokens, not "
        "one row per token; choose a place that does, such as 'layers.0.output'"
    )


def stream_out(output: Any, *, text_first: bool = False) -> torch.Tensor:
    """Return the main tensor of a module's output: the first, or the last after a text stream.

    Raises
    ------
    TypeError : the output holds no tensor.
    """
    if isinstance(output, torch.Tensor):
        return output
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, list | tuple) and output:
        return stream_out(output[-1] if text_first else output[0])
    raise TypeError(f"a module returned {type(output).__name__}, in which no tensor was found")


def stream_in(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor:
    """Return the main tensor a module was called with."""
    if "hidden_states" in kwargs:
        return stream_out(kwargs["hidden_states"])
    return stream_out(args[0] if args else next(iter(kwargs.values())))


def _layer_list(model: nn.Module, n_layers: int) -> str | None:
    """Return the path of the list of decoder layers: the shallowest list of the right length."""
    paths = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module) == n_layers
        and path.rpartition(".")[2] in _LAYER_LISTS
    ]
    return min(paths, key=lambda path: path.count(".")) if paths else None

"""Interventions in a running network: hooks that replace rows, one owner at a time."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Protocol
from weakref import WeakSet

import torch
from torch import Tensor, nn

from compute.models.hooks import TEXT_FIRST, Hookpoint, stream_in, stream_out
from compute.steering.places import Moment, PlaceRows, Target

__all__ = ["AlreadySteered", "Intervention", "Interventions", "Probe", "RowChange"]

_lock = threading.Lock()
_owned: WeakSet[nn.Module] = WeakSet()


class AlreadySteered(RuntimeError):
    """A model that is being steered cannot be steered again until the first block has ended."""


class RowChange(NamedTuple):
    """What an intervention adds: ``delta (r, d)`` float32 at the flat rows ``rows (r,)``."""

    rows: Tensor
    delta: Tensor


class Intervention(Protocol):
    """Decides, for the rows that a place gives in one forward pass, what to add to which."""

    def __call__(self, rows: PlaceRows, moment: Moment) -> RowChange | None:
        """Return the change, or None to leave the pass exactly as it is."""


class Probe(Protocol):
    """Reads the rows that a place gives in one forward pass, after every intervention there."""

    def __call__(self, rows: PlaceRows, moment: Moment) -> None:
        """Take what is wanted."""


class Interventions:
    """Hooks at the places of a network, for as long as the context lasts.

    Parameters
    ----------
    target : the network.
    interventions : pairs of a hookpoint and what to do there; at one place in the given order.
    probes : pairs of a hookpoint and who reads there, after all interventions of the place.

    Raises
    ------
    AlreadySteered : on entering, if the network, or a module of it, is being steered.
    ValueError : a hookpoint is not in the model.
    """

    def __init__(
        self,
        target: Target,
        interventions: Sequence[tuple[str, Intervention]] = (),
        probes: Sequence[tuple[str, Probe]] = (),
    ) -> None:
        self._target = target
        self._work = [(*target.place(name), act) for name, act in interventions]
        self._read = [(*target.place(name), act) for name, act in probes]
        self._handles: list[Any] = []
        self._held: list[nn.Module] = []

    def __enter__(self) -> Interventions:
        # Reading changes nothing, so it needs no model of its own.
        only_reads = bool(self._read) and not self._work
        modules = (
            set() if only_reads else {self._target.root, *(module for _, module, _ in self._work)}
        )
        with _lock:
            if any(module in _owned for module in modules):
                raise AlreadySteered(
                    f"this {type(self._target.root).__name__} is being steered already: end the "
                    "first `with steer(...)` block, or give all edits to one"
                )
            _owned.update(modules)
            self._held = list(modules)
        try:
            self._target.watch()
            for point, module, act in self._work:
                self._hook(point, module, act)
            for point, module, probe in self._read:
                self._hook(point, module, _reading(probe))
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._target.unwatch()
        with _lock:
            for module in self._held:
                _owned.discard(module)
        self._held = []

    def _hook(self, point: Hookpoint, module: nn.Module, act: Intervention) -> None:
        if point.take == "input":
            handle = module.register_forward_pre_hook(self._on_input(point, act), with_kwargs=True)
        else:
            handle = module.register_forward_hook(self._on_output(point, act), with_kwargs=True)
        self._handles.append(handle)

    def _on_input(self, point: Hookpoint, act: Intervention) -> Any:
        def hook(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
            new = self._changed(point, stream_in(args, kwargs), None, act)
            if new is None:
                return None
            if "hidden_states" in kwargs:
                return args, kwargs | {
                    "hidden_states": _put(kwargs["hidden_states"], new, text_first=False)
                }
            if args:
                return (_put(args[0], new, text_first=False), *args[1:]), kwargs
            first = next(iter(kwargs))
            return args, kwargs | {first: _put(kwargs[first], new, text_first=False)}

        return hook

    def _on_output(self, point: Hookpoint, act: Intervention) -> Any:
        def hook(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
        ) -> Any:
            text_first = type(module).__name__ in TEXT_FIRST
            before = stream_in(args, kwargs) if point.take == "update" else None
            new = self._changed(point, stream_out(output, text_first=text_first), before, act)
            return None if new is None else _put(output, new, text_first=text_first)

        return hook

    def _changed(
        self, point: Hookpoint, tensor: Tensor, before: Tensor | None, act: Intervention
    ) -> Tensor | None:
        moment = self._target.moment
        # An update is what a module adds to its input; to add to it is to add to the output.
        read = tensor if before is None else tensor - before
        # What a level holds is what is added to the stream, after the model's own factor.
        read = read if point.scale == 1.0 else read * point.scale
        rows = PlaceRows.of(read, point, moment, self._target.diffusion)
        with torch.no_grad():
            change = act(rows, moment)
        if change is None or not len(change.rows):
            return None
        same = before is None and point.scale == 1.0
        whole = rows if same else PlaceRows.of(tensor, point, moment, self._target.diffusion)
        old = whole.values.reshape(-1, whole.values.shape[-1])[change.rows]
        new = (old.float() + change.delta / point.scale).to(old.dtype)
        return whole.replaced(change.rows, new)


def _reading(probe: Probe) -> Intervention:
    def read(rows: PlaceRows, moment: Moment) -> None:
        probe(rows, moment)

    return read


def _put(output: Any, tensor: Tensor, *, text_first: bool) -> Any:
    """Return a module's output with its main tensor replaced, in the same container."""
    if isinstance(output, Tensor):
        return tensor
    if isinstance(output, Mapping):
        names = list(output)
        chosen = names[-1 if text_first else 0]
        changed = dict(output)
        changed[chosen] = _put(output[chosen], tensor, text_first=text_first)
        return type(output)(**changed)
    chosen = len(output) - 1 if text_first else 0
    items = [
        _put(item, tensor, text_first=text_first) if i == chosen else item
        for i, item in enumerate(output)
    ]
    return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)

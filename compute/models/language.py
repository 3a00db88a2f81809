"""Language models: any causal model of transformers, read at any place in its layers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from compute.models.adapter import ActivationRows, ModelAdapter, ModelLevel
from compute.models.devices import choose_device, choose_dtype, largest_batch
from compute.models.hooks import (
    Hookpoint,
    Recorder,
    StopForward,
    expand_levels,
    find_hookpoint,
    language_hookpoints,
    token_rows,
)
from compute.models.language_facts import PROBE_SHAPES, LanguageFacts, load_config
from compute.models.weight_files import Source, weights_hash

_BATCH_TOKENS = {"cpu": 1024, "cuda": 32_768}


@dataclass(frozen=True, slots=True)
class Context:
    """A window of tokens that goes through the model at once.

    Attributes
    ----------
    document : index of the document; of the first one where several are packed.
    start : position in that document of the first token.
    tokens : token ids, at most the context length; no padding and no beginning-of-text token.
    cuts : where packed documents begin inside ``tokens``, first excluded; they do not see one
        another. The document after the i-th cut is ``documents[i]``, from its first token on.
    documents : index of the document after each cut.
    """

    document: int
    start: int
    tokens: NDArray[np.int64] | tuple[int, ...]
    cuts: tuple[int, ...] = ()
    documents: tuple[int, ...] = ()

    def segments(self) -> Iterator[tuple[int, int, int, int]]:
        """Yield ``(document, start in the document, begin, end)`` of every packed piece."""
        bounds = (0, *self.cuts, len(self.tokens))
        starts = (self.start, *(0 for _ in self.cuts))
        for (begin, end), document, start in zip(
            pairwise(bounds), (self.document, *self.documents), starts, strict=True
        ):
            yield document, start, begin, end


def contexts(
    tokens: Iterable[NDArray[np.int64]], context_length: int, *, pack: bool = False
) -> list[Context]:
    """Cut documents into consecutive windows of at most ``context_length`` tokens.

    Parameters
    ----------
    tokens : token ids per document, in document order.
    context_length : the longest window.
    pack : fill a window that a document's end leaves unfinished with the documents after it.
        A window then begins where the last ended; only the last may be short.

    Raises
    ------
    ValueError : the length is not positive.
    """
    if context_length < 1:
        raise ValueError(f"context_length is {context_length}; it must be at least 1")
    if not pack:
        return [
            Context(document, start, ids[start : start + context_length])
            for document, ids in enumerate(tokens)
            for start in range(0, len(ids), context_length)
        ]
    packed: list[Context] = []
    pieces: list[tuple[int, int, NDArray[np.int64]]] = []
    room = context_length
    for document, ids in enumerate(tokens):
        start = 0
        while start < len(ids):
            piece = ids[start : start + room]
            pieces.append((document, start, piece))
            start += len(piece)
            room -= len(piece)
            if room == 0:
                packed.append(_join(pieces))
                pieces, room = [], context_length
    if pieces:
        packed.append(_join(pieces))
    return packed


def _join(pieces: Sequence[tuple[int, int, NDArray[np.int64]]]) -> Context:
    ends = np.cumsum([len(ids) for _, _, ids in pieces])
    document, start, _ = pieces[0]
    return Context(
        document,
        start,
        np.concatenate([ids for _, _, ids in pieces]),
        cuts=tuple(int(end) for end in ends[:-1]),
        documents=tuple(document for document, _, _ in pieces[1:]),
    )


def beginning(bos: int | None, tokens: Sequence[int] | NDArray[np.int64]) -> list[int]:
    """Return what is put before a text: the token ``bos``, unless the text has it there itself."""
    has_it = len(tokens) > 0 and tokens[0] == bos
    return [] if bos is None or has_it else [bos]


@dataclass(eq=False)
class LanguageModel(ModelAdapter[Context]):
    """A causal language model whose residual stream (or any module) is read at given levels.

    Build it with `load`. ``extract`` runs windows in batches of ``batch_size``, padded on the
    right to the longest of the batch; causal attention keeps padding out of sight of real tokens.
    Padding, special tokens and a prepended beginning-of-text token yield no rows.

    Attributes
    ----------
    model : the whole transformers model, in eval mode.
    facts : what is known of it without its weights, and its tokenizer.
    batch_size : windows per forward pass; part of what fixes the bytes of the result.
    bos : id of the token put before every window, or None.
    """

    model: nn.Module
    facts: LanguageFacts
    levels: tuple[ModelLevel, ...]
    dtype: torch.dtype
    device: torch.device
    context_length: int
    batch_size: int
    bos: int | None = None
    widths: dict[str, int] = field(init=False)
    _points: dict[str, Hookpoint] = field(init=False, repr=False)
    _special: NDArray[np.int64] = field(init=False, repr=False)
    _packing: Packing | None = field(init=False, default=None, repr=False)

    def __post_init__(self) -> None:
        # The head over the vocabulary is never run.
        self._decoder: Any = self.model.base_model
        self._points = language_hookpoints(self.model, self.facts.n_layers)
        self._special = np.array(sorted(self.facts.special_tokens), dtype=np.int64)
        # Of two shapes, so that no axis looks like tokens by chance.
        for rows, length in PROBE_SHAPES:
            probe = self._forward(self._probe_ids(rows, length))
        self.widths = {level.name: int(probe[level.name].shape[-1]) for level in self.levels}
        self.prove_parts(self._probe_ids(*PROBE_SHAPES[-1]))

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        levels: Sequence[ModelLevel | str],
        dtype: str | torch.dtype = "auto",
        device: str | torch.device = "auto",
        gguf_file: str | None = None,
        context_length: int = 128,
        batch_size: int | None = None,
        bos: bool | None = None,
    ) -> Self:
        """Load a model for extraction.

        Parameters
        ----------
        source : hub id, folder, GGUF file, or ``package:NAME`` (the folder of an installed Python
            package, which is not imported).
        levels : hookpoints, lowest first: `Level` objects, names, or fnmatch patterns.
        dtype : ``auto`` is bfloat16 where the device computes in it, else float32.
        device : ``auto`` is the first accelerator, else the CPU.
        gguf_file : file name of a GGUF inside ``source``.
        context_length : longest window, in tokens.
        batch_size : windows per forward pass; by default a fixed number of tokens per device.
        bos : put the beginning-of-text token before every window; by default as the tokenizer does.

        Raises
        ------
        ValueError : no such source, hookpoint, dtype or device, or a context the model cannot hold.
        """
        facts = LanguageFacts.read(source, gguf_file=gguf_file)
        chosen_device = choose_device(device)
        chosen_dtype = choose_dtype(dtype, chosen_device)
        # A hookpoint that is not there is refused before any weight is read.
        expanded = expand_levels(facts.points(), levels)
        lead = facts.bos_token if (facts.prepends_bos if bos is None else bos) else None
        facts.check_context(context_length, bos=lead is not None)
        if batch_size is None:
            batch_size = max(1, _BATCH_TOKENS.get(chosen_device.type, 1024) // context_length)
        return cls(
            model=load_weights(facts.source, chosen_dtype).to(chosen_device).eval(),
            facts=facts,
            levels=expanded,
            dtype=chosen_dtype,
            device=chosen_device,
            context_length=context_length,
            batch_size=batch_size,
            bos=lead,
        )

    @staticmethod
    def inspect(source: str | Path, *, gguf_file: str | None = None) -> LanguageFacts:
        """Return what is known of a model without its weights; see `LanguageFacts`."""
        return LanguageFacts.read(source, gguf_file=gguf_file)

    def hookpoints(self) -> list[str]:
        """Return every name a level may use, family names first."""
        return list(self._points)

    def places(self) -> dict[str, Hookpoint]:
        """Return level name → where in the model it is read."""
        return {level.name: find_hookpoint(self._points, level.hookpoint) for level in self.levels}

    def window_ids(self, item: Context) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the ids ``(t,)`` that the model sees for a window, and the places of its rows."""
        layout = self._layout(item)
        return layout.ids, layout.rows

    def tokenize(self, documents: Iterable[str]) -> list[NDArray[np.int64]]:
        """Return the token ids of each document, no special token added."""
        return self.facts.tokenize(documents)

    def contexts(self, tokens: Iterable[NDArray[np.int64]], *, pack: bool = False) -> list[Context]:
        """Cut documents into windows of this model's context length; see `contexts`."""
        return contexts(tokens, self.context_length, pack=pack)

    def rows_of(self, item: Context) -> int:
        """Return the number of tokens of ``item`` that are not special tokens."""
        return int(self._ordinary(item).sum())

    def extract(self, items: Sequence[Context]) -> ActivationRows:
        """Return one row per ordinary token of ``items``, in their order.

        Raises
        ------
        ValueError : a window is empty or longer than the context length, or holds a token that
            the model does not know.
        """
        kept = [self._ordinary(item) for item in items]
        n_rows = int(sum(mask.sum() for mask in kept))
        activations = {
            level.name: torch.empty((n_rows, self.widths[level.name]), dtype=self.dtype)
            for level in self.levels
        }
        filled = 0
        for begin in range(0, len(items), self.batch_size):
            batch = [self._layout(item) for item in items[begin : begin + self.batch_size]]
            width = max(len(layout.ids) for layout in batch)
            index = np.concatenate([row * width + layout.rows for row, layout in enumerate(batch)])
            taken = torch.from_numpy(index).to(self.device)
            for name, tensor in self._forward(*_pad(batch, width, self.facts.pad_token)).items():
                rows = tensor.reshape(-1, tensor.shape[-1]).index_select(0, taken)
                activations[name][filled : filled + len(index)] = rows
            filled += len(index)
        return ActivationRows(activations, *_bookkeeping(items, kept))

    def describe(self) -> Mapping[str, Any]:
        """Return the model's provenance, JSON-ready."""
        return {
            "source": self.facts.source.name,
            "gguf_file": self.facts.source.gguf_file,
            "class": type(self.model).__name__,
            "architecture": self.facts.architecture,
            "n_layers": self.facts.n_layers,
            "hidden_size": self.facts.hidden_size,
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "weights_sha256": weights_hash(self.facts.source.name, self.facts.source.gguf_file),
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": self.device.type,
            "context_length": self.context_length,
            "batch_size": self.batch_size,
            "bos": self.bos,
        }

    @torch.inference_mode()
    def prove_parts(self, ids: NDArray[np.int64]) -> list[str]:
        """Return the layers of which a part is read, each tried on token ids ``(b, t)``.

        Raises
        ------
        ValueError : input, attn and mlp of such a layer are not its output, so that what is read
            as its part is not what is added to the residual stream.
        """
        found = (re.fullmatch(r"(layers\.\d+)\.(attn|mlp)", x.hookpoint) for x in self.levels)
        layers = {match[1]: match[0] for match in found if match}
        tokens = torch.from_numpy(ids).to(self.device)
        for layer, asked in layers.items():
            names = (f"{layer}.{part}" for part in ("input", "attn", "mlp", "output"))
            places = [self._points[name] for name in names if name in self._points]
            with Recorder(self.model, places) as recorder:
                with suppress(StopForward):
                    self._decoder(input_ids=tokens, use_cache=False)
                seen = recorder.take()
            shape = (len(tokens), tokens.shape[1])
            values = {
                name.rpartition(".")[2]: token_rows(value, shape, name).float()
                for name, value in seen.items()
            }
            check_parts(values, asked, self.facts.architecture, torch.finfo(self.dtype).eps)
        return list(layers)

    def fit_batch_size(self, *, limit: int = 1024) -> int:
        """Set ``batch_size`` to the largest power of two that fits the device's memory."""

        def one_pass(size: int) -> None:
            lead = 0 if self.bos is None else 1
            self._forward(np.zeros((size, self.context_length + lead), dtype=np.int64))

        self.batch_size = largest_batch(one_pass, limit=limit)
        return self.batch_size

    def _ordinary(self, item: Context) -> NDArray[np.bool_]:
        length = len(item.tokens)
        if not 1 <= length <= self.context_length:
            raise ValueError(
                f"a context holds {length} tokens; it must hold 1 to {self.context_length}"
            )
        return ~np.isin(np.asarray(item.tokens, dtype=np.int64), self._special)

    def _layout(self, item: Context) -> _Layout:
        """Return the ids the model sees for one window, and which of them yield rows."""
        tokens = np.asarray(item.tokens, dtype=np.int64)
        self.facts.check_tokens(tokens)
        ids: list[NDArray[np.int64]] = []
        positions: list[NDArray[np.int64]] = []
        real: list[NDArray[np.bool_]] = []
        for _, _, begin, end in item.segments():
            lead = beginning(self.bos, tokens[begin:end])
            ids.append(np.concatenate([np.array(lead, dtype=np.int64), tokens[begin:end]]))
            positions.append(np.arange(len(ids[-1])))
            real.append(np.arange(len(ids[-1])) >= len(lead))
        inside = np.flatnonzero(np.concatenate(real))
        return _Layout(np.concatenate(ids), np.concatenate(positions), inside[self._ordinary(item)])

    @torch.inference_mode()
    def _forward(
        self, ids: NDArray[np.int64], positions: NDArray[np.int64] | None = None
    ) -> dict[str, torch.Tensor]:
        """Return level name → ``(b, t, d)``; the pass ends after the last level."""
        if positions is None:
            return self._run(ids, {})
        if self._packing is None:
            self._packing = self._find_packing()
        return self._run(ids, self._packing(torch.from_numpy(positions).to(self.device)))

    def _run(
        self, ids: NDArray[np.int64], arguments: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        places = self.places()
        tokens = torch.from_numpy(ids).to(self.device)
        with Recorder(self.model, set(places.values())) as recorder:
            with suppress(StopForward):
                self._decoder(input_ids=tokens, use_cache=False, **arguments)
            seen = recorder.take()
        shape = (ids.shape[0], ids.shape[1])
        return {
            name: token_rows(seen[place.name], shape, place.name) for name, place in places.items()
        }

    def _probe_ids(self, rows: int, length: int) -> NDArray[np.int64]:
        """Return token ids ``(rows, length)``, cut to the context length, for trying the model."""
        length = min(length, self.context_length)
        ids = np.arange(rows * length, dtype=np.int64) % self.facts.vocabulary_size
        return ids.reshape(rows, length)

    def _find_packing(self) -> Packing:
        """Return the way of packing that keeps documents apart in this family, by trying.

        Most families see from restarting positions that a new document begins; others need the
        block-diagonal mask spelt out.

        Raises
        ------
        ValueError : in neither way does the second of two documents come out as it does alone.
        """
        first = min(5, self.context_length)
        ids = np.arange(2 * first, dtype=np.int64)[None] % self.facts.vocabulary_size
        positions = torch.arange(first, device=self.device).repeat(2)[None]
        alone = self._run(ids[:, first:], {})

        def error(arguments: Mapping[str, torch.Tensor]) -> float:
            seen = self._run(ids, arguments)
            return max(float((seen[n][:, first:] - alone[n]).abs().max()) for n in alone)

        mixed = error({})
        for packing in (by_position, by_mask):
            # A family may take no positions, or no mask of this form (BLOOM).
            with suppress(ValueError, TypeError, RuntimeError, IndexError):
                if error(packing(positions)) <= 0.1 * mixed:
                    return packing
        raise ValueError(
            f"{self.facts.architecture} models do not keep packed documents apart; use pack=False"
        )


def check_parts(
    values: Mapping[str, torch.Tensor], asked: str, architecture: str, eps: float
) -> None:
    """Refuse a layer whose parts do not add up.

    Parameters
    ----------
    values : ``input``, ``output`` and the parts found of them → ``(b, t, d)``, in float32.
    asked : the hookpoint for which it is asked.
    eps : rounding of the model's dtype.

    Raises
    ------
    ValueError : the input and the parts are not the output.
    """
    before, after = values["input"], values["output"]
    parts = [value for name, value in values.items() if name in ("attn", "mlp")]
    if all(part.shape == before.shape for part in parts):
        missed = float((before + sum(parts) - after).abs().max())
        largest = max(float(value.abs().max()) for value in values.values())
        if missed <= 0.01 * float((after - before).abs().max()) + 8 * eps * largest:
            return
    raise ValueError(
        f"hookpoint {asked!r} is not what {architecture!r} adds to its residual stream (input, "
        "attn and mlp do not add up to the output); choose '.output', or a module by its path"
    )


@dataclass(frozen=True, slots=True)
class _Layout:
    """One window as the model sees it: ids and positions ``(t,)``, and the indices of its rows."""

    ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    rows: NDArray[np.int64]


Packing = Callable[[torch.Tensor], dict[str, torch.Tensor]]


def by_position(positions: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the model's arguments for positions ``(b, t)`` that restart with every document."""
    return {"position_ids": positions}


def by_mask(positions: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the same with the block-diagonal causal mask ``(b, 1, t, t)`` spelt out."""
    document = (positions == 0).cumsum(dim=1)
    same = document[:, None, :, None] == document[:, None, None, :]
    return {"position_ids": positions, "attention_mask": same.tril()}


def _pad(
    batch: Sequence[_Layout], width: int, pad_token: int
) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
    """Return ids ``(b, width)`` and, if anything is packed, the position of each.

    No mask is needed: padding stands on the right, where causal attention never looks.
    """
    ids = np.full((len(batch), width), pad_token, dtype=np.int64)
    positions = np.tile(np.arange(width), (len(batch), 1))
    for row, layout in enumerate(batch):
        ids[row, : len(layout.ids)] = layout.ids
        positions[row, : len(layout.ids)] = layout.positions
        # Padding is a document of its own.
        positions[row, len(layout.ids) :] = np.arange(width - len(layout.ids))
    packed = any((layout.positions[1:] == 0).any() for layout in batch)
    return ids, positions if packed else None


def _bookkeeping(
    items: Sequence[Context], kept: Sequence[NDArray[np.bool_]]
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int64]]:
    """Return the sample, position and observed token of every row."""
    samples: list[NDArray[np.int64]] = []
    positions: list[NDArray[np.int32]] = []
    for item, mask in zip(items, kept, strict=True):
        for document, start, begin, end in item.segments():
            inside = np.flatnonzero(mask[begin:end])
            samples.append(np.full(len(inside), document, dtype=np.int64))
            positions.append((inside + start).astype(np.int32))
    observed = [
        np.asarray(item.tokens, dtype=np.int64)[mask]
        for item, mask in zip(items, kept, strict=True)
    ]
    if not items:
        return np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0, np.int64)
    return np.concatenate(samples), np.concatenate(positions), np.concatenate(observed)


def load_weights(source: Source, dtype: torch.dtype) -> nn.Module:
    """Return the causal language model of ``source`` with its weights in ``dtype``, on the CPU.

    Raises
    ------
    ValueError : the weights cannot be found.
    """
    from transformers import AutoModelForCausalLM

    config = load_config(source)
    if source.folder is not None and source.gguf_file is not None:
        from compute.models.gguf_weights import load_gguf

        return load_gguf(source.folder / source.gguf_file, config, dtype)
    try:
        model: nn.Module = AutoModelForCausalLM.from_pretrained(
            source.location,
            config=config,
            gguf_file=source.gguf_file,
            dtype=dtype,
            trust_remote_code=False,
        )
    except OSError as error:
        raise ValueError(f"source {source.name!r} holds no weights: {error}") from error
    return model

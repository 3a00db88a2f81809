"""What is known of a language model without loading its weights, and its tokenizer."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from compute.models.adapter import ModelLevel
from compute.models.hooks import (
    Hookpoint,
    Recorder,
    StopForward,
    expand_levels,
    find_hookpoint,
    language_hookpoints,
    token_rows,
)
from compute.models.weight_files import Source, resolve_source

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

# Windows and tokens with which a model is tried: two shapes, so that no axis looks like tokens.
PROBE_SHAPES = ((2, 3), (3, 5))


@dataclass(frozen=True)
class LanguageFacts:
    """A language model's configuration and tokenizer; no weight is read.

    Attributes
    ----------
    source : where its files are.
    architecture : its model type (``llama``, ``gemma2`` …).
    n_layers, hidden_size : number of decoder layers, width of the residual stream.
    vocabulary_size : number of token ids the embedding knows.
    max_context : most tokens the model takes at once.
    """

    source: Source
    architecture: str
    n_layers: int
    hidden_size: int
    vocabulary_size: int
    max_context: int

    @classmethod
    def read(cls, source: str | Path, *, gguf_file: str | None = None) -> Self:
        """Read the facts from ``config.json`` or the header of a GGUF file.

        Raises
        ------
        ValueError : no such source, or no language model in it.
        """
        resolved = resolve_source(source, gguf_file)
        if resolved.folder is not None and resolved.gguf_file is not None:
            from compute.models.gguf_weights import read_header

            header = read_header(resolved.folder / resolved.gguf_file)
            return cls(
                resolved,
                header.architecture,
                header.n_layers,
                header.hidden_size,
                header.vocabulary_size,
                header.context_length,
            )
        config = load_config(resolved)
        try:
            text = config.get_text_config()
            return cls(
                resolved,
                str(text.model_type),
                int(text.num_hidden_layers),
                int(text.hidden_size),
                int(text.vocab_size),
                _longest_context(text),
            )
        except Exception as error:
            raise ValueError(_no_reader(resolved, config, error)) from error

    def points(self) -> dict[str, Hookpoint]:
        """Return every hookpoint of the model by name, read off a model without weights."""
        return language_hookpoints(self._skeleton, self.n_layers)

    def hookpoints(self) -> list[str]:
        """Return the names a level's hookpoint may take."""
        return list(self.points())

    def check(self, levels: Sequence[ModelLevel | str]) -> tuple[ModelLevel, ...]:
        """Return ``levels`` with names made and patterns spelt out.

        Raises
        ------
        ValueError : the model has no such hookpoint; the nearest names are given.
        """
        return expand_levels(self.points(), levels)

    def width(self, hookpoint: str) -> int:
        """Return the width of what ``hookpoint`` gives.

        Raises
        ------
        ValueError : the model has no such hookpoint, or gives no row per token there.
        """
        return self.widths([hookpoint])[hookpoint]

    def widths(self, hookpoints: Sequence[str]) -> dict[str, int]:
        """Return hookpoint → width, in the order in which the model passes them.

        A run without weights tells. Where a family cannot run so, a linear map's own width is
        taken, elsewhere that of the residual stream, and the order is that of the layers.

        Raises
        ------
        ValueError : the model has no such hookpoint, or gives no row per token there.
        """
        points = self.points()
        places = [find_hookpoint(points, name) for name in hookpoints]
        widths: dict[str, int] = {}
        for shape in PROBE_SHAPES:
            shape = (shape[0], min(shape[1], self.max_context))
            seen = self._dry_run(places, shape)
            if seen is None:
                ordered = sorted(places, key=lambda place: _layer_number(place.path))
                return {place.name: self._declared_width(place) for place in ordered}
            widths = {n: int(token_rows(x, shape, n).shape[-1]) for n, x in seen.items()}
        return widths

    def _dry_run(
        self, places: Sequence[Hookpoint], shape: tuple[int, int]
    ) -> dict[str, Any] | None:
        """Return hookpoint → tensor without values for tokens ``(b, t)``, or None if it fails."""
        import torch

        model = self._skeleton
        ids = torch.zeros(shape, dtype=torch.int64, device="meta")
        whole = torch.zeros((shape[0], 1, shape[1], shape[1]), device="meta")
        # Most families make a mask from values, unless they are given one that is ready.
        for arguments in ({"attention_mask": whole}, {}):
            with (
                Recorder(model, set(places)) as recorder,
                torch.inference_mode(),
                # What else depends on values (routing to experts) cannot run without them.
                suppress(RuntimeError, NotImplementedError, ValueError, TypeError),
            ):
                with suppress(StopForward), torch.device("meta"):
                    model.base_model(input_ids=ids, use_cache=False, **arguments)
                return recorder.take()
        return None

    def _declared_width(self, point: Hookpoint) -> int:
        module = self._skeleton.get_submodule(point.path)
        attribute = "in_features" if point.take == "input" else "out_features"
        width = getattr(module, attribute, None) or getattr(module, "nf", None)
        return self.hidden_size if width is None else int(width)

    def check_context(self, context_length: int, *, bos: bool | None = None) -> None:
        """Refuse a context that the model cannot hold, with the token that is put before it.

        Parameters
        ----------
        bos : whether a beginning-of-text token is put before it; by default as the tokenizer does.

        Raises
        ------
        ValueError : the context is too long, or holds no token.
        """
        if not 1 <= context_length <= self.max_context:
            raise ValueError(
                f"context_length is {context_length}; {self.source.name!r} holds 1 to "
                f"{self.max_context} tokens: choose as many at most"
            )
        if context_length == self.max_context and (self.prepends_bos if bos is None else bos):
            raise ValueError(
                f"context_length is {context_length}, and a beginning-of-text token is put before "
                f"it; {self.source.name!r} holds {self.max_context} tokens: choose one less"
            )

    def check_tokens(self, tokens: NDArray[np.int64]) -> None:
        """Refuse token ids that the model's embedding does not know.

        Raises
        ------
        ValueError : an id lies beyond the vocabulary.
        """
        if len(tokens) and int(tokens.max()) >= self.vocabulary_size:
            token = int(tokens.max())
            raise ValueError(
                f"token {token} ({self.tokenizer.decode([token])!r}) of the tokenizer of "
                f"{self.source.name!r} lies beyond the {self.vocabulary_size} that its model "
                "knows; enlarge the model's embedding, or leave the token out of the texts"
            )

    @cached_property
    def tokenizer(self) -> Any:
        """The model's fast tokenizer."""
        return load_tokenizer(self.source)

    @property
    def special_tokens(self) -> frozenset[int]:
        """Ids of the tokens that are markup and not text (beginning, end, padding …)."""
        tokenizer = self.tokenizer
        added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        return frozenset(added | set(tokenizer.all_special_ids))

    @property
    def bos_token(self) -> int | None:
        """Id of the beginning-of-text token, or None."""
        token = self.tokenizer.bos_token_id
        return None if token is None else int(token)

    @property
    def prepends_bos(self) -> bool:
        """Whether the tokenizer itself begins every text with the beginning-of-text token."""
        marked = self.tokenizer("a")["input_ids"]
        return self.bos_token is not None and marked[:1] == [self.bos_token]

    @property
    def pad_token(self) -> int:
        """An id to fill short windows with; what stands there is never seen."""
        token = self.tokenizer.pad_token_id
        # Some tokenizers name one that the embedding does not know.
        return 0 if token is None or token >= self.vocabulary_size else int(token)

    def tokenize(self, documents: Iterable[str]) -> list[NDArray[np.int64]]:
        """Return the token ids of each document, no special token added."""
        texts = list(documents)
        if not texts:
            return []
        batch = self.tokenizer(
            texts, add_special_tokens=False, return_attention_mask=False, verbose=False
        )
        return [np.asarray(ids, dtype=np.int64) for ids in batch["input_ids"]]

    @cached_property
    def _skeleton(self) -> Any:
        import torch
        from transformers import AutoModelForCausalLM

        model_class: Any = AutoModelForCausalLM
        config = load_config(self.source)
        try:
            with torch.device("meta"):
                return model_class.from_config(config).eval()
        except Exception as error:
            raise ValueError(_no_reader(self.source, config, error)) from error


def _longest_context(config: Any) -> int:
    """Most tokens that a model takes, by its config; very many where it has no limit."""
    try:
        return int(config.max_position_embeddings or 1 << 31)
    except (AttributeError, NotImplementedError):
        return 1 << 31


def _no_reader(source: Source, config: Any, error: Exception) -> str:
    """The sentence that refuses a family, of whose classes each fails in its own way."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return (
        f"source {source.name!r} is of the family {config.model_type!r}, which is not read as a "
        f"language model ({reason}); use another model"
    )


def check_order(levels: Sequence[ModelLevel], passed: Sequence[str]) -> None:
    """Refuse levels that are not given lowest first.

    Parameters
    ----------
    passed : their hookpoints, in the order in which the model passes them.

    Raises
    ------
    ValueError : a level lies below the one before it.
    """
    lowest_first = sorted(levels, key=lambda level: passed.index(level.hookpoint))
    if lowest_first != list(levels):
        given, wanted = (", ".join(one.name for one in some) for some in (levels, lowest_first))
        raise ValueError(
            f"levels {given} are not in the order in which the model passes them: give the lowest "
            f"first, {wanted}"
        )


def _layer_number(path: str) -> int:
    """The first number in a dotted path: the layer, of a place inside one."""
    return next((int(part) for part in path.split(".") if part.isdigit()), -1)


def load_config(source: Source) -> Any:
    """Return the transformers config of ``source``.

    Raises
    ------
    ValueError : there is none, or transformers does not know its architecture.
    """
    from transformers import AutoConfig

    if source.gguf_file is not None and source.folder is not None:
        from compute.models.gguf_weights import gguf_config

        return gguf_config(source.folder / source.gguf_file)
    if source.folder is not None and not (source.folder / "config.json").is_file():
        raise ValueError(
            f"source {source.name!r} holds neither a config.json nor one GGUF file; "
            "name the file with gguf_file"
        )
    try:
        return AutoConfig.from_pretrained(
            source.location, gguf_file=source.gguf_file, trust_remote_code=False
        )
    except OSError as error:
        raise ValueError(
            f"source {source.name!r} is no folder here and not on the hub or in its cache; "
            "check the name, or go online"
        ) from error


def load_tokenizer(source: Source) -> Any:
    """Return the fast tokenizer of ``source``.

    Raises
    ------
    ValueError : there is none, or only a slow one.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    # AutoTokenizer reads the whole GGUF for a class that the file's own header already fixes.
    loader = PreTrainedTokenizerFast if source.gguf_file is not None else AutoTokenizer
    try:
        tokenizer = loader.from_pretrained(
            source.location, gguf_file=source.gguf_file, trust_remote_code=False
        )
    except (OSError, TypeError) as error:
        raise ValueError(f"source {source.name!r} holds no tokenizer transformers reads") from error
    if not tokenizer.is_fast:
        raise ValueError(f"source {source.name!r} has no fast tokenizer (tokenizer.json)")
    return tokenizer

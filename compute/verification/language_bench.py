"""A language model on the bench: one level is changed and another read in one pass over windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from compute.models.hooks import StopForward
from compute.models.language import Context, LanguageModel, beginning
from compute.steering.places import Moment, PlaceRows, Target
from compute.steering.running import Intervention, Interventions
from compute.steering.steering_levels import ConceptLevel
from compute.verification.bench import Add, Bench, Replace, Shift

__all__ = ["LanguageBench"]


class LanguageBench(Bench):
    """A language model on windows of tokens; a pass ends at the last level that is read."""

    def __init__(
        self,
        adapter: LanguageModel,
        target: Target,
        levels: Sequence[ConceptLevel],
        items: Sequence[Context],
        batch_size: int,
    ) -> None:
        super().__init__(target, levels, batch_size)
        leads = [beginning(adapter.bos, item.tokens) for item in items]
        width = max(len(lead) + len(item.tokens) for lead, item in zip(leads, items, strict=True))
        self._ids = np.full((len(items), width), adapter.facts.pad_token, dtype=np.int64)
        self._real = np.zeros((len(items), width), dtype=bool)
        special = np.array(sorted(adapter.facts.special_tokens), dtype=np.int64)
        for row, (lead, item) in enumerate(zip(leads, items, strict=True)):
            tokens = np.asarray(item.tokens, dtype=np.int64)
            end = len(lead) + len(tokens)
            self._ids[row, :end] = [*lead, *tokens]
            self._real[row, len(lead) : end] = ~np.isin(tokens, special)
        self._model = adapter.model
        self._decoder: Any = adapter.model.base_model

    @property
    def n_items(self) -> int:
        """Number of windows."""
        return len(self._ids)

    def data_rows(self, items: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Tokens that are neither special nor padding."""
        return self._real[items]

    @torch.inference_mode()
    def read(self, items: NDArray[np.int64]) -> dict[int, Tensor]:
        """One pass up to the highest level."""
        seen: dict[int, Tensor] = {}
        enough = len(self.levels)
        probes = [(lv.hookpoint, _Keep(seen, lv.level, enough)) for lv in self.levels]
        with Interventions(self.target, (), probes), suppress(StopForward):
            self._decoder(input_ids=self._tokens(items), use_cache=False)
        return {level.level: seen[level.level] for level in self.levels}

    @torch.inference_mode()
    def intervene(
        self,
        items: NDArray[np.int64],
        changed: int,
        concepts: NDArray[np.int64],
        changes: NDArray[np.float32],
        read: int,
    ) -> Tensor:
        """One pass in which the one level is changed and the other is read."""
        lower, upper = self.level(changed), self.level(read)
        seen: dict[int, Tensor] = {}
        act = Add(lower.dictionary, concepts, changes)
        with (
            Interventions(
                self.target, [(lower.hookpoint, act)], [(upper.hookpoint, _Keep(seen, read, 1))]
            ),
            suppress(StopForward),
        ):
            self._decoder(input_ids=self._tokens(items), use_cache=False)
        return seen[read]

    @torch.inference_mode()
    def score(
        self, items: NDArray[np.int64], change: Mapping[int, Any] | None
    ) -> NDArray[np.float64]:
        """Mean log-probability of the tokens that the model itself finds likeliest."""
        tokens = self._tokens(items)
        real = torch.from_numpy(self._real[items]).to(tokens.device)
        own = self._model(input_ids=tokens, use_cache=False).logits.argmax(-1)
        work: list[tuple[str, Intervention]] = [
            (self.level(number).hookpoint, Replace(self.level(number).dictionary, act))
            for number, act in (change or {}).items()
        ]
        with Interventions(self.target, work):
            logits = self._model(input_ids=tokens, use_cache=False).logits.float()
        chosen = logits.log_softmax(-1).gather(-1, own[..., None])[..., 0] * real
        return np.asarray((chosen.sum(1) / real.sum(1).clamp_min(1)).double().cpu().numpy())

    @torch.inference_mode()
    def loss(self, items: NDArray[np.int64], number: int, added: Tensor | None = None) -> float:
        """Cross-entropy of the tokens that are neither special nor padding, in nats, summed."""
        tokens = self._tokens(items)
        real = torch.from_numpy(self._real[items]).to(tokens.device)
        work: list[tuple[str, Intervention]] = (
            [] if added is None else [(self.level(number).hookpoint, Shift(added))]
        )
        with Interventions(self.target, work):
            logits = self._model(input_ids=tokens, use_cache=False).logits
        total = 0.0
        # Window by window: in float32 the logits of a batch may be gigabytes.
        for told, own, due in zip(logits[:, :-1], tokens[:, 1:], real[:, 1:], strict=True):
            total += float(cross_entropy(told[due].float(), own[due], reduction="sum"))
        return total

    def _tokens(self, items: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(self._ids[items]).to(self.target.device)


class _Keep:
    """Keeps what a place gives; ends the pass once enough places are kept."""

    def __init__(self, seen: dict[int, Tensor], level: int, enough: int) -> None:
        self._seen, self._level, self._enough = seen, level, enough

    def __call__(self, rows: PlaceRows, moment: Moment) -> None:
        self._seen[self._level] = rows.values.clone()
        if len(self._seen) == self._enough:
            raise StopForward

"""The model of an artifact on the same prompts, unchanged and steered, side by side."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from compute.models import load_adapter
from compute.models.adapter import ModelLevel
from compute.models.language import beginning
from compute.steering.context import steer
from compute.steering.distance import Distance
from compute.steering.edits import Edit
from compute.steering.steering_levels import concept_levels
from storage.graph.concept_graph import concept_place

__all__ = ["Outcome", "Variant", "compare", "default_prompts", "generate", "load_model"]

# Prose about no concept in particular: what an edit does to its perplexity is the edit's cost.
NEUTRAL = (
    "The ferry leaves the harbour at seven and crosses the bay in about forty minutes. On a clear "
    "morning the mountains can be seen from the deck, and people carry their coffee outside to "
    "look at them. In winter there are fewer boats, and the crossing takes longer when the wind "
    "comes from the north."
)


@dataclass(frozen=True)
class Variant:
    """A set of edits with a name."""

    name: str
    edits: Sequence[Edit] = ()


@dataclass(frozen=True)
class Outcome:
    """What the model made of the prompts under one variant.

    Attributes
    ----------
    outputs : per prompt, the text that it went on with, or a PNG as a data URL.
    scores : name → number; for texts the perplexity of unrelated prose, the cost of the edits.
    distance : by level name, how far the edits moved the activations.
    """

    variant: Variant
    outputs: Sequence[str]
    scores: dict[str, float] = field(default_factory=dict)
    distance: dict[str, Distance] = field(default_factory=dict)


def load_model(artifact: Any) -> Any:
    """Load the model an artifact was made from, as its lineage names it.

    Raises
    ------
    ValueError : the artifact does not say which model, or the model cannot be found.
    """
    settings = artifact.manifest.lineage.get("settings") or {}
    model, extract = settings.get("model"), settings.get("extract") or {}
    if not model:
        raise ValueError(
            f"artifact {artifact.name!r} does not say which model it is of: load the model "
            "yourself and use compute.steering"
        )
    levels = [ModelLevel(entry.name, entry.hookpoint, entry.timestep) for entry in artifact.levels]
    options: dict[str, Any] = {
        "levels": levels,
        "dtype": model.get("dtype", "auto"),
        "device": model.get("device", "auto"),
    }
    kind = model.get("kind", "language")
    if kind == "language":
        options |= {
            "gguf_file": model.get("gguf_file"),
            "context_length": extract.get("context_length", 128),
        }
    else:
        names = ("steps", "guidance", "grid")
        options |= {name: extract[name] for name in names if extract.get(name) is not None}
        options["size"] = model.get("size")
    return load_adapter(kind, model["source"], **options)


def default_prompts(artifact: Any, concept: str, *, count: int = 3) -> list[str]:
    """Return prompts that call a concept up: the beginnings of its strongest examples."""
    level, index = concept_place(concept)
    prompts: list[str] = []
    for example in artifact.examples(level):
        if example.get("index") != index:
            continue
        if example.get("text"):
            prompts.append(str(example["text"]))
        elif example.get("tokens"):
            tokens = example["tokens"][: (example.get("peak") or 0) + 1]
            prompts.append("".join(map(str, tokens)).strip())
    return [prompt for prompt in dict.fromkeys(prompts) if prompt][:count]


def compare(
    adapter: Any,
    artifact: Any,
    variants: Sequence[Variant],
    prompts: Sequence[str],
    *,
    seed: int = 0,
    new_tokens: int = 48,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Outcome]:
    """Run every variant on the same prompts, and the same noise.

    Parameters
    ----------
    adapter : `LanguageModel` or `DiffusionModel` of the artifact, see `load_model`.
    prompts : texts to go on with, or to draw; prompt i is drawn from seed ``seed + i``.
    new_tokens : length of the continuations; they are greedy.

    Raises
    ------
    ValueError : there is no prompt, or an edit cannot be done.
    """
    if not prompts:
        raise ValueError("prompts is empty: give at least one")
    levels = concept_levels(artifact)
    outcomes = []
    for number, variant in enumerate(variants):
        progress(number, len(variants))
        with torch.no_grad(), steer(adapter, levels, variant.edits) as steering:
            outputs, scores = generate(adapter, prompts, seed=seed, new_tokens=new_tokens), {}
            distance = steering.distance
            if not hasattr(adapter, "pipeline"):
                scores = {"perplexity of unrelated text": _perplexity(adapter, NEUTRAL)}
        outcomes.append(Outcome(variant, outputs, scores, distance))
    progress(len(variants), len(variants))
    return outcomes


def generate(adapter: Any, prompts: Sequence[str], *, seed: int, new_tokens: int) -> list[str]:
    """Return what the model makes of prompts: greedy continuations, or PNGs as data URLs."""
    if hasattr(adapter, "pipeline"):
        return _draw(adapter, prompts, seed)
    return [_continue(adapter, prompt, new_tokens) for prompt in prompts]


def _continue(adapter: Any, prompt: str, new_tokens: int) -> str:
    tokenizer = adapter.facts.tokenizer
    ids = torch.tensor([_ids(adapter, prompt)], device=adapter.device)
    text = adapter.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=adapter.facts.pad_token,
    )
    return str(tokenizer.decode(text[0, ids.shape[1] :], skip_special_tokens=True))


def _perplexity(adapter: Any, text: str) -> float:
    ids = torch.tensor([_ids(adapter, text)], device=adapter.device)
    logits = adapter.model(ids, use_cache=False).logits.float()
    loss = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:])
    return float(loss.exp())


def _ids(adapter: Any, text: str) -> list[int]:
    (tokens,) = adapter.tokenize([text])
    return [*beginning(adapter.bos, tokens), *tokens.tolist()] or [adapter.facts.pad_token]


def _draw(adapter: Any, prompts: Sequence[str], seed: int) -> list[str]:
    from compute.inputs.images import png
    from compute.models.diffusion import Prompt

    wanted = [Prompt(i, text, seed + i) for i, text in enumerate(prompts)]
    drawn: list[str] = []
    for start in range(0, len(wanted), adapter.batch_size):
        some = wanted[start : start + adapter.batch_size]
        for picture in adapter.pipeline(**adapter.drawing(some, "np")).images:
            pixels = np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)
            data = base64.b64encode(png(pixels, most=256)).decode()
            drawn.append(f"data:image/png;base64,{data}")
    return drawn

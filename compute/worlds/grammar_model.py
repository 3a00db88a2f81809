"""A small GPT-2 that learns the texts of a grammar world."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from compute.models.checkpoints import load_checkpoint, save_checkpoint
from compute.worlds.grammar import GrammarWorld
from storage.locations import Location


@dataclass(frozen=True, slots=True)
class GrammarTraining:
    """How a model is trained on a grammar.

    Attributes
    ----------
    layers, width, heads : shape of the model; the width is a multiple of the heads.
    length : tokens per text.
    steps, batch : optimiser steps, and texts in each; no text is shown twice.
    rate : peak learning rate; it rises for a twentieth of the steps and falls along half a cosine.
    average : decay of the running average of the weights, which is what is kept.
    checkpoint_every : steps between checkpoints.
    seed : of the weights and texts.
    """

    layers: int = 3
    width: int = 64
    heads: int = 4
    length: int = 32
    steps: int = 600
    batch: int = 64
    rate: float = 3e-3
    average: float = 0.98
    checkpoint_every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 0 or (name not in ("seed", "average") and value == 0):
                raise ValueError(f"{name} is {value}; it must be positive")
        if self.width % self.heads:
            raise ValueError(f"width is {self.width}; it must be a multiple of heads={self.heads}")
        if not self.average < 1:
            raise ValueError(f"average is {self.average}; it must be below 1")

    def rate_at(self, step: int) -> float:
        """Learning rate of step ``step``, 0 the first."""
        rise = min(1.0, (step + 1) / max(1.0, self.steps / 20))
        return self.rate * rise * 0.5 * (1.0 + math.cos(math.pi * step / self.steps))


def train_grammar_model(
    world: GrammarWorld,
    settings: GrammarTraining,
    location: Location,
    progress: Callable[[int, int, float], None] | None = None,
) -> Any:
    """Train a `GPT2LMHeadModel` on ``world``, going on from the checkpoint at ``location``.

    Everything random in a step follows from the seed and its number, so a training that was
    interrupted ends in the weights of one that was not.

    Parameters
    ----------
    progress : told the steps done, all steps, and the loss in nats per token.

    Returns
    -------
    The model with averaged weights, in evaluation mode; tokens are those of :class:`GrammarSample`.

    Raises
    ------
    ValueError
        If the checkpoint is of another training.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=len(world.vocabulary),
                n_positions=settings.length,
                n_embd=settings.width,
                n_layer=settings.layers,
                n_head=settings.heads,
                bos_token_id=0,
                eos_token_id=0,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
            )
        )
    parameters = dict(model.named_parameters())
    kept = {name: value.detach().clone() for name, value in parameters.items()}
    optimiser = torch.optim.AdamW(parameters.values(), lr=settings.rate, weight_decay=0.01)
    known = asdict(settings) | {
        "world": [world.n_symbols, world.n_phrases, world.n_sentences, world.seed]
    }
    done = load_checkpoint(location, known, parameters, kept, optimiser)
    for step in range(done, settings.steps):
        optimiser.param_groups[0]["lr"] = settings.rate_at(step)
        texts = world.sample(settings.batch, settings.length, seed=10_000 + step).tokens
        tokens = torch.from_numpy(texts)
        loss = model(input_ids=tokens, labels=tokens).loss
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimiser.step()
        with torch.no_grad():
            for name, value in parameters.items():
                # Early weights are forgotten sooner: an average over more than was seen lags.
                decay = min(settings.average, (1 + step) / (10 + step))
                kept[name].lerp_(value, 1 - decay)
        if (step + 1) % settings.checkpoint_every == 0 or step + 1 == settings.steps:
            save_checkpoint(location, step + 1, known, parameters, kept, optimiser)
        if progress is not None:
            progress(step + 1, settings.steps, float(loss.detach()))
    with torch.no_grad():
        for name, value in parameters.items():
            value.copy_(kept[name])
    model.train(mode=False)
    return model


@torch.no_grad()
def grammar_activations(model: Any, tokens: Any) -> list[torch.Tensor]:
    """Residual stream after the embedding and after each block: (n · length, width) each.

    Rows are positions, text by text, as in :meth:`GrammarWorld.codes`.
    """
    states = model(input_ids=torch.as_tensor(tokens), output_hidden_states=True).hidden_states
    return [state.reshape(-1, state.shape[-1]) for state in states]

"""A small GPT-2 that learns the texts of a grammar world."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from compute.models.own.checkpoints import load_checkpoint, save_checkpoint
from compute.models.own.training_settings import GrammarSettings
from compute.worlds.grammar import GrammarWorld
from storage.locations import Location


class GrammarScore(NamedTuple):
    """How well a model knows its grammar.

    Attributes
    ----------
    n : texts written by the model.
    grammatical : share of their complete sentences that are sentences of the world.
    sentences : share of the world's sentences that it wrote.
    loss, least : nats per token on texts it has not seen, and the fewest that any causal reader
        can reach who is told where the text begins.
    """

    n: int
    grammatical: float
    sentences: float
    loss: float
    least: float


def grammar_world(settings: GrammarSettings) -> GrammarWorld:
    """The world that the settings speak of."""
    return GrammarWorld(settings.n_symbols, settings.n_phrases, settings.n_sentences, settings.seed)


def _new_model(settings: GrammarSettings, n_tokens: int) -> Any:
    """An untrained `GPT2LMHeadModel`, whose weights follow from the seed."""
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=n_tokens,
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


def train_grammar_model(
    settings: GrammarSettings,
    location: Location,
    progress: Callable[[int, int, float], None] | None = None,
    checkpoint_every: int = 100,
) -> Any:
    """Train a `GPT2LMHeadModel` on a world, going on from the checkpoint at ``location``.

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
    world = grammar_world(settings)
    model = _new_model(settings, len(world.vocabulary))
    parameters = dict(model.named_parameters())
    kept = {name: value.detach().clone() for name, value in parameters.items()}
    optimiser = torch.optim.AdamW(parameters.values(), lr=settings.rate, weight_decay=0.01)
    known = settings.model_dump()
    done = load_checkpoint(location, known, parameters, kept, optimiser)
    for step in range(done, settings.steps):
        optimiser.param_groups[0]["lr"] = _rate_at(settings, step)
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
        last = step + 1 == settings.steps
        if (step + 1) % checkpoint_every == 0 or last:
            save_checkpoint(location, step + 1, known, parameters, kept, optimiser, last=last)
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


def save_grammar_model(model: Any, world: GrammarWorld, folder: Path) -> None:
    """Save a model with the tokenizer of its world as a standard folder, weights in float32."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(world.vocabulary)}
    end = world.vocabulary[0]
    # The model knows no other words, so what is none is read as the end of a sentence.
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=end))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    model.save_pretrained(folder)
    fast: Any = PreTrainedTokenizerFast
    fast(tokenizer_object=tokenizer, eos_token=end, pad_token=end, unk_token=end).save_pretrained(
        folder
    )


@torch.no_grad()
def judge_grammar_model(
    model: Any, world: GrammarWorld, n: int, length: int, seed: int = 1
) -> tuple[GrammarScore, list[str]]:
    """Let a model write ``n`` texts and check their sentences; returns the texts, too.

    Every text begins with a symbol that begins a sentence, drawn as often as sentences are.
    """
    generator = torch.Generator().manual_seed(seed)
    held_out = torch.from_numpy(world.sample(n, length, seed=seed).tokens)
    loss = float(model(input_ids=held_out, labels=held_out).loss)
    tokens = held_out[:, :1]
    while tokens.shape[1] < length:
        odds = model(input_ids=tokens).logits[:, -1].softmax(-1)
        tokens = torch.cat([tokens, torch.multinomial(odds, 1, generator=generator)], 1)
    known = {world.written(j) for j in range(world.n_sentences)}
    texts = [" ".join(world.vocabulary[i] for i in row) for row in tokens.tolist()]
    # The last sentence of a text is cut off.
    said = [part.strip() for text in texts for part in text.split(".")[:-1]]
    good = [sentence for sentence in said if sentence in known]
    score = GrammarScore(
        n,
        len(good) / max(1, len(said)),
        len(set(good)) / len(known),
        loss,
        world.least_loss(length),
    )
    return score, texts


def _rate_at(settings: GrammarSettings, step: int) -> float:
    """Learning rate of step ``step``, 0 the first."""
    rise = min(1.0, (step + 1) / max(1.0, settings.steps / 20))
    return settings.rate * rise * 0.5 * (1.0 + math.cos(math.pi * step / settings.steps))

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from compute.models.own.grammar_model import (
    grammar_activations,
    grammar_world,
    judge_grammar_model,
    train_grammar_model,
)
from compute.models.own.training_settings import GrammarSettings
from compute.worlds import SelectionWorld
from storage.locations import Location


@pytest.fixture(scope="module")
def world():
    return SelectionWorld.grammar(n_symbols=10, n_phrases=6, n_sentences=4, seed=2)


def test_texts_are_sentences_of_phrases_of_symbols(world):
    sample = world.sample(200, length=24)
    for tokens, phrases, ends in zip(sample.tokens, sample.phrases, sample.phrase_ends):
        start = 0
        for stop in np.flatnonzero(ends):
            symbols = [t - 1 for t in tokens[start : stop + 1] if t > 0]
            assert tuple(symbols) == world.phrases[phrases[stop]]
            start = stop + 1
    assert (sample.phrase_ends >= sample.sentence_ends).all()
    assert ((sample.tokens == 0) == (sample.sentences < 0)).all()


def test_codes_are_what_is_known_at_a_position(world):
    sample = world.sample(50, length=20)
    symbols, phrases, sentences = world.codes(sample)
    assert symbols.shape == (1000, 10)
    assert (symbols.sum(1) == (sample.tokens.ravel() > 0)).all()
    assert (phrases.sum(1) == sample.phrase_ends.ravel()).all()
    assert (sentences.sum(1) == sample.sentence_ends.ravel()).all()


def test_a_seed_fixes_world_and_texts(world):
    again = SelectionWorld.grammar(n_symbols=10, n_phrases=6, n_sentences=4, seed=2)
    assert again.phrases == world.phrases
    assert (again.sample(9, seed=1).tokens == world.sample(9, seed=1).tokens).all()
    assert (world.sample(9, seed=2).tokens != world.sample(9, seed=1).tokens).any()


def test_sentences_come_at_their_rates(world):
    sample = world.sample(4000, length=8)
    first = np.bincount(sample.sentences[:, 0], minlength=4) / 4000
    np.testing.assert_allclose(first, world.sentence_rates, atol=0.04)


def test_impossible_worlds_are_refused():
    with pytest.raises(ValueError, match="n_symbols=1 is too few"):
        SelectionWorld.grammar(n_symbols=1)
    with pytest.raises(ValueError, match="more than 2 parts can make"):
        SelectionWorld.grammar(n_symbols=2, n_phrases=9)


def test_an_interrupted_training_ends_in_the_same_weights(tmp_path):
    settings = GrammarSettings(layers=1, width=16, heads=2, length=12, steps=12, batch=8)
    losses = []
    whole = train_grammar_model(
        settings, Location(str(tmp_path / "a")), lambda _s, _n, loss: losses.append(loss), 5
    )
    assert losses[-1] < losses[0]

    def interrupt(step, _n, _loss):
        if step == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_grammar_model(settings, Location(str(tmp_path / "b")), interrupt, 5)
    resumed = train_grammar_model(settings, Location(str(tmp_path / "b")), checkpoint_every=5)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    world = grammar_world(settings)
    levels = grammar_activations(resumed, world.sample(3, length=12).tokens)
    assert [tuple(level.shape) for level in levels] == [(36, 16)] * 2


class Knower(torch.nn.Module):
    """Predicts each next token as well as a reader can who has seen all sentences so far."""

    def __init__(self, world):
        super().__init__()
        self.world = world

    def forward(self, input_ids, labels=None):
        world, words = self.world, self.world.vocabulary
        scripts = [(*(words.index(w) for w in world.written(j).split()), 0) for j in range(8)]
        odds = torch.full((*input_ids.shape, len(words)), 1e-9)
        for row, tokens in enumerate(input_ids.tolist()):
            said = ()
            for place, token in enumerate(tokens):
                said = () if token == 0 else (*said, token)
                for script, rate in zip(scripts, world.sentence_rates, strict=True):
                    if script[: len(said)] == said:
                        odds[row, place, script[len(said)]] += rate
        logits = (odds / odds.sum(-1, keepdim=True)).log()
        loss = None
        if labels is not None:
            flat = logits[:, :-1].reshape(-1, len(words))
            loss = torch.nn.functional.cross_entropy(flat, labels[:, 1:].reshape(-1))
        return SimpleNamespace(logits=logits, loss=loss)


def test_who_knows_the_grammar_loses_the_least_and_says_nothing_wrong():
    world = SelectionWorld.grammar(seed=3)
    score, texts = judge_grammar_model(Knower(world), world, 100, 24)
    assert score.loss == pytest.approx(score.least, rel=0.1)
    assert score.grammatical == 1.0
    assert score.sentences == 1.0
    assert len(texts) == 100

    def babble(input_ids, labels=None):
        logits = torch.zeros(*input_ids.shape, len(world.vocabulary))
        return SimpleNamespace(logits=logits, loss=torch.tensor(3.0))

    assert judge_grammar_model(babble, world, 100, 24)[0].grammatical < 0.3

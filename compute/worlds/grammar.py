"""A selection world of texts: symbols make phrases, phrases make sentences, sentences are kept.

Before selection, every position of a text holds a symbol drawn independently of all others. A
*phrase* is the effect of two or three symbols that stand side by side in its order, a *sentence*
the effect of two or three phrases. A stretch of symbols is kept (S = 1) if it is one of the
sentences; its length is drawn first, each in proportion to the number of sentences that long. As
symbols are independent, a kept stretch has a probability in proportion to the product of those of
its symbols, by which texts are drawn exactly, without rejection.

Symbols are shared between phrases, and phrases between sentences, so that no part gives its whole
away.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

_DRAWS = 10_000


@dataclass(frozen=True, slots=True)
class GrammarSample:
    """Texts of n rows and ``length`` positions, with everything that made them.

    Attributes
    ----------
    tokens
        (n, length) int: 0 ends a sentence, symbol i is token i + 1.
    phrases, sentences
        (n, length) int: the phrase and the sentence each position belongs to; -1 for the end mark.
    phrase_ends, sentence_ends
        (n, length) bool: positions at which a phrase or a sentence is complete.
    """

    tokens: NDArray[np.int64]
    phrases: NDArray[np.int64]
    sentences: NDArray[np.int64]
    phrase_ends: NDArray[np.bool_]
    sentence_ends: NDArray[np.bool_]


@dataclass(frozen=True)
class GrammarWorld:
    """Symbols, phrases and sentences, drawn from a seed; make one with ``SelectionWorld.grammar``.

    Parameters
    ----------
    n_symbols, n_phrases, n_sentences
        How many there are of each; at least 2.
    seed
        Fixes which symbols make which phrase, and which phrases make which sentence.

    Attributes
    ----------
    phrases, sentences
        Per phrase its symbols, per sentence its phrases, in order.
    symbol_rates
        (n_symbols,) probability of each symbol before selection.
    """

    n_symbols: int = 16
    n_phrases: int = 12
    n_sentences: int = 8
    seed: int = 0
    phrases: tuple[tuple[int, ...], ...] = field(init=False)
    sentences: tuple[tuple[int, ...], ...] = field(init=False)
    symbol_rates: NDArray[np.float64] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("n_symbols", "n_phrases", "n_sentences"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name}={getattr(self, name)} is too few; give at least 2.")
        rng = np.random.default_rng([self.seed, 0])
        put = object.__setattr__
        put(self, "symbol_rates", rng.dirichlet(np.full(self.n_symbols, 20.0)))
        put(self, "phrases", _compose(rng, self.n_symbols, self.n_phrases, "n_phrases"))
        put(self, "sentences", _compose(rng, self.n_phrases, self.n_sentences, "n_sentences"))

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """The written form of every token."""
        return (".", *(f"s{i}" for i in range(self.n_symbols)))

    @property
    def edges(self) -> list[NDArray[np.bool_]]:
        """True edges symbols → phrases (n_symbols, n_phrases) and phrases → sentences."""
        out = []
        for size, wholes in ((self.n_symbols, self.phrases), (self.n_phrases, self.sentences)):
            edges = np.zeros((size, len(wholes)), np.bool_)
            for j, parts in enumerate(wholes):
                edges[list(parts), j] = True
            out.append(edges)
        return out

    @property
    def sentence_rates(self) -> NDArray[np.float64]:
        """(n_sentences,) probability of each sentence, given that it is kept."""
        rates = np.empty(self.n_sentences)
        symbols = [[i for p in phrases for i in self.phrases[p]] for phrases in self.sentences]
        lengths = np.array([len(own) for own in symbols])
        product = np.array([self.symbol_rates[own].prod() for own in symbols])
        for length in np.unique(lengths):
            same = lengths == length
            rates[same] = same.mean() * product[same] / product[same].sum()
        return rates

    def sample(self, n: int, length: int = 32, seed: int = 0) -> GrammarSample:
        """Draw ``n`` texts of sentence after sentence, cut at ``length`` positions.

        The same ``n``, ``length`` and ``seed`` give the same texts, bit for bit.
        """
        if n < 1 or length < 2:
            raise ValueError(f"n={n} and length={length} must be at least 1 and at least 2.")
        rng = np.random.default_rng([self.seed, 1, seed])
        scripts = [self._script(j) for j in range(self.n_sentences)]
        shortest = min(len(script) for script in scripts)
        drawn = rng.choice(self.n_sentences, (n, 1 + length // shortest), p=self.sentence_rates)
        out = np.stack([np.concatenate([scripts[j] for j in row])[:length] for row in drawn])
        return GrammarSample(
            out[..., 0], out[..., 1], out[..., 2], out[..., 3] > 0, out[..., 4] > 0
        )

    def written(self, sentence: int) -> str:
        """One sentence as text, without its end mark."""
        return " ".join(
            self.vocabulary[i + 1] for p in self.sentences[sentence] for i in self.phrases[p]
        )

    def texts(self, n: int, length: int = 32, seed: int = 0) -> list[str]:
        """``n`` texts in writing; see :meth:`sample`."""
        words = self.vocabulary
        return [" ".join(words[i] for i in row) for row in self.sample(n, length, seed).tokens]

    def least_loss(self, length: int) -> float:
        """Fewest nats per token, the first left out, in which any causal reader predicts a text.

        Sentences follow one another independently, so what is left to tell at a position is which
        of the sentences that agree so far is being read.
        """
        scripts = [tuple(row[0] for row in self._script(j)) for j in range(self.n_sentences)]
        rates = self.sentence_rates
        # Nats of every position of every sentence, given what is before it.
        nats = []
        for script in scripts:
            own = []
            for place in range(len(script)):
                agree = np.array([other[:place] == script[:place] for other in scripts])
                same = np.array([other[: place + 1] == script[: place + 1] for other in scripts])
                own.append(-np.log(rates[same].sum() / rates[agree].sum()))
            nats.append(own)
        # Expected number of sentences that begin at each position.
        begins = np.zeros(length)
        begins[0] = 1.0
        total = 0.0
        for place in range(length):
            for rate, script, own in zip(rates, scripts, nats, strict=True):
                if place + len(script) < length:
                    begins[place + len(script)] += begins[place] * rate
                for offset, lost in enumerate(own[: length - place]):
                    if place + offset > 0:
                        total += begins[place] * rate * lost
        return float(total / (length - 1))

    def codes(self, sample: GrammarSample) -> list[NDArray[np.float32]]:
        """What a causal reader can know at each position, one 0/1 matrix per level.

        Rows are positions, text by text: (n · length, n_symbols) the symbol that stands there,
        (…, n_phrases) the phrase and (…, n_sentences) the sentence that are complete there.
        """
        here = np.where(sample.tokens > 0, sample.tokens - 1, -1)
        phrase = np.where(sample.phrase_ends, sample.phrases, -1)
        sentence = np.where(sample.sentence_ends, sample.sentences, -1)
        sizes = (self.n_symbols, self.n_phrases, self.n_sentences)
        return [
            (level.reshape(-1, 1) == np.arange(size)).astype(np.float32)
            for level, size in zip((here, phrase, sentence), sizes, strict=True)
        ]

    def _script(self, sentence: int) -> NDArray[np.int64]:
        """(positions, 5): token, phrase, sentence, and whether phrase and sentence end there."""
        rows = []
        for phrase in self.sentences[sentence]:
            rows += [[symbol + 1, phrase, sentence, 0, 0] for symbol in self.phrases[phrase]]
            rows[-1][3] = 1
        rows[-1][4] = 1
        return np.array([*rows, [0, -1, -1, 0, 0]], dtype=np.int64)


def _compose(
    rng: np.random.Generator, n_parts: int, n_wholes: int, name: str
) -> tuple[tuple[int, ...], ...]:
    """Draw distinct wholes of two or three distinct parts, none the beginning of another."""
    wholes: list[tuple[int, ...]] = []
    for _ in range(_DRAWS):
        size = min(int(rng.integers(2, 4)), n_parts)
        whole = tuple(int(i) for i in rng.choice(n_parts, size, replace=False))
        if all(whole[: len(w)] != w[: len(whole)] for w in wholes):
            wholes.append(whole)
        if len(wholes) == n_wholes:
            return tuple(wholes)
    raise ValueError(f"{name}={n_wholes} is more than {n_parts} parts can make; lower it.")

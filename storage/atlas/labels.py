"""Automatic labels: the words over-represented at and around a concept's strongest activations.

No model is needed: :func:`contrast_label` works on strings and counts. A language model can take
its place as anything that satisfies :class:`Labeller`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from storage.atlas.data import TokenExample

__all__ = [
    "ContrastLabeller",
    "Labeller",
    "background_counts",
    "contrast_label",
    "contrast_words",
    "peak_word",
    "words_of",
]

_WORD = re.compile(r"[^\W_]+(?:['’\-][^\W_]+)*")
_VISIBLE = {"\n": "↵ newline", "\t": "⇥ tab", " ": "␣ space", "": "∅ empty"}

_MANY = 0.5
"""A single peak word on this share of the examples is a label of its own."""
_SOME = 0.3
"""A context word must occur in this share of the examples to be worth a mention."""
_SURPRISE = 1.96
"""z-score above which a word counts as over-represented (5 % two-sided)."""
_PRIOR = 100.0
"""Pseudo-count of the background prior: words seen a handful of times cannot shout."""


@runtime_checkable
class Labeller(Protocol):
    """Anything that names a concept from its strongest examples, for instance a language model."""

    def __call__(self, examples: Sequence[TokenExample]) -> str:
        """Return a short label for the examples (strongest first); ``""`` means "no idea"."""
        ...


def words_of(tokens: Iterable[str]) -> list[str]:
    """Return the lower-cased words of a text given as tokens, joined across token borders."""
    return [match.group().lower() for match in _WORD.finditer("".join(tokens))]


def peak_word(tokens: Sequence[str], peak: int) -> str:
    """Return the whole word that holds the peak token, lower-cased; ``""`` if the token holds none.

    Parameters
    ----------
    tokens
        The tokens of an example, with their spaces.
    peak
        Position of the peak token.
    """
    start = sum(len(token) for token in tokens[:peak])
    stop = start + len(tokens[peak])
    for match in _WORD.finditer("".join(tokens)):
        if match.start() < stop and match.end() > start:
            return match.group().lower()
    return ""


def background_counts(texts: Iterable[Sequence[str]]) -> Counter[str]:
    """Count the words of many texts (each a sequence of tokens), to contrast a concept with."""
    counts: Counter[str] = Counter()
    for tokens in texts:
        counts.update(words_of(tokens))
    return counts


def contrast_label(
    peak_tokens: Sequence[str],
    context_words: Sequence[Sequence[str]] = (),
    background: Mapping[str, int] | None = None,
    *,
    peak_words: Sequence[str] | None = None,
    max_words: int = 3,
) -> str:
    """Name a concept by what is special at and around its peaks.

    A word's over-representation is the z-score of its log-odds ratio against the background with
    an informative Dirichlet prior (Monroe, Colaresi & Quinn 2008, *Fightin' Words*, eqs. 15–22).

    Parameters
    ----------
    peak_tokens
        The peak token of each example, strongest first.
    context_words
        The words around each peak; may be empty.
    background
        Counts of words in texts at large. Without it, frequency among the examples decides.
    peak_words
        The whole word around each peak token; by default the tokens themselves.
    max_words
        Most words named for the peak, and most for its context.

    Returns
    -------
    str
        For instance ``because``, ``monday / tuesday / friday``, ``…ing``,
        ``of · near list, items``; ``""`` without examples.

    Raises
    ------
    ValueError
        If ``context_words`` or ``peak_words`` is given but not once per peak.
    """
    n = len(peak_tokens)
    for name, given in (("context_words", context_words), ("peak_words", peak_words or ())):
        if given and len(given) != n:
            raise ValueError(
                f"{name} has {len(given)} entries for {n} peak tokens; give one per peak"
            )
    if n == 0:
        return ""
    known = background or {}
    words = [_fold(word) for word in (peak_words or peak_tokens)]
    head = _head(list(peak_tokens), words, known, max_words)
    around = [
        [word for word in dict.fromkeys(map(_fold, context)) if word] for context in context_words
    ]
    near = [word for word in _over_represented(around, known, n) if word not in set(words)][
        :max_words
    ]
    if not near:
        return head
    return f"{head} · near {', '.join(near)}"


def contrast_words(
    texts: Sequence[Sequence[str]], background: Mapping[str, int], *, max_words: int = 3
) -> list[str]:
    """Return the words that are special to some texts, most over-represented first.

    Parameters
    ----------
    texts
        The words of each example, such as of a picture's prompt.
    background
        Counts of words in texts at large.
    max_words
        Most words returned.
    """
    return _over_represented(texts, background, len(texts))[:max_words]


def _fold(text: str) -> str:
    return text.strip().lower()


def _head(tokens: list[str], words: list[str], background: Mapping[str, int], most: int) -> str:
    (word, repeats), *_ = Counter(words).most_common(1)
    if word and repeats >= _MANY * len(words):
        return word
    token, same = Counter(tokens).most_common(1)[0]
    fragment = token.strip()
    if same >= _MANY * len(tokens):
        if not fragment:
            return _VISIBLE.get(token) or _VISIBLE.get(token[0], repr(token)[1:-1])
        varied = len(set(words)) > 1
        return f"…{fragment.lower()}" if varied and token == fragment else fragment
    shown = _over_represented([[w] for w in words if w], background, len(words), share=0.0)
    shown = shown or [w for w, _ in Counter(w for w in words if w).most_common()]
    return " / ".join(shown[:most]) or _VISIBLE.get(tokens[0], repr(tokens[0])[1:-1])


def _over_represented(
    texts: Sequence[Sequence[str]], background: Mapping[str, int], n: int, share: float = _SOME
) -> list[str]:
    """Words in at least ``share`` of ``n`` texts, by falling over-representation."""
    counts = Counter(word for text in texts for word in text)
    spread = Counter(word for text in texts for word in set(text))
    total, total_background = sum(counts.values()), sum(background.values())
    if not total_background:
        scored = [(float(count), word) for word, count in counts.items()] if share == 0.0 else []
    else:
        scored = [
            (z, word)
            for word, count in counts.items()
            if (z := _log_odds_z(count, total, background.get(word, 0), total_background))
            > _SURPRISE
        ]
    kept = [(score, word) for score, word in scored if spread[word] >= max(1.0, share * n)]
    return [word for _, word in sorted(kept, key=lambda pair: (-pair[0], pair[1]))]


def _log_odds_z(count: int, total: int, background: int, total_background: int) -> float:
    # The prior is the background itself, scaled to _PRIOR pseudo-counts; the floor keeps unseen
    # words finite.
    prior = max(_PRIOR * background / total_background, 0.01)
    here = math.log((count + prior) / (total + _PRIOR - count - prior))
    there = math.log((background + prior) / (total_background + _PRIOR - background - prior))
    return (here - there) / math.sqrt(1 / (count + prior) + 1 / (background + prior))


@dataclass(frozen=True)
class ContrastLabeller:
    """A :class:`Labeller` that contrasts the examples' words with a background.

    Parameters
    ----------
    background
        Counts of words at large, see :func:`background_counts`.
    window
        How many words on either side of the peak count as its context.
    """

    background: Mapping[str, int]
    window: int = 6

    def __call__(self, examples: Sequence[TokenExample]) -> str:
        """Return the label, ``""`` without examples."""
        return contrast_label(
            [example.tokens[example.peak] for example in examples],
            [self._around(example) for example in examples],
            self.background,
            peak_words=[peak_word(example.tokens, example.peak) for example in examples],
        )

    def _around(self, example: TokenExample) -> list[str]:
        before = words_of(example.tokens[: example.peak])[-self.window :]
        after = words_of(example.tokens[example.peak + 1 :])[: self.window]
        return before + after

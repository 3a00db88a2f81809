"""A tokenised corpus, cut into contexts, split by document and grouped into blocks of work."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from compute.settings import ExtractSettings
from storage.locations import Location
from storage.sealing.seals import Files

if TYPE_CHECKING:
    from compute.models.language import Context

__all__ = ["Corpus", "Window", "arrange"]

TOKENS_FILE, CORPUS_FILE = "corpus.safetensors", "corpus.json"
_Tokens = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Window:
    """Consecutive tokens of one document that are read in one context: [start, start + length).

    `rows` of them yield a row each: all that are not special tokens.
    """

    document: int
    start: int
    length: int
    rows: int


@dataclass(frozen=True)
class Corpus:
    """Tokens of all documents, and the order in which they are read.

    Attributes
    ----------
    names : tuple of str
        Name of each document.
    tokens : tuple of array (length,) int32
        Token ids of each document.
    special : array (n,) int32
        Ids of the special tokens. The model reads them as context of the others; they yield no row.
    windows : tuple of Window
        Canonical order: the training documents first, then the held-out ones.
    blocks : tuple of int
        Numbers of the windows at which blocks of work begin, and the number of windows at the end.
    n_train_windows : int
        One of the blocks' borders.
    vocabulary : mapping of int to str
        Text of each token id that occurs.
    """

    names: tuple[str, ...]
    tokens: tuple[_Tokens, ...]
    special: _Tokens
    windows: tuple[Window, ...]
    blocks: tuple[int, ...]
    n_train_windows: int
    vocabulary: dict[int, str]

    @property
    def n_samples(self) -> int:
        """Documents that are read."""
        return len({window.document for window in self.windows})

    @property
    def n_rows(self) -> int:
        """Rows that all windows yield."""
        return sum(window.rows for window in self.windows)

    @property
    def n_train(self) -> int:
        """Rows of the training split."""
        return sum(window.rows for window in self.windows[: self.n_train_windows])

    @property
    def block_rows(self) -> tuple[int, ...]:
        """Canonical row numbers at which blocks begin, and the number of rows at the end."""
        ends = np.concatenate([[0], np.cumsum([window.rows for window in self.windows])])
        return tuple(int(ends[block]) for block in self.blocks)

    def block(self, number: int) -> tuple[Window, ...]:
        """Windows of one block of work."""
        return self.windows[self.blocks[number] : self.blocks[number + 1]]

    def contexts(self, number: int) -> list[Context]:
        """One block of work as contexts for the model."""
        from compute.models.language import Context

        return [
            Context(w.document, w.start, self.window_tokens(w).astype(np.int64))
            for w in self.block(number)
        ]

    def probe(self, count: int, length: int) -> list[Context]:
        """The longest of the first windows, cut to so many tokens, each with a row in it."""
        from compute.models.language import Context

        first = sorted(self.windows[: 16 * count], key=lambda w: -w.length)
        cut = ((w, self.window_tokens(w)[:length].astype(np.int64)) for w in first)
        kept = [(w, tokens) for w, tokens in cut if not np.isin(tokens, self.special).all()]
        return [Context(w.document, w.start, tokens) for w, tokens in kept[:count]]

    def window_tokens(self, window: Window) -> _Tokens:
        """Token ids of a window."""
        return self.tokens[window.document][window.start : window.start + window.length]

    def canonical_rows(self) -> dict[int, npt.NDArray[np.int64]]:
        """For each document, the canonical row of each of its tokens; −1 where it has none."""
        rows = {w.document: np.full(len(self.tokens[w.document]), -1) for w in self.windows}
        number = 0
        for window in self.windows:
            ordinary = np.flatnonzero(~np.isin(self.window_tokens(window), self.special))
            rows[window.document][window.start + ordinary] = number + np.arange(window.rows)
            number += window.rows
        return rows

    def save(self, location: Location) -> None:
        """Write the corpus below `location`: one safetensors file and one JSON file."""
        from safetensors.numpy import save

        lengths = np.array([len(tokens) for tokens in self.tokens], dtype=np.int64)
        windows = np.array(
            [(w.document, w.start, w.length, w.rows) for w in self.windows], dtype=np.int64
        )
        arrays: dict[str, npt.NDArray[Any]] = {
            "tokens": np.concatenate(self.tokens),
            "special": self.special,
            "lengths": lengths,
            "windows": windows,
        }
        location.put(TOKENS_FILE, save(arrays))
        record = {
            "names": self.names,
            "blocks": self.blocks,
            "n_train_windows": self.n_train_windows,
            "vocabulary": {str(token): text for token, text in self.vocabulary.items()},
        }
        location.put(CORPUS_FILE, json.dumps(record, ensure_ascii=False).encode())

    @classmethod
    def load(cls, files: Files) -> Corpus:
        """Read what :meth:`save` wrote."""
        from safetensors.numpy import load

        arrays = load(files.get(TOKENS_FILE))
        record = json.loads(files.get(CORPUS_FILE))
        cuts = np.cumsum(arrays["lengths"])[:-1]
        return cls(
            names=tuple(record["names"]),
            tokens=tuple(np.split(arrays["tokens"], cuts)),
            special=arrays["special"],
            windows=tuple(Window(*row) for row in arrays["windows"].tolist()),
            blocks=tuple(record["blocks"]),
            n_train_windows=record["n_train_windows"],
            vocabulary={int(token): text for token, text in record["vocabulary"].items()},
        )


def arrange(
    names: Sequence[str],
    tokens: Sequence[npt.NDArray[Any]],
    vocabulary: dict[int, str],
    settings: ExtractSettings,
    special: Collection[int] = (),
) -> Corpus:
    """Choose documents, hold some out, cut windows and group them into blocks.

    Documents are taken in a seeded random order until ``max_rows`` is reached. Those that bring the
    held-out rows closer to their share are held out as a whole.

    Parameters
    ----------
    special : collection of int
        Ids of tokens that are read as context and yield no row.

    Raises
    ------
    ValueError
        If fewer than two documents have tokens that yield rows, so that none can be held out as a
        whole.
    """
    markup = np.array(sorted(special), dtype=np.int32)
    yields = [~np.isin(document, markup) for document in tokens]
    order = np.random.default_rng(settings.seed).permutation(len(tokens))
    order = np.array([i for i in order if yields[i].any()], dtype=np.int64)
    if len(order) < 2:
        raise ValueError(
            f"inputs.text holds {len(order)} documents with tokens: give at least two, since whole "
            "documents are held out."
        )
    rows = {int(i): int(yields[i].sum()) for i in order}
    wanted = min(sum(rows.values()), settings.max_rows or sys.maxsize)
    chosen = _choose_held_out(rows, settings.held_out * wanted)
    held_out: list[Window] = []
    train: list[Window] = []
    # At least one row is left for training, however long the held-out documents are.
    room = wanted - 1
    for i in (i for i in rows if i in chosen):
        held_out += _windows(i, yields[i], room, settings.context_length)
        room -= min(rows[i], room)
    room += 1
    for i in rows:
        if i not in chosen:
            train += _windows(i, yields[i], room, settings.context_length)
            room -= min(rows[i], room)
    windows = (*train, *held_out)
    return Corpus(
        names=tuple(names),
        tokens=tuple(np.asarray(t, dtype=np.int32) for t in tokens),
        special=markup,
        windows=windows,
        blocks=_blocks(windows, len(train), settings.block_rows),
        n_train_windows=len(train),
        vocabulary=vocabulary,
    )


def _choose_held_out(lengths: Mapping[int, int], quota: float) -> set[int]:
    """Documents to hold out, so that their rows come close to `quota`; never none, never all."""
    chosen: set[int] = set()
    rows = 0
    for i, length in lengths.items():
        if length < 2 * (quota - rows):
            chosen.add(i)
            rows += length
    if not chosen:
        return {min(lengths, key=lambda i: (lengths[i], i))}
    if len(chosen) == len(lengths):
        chosen.remove(max(chosen, key=lambda i: (lengths[i], i)))
    return chosen


def _windows(
    document: int, yields: npt.NDArray[np.bool_], room: int, context_length: int
) -> list[Window]:
    """Windows of a document up to the token that yields its last of `room` rows.

    Parameters
    ----------
    yields : array (t,) bool
        Whether each of its tokens yields a row. A window of none is left out.
    """
    ends = np.flatnonzero(yields)[:room]
    length = int(ends[-1]) + 1 if len(ends) else 0
    found: list[Window] = []
    for start in range(0, length, context_length):
        within = yields[start : min(start + context_length, length)]
        if within.any():
            found.append(Window(document, start, len(within), int(within.sum())))
    return found


def _blocks(windows: Sequence[Window], n_train: int, block_rows: int) -> tuple[int, ...]:
    borders = [0]
    rows = 0
    for number, window in enumerate(windows):
        if number == n_train or (rows and rows + window.rows > block_rows):
            if number > borders[-1]:
                borders.append(number)
            rows = 0
        rows += window.rows
    return (*borders, len(windows))

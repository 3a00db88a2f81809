"""Documents are cut into windows, held out as a whole, and grouped into blocks."""

import uuid

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compute.inputs.corpus import Corpus, arrange
from compute.settings import ExtractSettings
from storage.locations import Location


def corpus_of(lengths, special=(), **settings):
    rng = np.random.default_rng(0)
    tokens = [rng.integers(0, 50, size=n) for n in lengths]
    names = [f"d{i}" for i in range(len(lengths))]
    options = {"context_length": 16, "block_rows": 64} | settings
    return arrange(
        names, tokens, {i: str(i) for i in range(50)}, ExtractSettings(**options), special
    )


def rows_of(corpus, window):
    """Positions in its document of the tokens of a window that yield a row."""
    tokens = corpus.window_tokens(window)
    return window.start + np.flatnonzero(~np.isin(tokens, corpus.special))


@given(
    st.lists(st.integers(0, 200), min_size=2, max_size=12).filter(
        lambda sizes: sum(size > 0 for size in sizes) >= 2
    ),
    st.sampled_from([None, 2, 50, 300]),
    st.sampled_from([0.05, 0.3]),
)
def test_windows_cover_whole_documents_once(lengths, max_rows, held_out):
    corpus = corpus_of(lengths, max_rows=max_rows, held_out=held_out)
    assert corpus.n_rows == min(sum(lengths), max_rows or 10**9)
    assert 0 < corpus.n_train < corpus.n_rows
    train = {w.document for w in corpus.windows[: corpus.n_train_windows]}
    rest = {w.document for w in corpus.windows[corpus.n_train_windows :]}
    assert not train & rest
    covered = [(w.document, p) for w in corpus.windows for p in range(w.start, w.start + w.length)]
    assert len(covered) == len(set(covered)) == corpus.n_rows
    assert max(w.length for w in corpus.windows) <= 16
    assert corpus.n_train in corpus.block_rows
    assert list(corpus.block_rows) == sorted(set(corpus.block_rows))
    assert max(np.diff(corpus.block_rows)) <= 64


def test_canonical_rows_number_the_windows_in_order():
    corpus = corpus_of([40, 100, 7])
    rows = corpus.canonical_rows()
    number = 0
    for w in corpus.windows:
        for position in range(w.start, w.start + w.length):
            assert rows[w.document][position] == number
            number += 1
    assert number == corpus.n_rows


def test_a_corpus_is_read_back_as_it_was_written():
    corpus = corpus_of([40, 100, 0, 7], special=[3, 7])
    location = Location(f"memory://{uuid.uuid4().hex}")
    corpus.save(location)
    again = Corpus.load(location)
    assert again.windows == corpus.windows
    assert again.blocks == corpus.blocks
    assert again.names == corpus.names
    assert again.vocabulary == corpus.vocabulary
    assert again.special.tolist() == [3, 7]
    for a, b in zip(again.tokens, corpus.tokens, strict=True):
        np.testing.assert_array_equal(a, b)


@given(
    st.lists(st.integers(2, 90), min_size=3, max_size=8),
    st.sampled_from([None, 2, 40, 90]),
    st.sets(st.integers(0, 49), max_size=45),
)
def test_special_tokens_are_context_and_yield_no_row(lengths, max_rows, special):
    try:
        corpus = corpus_of(lengths, special, max_rows=max_rows, block_rows=32)
    except ValueError as error:
        assert "documents with tokens" in str(error)  # noqa: PT017 - too few are left
        return
    ordinary = [int((~np.isin(tokens, list(special))).sum()) for tokens in corpus.tokens]
    assert corpus.n_rows == min(sum(ordinary), max_rows or 10**9)
    assert [len(rows_of(corpus, w)) for w in corpus.windows] == [w.rows for w in corpus.windows]
    assert all(0 < w.rows <= w.length <= 16 for w in corpus.windows)
    assert list(corpus.block_rows) == sorted(set(corpus.block_rows))
    assert (corpus.block_rows[0], corpus.block_rows[-1]) == (0, corpus.n_rows)
    assert corpus.n_train in corpus.block_rows
    # Windows stay consecutive from a document's beginning: what is special stands between rows.
    assert all(w.start % 16 == 0 for w in corpus.windows)
    numbered = np.concatenate(
        [corpus.canonical_rows()[w.document][rows_of(corpus, w)] for w in corpus.windows]
    )
    assert numbered.tolist() == list(range(corpus.n_rows))
    for document, rows in corpus.canonical_rows().items():
        assert (rows[np.isin(corpus.tokens[document], list(special))] == -1).all()


def test_the_seed_chooses_the_documents():
    assert corpus_of([30] * 20, seed=1).windows == corpus_of([30] * 20, seed=1).windows
    assert corpus_of([30] * 20, seed=1).windows != corpus_of([30] * 20, seed=2).windows


def test_one_document_cannot_be_split():
    with pytest.raises(ValueError, match="at least two"):
        corpus_of([100, 0])

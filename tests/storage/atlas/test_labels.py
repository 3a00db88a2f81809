"""Labels by contrast."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.atlas import TokenExample
from storage.atlas.labels import (
    ContrastLabeller,
    Labeller,
    background_counts,
    contrast_label,
    peak_word,
    words_of,
)

BACKGROUND = {
    "the": 5000,
    "of": 3000,
    "river": 20,
    "bank": 25,
    "monday": 10,
    "tuesday": 9,
    "a": 2500,
}


def _example(text: str, peak_token: str) -> TokenExample:
    tokens = tuple(f" {word}" for word in text.split())
    peak = tokens.index(f" {peak_token}")
    return TokenExample(
        tokens=tokens,
        values=tuple(float(i == peak) for i in range(len(tokens))),
        peak=peak,
        activation=1,
    )


def test_words_join_across_token_borders():
    assert words_of([" un", "believ", "able", ",", " it's", "\n", "x_y"]) == [
        "unbelievable",
        "it's",
        "x",
        "y",
    ]


def test_the_peak_word_is_the_whole_word_around_the_token():
    assert peak_word([" un", "believ", "able"], 1) == "unbelievable"
    assert peak_word([" a", ",", " b"], 1) == ""


def test_one_dominant_word_is_the_label():
    assert contrast_label([" River", " river", " river", " lake"], (), BACKGROUND) == "river"


def test_several_words_are_listed_by_over_representation():
    label = contrast_label([" Monday", " Tuesday", " monday", " the", " tuesday"], (), BACKGROUND)
    assert set(label.split(" / ")) == {"monday", "tuesday"}


def test_a_repeated_fragment_in_different_words_is_a_suffix():
    label = contrast_label(["ing"] * 3, peak_words=["running", "falling", "singing"])
    assert label == "…ing"


@pytest.mark.parametrize(
    ("token", "label"), [("\n", "↵ newline"), (",", ","), ("  ", "␣ space"), ("\t\t", "⇥ tab")]
)
def test_white_space_and_punctuation_have_names(token, label):
    assert contrast_label([token] * 3, (), BACKGROUND) == label


def test_context_counts_only_where_it_is_more_common_than_at_large():
    contexts = [["the", "river", "of"], ["the", "river"], ["a", "river", "the"], ["the", "of"]]
    assert contrast_label([" bank"] * 4, contexts, BACKGROUND) == "bank · near river"


def test_a_context_word_of_a_single_example_is_not_named():
    contexts = [["river"], ["the"], ["of"], ["a"], ["the"], ["of"]]
    assert contrast_label([" bank"] * 6, contexts, BACKGROUND) == "bank"


def test_no_examples_no_label_and_lengths_must_agree():
    assert contrast_label([], (), BACKGROUND) == ""
    with pytest.raises(ValueError, match="1 entries for 2 peak tokens"):
        contrast_label(["a", "b"], [["c"]], BACKGROUND)


def test_the_contrast_labeller_is_a_labeller():
    texts = [[" the", " of", " a"] * 50, [" bank", " river"]]
    labeller = ContrastLabeller(background_counts(texts))
    assert isinstance(labeller, Labeller)
    examples = [
        _example(f"the {w} bank of a river", "bank") for w in ("old", "new", "left", "muddy")
    ]
    assert labeller(examples) == "bank · near river"
    assert labeller([]) == ""


@given(
    peaks=st.lists(st.text(max_size=6), max_size=8),
    background=st.dictionaries(st.text(max_size=4), st.integers(0, 10**6), max_size=6),
)
def test_any_strings_give_some_label_and_always_the_same(peaks, background):
    contexts = [[peak, "x"] for peak in peaks]
    label = contrast_label(peaks, contexts, background)
    assert label == contrast_label(peaks, contexts, background)
    assert bool(label) == bool(peaks)

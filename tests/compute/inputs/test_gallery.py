"""Galleries keep splits apart, cover every sample once and come back as they were."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compute.inputs.gallery import Gallery, arrange_gallery, read_pictures, save_pictures
from compute.inputs.images import png
from compute.settings import ExtractSettings
from storage.locations import Location

PROMPTS = [f"a {colour} {thing}" for colour in ("red", "blue") for thing in ("car", "tree", "boat")]


def arrange(n, grid=(2, 2), shape=None, **changes):
    names = [f"drawing {i}" for i in range(n)]
    texts = [PROMPTS[i % len(PROMPTS)] for i in range(n)]
    return arrange_gallery(names, texts, grid, ExtractSettings(**changes), shape)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(2, 60),
    held_out=st.floats(0.05, 0.8),
    block_rows=st.integers(1, 40),
    drawn=st.booleans(),
)
def test_every_sample_lies_in_one_block_of_one_split(n, held_out, block_rows, drawn):
    gallery = arrange(n, shape=None if drawn else (8, 3), held_out=held_out, block_rows=block_rows)
    assert sorted(gallery.order) == list(range(n))
    assert gallery.n_train_samples in gallery.blocks
    assert 0 < gallery.n_train < gallery.n_rows == 4 * n
    sizes = np.diff(gallery.block_rows)
    assert sizes.sum() == gallery.n_rows
    assert all(0 < size <= max(block_rows, 4) for size in sizes)
    if drawn:
        train = {gallery.texts[s] for s in gallery.order[: gallery.n_train_samples]}
        held = {gallery.texts[s] for s in gallery.order[gallery.n_train_samples :]}
        assert not train & held


def test_max_rows_chooses_samples_at_random():
    gallery = arrange(40, max_rows=43)
    assert gallery.n_samples == 10
    assert gallery.order != arrange(40, max_rows=43, seed=1).order


def test_one_prompt_cannot_be_held_out():
    with pytest.raises(ValueError, match="at least two"):
        arrange_gallery(["a", "b"], ["same", "same"], (2, 2), ExtractSettings())


def test_a_gallery_comes_back_as_it_was():
    location = Location("memory://gallery")
    for shape in (None, (8, 1)):
        gallery = arrange(9, shape=shape)
        gallery.save(location)
        assert Gallery.load(location) == gallery


def test_the_noise_of_a_sample_is_its_own():
    gallery = arrange(30)
    seeds = {prompt.seed for block in range(1) for prompt in gallery.prompts(block)}
    assert len(seeds) == len(gallery.prompts(0))


def test_pictures_come_back_by_sample():
    location = Location("memory://pictures")
    drawn = {s: np.full((4, 4, 3), s, dtype=np.uint8) for s in (7, 3, 9)}
    save_pictures(location, 0, {s: png(drawn[s]) for s in (7, 3)})
    save_pictures(location, 1, {9: png(drawn[9])})
    found = read_pictures(location, {3, 9, 11})
    assert found == {3: png(drawn[3]), 9: png(drawn[9])}

from __future__ import annotations

import numpy as np
import pytest

from compute.worlds.sprite_reader import read_sprites, shows
from compute.worlds.sprites import (
    COLOURS,
    OBJECTS,
    PARTS,
    SCENES,
    SpriteFactors,
    SpriteWorld,
    caption_words,
    captions_of,
    is_held_out,
    object_edges,
    part_edges,
    part_masks,
    render,
)


def test_the_same_seed_draws_the_same_sprites():
    first, again = SpriteWorld(3).sample(20), SpriteWorld(3).sample(20)
    assert np.array_equal(first.images, again.images)
    assert first.captions == again.captions
    assert SpriteWorld(4).sample(20).captions != first.captions
    assert SpriteWorld(3).sample(20, stream=1).captions != first.captions


def test_everything_drawn_is_selected_and_every_whole_occurs():
    factors = SpriteWorld(0).sample(2000).factors
    assert factors.selected.all()
    assert {int(o) for o in np.unique(factors.objects)} == {-1, 0, 1, 2, 3, 4}
    assert factors.scenes.any(axis=0).all()
    n_objects = np.bincount((factors.objects >= 0).sum(axis=1), minlength=4)
    assert n_objects[0] == 0
    assert (n_objects[1:] > 200).all()


def test_wholes_follow_from_their_parts():
    factors = SpriteWorld(0).sample(500).factors
    again = SpriteFactors.from_parts(factors.parts, factors.colours)
    assert np.array_equal(again.objects, factors.objects)
    assert np.array_equal(again.scenes, factors.scenes)
    edges = part_edges()
    assert edges.shape == (len(PARTS), len(OBJECTS))
    for row, slot in zip(*np.nonzero(factors.objects >= 0), strict=True):
        assert np.array_equal(factors.parts[row, slot], edges[:, factors.objects[row, slot]])
    assert object_edges()[:, SCENES.index("forest")].tolist() == [False, False, True, False, False]
    assert len({edges[:, i].tobytes() for i in range(len(OBJECTS))}) == len(OBJECTS)


def test_a_missing_part_unmakes_its_wholes():
    factors = SpriteWorld(0).sample(200).factors
    street = int(np.flatnonzero(factors.scenes[:, SCENES.index("street")])[0])
    parts = factors.parts[street : street + 1].copy()
    parts[..., PARTS.index("door")] = False
    broken = SpriteFactors.from_parts(parts, factors.colours[street : street + 1])
    assert not broken.scenes[0, SCENES.index("street")]
    assert not broken.selected[0]


def test_selection_couples_independent_parts():
    """Given the object, its parts are certain; among clean slots, sharers of no object exclude."""
    parts = SpriteWorld(0).sample(4000).factors.parts.reshape(-1, len(PARTS))
    box, disc = parts[:, PARTS.index("box")], parts[:, PARTS.index("disc")]
    assert not (box & disc).any()
    assert box.mean() * disc.mean() * len(parts) > 50


@pytest.mark.parametrize(("any_parts", "n"), [(False, 60), (True, 5)])
def test_the_reader_reads_what_was_drawn(any_parts, n):
    images, _, factors = SpriteWorld(1).sample(n)
    reading = read_sprites(images, any_parts=any_parts)
    assert np.array_equal(reading.factors.parts, factors.parts)
    assert np.array_equal(reading.factors.colours, factors.colours)
    assert np.array_equal(reading.factors.scenes, factors.scenes)
    assert reading.error.max() < 1e-6


def test_the_reader_bears_noise():
    images, _, factors = SpriteWorld(2).sample(60)
    noise = np.random.default_rng(0).normal(0, 0.15, images.shape)
    reading = read_sprites(np.clip(images / 255 + noise, 0, 1))
    assert (reading.factors.objects == factors.objects).mean() > 0.99
    assert (reading.factors.colours == factors.colours).mean() > 0.99


def test_the_reader_sees_single_parts():
    parts = np.zeros((len(PARTS), 4, len(PARTS)), dtype=bool)
    parts[np.arange(len(PARTS)), 2, np.arange(len(PARTS))] = True
    colours = np.full((len(PARTS), 4), 1)
    images = render(parts, colours, np.zeros((len(PARTS), 4, 2), dtype=int))
    assert np.array_equal(read_sprites(images, any_parts=True).factors.parts, parts)


def test_every_part_can_be_seen_in_every_object():
    """No part lies wholly under another of the same object."""
    masks = part_masks()
    for edges in part_edges().T:
        indices = np.flatnonzero(edges)
        for position, index in enumerate(indices):
            above = masks[indices[position + 1 :]].any(axis=0)
            assert (masks[index] & ~above).sum() >= 4


def test_captions_name_what_is_there():
    sample = SpriteWorld(0).sample(300)
    assert captions_of(sample.factors) == sample.captions
    assert {word for text in sample.captions for word in text.split()} == set(caption_words())
    for text, objects, colours in zip(
        sample.captions, sample.factors.objects, sample.factors.colours, strict=True
    ):
        for which, colour in zip(objects, colours, strict=True):
            assert which < 0 or f"a {COLOURS[colour]} {OBJECTS[which]}" in text


def test_held_out_captions_are_kept_apart():
    world = SpriteWorld(0)
    apart = {is_held_out(text) for text in world.sample(200, held_out=True).captions}
    assert apart == {True}
    training = world.sample(2000, held_out=False).captions
    assert not any(map(is_held_out, training))
    share = np.mean([is_held_out(text) for text in set(world.sample(3000).captions)])
    assert 0.07 < share < 0.14


def test_showing_counts_objects_with_their_colours():
    factors = SpriteWorld(0).sample(100).factors
    assert (shows(factors, factors) == 1).all()
    moved = SpriteFactors(
        factors.parts, factors.colours[:, ::-1], factors.objects[:, ::-1], factors.scenes
    )
    assert (shows(factors, moved) == 1).all()
    repainted = SpriteFactors(
        factors.parts, (factors.colours + 1) % len(COLOURS), factors.objects, factors.scenes
    )
    assert shows(factors, repainted).mean() < 0.2


def test_pictures_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"sprites are \(n, 32, 32, 3\)"):
        read_sprites(np.zeros((1, 16, 16, 3)))

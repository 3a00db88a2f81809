"""The unlearning benchmark finds a planted concept, and scores pictures as it says it does."""

import numpy as np
import pytest
import torch

from compute.dictionaries import Dictionary
from compute.worlds.sprites import SpriteWorld
from tests.benchmarks.unlearning import (
    TIMESTEPS,
    RecordedSlots,
    graph_edits,
    in_slots,
    judge,
    level_edits,
    random_edits,
)

HOUSE, CAR = 0, 1


@pytest.fixture(scope="module")
def recorded():
    """Axis 0 is the house's alone, axis 1 is half as strong in cars, axis 2 is in everything."""
    objects = np.tile(np.array([HOUSE, CAR, 2, 3, 4, -1, -1, -1]).reshape(2, 4), (5, 1))
    values = torch.zeros(*objects.shape, 16, 4)
    values[objects == HOUSE] = torch.tensor([2.0, 1.0, 1.0, 0.0])
    values[objects == CAR] = torch.tensor([0.0, 0.5, 1.0, 0.0])
    values[objects > CAR] = torch.tensor([0.0, 0.0, 1.0, 0.0])
    return RecordedSlots(dict.fromkeys(TIMESTEPS, values), objects, np.zeros_like(objects))


@pytest.fixture(scope="module")
def dictionaries():
    axes = np.eye(4, dtype=np.float32)
    zeros = np.zeros(4, np.float32)
    weights = {"W_enc": axes, "b_enc": zeros, "W_dec": axes, "b_dec": zeros, "threshold": zeros}
    return dict.fromkeys(TIMESTEPS, Dictionary.from_weights("jumprelu", weights, k=2))


def test_what_is_shared_with_others_is_spared(recorded, dictionaries):
    edits = level_edits(dictionaries, recorded, "object", HOUSE, 4.0)
    scales = {(edit.level, edit.index): edit.scale for edit in edits}
    assert scales == pytest.approx(
        {(n, c): 1 - 4 * s for n in (1, 2, 3) for c, s in ((0, 1.0), (1, 0.5))}
    )
    # Cars, one slot in seven of the others, reach .5 of the shared axis.
    assert [edit.above for edit in edits] == [0.0, 0.5] * 3
    others = random_edits(edits, 0, 4)
    assert [edit.scale for edit in others] == [edit.scale for edit in edits]


def test_parts_follow_their_wholes(recorded, dictionaries):
    """Axis 1 of the lower levels is part of axis 0 and of axis 2, which is in everything."""
    weight = np.eye(4)
    weight[1] = [1, 0, 3, 0]
    edits = graph_edits(dictionaries, [weight, weight], recorded, "object", HOUSE, 4.0)
    scales = {(edit.level, edit.index): edit.scale for edit in edits}
    expected = {(n, 0): -3.0 for n in (1, 2, 3)} | {(3, 1): -1.0, (2, 1): 0.0}
    assert scales == pytest.approx(expected | {(1, 1): 0.0})


def test_slots_are_those_of_the_picture():
    picture = torch.arange(64).reshape(1, 64, 1)
    slots = in_slots(picture)
    assert slots[0, 1, :4, 0].tolist() == [4, 5, 6, 7]
    assert slots[0, 2, 0, 0] == 32


def test_scores_tell_the_target_from_the_rest():
    wanted = SpriteWorld(0).sample(60).factors
    kept = judge(wanted, wanted, "object", HOUSE)
    assert (kept["ua"], kept["ira"], kept["cra"], kept["harmonic"]) == (0, 1, 1, 0)
    objects, colours = wanted.objects.copy(), wanted.colours.copy()
    objects[objects == HOUSE] = -1
    colours[objects == CAR] = (colours[objects == CAR] + 1) % 5
    seen = type(wanted)(wanted.parts, colours, objects, wanted.scenes)
    gone = judge(wanted, seen, "object", HOUSE)
    assert gone["ua"] == gone["ira"] == gone["cross"] == 1
    others = wanted.objects > HOUSE
    assert gone["cra"] == pytest.approx((wanted.objects[others] != CAR).mean())

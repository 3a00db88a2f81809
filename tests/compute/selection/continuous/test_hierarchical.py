"""Takes about thirty seconds on an idle core."""

import numpy as np
import pytest
import torch

from compute.dictionaries.evaluation import mean_correlation
from compute.selection import HierarchicalSelectionModel
from compute.worlds import SelectionWorld

SETTINGS = {"n_concepts": (16, 7), "k": (3, 2), "steps": 150, "rounds": 6}


@pytest.fixture(scope="module")
def world():
    return SelectionWorld.vectors(sizes=(16, 7), dim=20, seed=1)


@pytest.fixture(scope="module")
def rows(world):
    return world.sample(2000)


@pytest.fixture(scope="module")
def model(rows):
    return HierarchicalSelectionModel(**SETTINGS).fit(rows.activations)


def test_wholes_are_found_and_joined_to_their_parts(world, rows, model):
    alone = HierarchicalSelectionModel(**SETTINGS, coupled=False).fit(rows.activations)
    score = mean_correlation(model.dictionaries_[1].directions, world.directions[1])
    assert score > 0.95
    assert score > mean_correlation(alone.dictionaries_[1].directions, world.directions[1])


def test_shapes_agree(rows, model):
    parts, wholes = model.n_concepts_
    assert model.edges_[0].shape == model.strengths_[0].shape == (parts, wholes)
    assert model.edges_[0].dtype == np.bool_
    assert ((model.strengths_[0] > 0) == model.edges_[0]).all()
    assert [d.n_concepts for d in model.dictionaries_] == [parts, wholes]
    assert parts <= 16
    assert wholes <= 7
    assert model.encode(2, rows.activations[1][:10]).shape == (10, wholes)
    assert [len(z) for z in model.transform([x[:10] for x in rows.activations])] == [10, 10]


def test_the_same_seed_gives_the_same_model(rows):
    some = [x[:300] for x in rows.activations]
    quick = SETTINGS | {"n_concepts": (6, 3), "steps": 20, "rounds": 2}
    first, again = (HierarchicalSelectionModel(**quick).fit(some) for _ in range(2))
    for a, b in zip(first.dictionaries_, again.dictionaries_, strict=True):
        assert torch.equal(a.directions, b.directions)
    assert (first.edges_[0] == again.edges_[0]).all()


def test_published_encoders_read_the_inferred_codes(rows, model):
    x = rows.activations[1][:500]
    read = model.dictionaries_[1].encode(x).numpy() > 0
    assert (read == (model.encode(2, x) > 0)).mean() > 0.9


def test_settings_are_kept_as_given():
    model = HierarchicalSelectionModel(n_concepts=(4, 2), k=2)
    assert type(model)(**model.get_params()).get_params() == model.get_params()
    assert model.set_params(seed=3).seed == 3
    with pytest.raises(ValueError, match="depth is no setting"):
        model.set_params(depth=2)


@pytest.mark.parametrize(
    ("settings", "levels", "message"),
    [
        ({}, [np.zeros((200, 3))], "give two or more"),
        ({}, [np.zeros((200, 3)), np.zeros((199, 3))], r"level 2 has shape \(199, 3\)"),
        ({}, [np.full((200, 3), np.nan), np.zeros((200, 3))], "NaN or infinite"),
        ({}, [np.zeros((20, 3))] * 2, "20 rows"),
        ({"n_concepts": (4, 2, 2)}, [np.zeros((200, 3))] * 2, "3 entries for 2 levels"),
        ({"k": (1,)}, [np.zeros((200, 3))] * 2, "k has 1 entries"),
        ({"rounds": 0}, [np.zeros((200, 3))] * 2, "rounds is 0"),
        ({"shrinkage": -1}, [np.zeros((200, 3))] * 2, "shrinkage is -1"),
    ],
)
def test_bad_input_is_refused(settings, levels, message):
    with pytest.raises(ValueError, match=message):
        HierarchicalSelectionModel(**({"n_concepts": (4, 2)} | settings)).fit(levels)


def test_encode_refuses_other_levels(model):
    with pytest.raises(ValueError, match=r"level is 0; give 1 \(the lowest\) to 2"):
        model.encode(0, np.zeros((5, 20)))
    with pytest.raises(ValueError, match=r"level 1 needs \(n, 20\)"):
        model.encode(1, np.zeros((5, 19)))


def test_a_level_may_be_tried_with_fewer_concepts_than_k(rows):
    """Where terms pay, a fit of half as many concepts is tried, whatever k is."""
    model = HierarchicalSelectionModel(n_concepts=(16, 3), k=3, steps=2)
    first = model._first(torch.from_numpy(rows.activations[1]), torch.arange(200), 3, 3)
    assert [len(directions) for directions in first.bounded(2).directions] == [2, 6]

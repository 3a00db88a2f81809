"""The streamed model: what it finds, and that it goes on where it was; about a minute."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from compute.dictionaries.evaluation import mean_correlation
from compute.selection import StreamedSelectionModel
from compute.worlds import SelectionWorld
from storage.locations import Location


@pytest.fixture(scope="module")
def world():
    return SelectionWorld.vectors(sizes=(16, 7), dim=20, seed=1)


@pytest.fixture(scope="module")
def rows(world):
    return world.sample(2500)


@pytest.fixture(scope="module")
def model(rows):
    return StreamedSelectionModel((32, 14)).fit(rows.activations)


def test_concepts_their_number_and_edges_are_found(world, model):
    assert abs(model.n_concepts_[0] - 16) <= 2
    assert abs(model.n_concepts_[1] - 7) <= 1
    for own, true in zip(model.dictionaries_, world.directions, strict=True):
        assert mean_correlation(own.directions, true) > 0.95


def test_shapes_agree(rows, model):
    parts, wholes = model.n_concepts_
    assert model.edges_[0].shape == model.strengths_[0].shape == (parts, wholes)
    assert ((model.strengths_[0] > 0) == model.edges_[0]).all()
    assert [d.n_concepts for d in model.dictionaries_] == [parts, wholes]
    assert model.encode(2, rows.activations[1][:10]).shape == (10, wholes)
    assert [len(z) for z in model.transform([x[:10] for x in rows.activations])] == [10, 10]


def test_codes_are_of_unit_directions(rows, model):
    x = rows.activations[0]
    decoded = model.dictionaries_[0].decode(torch.from_numpy(model.encode(1, x))).numpy()
    assert 1 - np.square(x - decoded).sum() / np.square(x - x.mean(0)).sum() > 0.9


def test_the_linear_reading_says_what_it_loses(rows, model):
    x = torch.from_numpy(rows.activations[0])
    z = torch.from_numpy(model.transform(rows.activations)[0])
    own = model.dictionaries_[0]
    total = (x - x.mean(0)).square().sum()
    lost = ((own(x) if callable(own) else own.decode(own.encode(x))) - x).square().sum()
    lost = (lost - (own.decode(z) - x).square().sum()) / total
    assert float(lost) == pytest.approx(model.reading_loss_[0], abs=0.02)


def test_no_more_are_active_than_asked_for(rows, model):
    x = rows.activations[:1]
    thrifty = StreamedSelectionModel((32,), k=1.0).fit(x)
    assert thrifty.active_[0] < 1.3 < model.active_[0]


def test_a_fit_that_was_interrupted_ends_with_the_same_bytes(rows, tmp_path):
    some = [x[:900] for x in rows.activations]
    place = Location(str(tmp_path))
    settings = {"n_concepts": (12, 6), "batch_rows": 200}
    whole = StreamedSelectionModel(**settings).fit(some)

    class Interrupted(Exception):
        pass

    # In the dictionary that levels start from, and in what follows.
    for stop in (300, 1040):

        def halt(step, _, stop=stop):
            if step > stop:
                raise Interrupted

        with pytest.raises(Interrupted):
            StreamedSelectionModel(**settings).fit(some, progress=halt, checkpoint=place)
    again = StreamedSelectionModel(**settings).fit(some, checkpoint=place)
    assert again.steps_ == whole.steps_
    assert again.checkpoint() == whole.checkpoint()
    for a, b in zip(again.dictionaries_, whole.dictionaries_, strict=True):
        assert all(np.array_equal(a.weights()[n], t) for n, t in b.weights().items())
    assert (again.edges_[0] == whole.edges_[0]).all()
    with pytest.raises(ValueError, match="the checkpoint is of a fit with"):
        StreamedSelectionModel(**settings, seed=1).fit(some, checkpoint=place)


_FIT = """
import sys, torch
torch.set_num_threads(1)
from compute.selection import StreamedSelectionModel
from compute.worlds import SelectionWorld
from storage.locations import Location
x = SelectionWorld.vectors(sizes=(16, 7), dim=20, seed=1).sample(900).activations
say = lambda step, _: print(step, flush=True)
where = Location(sys.argv[1]) if len(sys.argv) > 1 else None
model = StreamedSelectionModel((12, 6), batch_rows=200).fit(x, progress=say, checkpoint=where)
import hashlib
print("done", hashlib.sha256(model.checkpoint()).hexdigest(), flush=True)
"""


@pytest.mark.slow
def test_a_fit_that_was_killed_ends_with_the_same_bytes(tmp_path):
    def start(*arguments):
        return subprocess.Popen(
            [sys.executable, "-c", _FIT, *arguments], stdout=subprocess.PIPE, text=True
        )

    whole = start().communicate()[0].split("done ")[1]
    killed = start(str(tmp_path))
    for line in killed.stdout:
        if int(line) >= 1020:
            os.kill(killed.pid, signal.SIGKILL)
            break
    killed.wait()
    assert start(str(tmp_path)).communicate()[0].split("done ")[1] == whole


def test_settings_are_kept_as_given():
    model = StreamedSelectionModel(n_concepts=(4, 2), k=2)
    assert type(model)(**model.get_params()).get_params() == model.get_params()


@pytest.mark.parametrize(
    ("settings", "levels", "message"),
    [
        ({}, [np.zeros((200, 3)), np.zeros((199, 3))], r"level 2 has shape \(199, 3\)"),
        ({}, [np.full((200, 3), np.nan), np.zeros((200, 3))], "NaN or infinite"),
        ({}, [np.zeros((20, 3))] * 2, "20 rows"),
        ({"n_concepts": (4, 2, 2)}, [np.zeros((200, 3))] * 2, "3 entries for 2 levels"),
        ({"k": (1,)}, [np.zeros((200, 3))] * 2, "k has 1 entries"),
        ({"k": 0}, [np.zeros((200, 3))] * 2, "k is 0"),
        ({"batch_rows": 10}, [np.zeros((200, 3))] * 2, "batch_rows is 10"),
        ({"n_concepts": (4, 0)}, [np.zeros((200, 3))] * 2, "at least 1 for each level"),
    ],
)
def test_bad_input_is_refused(settings, levels, message):
    with pytest.raises(ValueError, match=message):
        StreamedSelectionModel(**({"n_concepts": (4, 2)} | settings)).fit(levels)


def test_rows_without_anything_have_no_concepts():
    noise = np.random.default_rng(0).normal(size=(400, 6)).astype(np.float32)
    with pytest.raises(ValueError, match="level 1 has no concept"):
        StreamedSelectionModel((4,)).fit([noise])


def test_encode_refuses_other_levels(model):
    with pytest.raises(ValueError, match=r"level is 0; give 1 \(the lowest\) to 2"):
        model.encode(0, np.zeros((5, 20)))
    with pytest.raises(ValueError, match=r"level 1 needs \(n, 20\)"):
        model.encode(1, np.zeros((5, 19)))


def test_a_level_that_ends_with_nothing_takes_its_edges_along():
    rng = np.random.default_rng(0)
    z = (rng.random((230, 40)) < 0.02) * rng.exponential(3, (230, 40))
    noisy = z @ rng.normal(size=(40, 24)) + 2 * rng.normal(size=(230, 24))
    clear = z[:, :12] @ rng.normal(size=(12, 16)) + 0.3 * rng.normal(size=(230, 16))
    with pytest.raises(ValueError, match="level 1 has no concept that is worth its description"):
        StreamedSelectionModel((32, 16)).fit([noisy, clear])

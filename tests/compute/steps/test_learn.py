"""Checkpoints of learning: a damaged one is not used, and what is kept is enough to go on."""

import logging

import numpy as np
import pytest
import torch

from compute.dictionaries import DictionaryTrainer
from compute.dictionaries.dictionary_settings import DictionarySettings
from compute.steps import learn as learning
from storage.locations import Location

SETTINGS = {
    level: DictionarySettings(n_concepts=8, k=2, steps=50, batch_size=16) for level in ("a", "b")
}


@pytest.fixture
def location(tmp_path):
    return Location(str(tmp_path))


@pytest.fixture
def saved(location):
    """States of both trainers at each of four checkpoints."""
    trainers = {level: DictionaryTrainer(own) for level, own in SETTINGS.items()}
    rows = torch.from_numpy(np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32))
    states = {}
    for step in (10, 20, 30, 40):
        for trainer in trainers.values():
            trainer.step(rows)
        learning._checkpoint(location, step, trainers)
        states[step] = {level: trainer.checkpoint() for level, trainer in trainers.items()}
    return states


def restored(location):
    trainers, step = learning._restore(location, SETTINGS, "cpu")
    return {level: trainer.checkpoint() for level, trainer in trainers.items()}, step


@pytest.fixture
def heard():
    """What workers print."""
    records = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    log = learning.worker_log()
    log.addHandler(handler)
    yield records
    log.removeHandler(handler)


def test_the_latest_checkpoint_is_gone_on_from(location, saved):
    assert restored(location) == (saved[40], 40)
    assert location.children("checkpoints") == ["30", "40"]


@pytest.mark.parametrize("name", ["a.safetensors", "b.safetensors", "seal.json"])
@pytest.mark.parametrize("seed", range(3))
def test_a_damaged_one_is_not_used_and_that_is_said(location, saved, heard, name, seed):
    path = f"checkpoints/40/{name}"
    data = bytearray(location.get(path))
    data[int(np.random.default_rng(seed).integers(len(data)))] ^= 1
    location.put(path, bytes(data))
    assert restored(location) == (saved[30], 30)
    assert f"checkpoint of step 40 is not used: {name!r}" in heard[0]


def test_one_that_was_not_ended_is_not_used(location, saved):
    location.delete("checkpoints/40/seal.json")
    assert restored(location) == (saved[30], 30)


def test_without_a_whole_one_training_starts_again(location, saved, heard):
    for step in (30, 40):
        location.put(f"checkpoints/{step}/a.safetensors", b"")
    assert restored(location) == ({}, 0)
    assert len(heard) == 2

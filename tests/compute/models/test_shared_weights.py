"""Weights that take long to make are made once by the processes of one run on one machine."""

import os
import subprocess
import sys
import tempfile

import pytest
import torch

from compute.machine.leftovers import MARK
from compute.models import shared_weights
from compute.models.shared_weights import made_once

# Two workers at once, each of which takes a while and notes that it did.
WORKER = """
import sys, time, torch
from compute.models.shared_weights import made_once
def make():
    time.sleep(1)
    print("made")
    return {"w": torch.arange(6.0).reshape(2, 3)}
print(made_once("a model", make)["w"].sum().item())
"""


@pytest.fixture
def owner(monkeypatch):
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setenv(MARK, folder)
        yield folder


def test_two_workers_make_them_once(owner):
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    told = [worker.communicate(timeout=120)[0].split() for worker in workers]
    assert sorted(told) == [["15.0"], ["made", "15.0"]]


def test_others_are_others(owner):
    for number in (1, 2, 1):
        made = {"w": torch.full((2,), float(number))}
        assert made_once(f"model {number}", made.copy)["w"].tolist() == [number, number]


def test_without_room_or_a_run_each_makes_its_own(owner, monkeypatch):
    tries = []

    def make():
        tries.append(1)
        return {"w": torch.zeros(1000)}

    monkeypatch.setattr(shared_weights, "_SHARE_OF_DISK", 0.0)
    for _ in range(2):
        assert made_once("a model", make)["w"].shape == (1000,)
    assert [name for name in os.listdir(owner) if not name.endswith(".lock")] == []
    monkeypatch.delenv(MARK)
    monkeypatch.setattr("compute.machine.leftovers._own", {})
    made_once("a model", make)
    assert len(tries) == 3

"""Checkpoints: the newest whole one is gone on from, and two are kept."""

import logging

import pytest

from storage.locations import Location
from storage.sealing.sealed_checkpoints import SealedCheckpoints


@pytest.fixture
def location(tmp_path):
    return Location(str(tmp_path))


@pytest.fixture
def saved(location):
    kept = SealedCheckpoints(location)
    for step in (8, 9, 10):
        kept.save(step, {"a": b"%d" % step, "b": b"b"})
    return kept


def test_the_newest_comes_first_and_two_are_kept(location, saved):
    assert list(saved.load()) == [(10, {"a": b"10", "b": b"b"}), (9, {"a": b"9", "b": b"b"})]
    assert location.children() == ["10", "9"]


@pytest.mark.parametrize("name", ["a", "b", "seal.json"])
def test_a_damaged_one_is_passed_over_and_that_is_said(location, saved, caplog, name):
    data = bytearray(location.get(f"10/{name}"))
    data[0] ^= 1
    location.put(f"10/{name}", bytes(data))
    with caplog.at_level(logging.WARNING):
        assert next(saved.load())[0] == 9
    assert f"checkpoint of step 10 is not used: {name!r}" in caplog.text


def test_one_that_was_not_ended_is_passed_over(location, saved):
    location.put("11/a", b"half")
    assert next(saved.load())[0] == 10


def test_there_may_be_none(location):
    assert list(SealedCheckpoints(location / "none").load()) == []

"""Seals: every byte is checked when it is read, and the record that says so checks itself."""

import json
import os
import pickle
import uuid

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.locations import Location, NotFound
from storage.references import RECORD_FILES, Reference
from storage.sealing.damage import CorruptFile, Damaged
from storage.sealing.seals import SealedFolder, seal_files

FILES = {"a.json": b"{}", "deep/er/b.bin": bytes(range(256)), "deep/c": b"", "kept/d": b"dddd"}


@pytest.fixture(params=["local", "memory"])
def step(request, tmp_path):
    """The folder of a step with some files that are not sealed yet."""
    store = str(tmp_path) if request.param == "local" else f"memory://{uuid.uuid4().hex}"
    location = Location(store) / "learn" / "0123456789abcdef"
    for path, data in FILES.items():
        location.put(path, data)
    return location


def sealed(location, content_hash="c" * 64, seconds=1.5, **summary):
    return Reference.seal(location, content_hash=content_hash, seconds=seconds, summary=summary)


def test_a_sealed_step_is_found_and_read(step):
    reference = sealed(step, levels={"low": {"r2": 0.5}})
    assert Reference.find(step) == reference
    files = reference.open()
    assert {path: files.get(path) for path in files.walk()} == FILES
    assert files.children() == ["a.json", "deep", "kept"]
    assert files.children("deep") == ["c", "er"]
    assert pickle.loads(pickle.dumps(files)).get("a.json") == b"{}"
    assert files.find_damage() == []


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        (path, kind)
        for path, data in FILES.items()
        for kind in ("flip", "shorter", "longer", "missing", "folder")
        if data or kind not in ("flip", "shorter")
    ],
)
def test_no_changed_byte_passes(step, path, kind):
    files = sealed(step).open()
    data = FILES[path]
    if kind == "flip":
        step.put(path, bytes([data[0] ^ 1]) + data[1:])
    elif kind == "shorter":
        step.put(path, data[:-1])
    elif kind == "longer":
        step.put(path, data + b"x")
    elif kind == "missing":
        step.delete(path)
    else:
        step.delete(path)
        step.put(f"{path}/x", data)
    with pytest.raises(CorruptFile, match=r"is damaged .*strata doctor RECIPE --repair") as refused:
        files.get(path)
    assert repr(path) in str(refused.value)
    assert step.url in str(refused.value)
    assert [error.path for error in files.find_damage()] == [path]


def test_what_was_not_sealed_is_not_read(step):
    files = sealed(step).open()
    step.put("late", b"x")
    assert not files.exists("late")
    with pytest.raises(NotFound):
        files.get("late")


def test_the_size_is_looked_at_before_the_bytes(step, monkeypatch):
    """A file that has grown to terabytes must not be read."""
    files = sealed(step).open()
    step.put("a.json", b"{} ")
    monkeypatch.setattr(Location, "get", lambda *_: pytest.fail("was read"))
    with pytest.raises(CorruptFile, match="3 bytes instead of 2"):
        files.get("a.json")


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_record_has_one_spelling(data):
    """One whole copy is enough, whatever has happened to the other; two damaged ones are not."""
    step = Location(f"memory://{uuid.uuid4().hex}") / "recover" / "0123456789abcdef"
    step.put("nodes", b"n")
    reference = Reference.seal(step, content_hash="c", seconds=0.0, summary={"x": [1.0, None, "é"]})
    record = step.get(RECORD_FILES[0])
    place = data.draw(st.integers(0, len(record) - 1))
    changed = data.draw(
        st.one_of(
            st.binary(min_size=1, max_size=1).map(
                lambda b: record[:place] + b + record[place + 1 :]
            ),
            st.just(record[:place]),
            st.binary(max_size=3).map(lambda b: record[:place] + b + record[place:]),
        ).filter(lambda changed: changed != record)
    )
    step.put(RECORD_FILES[0], changed)
    assert Reference.find(step) == reference
    assert reference.open().get("nodes") == b"n"
    step.put(RECORD_FILES[1], changed)
    with pytest.raises(CorruptFile, match=r"reference\.json"):
        Reference.find(step)
    with pytest.raises(CorruptFile, match=r"reference\.json"):
        reference.open()


def test_the_same_values_spelt_otherwise_are_refused(step):
    sealed(step, a=1.0)
    record = json.loads(step.get(RECORD_FILES[0]))
    for spelling in (json.dumps(record), json.dumps(record, indent=1) + "\n"):
        for name in RECORD_FILES:
            step.put(name, spelling.encode())
        with pytest.raises(CorruptFile):
            Reference.find(step)


@pytest.mark.parametrize("target", ["learn/fedcba9876543210", "encode/0123456789abcdef"])
def test_a_record_of_another_step_is_refused(step, target):
    sealed(step)
    store = Location(step.url.rsplit("/", 2)[0])
    for name in RECORD_FILES:
        (store / target).put(name, step.get(name))
    with pytest.raises(CorruptFile, match="it is the one of learn/0123456789abcdef"):
        Reference.find(store / target)


def test_a_reference_opens_only_the_result_that_it_names(step):
    reference = sealed(step)
    step.put("a.json", b"[]")
    again = sealed(step, content_hash="d" * 64)
    assert again.open().get("a.json") == b"[]"
    with pytest.raises(CorruptFile, match="not of the result that was referred to"):
        reference.open()


def test_two_runs_may_do_a_step_at_once(step):
    """Each goes on with its own reference, though the other has written the record since."""
    mine, theirs = sealed(step, seconds=1.0), sealed(step, seconds=2.0)
    assert mine.open().files == theirs.open().files


def test_a_step_without_a_record_is_not_finished(step):
    assert Reference.find(step) is None
    sealed(step)
    step.delete(RECORD_FILES[0])
    assert Reference.find(step) is not None
    step.delete(RECORD_FILES[1])
    assert Reference.find(step) is None


def test_a_record_says_nothing_of_where_it_lies(step):
    sealed(step)
    assert b"://" not in step.get(RECORD_FILES[0])


def test_numbers_that_are_not_finite_become_null(step):
    assert sealed(step, score=float("nan")).summary == {"score": None}


def test_a_record_of_an_earlier_version_is_known_as_one(step):
    record = {
        "step": "learn",
        "fingerprint": "0123456789abcdef",
        "url": "file:///gone",
        "content_hash": "c" * 64,
        "seconds": 3.0,
        "summary": {"a": 1},
    }
    step.put(RECORD_FILES[0], json.dumps(record).encode())
    found = Reference.find(step)
    assert (found.sha256, found.url, found.summary) == ("", step.url, {"a": 1})
    with pytest.raises(Damaged):
        found.open()


def test_a_seal_of_a_folder_checks_itself(step):
    seal_files(step, ["a.json", "kept/d"])
    assert SealedFolder.open(step).walk() == ["a.json", "kept/d"]
    data = bytearray(step.get("seal.json"))
    for place in np.random.default_rng(0).integers(len(data), size=20):
        changed = bytearray(data)
        changed[place] ^= 1 << (place % 8)
        step.put("seal.json", bytes(changed))
        with pytest.raises(CorruptFile, match=r"seal\.json"):
            SealedFolder.open(step)


def test_a_record_of_terabytes_is_not_read(tmp_path, monkeypatch):
    step = Location(str(tmp_path)) / "learn" / "0123456789abcdef"
    sealed(step)
    for name in RECORD_FILES:
        os.truncate(step.local_path / name, 1 << 43)
    monkeypatch.setattr("os.pread", lambda *_: pytest.fail("was read"))
    with pytest.raises(CorruptFile, match="bytes, which is more than"):
        Reference.find(step)

"""The doctor of a registry: all that the format has is known, and what is wrong with it named."""

import os
from datetime import timedelta

import pytest

from storage.artifacts import Registry
from storage.care.shelf_doctor import examine_registry
from storage.locations import Location


@pytest.fixture
def store(tmp_path):
    registry = Registry(tmp_path / "artifacts")
    for text in ("one", "two"):
        registry.publish("toy", {"x.txt": text.encode()}, fingerprint=text)
    for alias in ("staging", "production", "old"):
        registry.promote("toy", 1, alias)
    registry.location.put("toy/records/newest", b"1")
    registry.location.put("toy/changes/newest", b"1")
    (tmp_path / "artifacts/toy/versions/abandoned").mkdir()
    registry.collect_garbage(grace=timedelta(seconds=-5))
    return tmp_path


def named(store):
    return {(f.path, f.kind) for f in examine_registry(Location(str(store)))}


def test_moves_and_collections_leave_nothing_that_is_strange(store):
    assert (store / "artifacts/toy/clock").exists()
    assert (store / "artifacts/toy/condemned/abandoned").exists()
    assert named(store) == set()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("how", ["flip", "empty", "grow", "swap", "delete"])
@pytest.mark.parametrize("path", ["changes/00000002.json", "records/00000001.json"])
def test_a_damaged_entry_is_named_as_such(store, path, how):
    file = store / "artifacts/toy" / path
    data = bytearray(file.read_bytes())
    if how == "flip":
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "grow":
        os.truncate(file, 10 * 2**40)
    elif how == "swap":
        other = file.with_name("00000001.json" if "changes" in path else "00000002.json")
        file.write_bytes(other.read_bytes())
    else:
        file.unlink()
    assert (path, "damaged") in named(store)


@pytest.mark.timeout(60)
def test_files_without_a_manifest_are_measured_before_they_are_read(store):
    (version, _) = sorted((store / "artifacts/toy/versions").iterdir())
    os.truncate(version / "manifest.json", 10 * 2**40)
    os.truncate(version / "x.txt", 10 * 2**40)
    assert {("manifest.json", "damaged"), ("x.txt", "damaged")} <= named(store)
    os.truncate(version / "SHA256SUMS", 10 * 2**40)
    assert ("SHA256SUMS", "damaged") in named(store)

"""The doctor: whatever is damaged is named, and what can be mended without the model is."""

import numpy as np
import pytest

from storage.activations import ActivationSet, CorruptShard
from storage.condemned import clear_condemned, condemn, read_condemned
from storage.damage import CorruptFile
from storage.doctor import find_damage
from storage.locations import Location
from storage.mending import mend_metadata
from tests.storage.test_activations import files, make_plan, write


@pytest.fixture(params=["local", "memory"])
def stored(request, tmp_path):
    url = str(tmp_path / "set") if request.param == "local" else f"memory://{tmp_path.name}/set"
    location = Location(url)
    if request.param == "memory":
        location.delete_folder("")
    return write(location, make_plan(provenance={"model": "m", "inputs": {"b": 1, "a": 2}}))


def flip(location, path, place=None, seed=0):
    data = bytearray(location.get(path))
    place = np.random.default_rng(seed).integers(len(data)) if place is None else place
    data[place] ^= 1
    location.put(path, bytes(data))


def test_a_whole_table_has_no_damage(stored):
    assert find_damage(stored) == []


def test_consistent_but_wrong_rows_are_found_by_the_receipt(stored):
    """A shard of another run has good checksums, and is not what was sealed."""
    location = stored.location
    good = location.get("rows/levels/low/c/1/0")
    location.put("rows/levels/low/c/1/0", location.get("rows/levels/low/c/0/0"))
    (damage,) = find_damage(ActivationSet(location))
    assert (damage.array, damage.shard) == ("levels/low", 1)
    location.put("rows/levels/low/c/1/0", good)


@pytest.mark.parametrize("path", ["receipts/2.json", "rows/zarr.json", "rows/levels/low/zarr.json"])
@pytest.mark.parametrize("seed", range(4))
def test_damaged_metadata_are_found_and_mended(stored, path, seed):
    location = stored.location
    before = files(location)
    flip(location, path, seed=seed)
    damage = find_damage(ActivationSet(location))
    assert [error.path for error in damage] == [path]
    mend_metadata(ActivationSet(location), [path])
    assert files(location) == before


def test_a_missing_receipt_is_written_anew(stored):
    before = files(stored.location)
    stored.location.delete("receipts/0.json")
    damage = find_damage(ActivationSet(stored.location))
    mend_metadata(ActivationSet(stored.location), [error.path for error in damage])
    assert files(stored.location) == before


@pytest.mark.parametrize("path", ["plan.json", "sealed.json"])
def test_a_damaged_plan_or_seal_is_refused(stored, path):
    for seed in range(8):
        good = stored.location.get(path)
        flip(stored.location, path, seed=seed)
        try:
            damage = find_damage(ActivationSet(stored.location))
        except CorruptFile as error:
            damage = [error]
        assert {error.path for error in damage} <= {"plan.json", "sealed.json"}
        assert damage
        stored.location.put(path, good)


def test_condemned_shards_are_noted_until_they_are_whole(stored):
    url = stored.location.url
    shards = [CorruptShard("levels/low", 3, "x", url), CorruptShard("norms/low", 3, "x", url)]
    condemn(stored.location, shards=shards[:1], files=["a"])
    condemn(stored.location, shards=shards)
    condemned = read_condemned(stored.location)
    assert condemned.shards == {3: ["levels/low", "norms/low"]}
    assert condemned.files == ["a"]
    clear_condemned(stored.location)
    assert not read_condemned(stored.location)

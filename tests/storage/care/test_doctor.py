"""The doctor: whatever is damaged is named, and what can be mended without the model is."""

import os

import numpy as np
import pytest

from storage.care.doctor import examine, find_damage
from storage.care.mending import Copies, mend, mend_metadata
from storage.locations import Location
from storage.references import Reference
from storage.sealing.condemned import clear_condemned, condemn, read_condemned
from storage.sealing.damage import CorruptFile
from storage.tables.activations import ActivationSet, CorruptShard
from tests.storage.tables.test_activations import files, make_plan, write


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


@pytest.fixture
def step(stored):
    """The folder of a finished step: a table and a file beside it."""
    store = Location(stored.location.url.rsplit("/", 1)[0])
    location = store / "extract" / "0123456789abcdef"
    for path, data in files(stored.location).items():
        location.put(path, data)
    location.put("beside/notes.bin", bytes(range(200)))
    content = ActivationSet(location).content_hash
    Reference.seal(location, content_hash=content, seconds=1.0, summary={"rows": 2000})
    return location


def test_any_change_of_any_file_of_a_step_is_found_and_named(step):
    whole = files(step)
    rng = np.random.default_rng(0)
    assert examine(step) == []
    # Other stores than a disk are read the slow way, and their files are the same.
    every = 1 if step.local_path else 10
    for number, (path, data) in enumerate(sorted(whole.items())[::every]):
        changed = bytearray(data)
        changed[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        for new in [bytes(changed), data[: int(rng.integers(len(data)))], data + b"x", None][
            number % 2 :: 2
        ]:
            step.delete(path) if new is None else step.put(path, new)
            assert [(f.path, f.kind) for f in examine(step)] == [(path, "damaged")]
        step.put(path, data)
    assert examine(step) == []


def test_damage_behind_a_damaged_seal_is_found(step):
    for path in ("sealed.json", "receipts/1.json", "rows/levels/low/c/2/0"):
        flip(step, path)
    assert {finding.path for finding in examine(step)} == {
        "sealed.json",
        "receipts/1.json",
        "rows/levels/low/c/2/0",
    }
    flip(step, "plan.json")
    assert any("when it is whole" in finding.reason for finding in examine(step))


def test_swapped_shards_are_found_though_their_checksums_hold(step):
    one, other = (step.get(f"rows/norms/low/c/{shard}") for shard in (0, 1))
    step.put("rows/norms/low/c/0", other)
    step.put("rows/norms/low/c/1", one)
    assert [(f.shard.array, f.shard.shard) for f in examine(step)] == [
        ("norms/low", 0),
        ("norms/low", 1),
    ]


def test_what_follows_from_what_is_whole_is_mended_at_once(step):
    whole = files(step)
    for path in ("sealed.json", "receipts/2.json", "rows/zarr.json", "rows/index/sample/zarr.json"):
        flip(step, path)
    step.delete("reference.json")
    (step / "staging").put("0.bin", b"half")
    store = Location(step.url.rsplit("/", 2)[0])
    assert mend(step, examine(step), Copies(store)) is False
    assert files(step) == whole


def test_what_is_stored_twice_is_copied_back(step):
    whole = files(step)
    store = Location(step.url.rsplit("/", 2)[0])
    twin = store / "learn" / "fedcba9876543210"
    twin.put("elsewhere", whole["beside/notes.bin"])
    Reference.seal(twin, content_hash="c", seconds=0.0, summary={})
    step.delete("beside/notes.bin")
    assert mend(step, examine(step), Copies(store)) is False
    assert files(step) == whole


def test_the_rest_is_condemned_and_nothing_good_is_removed(step):
    whole = files(step)
    flip(step, "beside/notes.bin")
    flip(step, "rows/levels/low/c/1/0")
    step.put("stranger", b"mine")
    store = Location(step.url.rsplit("/", 2)[0])
    assert mend(step, examine(step), Copies(store)) is True
    condemned = read_condemned(step)
    assert (condemned.shards, condemned.files) == ({1: ["levels/low"]}, ["beside/notes.bin"])
    after = files(step)
    assert set(whole) - set(after) == {"beside/notes.bin"}
    assert after["stranger"] == b"mine"
    assert {path for path in after if path in whole and after[path] != whole[path]} == {
        "rows/levels/low/c/1/0"
    }
    # What is noted is told until it is undone, and mending twice notes it once.
    assert {f.kind for f in examine(step)} == {"condemned", "damaged", "stranger"}
    assert mend(step, examine(step), Copies(store)) is True
    assert read_condemned(step) == condemned
    flip(step, "condemned.json")
    assert "condemned.json" in {f.path for f in examine(step) if f.kind == "damaged"}


def test_both_copies_of_a_record_lost_leave_a_step_to_be_done_again(step):
    for name in ("reference.json", "reference.copy.json"):
        flip(step, name)
    assert {f.path for f in examine(step)} == {"reference.json", "reference.copy.json"}
    store = Location(step.url.rsplit("/", 2)[0])
    assert mend(step, examine(step), Copies(store)) is True
    assert Reference.find(step) is None
    assert {f.kind for f in examine(step)} == {"unfinished"}


@pytest.mark.parametrize("kind", ["pipe", "link", "folder", "file above"])
def test_what_is_no_file_is_named_and_not_opened(tmp_path, kind):
    step = Location(str(tmp_path)) / "recover" / "0123456789abcdef"
    step.put("below/nodes", b"n")
    reference = Reference.seal(step, content_hash="c", seconds=0.0, summary={})
    place = step.local_path / "below/nodes"
    place.unlink()
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "link":
        place.symlink_to("/dev/zero")
    elif kind == "folder":
        place.mkdir()
    else:
        place.parent.rmdir()
        place.parent.write_bytes(b"x")
    with pytest.raises(CorruptFile, match="below/nodes"):
        reference.open().get("below/nodes")
    assert "below/nodes" in {finding.path for finding in examine(step)}
    if kind != "file above":
        assert mend(step, examine(step), Copies(Location(str(tmp_path)))) is True
        assert not os.path.lexists(place)
        assert read_condemned(step).files == ["below/nodes"]

"""The activation store: aligned, globally shuffled, sealed when whole, and never silently wrong."""

import multiprocessing
import pickle
import uuid

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.care.doctor import find_damage
from storage.locations import Location
from storage.tables.activations import (
    ActivationPlan,
    ActivationSet,
    ActivationWriter,
    CorruptShard,
    LevelPlan,
    NotSealed,
)


def make_plan(*, blocks=(0, 700, 1500, 2000), n_train=1500, dtype="float32", **changes):
    values = {
        "fingerprint": "0123456789abcdef",
        "levels": (LevelPlan(name="low", width=8), LevelPlan(name="high", width=5)),
        "dtype": dtype,
        "n_train": n_train,
        "n_rows": blocks[-1],
        "blocks": blocks,
        "shard_rows": 256,
        "chunk_rows": 64,
        "seed": 5,
    }
    return ActivationPlan(**(values | changes))


def rows_of(plan, block):
    """Activations that carry their canonical row number, so that alignment can be checked."""
    number = np.arange(plan.blocks[block], plan.blocks[block + 1])
    activations = {
        level.name: np.random.default_rng(block).normal(size=(len(number), level.width))
        for level in plan.levels
    }
    for values in activations.values():
        values[:, 0] = number
    index = {"sample": number // 10, "position": number % 10, "observed": number * 3}
    return activations, index


def write(location, plan):
    writer = ActivationWriter(location, plan)
    writer.prepare()
    for block in writer.missing_blocks():
        writer.stage(block, *rows_of(plan, block))
    for shard in writer.missing_shards():
        writer.write_shard(shard)
    writer.seal()
    return ActivationSet(location)


def files(location):
    return {path: location.get(path) for path in location.walk()}


@pytest.fixture
def location(tmp_path):
    return Location(str(tmp_path / "set"))


@pytest.mark.parametrize("url", ["local", "memory"])
def test_rows_stay_aligned_and_splits_apart(url, location):
    if url == "memory":
        location = Location(f"memory://{uuid.uuid4().hex}/x")
    plan = make_plan()
    stored = write(location, plan)
    number = stored.index("observed", 0, 2000) // 3
    for level in stored.levels:
        assert (stored.read(level, 0, 2000)[:, 0] == number).all()
        norms = np.linalg.norm(stored.read(level, 0, 2000), axis=1)
        np.testing.assert_allclose(stored.norms(level, 0, 2000), norms, rtol=1e-6)
    assert (stored.index("sample", 0, 2000) == number // 10).all()
    assert sorted(number[:1500]) == list(range(1500))
    assert sorted(number[1500:]) == list(range(1500, 2000))
    # Shuffled across blocks: neighbours come from everywhere.
    assert abs(np.corrcoef(number[:1499], number[1:1500])[0, 1]) < 0.1


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=6),
    st.data(),
    st.sampled_from(["float32", "float16", "bfloat16"]),
    st.sampled_from([(32, 32), (64, 16)]),
)
def test_any_cut_into_blocks_gives_the_same_rows(sizes, data, dtype, shard):
    bounds = tuple(np.cumsum([0, *sizes]).tolist())
    n_train = data.draw(st.sampled_from(bounds))
    plan = make_plan(
        blocks=bounds, n_train=n_train, dtype=dtype, shard_rows=shard[0], chunk_rows=shard[1]
    )
    stored = write(Location(f"memory://{uuid.uuid4().hex}"), plan)
    number = stored.index("observed", 0, bounds[-1]) // 3
    assert sorted(number[:n_train]) == list(range(n_train))
    assert sorted(number[n_train:]) == list(range(n_train, bounds[-1]))
    # bfloat16 keeps eight bits of a number.
    kept = torch.from_numpy(number).to(getattr(torch, dtype)).float().numpy()
    np.testing.assert_array_equal(stored.read("low", 0, bounds[-1])[:, 0], kept)


def test_size_is_known_before_writing(location):
    plan = make_plan()
    write(location, plan)
    size = sum(location.size(f) for f in location.walk() if "/c/" in f)
    assert size == pytest.approx(plan.disk_bytes, rel=0.02)


def test_staging_size_is_known_before_writing(location):
    plan = make_plan()
    writer = ActivationWriter(location, plan)
    for block in range(plan.n_blocks):
        writer.stage(block, *rows_of(plan, block))
    assert sum(location.size(f) for f in location.walk("staging")) == plan.staging_bytes


def test_an_interrupted_set_is_invisible_and_is_finished_to_the_same_bytes(tmp_path):
    plan = make_plan()
    whole = Location(str(tmp_path / "whole"))
    write(whole, plan)
    parts = Location(str(tmp_path / "parts"))
    writer = ActivationWriter(parts, plan)
    writer.prepare()
    writer.stage(2, *rows_of(plan, 2))
    with pytest.raises(NotSealed):
        ActivationSet(parts)
    writer = ActivationWriter(parts, plan)
    writer.prepare()
    assert writer.missing_blocks() == [0, 1]
    for block in writer.missing_blocks():
        writer.stage(block, *rows_of(plan, block))
    writer.write_shard(3)
    with pytest.raises(ValueError, match="not written yet"):
        writer.seal()
    assert 3 not in writer.missing_shards()
    write(parts, plan)
    assert files(parts) == files(whole)


def _write_shards(url, plan, shards):
    writer = ActivationWriter(Location(url), plan)
    for shard in shards:
        writer.write_shard(shard)


def test_many_processes_write_the_same_bytes_as_one(tmp_path):
    plan = make_plan()
    one = Location(str(tmp_path / "one"))
    write(one, plan)
    many = Location(str(tmp_path / "many"))
    writer = ActivationWriter(many, plan)
    writer.prepare()
    for block in writer.missing_blocks():
        writer.stage(block, *rows_of(plan, block))
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=_write_shards, args=(many.url, plan, list(plan.shards)[i::2]))
        for i in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    writer.seal()
    assert files(many) == files(one)


def test_another_plan_is_refused(location):
    ActivationWriter(location, make_plan())
    with pytest.raises(ValueError, match="another plan"):
        ActivationWriter(location, make_plan(seed=6))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_flipped_byte_is_found_and_named(location, dtype):
    stored = write(location, make_plan(dtype=dtype))
    rng = np.random.default_rng(0)
    data = [f for f in location.walk("rows") if "/c/" in f]
    for name in rng.choice(data, size=6, replace=False):
        good = location.get(name)
        bad = bytearray(good)
        bad[rng.integers(len(bad))] ^= 1 << int(rng.integers(8))
        location.put(name, bytes(bad))
        array, shard = name.removeprefix("rows/").split("/c/")
        found = find_damage(ActivationSet(location))
        assert {(error.array, error.shard) for error in found} == {
            (array, int(shard.split("/")[0]))
        }
        location.put(name, good)
    assert find_damage(stored) == []


def test_a_missing_shard_is_not_zeros(location):
    write(location, make_plan())
    location.delete("rows/levels/high/c/4/0")
    stored = ActivationSet(location)
    stored.read("high", 0, 1024)
    with pytest.raises(CorruptShard, match=r"'levels/high' of shard 4 .*missing.*strata doctor"):
        stored.read("high", 1000, 1100)


def test_a_damaged_staged_block_is_refused(location):
    plan = make_plan()
    writer = ActivationWriter(location, plan)
    writer.prepare()
    for block in range(plan.n_blocks):
        writer.stage(block, *rows_of(plan, block))
    data = bytearray(location.get("staging/1.bin"))
    data[len(data) // 2] ^= 4
    location.put("staging/1.bin", bytes(data))
    with pytest.raises(CorruptShard, match="staged block 1"):
        list(map(writer.write_shard, plan.shards))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (np.nan, r"not finite \(row 7 .*the model itself gave it: .* model.dtype"),
        (np.inf, r"not finite \(row 7 .*the model itself gave it: .* model.dtype"),
        (1e39, r"a row whose norm is more than float32 can hold \(row 7 "),
    ],
)
def test_rows_that_no_type_can_hold_are_refused(location, dtype, value, sentence):
    plan = make_plan(dtype=dtype)
    activations, index = rows_of(plan, 0)
    activations["high"][7, 2] = value
    with pytest.raises(ValueError, match=rf"level 'high' has .*{sentence}") as refused:
        ActivationWriter(location, plan).stage(0, activations, index)
    assert "extract.dtype=" not in str(refused.value)
    assert list(location.walk("staging")) == []


def test_rows_beyond_float16_are_refused_with_what_holds_them(location):
    activations, index = rows_of(make_plan(), 0)
    activations["high"][7, 2] = 1e5
    with pytest.raises(ValueError, match=r"not finite in float16 \(row 7 .*dtype=bfloat16 or"):
        ActivationWriter(location, make_plan(dtype="float16")).stage(0, activations, index)
    for dtype in ("bfloat16", "float32"):
        place = location / dtype
        assert ActivationWriter(place, make_plan(dtype=dtype)).stage(0, activations, index) == 700


def test_a_nan_in_the_bits_of_bfloat16_is_the_models(location):
    activations, index = rows_of(make_plan(), 0)
    bits = {name: np.zeros(values.shape, np.uint16) for name, values in activations.items()}
    bits["low"][3, 0] = 0x7FC0
    with pytest.raises(ValueError, match=r"level 'low' .*\(row 3 .*the model itself gave it"):
        ActivationWriter(location, make_plan(dtype="bfloat16")).stage(0, bits, index)


def test_bfloat16_keeps_its_bits(location):
    import torch

    plan = make_plan(dtype="bfloat16")
    writer = ActivationWriter(location, plan)
    writer.prepare()
    values = {}
    for block in range(plan.n_blocks):
        activations, index = rows_of(plan, block)
        values |= dict(zip(index["observed"], activations["low"], strict=True))
        writer.stage(block, activations, index)
    for shard in plan.shards:
        writer.write_shard(shard)
    writer.seal()
    stored = ActivationSet(location)
    assert stored.array("levels/low").dtype == np.uint16
    assert stored.array("levels/low").attrs["logical_dtype"] == "bfloat16"
    observed = stored.index("observed", 0, 2000)
    expected = torch.tensor(np.stack([values[key] for key in observed]), dtype=torch.float32)
    np.testing.assert_array_equal(
        stored.read("low", 0, 2000), expected.to(torch.bfloat16).float().numpy()
    )


def test_a_set_travels_to_another_process(location):
    stored = write(location, make_plan())
    again = pickle.loads(pickle.dumps(stored))
    assert (again.read("low", 10, 20) == stored.read("low", 10, 20)).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks": (0, 5, 5, 10), "n_train": 5}, "blocks must rise"),
        ({"blocks": (0, 5, 10), "n_train": 6}, "blocks must rise"),
        ({"chunk_rows": 100}, "not a multiple"),
        ({"levels": ({"name": "../x", "width": 3},)}, "not a safe name"),
        ({"levels": ({"name": "x", "width": 3}, {"name": "x", "width": 3})}, "distinct"),
    ],
)
def test_bad_plans_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_plan(**changes)

"""Out-of-core statistics equal those of the rows held at once, and hold few rows at once."""

import threading
import uuid

import numpy as np
import pytest

from storage.locations import Location
from storage.sealing.damage import CorruptShard
from storage.tables import statistics
from storage.tables.activations import ActivationPlan, ActivationSet, ActivationWriter, LevelPlan
from storage.tables.codes import CodeLevel, CodePlan, CodeSet, CodeWriter


def make(location, dtype="float32", n=1000, offset=0.0, shard_rows=64):
    plan = ActivationPlan(
        fingerprint="x",
        levels=(LevelPlan(name="a", width=6),),
        dtype=dtype,
        n_train=n - 150,
        n_rows=n,
        blocks=(0, n - 150, n),
        shard_rows=shard_rows,
        chunk_rows=32,
        seed=1,
    )
    writer = ActivationWriter(location, plan)
    writer.prepare()
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(6, 6))
    for block, (start, stop) in enumerate(((0, n - 150), (n - 150, n))):
        number = np.arange(start, stop)
        x = rng.normal(size=(len(number), 6)) @ mixing + offset
        writer.stage(block, {"a": x}, {"sample": number, "position": number, "observed": number})
    for shard in plan.shards:
        writer.write_shard(shard)
    writer.seal()
    return ActivationSet(location)


@pytest.fixture
def location():
    return Location(f"memory://{uuid.uuid4().hex}")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("split", ["train", "held_out", "all"])
def test_moments_are_those_of_all_rows(location, dtype, split):
    stored = make(location, dtype)
    found = statistics.moments(stored, "a", split)
    bounds = stored.plan.split(split)
    x = stored.read("a", bounds.start, bounds.stop).astype(np.float64)
    assert found.rows == len(x)
    np.testing.assert_allclose(found.mean, x.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(x.T), rtol=1e-11, atol=1e-12)


def test_a_mean_far_from_zero_costs_no_digits(location):
    stored = make(location, offset=1e4)
    x = stored.read("a", 0, stored.plan.n_train).astype(np.float64)
    found = statistics.moments(stored, "a")
    np.testing.assert_allclose(found.covariance, np.cov(x.T), rtol=1e-9, atol=1e-9)


def test_outliers_are_left_out(location):
    stored = make(location)
    norms = stored.norms("a", 0, stored.plan.n_train)
    bound = float(np.median(norms))
    x = stored.read("a", 0, stored.plan.n_train)[norms <= bound].astype(np.float64)
    found = statistics.moments(stored, "a", max_norm={"a": bound})
    assert found.rows == len(x) < stored.plan.n_train
    np.testing.assert_allclose(found.covariance, np.cov(x.T), rtol=1e-10, atol=1e-12)


def test_the_dask_view_has_a_block_per_shard(location):
    stored = make(location)
    view = statistics.rows(stored, "a", "train")
    assert view.chunks[0] == (64,) * 13 + (18,)
    np.testing.assert_array_equal(view.compute(), stored.read("a", 0, 850))
    assert float(view.max()) == stored.read("a", 0, 850).max()


def test_a_damaged_shard_stops_the_view(tmp_path):
    location = Location(str(tmp_path / "set"))
    stored = make(location)
    location.delete("rows/levels/a/c/2/0")
    with pytest.raises(CorruptShard, match="shard 2"):
        statistics.rows(stored, "a").sum().compute()


def test_few_shards_are_held_at_once(location, monkeypatch):
    """At no time do more sums wait to be merged than the tree is high, per thread."""
    stored = make(location, n=4150, shard_rows=32)
    alive, most, lock = 0, 0, threading.Lock()
    sums_of, merge = statistics._Sums.of, statistics._Sums.merge

    def counted_of(x):
        nonlocal alive, most
        with lock:
            alive += 1
            most = max(most, alive)
        return sums_of(x)

    def counted_merge(a, b):
        nonlocal alive
        with lock:
            alive -= 1
        return merge(a, b)

    monkeypatch.setattr(statistics._Sums, "of", counted_of)
    monkeypatch.setattr(statistics._Sums, "merge", counted_merge)
    import dask

    with dask.config.set(num_workers=2):
        statistics.moments(stored, "a")
    assert len(stored.plan.shards) > 120
    assert most <= 2 * 8


def test_coactivation_counts_rows(location):
    rng = np.random.default_rng(0)
    plan = CodePlan(
        fingerprint="x",
        n_train=300,
        n_rows=400,
        shard_rows=64,
        chunk_rows=32,
        levels=(CodeLevel(name="l0", n_concepts=30, k=4), CodeLevel(name="l1", n_concepts=9, k=2)),
        activations="h",
    )
    writer = CodeWriter(location, plan)
    writer.prepare()
    dense = {level.name: np.zeros((400, level.n_concepts)) for level in plan.levels}
    kept = rng.random(400) < 0.9
    for shard in plan.shards:
        start, size = shard * 64, plan.shard_size(shard)
        arrays = {"kept": kept[start : start + size].astype(np.uint8)}
        for level in plan.levels:
            indices = np.stack(
                [rng.choice(level.n_concepts, level.k, replace=False) for _ in range(size)]
            )
            values = rng.choice([0.0, 0.5, 2.0], size=(size, level.k)).astype(np.float32)
            np.put_along_axis(dense[level.name][start : start + size], indices, values, axis=1)
            arrays[f"codes/{level.name}/indices"] = indices.astype(np.uint16)
            arrays[f"codes/{level.name}/values"] = values
        writer.write_rows(shard, arrays)
    writer.seal()
    codes = CodeSet(location)
    active = {name: (x[:300][kept[:300]] > 0).astype(int) for name, x in dense.items()}
    found = statistics.coactivation(codes, "l0")
    np.testing.assert_array_equal(found.toarray(), active["l0"].T @ active["l0"])
    found = statistics.coactivation(codes, "l0", with_level="l1")
    np.testing.assert_array_equal(found.toarray(), active["l0"].T @ active["l1"])

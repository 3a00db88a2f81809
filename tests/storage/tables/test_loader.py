"""The loader: every kept row once an epoch, the same order always, exact resume at any step."""

import itertools
import time
import uuid

import numpy as np
import pytest

from storage.locations import Location
from storage.tables.activations import ActivationPlan, ActivationSet, ActivationWriter, LevelPlan
from storage.tables.loader import ActivationLoader, kept_rows


@pytest.fixture(scope="module", params=["memory", "file"])
def stored(request, tmp_path_factory):
    """1,000 training and 200 held-out rows; value 0 of a row is its canonical number."""
    plan = ActivationPlan(
        fingerprint="x",
        levels=(LevelPlan(name="a", width=3), LevelPlan(name="b", width=2)),
        dtype="float32",
        n_train=1000,
        n_rows=1200,
        blocks=(0, 500, 1000, 1200),
        shard_rows=128,
        chunk_rows=32,
        seed=1,
    )
    folder = tmp_path_factory.mktemp("set")
    url = f"memory://{uuid.uuid4().hex}" if request.param == "memory" else str(folder)
    writer = ActivationWriter(Location(url), plan)
    writer.prepare()
    for block in range(3):
        number = np.arange(plan.blocks[block], plan.blocks[block + 1])
        # Every 50th row is an outlier at level b.
        b = np.where(number % 50 == 0, 1e4, 1.0)
        activations = {
            "a": np.stack([number, number, number], axis=1).astype(np.float32),
            "b": np.stack([number * 1e-3, b], axis=1).astype(np.float32),
        }
        index = {"sample": number, "position": number * 0, "observed": number}
        writer.stage(block, activations, index)
    for shard in plan.shards:
        writer.write_shard(shard)
    writer.seal()
    return ActivationSet(writer.location)


def take(loader, n):
    return list(itertools.islice(iter(loader), n))


def numbers(batches):
    return np.concatenate([batch["a"][:, 0] for batch in batches])


def test_an_epoch_is_every_row_of_the_split_once(stored):
    epochs = numbers(take(ActivationLoader(stored, batch_size=100, seed=0), 20))
    assert sorted(epochs[:1000]) == list(range(1000))
    assert sorted(epochs[1000:]) == list(range(1000))
    assert (epochs[:1000] != epochs[1000:]).mean() > 0.5
    held_out = ActivationLoader(stored, split="held_out", batch_size=50, seed=0)
    assert sorted(numbers(take(held_out, 4))) == list(range(1000, 1200))


def test_levels_stay_aligned(stored):
    for batch in take(ActivationLoader(stored, batch_size=64, seed=3), 30):
        np.testing.assert_allclose(batch["a"][:, 0] * np.float32(1e-3), batch["b"][:, 0], rtol=1e-6)


def test_outliers_are_left_out_at_all_levels(stored):
    loader = ActivationLoader(stored, batch_size=98, seed=0, max_norm={"b": 100.0})
    assert loader.rows == 980
    epoch = numbers(take(loader, 10))
    assert sorted(epoch) == [i for i in range(1000) if i % 50]
    kept = kept_rows(stored, {"b": 100.0}, 0, 1200)
    assert kept.sum() == 1176


@pytest.mark.parametrize("bounds", [{}, {"b": 100.0}])
@pytest.mark.parametrize("start", [1, 3, 9, 10, 11, 37])
def test_it_resumes_exactly_at_any_step(stored, start, bounds):
    settings = {"batch_size": 96, "seed": 7, "max_norm": bounds}
    whole = take(ActivationLoader(stored, **settings), start + 4)[start:]
    resumed = take(ActivationLoader(stored, **settings, start=start), 4)
    for a, b in zip(whole, resumed, strict=True):
        np.testing.assert_array_equal(a["a"], b["a"])
        np.testing.assert_array_equal(a["b"], b["b"])


def test_the_seed_fixes_the_order(stored):
    def first(seed):
        return numbers(take(ActivationLoader(stored, batch_size=100, seed=seed), 3))

    assert (first(1) == first(1)).all()
    assert (first(1) != first(2)).any()


@pytest.mark.parametrize("world_size", [2, 3])
def test_workers_share_an_epoch(stored, world_size):
    seen = []
    for rank in range(world_size):
        loader = ActivationLoader(stored, batch_size=8, seed=0, rank=rank, world_size=world_size)
        seen.append(set(numbers(take(loader, 30)).tolist()))
    for a, b in itertools.combinations(seen, 2):
        assert not a & b


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size 0 is not positive"),
        ({"batch_size": 1, "rank": 2, "world_size": 2}, "rank 2 is not in 0 to 1"),
        ({"batch_size": 1, "world_size": 9}, "too few for 9 workers"),
        ({"batch_size": 1, "max_norm": {"b": 0.0}}, "has 0 rows"),
    ],
)
def test_bad_options_are_refused(stored, options, message):
    with pytest.raises(ValueError, match=message):
        ActivationLoader(stored, seed=0, **options)


@pytest.mark.timeout(60)
def test_a_batch_of_few_rows_takes_no_longer_than_one_of_many(tmp_path):
    levels = (LevelPlan(name="a", width=3),)
    plan = ActivationPlan(
        fingerprint="x",
        levels=levels,
        dtype="float32",
        n_train=3,
        n_rows=4,
        blocks=(0, 3, 4),
        shard_rows=128,
        chunk_rows=32,
        seed=1,
    )
    writer = ActivationWriter(Location(str(tmp_path / "few")), plan)
    writer.prepare()
    values = np.arange(12.0, dtype=np.float32).reshape(4, 3)
    for block, rows in enumerate((np.arange(3), np.arange(3, 4))):
        index = {"sample": rows, "position": rows * 0, "observed": rows}
        writer.stage(block, {"a": values[rows]}, index)
    for shard in plan.shards:
        writer.write_shard(shard)
    writer.seal()
    began = time.perf_counter()
    first, *_ = take(ActivationLoader(ActivationSet(writer.location), batch_size=4096, seed=0), 3)
    assert time.perf_counter() - began < 5
    assert np.bincount((first["a"][:, 0] / 3).astype(int)).min() >= 4096 // 3

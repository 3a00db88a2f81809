"""The benchmark of concepts that come again runs at a small size."""

import math

import numpy as np
import pytest

from compute.worlds import SelectionWorld
from storage.locations import Location
from storage.tables.activations import ActivationPlan, ActivationWriter, LevelPlan

ROWS, TRAIN = 3072, 2048


@pytest.fixture
def store(tmp_path):
    plan = ActivationPlan(
        fingerprint="recurrence",
        levels=(LevelPlan(name="a", width=24),),
        dtype="float32",
        n_train=TRAIN,
        n_rows=ROWS,
        blocks=(0, TRAIN, ROWS),
        shard_rows=1024,
        chunk_rows=1024,
        seed=0,
    )
    world = SelectionWorld.vectors(sizes=(12, 4), dim=24, seed=0)
    x = world.sample(ROWS, seed=1).activations[0].astype(np.float32)
    writer = ActivationWriter(Location(str(tmp_path / "set")), plan)
    writer.prepare()
    number = np.arange(ROWS)
    for block, own in enumerate((slice(0, TRAIN), slice(TRAIN, ROWS))):
        known = dict.fromkeys(("sample", "position", "observed"), number[own])
        writer.stage(block, {"a": x[own]}, known)
    for shard in plan.shards:
        writer.write_shard(shard)
    writer.seal()
    return str(tmp_path / "set")


def test_every_method_is_measured_and_a_second_run_adds_what_is_missing(
    import_benchmark, store, tmp_path
):
    benchmark = import_benchmark("concept_recurrence")
    asked = ["--store", store, "--levels", "a", "--concepts", "12", "--k", "2", "--steps", "60"]
    asked += ["--out", str(tmp_path / "out.csv"), "--methods"]
    first = benchmark.main([*asked, "topk", "random rows"])
    rows = benchmark.main([*asked, "topk", "random rows", "hierarchical"])
    by_method = {row["method"]: row for row in rows}
    # What was there was not measured again: not even the seconds differ.
    for row in first:
        kept = by_method[row["method"]]
        assert kept["cpu_seconds"] == pytest.approx(row["cpu_seconds"], abs=1e-4)
    ours, null = by_method["hierarchical"], by_method["random rows"]
    assert null["agreement"] < 0.9 < ours["agreement"] <= 1 + 1e-6
    assert ours["explained_variance"] > 0.8
    assert math.isnan(null["l0"])
    assert (by_method["topk"]["k"], by_method["topk"]["steps"]) == (2, 60)

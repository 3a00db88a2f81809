"""The code store keeps indices and values, and gives them back as sparse matrices."""

import uuid

import numpy as np
import pytest

from storage.care.doctor import find_damage
from storage.locations import Location
from storage.tables.codes import CodeLevel, CodePlan, CodeSet, CodeWriter
from storage.tables.opening import open_table
from storage.tables.sealed import CorruptShard, NotSealed


def make_codes(location, n_concepts=(100, 70_000), rows=300):
    plan = CodePlan(
        fingerprint="x",
        n_train=200,
        n_rows=rows,
        shard_rows=128,
        chunk_rows=64,
        levels=tuple(CodeLevel(name=f"l{i}", n_concepts=n, k=4) for i, n in enumerate(n_concepts)),
        activations="hash",
    )
    rng = np.random.default_rng(0)
    dense = [np.zeros((rows, n), np.float32) if n < 1000 else None for n in n_concepts]
    writer = CodeWriter(location, plan)
    writer.prepare()
    with pytest.raises(NotSealed):
        CodeSet(location)
    for shard in writer.missing_shards():
        start, size = shard * 128, plan.shard_size(shard)
        arrays = {"kept": (np.arange(start, start + size) % 7 > 0).astype(np.uint8)}
        for i, level in enumerate(plan.levels):
            indices = np.stack(
                [rng.choice(level.n_concepts, 4, replace=False) for _ in range(size)]
            )
            values = np.maximum(rng.normal(size=(size, 4)), 0).astype(np.float32)
            if dense[i] is not None:
                np.put_along_axis(dense[i][start : start + size], indices, values, axis=1)
            column = plan.columns[2 * i]
            arrays[f"codes/{level.name}/indices"] = indices.astype(column.dtype)
            arrays[f"codes/{level.name}/values"] = values
        writer.write_rows(shard, arrays)
    writer.seal()
    return CodeSet(location), dense[0]


@pytest.fixture
def location(tmp_path):
    return Location(str(tmp_path / "codes"))


def test_codes_come_back_as_matrices(location):
    codes, dense = make_codes(location)
    np.testing.assert_array_equal(codes.matrix("l0", 0, 300).toarray(), dense)
    blocks = [matrix.toarray() for _, _, matrix in codes.blocks("l0", "train")]
    np.testing.assert_array_equal(np.concatenate(blocks), dense[:200])
    assert codes.kept(0, 8).tolist() == [False, *[True] * 6, False]
    assert codes.matrix("l1", 0, 300).shape == (300, 70_000)


def test_indices_take_as_few_bytes_as_they_can(location):
    codes, _ = make_codes(location)
    assert codes.array("codes/l0/indices").dtype == np.uint16
    assert codes.array("codes/l1/indices").dtype == np.uint32


def test_flipped_bytes_are_found(location):
    make_codes(location)
    rng = np.random.default_rng(1)
    names = sorted(f for f in location.walk("rows") if "/c/" in f)
    for name in rng.choice(names, size=8, replace=False):
        good = location.get(name)
        bad = bytearray(good)
        bad[int(rng.integers(len(bad)))] ^= 1
        location.put(name, bytes(bad))
        assert find_damage(CodeSet(location)), name
        location.put(name, good)
    location.delete(names[0])
    path = names[0].removeprefix("rows/").split("/c/")[0]
    with pytest.raises(CorruptShard, match="missing"):
        CodeSet(location).rows(path, 0, 300)


def test_a_table_is_opened_as_what_it_is():
    location = Location(f"memory://{uuid.uuid4().hex}")
    with pytest.raises(NotSealed):
        open_table(location)
    make_codes(location)
    assert isinstance(open_table(location), CodeSet)


def test_an_unknown_level_is_named(location):
    codes, _ = make_codes(location)
    with pytest.raises(KeyError, match="'l9' is not one of l0, l1"):
        codes.matrix("l9", 0, 1)

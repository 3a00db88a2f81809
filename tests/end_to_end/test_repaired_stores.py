"""`strata doctor`: one flipped byte is found, named and undone, and nothing else is computed.

Takes about a minute on top of the session's run of the tiny recipe.
"""

import shutil

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from flows.cli import app

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def copied(built, recipe, tiny_recipe, tmp_path):
    """A copy of the finished run's store, and a recipe file that names it."""
    from tests.end_to_end.damaged_stores import copied

    store = copied(built, recipe, tmp_path / "store")
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe | {"store": str(store)}))
    return store, path


def snapshot(store):
    return {
        path: (path.read_bytes(), path.stat().st_mtime_ns)
        for path in store.rglob("*")
        if path.is_file()
    }


def damage(path, seed):
    rng = np.random.default_rng(seed)
    data = bytearray(path.read_bytes())
    data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    path.write_bytes(bytes(data))


def doctor(*arguments):
    return CliRunner().invoke(app, ["doctor", *map(str, arguments)])


def test_flipped_bytes_are_undone_and_nothing_else_is_touched(copied):
    store, recipe = copied
    whole = snapshot(store)
    (activations,) = store.glob("extract/*")
    (codes,) = store.glob("encode/*")
    broken = [
        activations / "rows/levels/layer-02/c/1/0",
        codes / "rows/codes/layer-00/indices/c/2/0",
    ]
    for seed, path in enumerate(broken):
        damage(path, seed)

    seen = doctor(recipe)
    assert seen.exit_code == 1
    said = seen.stderr.replace("\n", " ")
    assert "'levels/layer-02' of shard 1" in said
    assert "'codes/layer-00/indices' of shard 2" in said
    assert doctor(activations).exit_code == 1

    mended = doctor(recipe, "--repair")
    assert mended.exit_code == 0, mended.output
    after = snapshot(store)
    changed = {path for path in whole | after if whole.get(path, " ")[0] != after.get(path, " ")[0]}
    assert changed == set()
    rewritten = {
        path for path, (_, time) in after.items() if time != whole[path][1] and "/c/" in str(path)
    }
    assert rewritten == set(broken)
    assert doctor(recipe).exit_code == 0


def test_one_file_of_each_sort_is_made_again(copied):
    """Of every step: data, metadata, records; what has a copy elsewhere is copied from there."""
    store, recipe = copied
    whole = {path: data for path, (data, _) in snapshot(store).items()}
    broken = [
        "extract/*/corpus.safetensors",
        "extract/*/samples.json",
        "extract/*/receipts/0.json",
        "extract/*/rows/index/sample/c/0",
        "learn/*/norm_bounds.json",
        "learn/*/dictionaries/layer-00/sae_weights.safetensors",
        "encode/*/plan.json",
        "encode/*/rows/kept/zarr.json",
        "encode/*/summaries/layer-02/1.safetensors",
        "recover/*/nodes.parquet",
        "recover/*/reference.json",
        "publish/*/reference.copy.json",
        "artifacts/tiny/versions/*/dictionaries/layer-02/cfg.json",
    ]
    for seed, pattern in enumerate(broken):
        (path,) = store.glob(pattern)
        damage(path, seed)
    (extracted,) = store.glob("extract/*")
    (extracted / "staging").mkdir()
    (extracted / "staging/0.bin").write_bytes(b"half")
    (extracted / "rows/zarr.json#7").write_bytes(b"half")
    seen = doctor(recipe)
    assert seen.exit_code == 1
    for pattern in broken:
        assert pattern.split("*/")[-1] in seen.stderr
    assert seen.stderr.count("left over") == 2
    mended = doctor(recipe, "--repair")
    assert mended.exit_code == 0, mended.output
    assert {path: data for path, (data, _) in snapshot(store).items()} == whole


def test_dictionaries_without_a_copy_are_learnt_again(copied):
    """Levels whose weights are whole are not trained again, and all comes out as it was."""
    store, recipe = copied
    shutil.rmtree(store / "artifacts")
    shutil.rmtree(store / "publish")
    whole = {path: data for path, (data, _) in snapshot(store).items()}
    (learn,) = store.glob("learn/*")
    damage(learn / "dictionaries/layer-00/sae_weights.safetensors", 0)
    (learn / "dictionaries/layer-02/cfg.json").unlink()
    (learn / "dictionaries/layer-02/sparsity.safetensors").write_bytes(b"")
    mended = doctor(recipe, "--repair")
    assert mended.exit_code == 0, mended.output
    assert {path: data for path, (data, _) in snapshot(store).items()} == whole


def test_strangers_are_named_and_stay(copied):
    store, recipe = copied
    (learn,) = store.glob("learn/*")
    (learn / "notes.txt").write_text("mine")
    mended = doctor(recipe, "--repair")
    assert mended.exit_code == 1
    assert "stranger 'notes.txt'" in mended.stderr
    assert (learn / "notes.txt").read_text() == "mine"


def test_a_repair_needs_the_recipe(copied):
    store, _ = copied
    (activations,) = store.glob("extract/*")
    found = doctor(activations, "--repair")
    assert "is not a recipe" in str(found.exception)

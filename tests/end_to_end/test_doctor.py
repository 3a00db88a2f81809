"""`strata doctor`: one flipped byte is found, named and undone, and nothing else is computed.

Takes about 20 seconds on top of the session's run of the tiny recipe.
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
    store = tmp_path / "store"
    for step in ("extract", "learn", "encode"):
        shutil.copytree(built[step].location.local_path, store / step / built[step].fingerprint)
    for reference in store.glob("*/*/reference.json"):
        text = reference.read_text()
        reference.write_text(text.replace(recipe_url(recipe.store), recipe_url(store)))
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe | {"store": str(store)}))
    return store, path


def recipe_url(store):
    from storage.locations import Location

    return Location(str(store)).url


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
    # How long the repair took stands in the reference of each step.
    assert changed <= set(store.glob("*/*/reference.json"))
    rewritten = {
        path for path, (_, time) in after.items() if time != whole[path][1] and "/c/" in str(path)
    }
    assert rewritten == set(broken)
    assert doctor(recipe).exit_code == 0


def test_a_repair_needs_the_recipe(copied):
    store, _ = copied
    (activations,) = store.glob("extract/*")
    found = doctor(activations, "--repair")
    assert "is not a recipe" in str(found.exception)


def test_what_is_not_finished_is_said(tmp_path):
    assert "holds no finished table" in str(doctor(tmp_path).exception)

"""A run that is really killed goes on where it stopped, to the same artifact."""

import json
import subprocess
import sys
import time

import pytest
import yaml

from flows.build import build
from flows.recipe import Recipe
from storage.artifacts import Registry
from storage.locations import Location
from tests.conftest import kill_tree

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(900)]


def changed(values, store):
    # Small blocks and rows in plenty, so that there is a middle of the extraction to be killed in.
    return values | {"store": str(store), "extract": values["extract"] | {"block_rows": 64}}


def content_hash(store):
    return Registry((Location(str(store)) / "artifacts").url).load("tiny").manifest.content_hash


def wait_for(condition, process, seconds=400):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_sigkill_during_extraction(tiny_recipe, tmp_path, strata, prefect_home, local_ray):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    undisturbed = build(Recipe.model_validate(changed(tiny_recipe, whole)))

    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(changed(tiny_recipe, broken)))
    process = subprocess.Popen(
        [sys.executable, "-m", "flows", "run", str(recipe)], stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: len(list(broken.glob("extract/*/staging/*.bin"))) >= 3, process)
    kill_tree(process)
    (folder,) = broken.glob("extract/*")
    staged = {p.name: p.stat().st_mtime_ns for p in folder.glob("staging/*.bin")}
    assert not (folder / "sealed.json").exists()
    assert not (broken / "artifacts").exists()
    plan = json.loads((folder / "plan.json").read_text())
    assert 3 <= len(staged) < len(plan["blocks"]) - 1

    done = strata("run", str(recipe))
    assert done.returncode == 0, done.stderr
    assert content_hash(broken) == undisturbed["publish"].content_hash == content_hash(whole)
    assert not (folder / "staging").exists()

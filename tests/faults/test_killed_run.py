"""A run that is really killed goes on where it stopped, to the same artifact."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
import yaml

from flows.build import build
from flows.recipe import Recipe
from storage.artifacts import Registry
from storage.locations import Location
from tests.conftest import kill_tree
from tests.live import wait_until

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


# A process with a Ray of its own, that computes when it is asked to.
LIVING = """
import sys
from compute.cluster import connect
from compute.machine.leftovers import owned_folder
connect()
import ray
print(owned_folder(), flush=True)
for line in sys.stdin:
    print(ray.get(ray.remote(lambda n: n + 1).remote(int(line))), flush=True)
"""


def test_the_next_command_clears_what_sigkill_left_and_nothing_else(tiny_recipe, tmp_path):
    """Ray's processes, the temporary server and the folder of the dead run; all of the living's."""
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(changed(tiny_recipe, tmp_path / "store")))
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "RAY_"))}
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as temporary:
        own = {"RAY_TMPDIR": temporary, "PREFECT_HOME": str(tmp_path / "prefect")}
        options = {"env": kept | own, "text": True, "stderr": subprocess.PIPE}
        living = subprocess.Popen(
            [sys.executable, "-c", LIVING],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            **options,
        )
        folder = Path(living.stdout.readline().strip())
        killed = subprocess.Popen([sys.executable, "-m", "flows", "run", str(recipe)], **options)
        try:
            blocks = tmp_path / "store"
            wait_for(lambda: list(blocks.glob("extract/*/staging/*.bin")), killed)
            family = psutil.Process(killed.pid).children(recursive=True)
            names = {process.name() for process in family}
            assert {"raylet", "gcs_server", "ray::DashboardAgent"} <= names
            # Both at once: a child that is left without its command clears by itself.
            (child,) = psutil.Process(killed.pid).children()
            killed.send_signal(signal.SIGKILL)
            child.kill()
            killed.wait()
            (left,) = set(Path(temporary).glob("strata-*")) - {folder}
            done = subprocess.run([sys.executable, "-m", "flows", "recipes"], **options)
            assert done.returncode == 0, done.stderr
            assert not left.exists()
            wait_until(lambda: not any(map(_lives, family)), 30)
            living.stdin.write("41\n")
            living.stdin.flush()
            assert living.stdout.readline() == "42\n"
            living.communicate(timeout=120)
            assert list(Path(temporary).glob("strata-*")) == []
        finally:
            for process in (killed, living):
                if process.poll() is None:
                    kill_tree(process)


def _lives(process):
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False

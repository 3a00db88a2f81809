"""A published version is built again from its manifest alone, and compared."""

import copy
import shutil

import pytest
from typer.testing import CliRunner

from flows.artifacts_command import artifacts
from flows.build import build
from flows.reproduction import rebuild, recipe_of
from storage.artifacts import Registry
from storage.locations import Location
from tasks.publishing import registry_of

pytestmark = [pytest.mark.server, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def store(built, recipe, tmp_path_factory):
    """A copy of the run's store, with a second version that follows the first."""
    folder = tmp_path_factory.mktemp("reproduced") / "store"
    shutil.copytree(Location(recipe.store).local_path, folder)
    build(recipe.model_copy(update={"store": str(folder), "title": "the same, again"}))
    return folder


@pytest.fixture(scope="module")
def scratch(store, tmp_path_factory):
    return tmp_path_factory.mktemp("scratch")


@pytest.mark.parametrize("version", ["1", "2"])
def test_a_version_is_reproduced(store, scratch, version):
    command = ["reproduce", "tiny", version, "--store", str(store), "--scratch", str(scratch)]
    done = CliRunner().invoke(artifacts, command)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == [
        "extract",
        "learn",
        "encode",
        "recover",
        "files",
    ]
    assert all("the same bytes" in line for line in lines[:-1])
    assert lines[-1] == f"tiny v{version} is reproduced."


def test_the_first_step_that_differs_is_told_with_its_reasons(store, scratch, tmp_path):
    artifact = registry_of(str(store)).load("tiny", 1)
    lineage = copy.deepcopy(artifact.manifest.lineage)
    lineage["upstream"]["learn"]["content_hash"] = "0" * 64
    lineage["upstream"]["learn"]["made_on"]["threads"] = 64
    lineage["upstream"]["learn"]["made_on"]["packages"]["torch"] = "1.0"
    found = reproduced(artifact, lineage, scratch, tmp_path)
    assert [(step.what, step.same) for step in found] == [("extract", True), ("learn", False)]
    threads, torch = sorted(found[-1].why)
    assert threads.endswith(" here and was 64")
    assert torch.endswith(" here and was '1.0'")


def test_a_file_that_differs_is_named(store, scratch, tmp_path):
    artifact = registry_of(str(store)).load("tiny", 1)
    lineage = artifact.manifest.lineage
    changed = {"graph/graph.json": b"{}"}
    found = reproduced(artifact, lineage, scratch, tmp_path, changed)
    assert found[-1].what == "files"
    assert found[-1].why == ("graph/graph.json differs",)


def reproduced(artifact, lineage, scratch, folder, changed=None):
    """Rebuild what says of itself that it was made in this way, and holds these files."""
    files = {path: artifact.read(path) for path in artifact.manifest.files} | (changed or {})
    registry = Registry(folder)
    levels = artifact.manifest.levels
    registry.publish("tiny", files, fingerprint="f", lineage=lineage, levels=levels)
    manifest = registry.load("tiny").manifest
    return rebuild(recipe_of(manifest, str(scratch)), registry.url, 1)

"""The rooms depend on one another in one direction, and light rooms stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("flows", "tasks", "compute", "storage")
MAY_IMPORT = {
    "flows": {"flows", "tasks", "compute", "storage"},
    "tasks": {"tasks", "compute", "storage"},
    "compute": {"compute", "storage"},
    "storage": {"storage"},
}
FORBIDDEN = {
    "compute": {"prefect"},
    "storage": {"prefect", "torch", "ray", "transformers", "diffusers"},
}


def imported(path):
    """Top-level packages a file imports, at its head or inside its functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield (node.module or "").split(".")[0]


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_one_way(room):
    for path in (ROOT / room).rglob("*.py"):
        found = set(imported(path))
        assert found & set(ROOMS) <= MAY_IMPORT[room], path
        assert not found & FORBIDDEN.get(room, set()), path


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("storage.artifacts", ("torch", "ray", "prefect", "pandas", "scipy", "networkx")),
        ("flows.recipe", ("torch", "ray", "transformers")),
        ("flows.cli", ("torch", "ray", "transformers", "prefect")),
    ],
)
def test_light_modules_import_nothing_heavy(module, heavy):
    code = f"import {module}, sys; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_top_level_holds_only_the_rooms():
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    folders = {path.split("/")[0] for path in tracked if "/" in path and path[0] != "."}
    assert folders <= {*ROOMS, "tests", "infra"}


def test_no_pickle_is_read():
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            assert not set(imported(path)) & {"pickle", "dill", "joblib", "cloudpickle"}, path
            text = path.read_text(encoding="utf-8")
            assert "torch.load(" not in text, path
            assert "allow_pickle=True" not in text, path
            assert "trust_remote_code=True" not in text, path

"""The threat model names tests that exist."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "infra" / "SECURITY.md").read_text()


def named(text):
    """Tests that a text names, as (file, function); ``::test_x`` is of the file named before."""
    file = None
    for found in re.finditer(r"`([\w./-]+\.py)?::(\w+)`", text):
        file = found[1] or file
        yield file, found[2]


def functions_of(file):
    tree = ast.parse((ROOT / file).read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_test_that_is_named_exists():
    missing = [(file, name) for file, name in named(PAGE) if name not in functions_of(file)]
    assert missing == []


def test_every_asset_names_a_test():
    table = PAGE.split("### Assets")[1].split("###")[0]
    rows = [line for line in table.splitlines() if line.startswith("| **")]
    assert len(rows) >= 10
    for row in rows:
        assert list(named(row)), row
        assert row.count(" | ") == 3, row

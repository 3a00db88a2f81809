"""Benchmarks are scripts that import one another by name."""

import importlib
from pathlib import Path

import pytest


@pytest.fixture
def import_benchmark(monkeypatch):
    """Import a benchmark by its name, as it is imported where it runs."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    return importlib.import_module

"""Versions as earlier releases published them, one of each schema, which every release reads."""

import typing
from pathlib import Path

import pytest

from storage.artifacts import Registry
from storage.registry.manifests import SCHEMA_VERSION, Manifest

KEPT = Path(__file__).parent / "kept"
SCHEMAS = typing.get_args(Manifest.model_fields["schema_version"].annotation)


def test_one_of_each_schema_is_kept():
    assert sorted(path.name for path in KEPT.iterdir()) == [f"schema_{n}" for n in sorted(SCHEMAS)]
    assert max(SCHEMAS) == SCHEMA_VERSION


@pytest.mark.parametrize("schema", SCHEMAS)
def test_a_kept_version_loads(schema):
    artifact = Registry(KEPT / f"schema_{schema}").load("toy", verify=True)
    assert artifact.manifest.schema_version == schema
    assert artifact.graph.levels == {0: 1, 1: 1}
    assert len(artifact.manifest.lineage[WEIGHTS[schema]]) == 64


WEIGHTS = {1: "weights_sha256", 2: "weights_hash"}


def test_an_unknown_schema_is_refused():
    manifest = Registry(KEPT / f"schema_{SCHEMA_VERSION}").load("toy").manifest
    told = manifest.model_dump(mode="json") | {"schema_version": SCHEMA_VERSION + 1}
    with pytest.raises(ValueError, match="schema_version"):
        Manifest.model_validate(told)

"""Every deployment has a flow, a form and a place in prefect.yaml."""

from pathlib import Path

import pytest
import yaml

from flows.deployments import DEPLOYMENTS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("deployed", DEPLOYMENTS, ids=lambda deployed: deployed.name)
def test_the_form_is_described_and_bounded(deployed):
    flow = deployed.flow
    assert flow.description
    schema = flow.parameters.model_dump()
    assert len(schema["properties"]) == 1
    for definition in schema["definitions"].values():
        for name, field in definition.get("properties", {}).items():
            assert field.get("description") or "$ref" in str(field), (definition["title"], name)


def test_prefect_yaml_says_the_same():
    said = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    entrypoints = {d["name"]: d["entrypoint"] for d in said}
    assert entrypoints == {
        d.name: d.entrypoint.rpartition(".")[0].replace(".", "/")
        + f".py:{d.entrypoint.rpartition('.')[2]}"
        for d in DEPLOYMENTS
    }
    for deployment, deployed in zip(said, DEPLOYMENTS, strict=True):
        assert deployment["tags"] == list(deployed.tags)
        assert bool(deployment.get("schedules")) == deployed.nightly
        assert deployment["concurrency_limit"]["limit"] == 1


def test_the_nightly_form_offers_the_recipes():
    from flows.recipe import recipe_names

    nightly = next(d for d in DEPLOYMENTS if d.nightly)
    definition = nightly.flow.parameters.definitions["NightlySettings"]
    assert definition["properties"]["recipe"]["enum"] == recipe_names()

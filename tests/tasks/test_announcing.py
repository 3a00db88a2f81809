"""What is told of a published version, and the flow that acts on it."""

from __future__ import annotations

import json

import pytest

from storage.artifacts import Registry
from storage.graph.concept_graph import ConceptGraph
from tasks import announcing

pytestmark = pytest.mark.server


@pytest.fixture
def registry(tmp_path):
    registry = Registry(tmp_path / "a store" / "artifacts")
    for number in (1, 2):
        graph = ConceptGraph.from_columns(
            {"level": [1] * number, "index": range(number)}
            | {"concept": [f"1:{i}@x" for i in range(number)]},
            {"source": [], "target": [], "strength": [], "confidence": []},
        )
        files = {f"graph/{path}": data for path, data in graph.files().items()}
        registry.publish("toy", files, fingerprint=str(number))
    return registry


@pytest.fixture
def emitted(monkeypatch):
    """Events that would be sent, those of assets included."""
    import prefect.events

    found = []

    def record(event, resource, **rest):
        found.append((event, resource, rest.get("payload")))

    monkeypatch.setattr(announcing, "emit_event", record)
    monkeypatch.setattr(prefect.events, "emit_event", record)
    return found


def test_a_published_version_is_an_event_and_an_asset(registry, emitted, prefect_home):
    from prefect import flow

    version = registry.resolve("toy", 2)

    @flow
    def publishing():
        announcing.announce(version, upstream=["file:///data/some%20rows"])

    publishing()
    events = {event: (resource, payload) for event, resource, payload in emitted}
    resource, payload = events["strata.artifact.published"]
    assert resource["prefect.resource.id"] == "strata.artifact.toy"
    assert payload == version.model_dump(mode="json")
    resource, payload = events["prefect.asset.materialization.succeeded"]
    assert resource["prefect.resource.id"] == announcing.asset_key(registry.url, "toy")
    assert payload["version"] == 2
    assert events["prefect.asset.referenced"][0]["prefect.resource.id"] == "file:///data/some_rows"


def test_a_rejected_version_is_an_event_and_no_asset(tmp_path, emitted):
    version = Registry(tmp_path).publish(
        "toy", {"a": b""}, fingerprint="1", status="rejected", rejections=["fit is too low"]
    )
    announcing.announce(version)
    ((event, _, payload),) = emitted
    assert event == "strata.artifact.rejected"
    assert payload["rejections"] == ["fit is too low"]


def test_a_consumer_loads_the_version_of_the_event(registry, prefect_home):
    from flows.consumer import consume

    payload = json.loads(json.dumps(registry.resolve("toy", 2).model_dump(mode="json")))
    assert consume(payload)["nodes"] == 2
    with pytest.raises(ValueError, match="published lacks name, version"):
        consume({"registry": registry.url})


def test_the_trigger_hands_the_payload_over(registry):
    """Prefect's own reading of the template gives the payload back."""
    from prefect.server.utilities.user_templates import render_user_template_sync

    from flows.consumer import on_publication

    trigger = on_publication("toy")
    payload = registry.resolve("toy", 2).model_dump(mode="json")
    template = trigger.parameters["published"]["value"]["template"]
    event = type("Event", (), {"payload": payload})
    assert json.loads(render_user_template_sync(template, {"event": event})) == payload
    assert trigger.match.root if hasattr(trigger.match, "root") else trigger.match

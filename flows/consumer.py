"""An example of a consumer: a flow that runs whenever a version is published, on what it is told.

`strata deploy` registers it for the versions of every artifact. To serve it beside `strata serve`::

    python -m flows.consumer smollm2

after which every new version of ``smollm2`` starts a run of ``consume/smollm2``, through an
automation that hands over the payload of the event. To do something else with a version, change
:func:`consume`.
"""

# No `from __future__ import annotations` here: Prefect resolves a flow's parameters by their
# annotations, which must be classes and not strings.
import sys
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.events import DeploymentEventTrigger
from prefect.types.entrypoint import EntrypointType

from storage.artifacts import Registry
from storage.locations import check_name
from tasks.announcing import PUBLISHED

__all__ = ["consume", "on_publication", "serve_consumer"]


@flow(name="consume", description="Load the version that an event tells of.")
def consume(published: dict[str, Any]) -> dict[str, int]:
    """Load a version, verified, and tell how its concepts and edges have changed.

    Parameters
    ----------
    published
        The payload of the event: at least ``registry``, ``name`` and ``version``.

    Returns
    -------
    dict of str to int
        The version's counts: levels, concepts, nodes, edges.
    """
    missing = [key for key in ("registry", "name", "version") if key not in published]
    if missing:
        raise ValueError(f"published lacks {', '.join(missing)}: pass the payload of the event.")
    registry = Registry(published["registry"])
    artifact = registry.load(published["name"], int(published["version"]), verify=True)
    logger = get_run_logger()
    logger.info("%s version %d is whole", artifact.name, artifact.version)
    parent = artifact.manifest.parent
    if parent is not None and "graph/nodes.parquet" in artifact.files:
        told = registry.compare(artifact.name, parent, artifact.version).to_text()
        create_markdown_artifact(f"```\n{told}```", key="changes")
    return dict(artifact.manifest.counts)


def on_publication(name: str | None = None) -> DeploymentEventTrigger:
    """The trigger that starts a deployment of :func:`consume` for every version of an artifact.

    Parameters
    ----------
    name : str, optional
        Of the artifact; all of them without it.
    """
    if name is not None:
        check_name(name)
    return DeploymentEventTrigger(
        name=f"strata: consume {name or 'every version'}",
        expect={PUBLISHED},
        match={"prefect.resource.id": f"strata.artifact.{name or '*'}"},
        parameters={
            "published": {
                "__prefect_kind": "json",
                "value": {"__prefect_kind": "jinja", "template": "{{ event.payload | tojson }}"},
            }
        },
    )


def serve_consumer(name: str) -> None:
    """Register ``consume/NAME`` with its automation and run what is triggered, until ended."""
    consume.serve(
        name=name,
        triggers=[on_publication(name)],
        entrypoint_type=EntrypointType.MODULE_PATH,
        print_starting_message=False,
    )


if __name__ == "__main__":
    from flows.consumer import serve_consumer as start

    start(sys.argv[1])

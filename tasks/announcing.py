"""What the world is told of a run's results: events for automations, assets for lineage."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote

from prefect.assets import Asset, AssetProperties, add_asset_metadata, materialize
from prefect.events import emit_event

from storage.artifacts import ArtifactReference
from storage.references import Reference, Step

__all__ = ["PUBLISHED", "REJECTED", "announce", "announce_step", "asset_key"]

PUBLISHED = "strata.artifact.published"
REJECTED = "strata.artifact.rejected"

_KINDS: dict[Step, str] = {
    "extract": "Activation set",
    "learn": "Concept hierarchy: one dictionary per level",
    "encode": "Code set",
    "recover": "Concept graph",
    "verify": "Concept graph, tested by intervention",
}


def announce_step(reference: Reference, *, upstream: Sequence[str]) -> None:
    """Materialize the asset of a step's result, with what it was made from as its lineage.

    Parameters
    ----------
    reference : Reference
        The finished step. Where its kind is not one that people consume, nothing is told.
    upstream : sequence of str
        URLs, of earlier steps or of what came from outside.
    """
    kind = _KINDS.get(reference.step)
    if kind is None:
        return
    properties = AssetProperties(
        name=f"{reference.step} {reference.fingerprint}", url=reference.url, description=kind
    )
    _materialize(
        Asset(key=_uri(reference.url), properties=properties),
        upstream,
        reference.model_dump(mode="json"),
    )


def announce(version: ArtifactReference, *, upstream: Sequence[str] = ()) -> None:
    """Emit the event of a new version and, if it passed its gates, materialize its asset.

    The event's resource is ``strata.artifact.NAME``; its payload is the version's reference, which
    is all that a consumer needs (:mod:`flows.consumer`). Prefect sends events in the background:
    a server that cannot be reached does not fail the run.

    Parameters
    ----------
    version : ArtifactReference
        The version.
    upstream : sequence of str
        URIs of what it was made from, shown as the asset's lineage.
    """
    told = version.model_dump(mode="json")
    emit_event(
        event=PUBLISHED if version.status == "published" else REJECTED,
        resource={
            "prefect.resource.id": f"strata.artifact.{version.name}",
            "prefect.resource.name": version.name,
            "strata.version": str(version.version),
        },
        payload=told,
    )
    if version.status != "published":
        return
    asset = Asset(
        key=asset_key(version.registry, version.name),
        properties=AssetProperties(
            name=version.name,
            url=f"{version.url.rstrip('/')}/report.html",
            description=f"Concept hierarchy, version {version.version}",
        ),
    )

    _materialize(asset, upstream, told)


def asset_key(registry: str, name: str) -> str:
    """Key of an artifact's asset: the same for all of its versions."""
    return _uri(f"{registry.rstrip('/')}/{name}")


def _materialize(asset: Asset, upstream: Sequence[str], told: Mapping[str, Any]) -> None:
    @materialize(
        asset,
        asset_deps=[_uri(url) for url in upstream],
        name="announce",
        task_run_name=f"announce {asset.properties.name if asset.properties else asset.key}",
        by="strata",
    )
    def announced() -> None:
        add_asset_metadata(asset, dict(told))

    announced()


def _uri(url: str) -> str:
    """A URL without the characters that Prefect refuses in keys of assets, such as ``%``."""
    return re.sub(r"[^A-Za-z0-9:/._-]", "_", unquote(url))

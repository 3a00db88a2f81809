"""What the world is told of a published version: events for automations, assets for lineage."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import unquote

from prefect.assets import Asset, AssetProperties, add_asset_metadata, materialize
from prefect.events import emit_event

from storage.artifacts import ArtifactReference

__all__ = ["PUBLISHED", "REJECTED", "announce", "asset_key"]

PUBLISHED = "strata.artifact.published"
REJECTED = "strata.artifact.rejected"


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

    @materialize(asset, asset_deps=[_uri(url) for url in upstream], name="announce", by="strata")
    def materialized() -> None:
        add_asset_metadata(asset, told)

    materialized()


def asset_key(registry: str, name: str) -> str:
    """Key of an artifact's asset: the same for all of its versions."""
    return _uri(f"{registry.rstrip('/')}/{name}")


def _uri(url: str) -> str:
    """A URL without the characters that Prefect refuses in keys of assets, such as ``%``."""
    return re.sub(r"[^A-Za-z0-9:/._-]", "_", unquote(url))

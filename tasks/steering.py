"""Steering a published artifact's model, as one Prefect task: what to do in, a page out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from prefect import task
from prefect.artifacts import create_markdown_artifact
from pydantic import BaseModel, ConfigDict, Field, model_validator

from storage.graph.concept_graph import concept_place
from storage.locations import Location
from storage.records import digest
from tasks.progress import step_progress

__all__ = ["SteerParameters", "steer"]


class SteerParameters(BaseModel):
    """What to steer, and on what."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    artifact: str = Field(min_length=1, description="Name of the published artifact.")
    version: str = Field("latest", description="A number, or an alias.")
    store: str = Field(
        default_factory=lambda: os.environ.get("STRATA_STORE", ".strata"),
        description="Where results lie: a folder or a URL.",
    )
    concepts: tuple[str, ...] = Field(
        (), description="Ids of the concepts to steer, such as 2:417; or leave it to `find`."
    )
    find: str | None = Field(
        None, description="Words to find concepts by; without `concepts` the first one is steered."
    )
    scales: tuple[float, ...] = Field(
        (0.0, 3.0), description="Factors of the concepts' codes, one variant each; 0 removes."
    )
    induce: float | None = Field(
        0.5,
        ge=0,
        le=1,
        description="One more variant: everywhere set to this share of the largest observed code.",
    )
    prompts: tuple[str, ...] = Field(
        (), description="Texts to go on with or to draw; by default the concept's own examples."
    )
    propagate: bool = Field(
        False, description="Carry the edits down to the concepts' parts, through the graph."
    )
    seed: int = Field(0, ge=0, description="Of the noise that drawings start from.")
    new_tokens: int = Field(48, ge=1, le=4096, description="Length of a text's continuation.")

    @model_validator(mode="after")
    def _something_to_steer(self) -> SteerParameters:
        if not self.concepts and not self.find:
            raise ValueError("neither concepts nor find is given: say what to steer.")
        return self

    @property
    def chosen_version(self) -> int | str:
        """The version as a registry takes it."""
        return int(self.version) if self.version.isdigit() else self.version


@task(name="steer", task_run_name="steer {what.artifact}")
def steer(what: SteerParameters) -> dict[str, Any]:
    """Compare the model as it is with its steered variants, and write the page.

    Returns
    -------
    dict
        ``page`` (its URL), ``concepts`` that were steered, ``found`` and ``scores``.

    Raises
    ------
    ValueError
        If nothing was found, a concept does not exist, or there is no prompt.
    """
    from compute import steering
    from compute.steering import session
    from compute.steering.session_page import render_page
    from storage.artifacts import Registry

    registry = Registry((Location(what.store) / "artifacts").url)
    artifact = registry.load(what.artifact, what.chosen_version)
    levels = steering.concept_levels(artifact)
    found = steering.find_by_word(artifact, what.find) if what.find else []
    chosen = list(what.concepts) or [f.id for f in found[:1]]
    if not chosen:
        raise ValueError(
            f"no concept is named by {what.find!r}: try another word, or give a concept's id such "
            "as '2:417' (the report lists them)."
        )
    variants = _variants(what, chosen, artifact, levels)
    asked = list(what.prompts) or session.default_prompts(artifact, chosen[0])
    adapter = session.load_model(artifact)
    with step_progress("steer", "variants") as progress:
        outcomes = session.compare(
            adapter,
            levels,
            variants,
            asked,
            seed=what.seed,
            new_tokens=what.new_tokens,
            progress=progress,
        )
    labels = {node["id"]: node["label"] or "" for node in artifact.graph.nodes.to_pylist()}
    told = ", ".join(f"{concept} ({labels.get(concept, '')})" for concept in chosen)
    title = f"{artifact.name} v{artifact.version}, steered"
    page = render_page(title, f"Steered: {told}.", asked, outcomes, found).encode()
    location = Location(what.store) / "steering" / artifact.name
    file = f"v{artifact.version}-{digest(page)[:12]}.html"
    location.put(file, page)
    url = f"{location.url.rstrip('/')}/{file}"
    create_markdown_artifact(
        f"[{title}]({url})\n\nSteered: {told}.", key="steering", description=title
    )
    return {
        "page": url,
        "concepts": chosen,
        "found": [(f.id, f.label, round(f.score, 4)) for f in found],
        "scores": _scores(outcomes),
    }


def _variants(
    what: SteerParameters, chosen: Sequence[str], artifact: Any, levels: Any
) -> list[Any]:
    """The model as it is, and each set of edits that was asked for."""
    from compute import steering
    from compute.steering.session import Variant

    variants = [Variant("unchanged")]
    for scale in what.scales:
        edits = [steering.Edit.of(concept, scale) for concept in chosen]
        variants.append(Variant("removed" if scale == 0 else f"× {scale:g}", edits))
    if what.induce is not None:
        edits = [_induced(steering, levels, concept, what.induce) for concept in chosen]
        variants.append(Variant(f"set to {what.induce:g} of its range", edits))
    if what.propagate:
        variants = [
            Variant(v.name, steering.propagate(v.edits, artifact.graph, levels)) for v in variants
        ]
    return variants


def _scores(outcomes: Sequence[Any]) -> dict[str, dict[str, float]]:
    return {
        outcome.variant.name: outcome.scores
        | {f"{level}: shift": d.shift for level, d in outcome.distance.items()}
        for outcome in outcomes
    }


def _induced(steering: Any, levels: Any, concept: str, share: float) -> Any:
    level, index = concept_place(concept)
    found = next((lv for lv in levels if lv.level == level), None)
    if found is None:
        raise ValueError(f"concept {concept!r} is of a level that the artifact does not have.")
    return steering.Edit.set(level, index, share * found.largest_of(index))

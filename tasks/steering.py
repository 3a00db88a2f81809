"""Steering a published artifact's model, as one Prefect task: what to do in, a page out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prefect import task
from prefect.artifacts import create_markdown_artifact

from storage.graph.concept_graph import concept_place
from storage.locations import Location
from storage.records import digest
from tasks.progress import step_progress

__all__ = ["steer"]


@task(name="steer", task_run_name="steer {name}")
def steer(
    store: str,
    name: str,
    version: int | str,
    concepts: Sequence[str],
    find: str | None,
    scales: Sequence[float],
    induce: float | None,
    prompts: Sequence[str],
    propagate: bool,
    seed: int,
    new_tokens: int,
) -> dict[str, Any]:
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

    artifact = Registry((Location(store) / "artifacts").url).load(name, version)
    levels = steering.concept_levels(artifact)
    found = steering.find_by_word(artifact, find) if find else []
    chosen = list(concepts) or [f.id for f in found[:1]]
    if not chosen:
        raise ValueError(
            f"no concept is named by {find!r}: try another word, or give a concept's id such as "
            "'2:417' (the report lists them)."
        )
    variants = [session.Variant("unchanged")]
    for scale in scales:
        edits = [steering.Edit.of(concept, scale) for concept in chosen]
        variants.append(session.Variant("removed" if scale == 0 else f"× {scale:g}", edits))
    if induce is not None:
        edits = [_induced(steering, levels, concept, induce) for concept in chosen]
        variants.append(session.Variant(f"set to {induce:g} of its range", edits))
    if propagate:
        variants = [
            session.Variant(v.name, steering.propagate(v.edits, artifact.graph, levels))
            for v in variants
        ]
    asked = list(prompts) or session.default_prompts(artifact, chosen[0])
    adapter = session.load_model(artifact)
    with step_progress("steer", "variants") as progress:
        outcomes = session.compare(
            adapter, levels, variants, asked, seed=seed, new_tokens=new_tokens, progress=progress
        )
    labels = {node["id"]: node["label"] or "" for node in artifact.graph.nodes.to_pylist()}
    told = ", ".join(f"{concept} ({labels.get(concept, '')})" for concept in chosen)
    title = f"{artifact.name} v{artifact.version}, steered"
    page = render_page(title, f"Steered: {told}.", asked, outcomes, found).encode()
    location = Location(store) / "steering" / artifact.name
    file = f"v{artifact.version}-{digest(page)[:12]}.html"
    location.put(file, page)
    summary = {
        "page": f"{location.url.rstrip('/')}/{file}",
        "concepts": chosen,
        "found": [(f.id, f.label, round(f.score, 4)) for f in found],
        "scores": {
            outcome.variant.name: outcome.scores
            | {f"{level}: shift": d.shift for level, d in outcome.distance.items()}
            for outcome in outcomes
        },
    }
    create_markdown_artifact(
        f"[{title}]({summary['page']})\n\nSteered: {told}.", key="steering", description=title
    )
    return summary


def _induced(steering: Any, levels: Any, concept: str, share: float) -> Any:
    level, index = concept_place(concept)
    found = next((lv for lv in levels if lv.level == level), None)
    if found is None:
        raise ValueError(f"concept {concept!r} is of a level that the artifact does not have.")
    return steering.Edit.set(level, index, share * found.largest_of(index))

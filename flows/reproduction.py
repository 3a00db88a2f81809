"""Building a published version again from its own manifest, and comparing it byte by byte.

Everything is computed in a scratch store; the registry that holds the version is only read. Steps
are compared in their order by their content hashes, and the version's files by their digests. What
follows from a step that differs differs too, so the first one ends the comparison, with what has
been recorded of how it was made and is otherwise here.
"""

# No `from __future__ import annotations` here: see flows/build.py.
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from prefect import flow
from pydantic import ValidationError

from flows.build import run_steps
from flows.recipe import BadInput, Recipe
from storage.artifacts import Artifact, Registry
from storage.records import digest
from storage.references import Reference, Step
from storage.registry.manifests import UNHASHED_FILES, Manifest
from tasks.publishing import Steps, gather

__all__ = ["Compared", "differences", "rebuild", "recipe_of", "reproduce_version"]

_NEEDED = ("weights_hash", "data_hash", "model_dtype", "settings", "resources", "upstream")


class Compared(NamedTuple):
    """A step, or `files` for the version's own, as it was published and as it comes out here.

    Attributes
    ----------
    same : bool
    why : tuple of str
        Where it is not the same: what was otherwise when it was made, as far as was recorded.
    """

    what: str
    same: bool
    why: tuple[str, ...] = ()


def reproduce_version(registry: Registry, manifest: Manifest, scratch: Path) -> list[Compared]:
    """Build a version again in a folder, and compare it as far as it comes out the same.

    Raises
    ------
    BadInput
        If the manifest does not hold what that needs, or model or inputs are others now.
    """
    from compute.steps.plan import check
    from flows.temporary_server import begin_server

    recipe = recipe_of(manifest, str(scratch.absolute()))
    server_answers = begin_server()
    found = check(recipe)
    check_inputs(manifest, found.weights_sha256, found.inputs_sha256)
    server_answers()
    return rebuild(recipe, registry.url, manifest.version)


def recipe_of(manifest: Manifest, store: str) -> Recipe:
    """The recipe that made a version, with types resolved as they were, for another store.

    Raises
    ------
    BadInput
        If the manifest does not hold what that needs, or settings that are none any more.
    """
    lineage, version = manifest.lineage, f"{manifest.name} v{manifest.version}"
    missing = [key for key in _NEEDED if key not in lineage]
    if missing:
        raise BadInput(
            f"{version} cannot be built again: its manifest, of schema {manifest.schema_version}, "
            f"does not say {missing[0]!r}; publish it anew with this release."
        )
    settings = lineage["settings"]
    values = {**settings, "store": store, "resources": lineage["resources"]}
    values["model"] = _resolved(settings["model"], lineage["model_dtype"])
    values["extract"] = _resolved(settings["extract"], lineage.get("stored_dtype"))
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise BadInput(
            f"{version} cannot be built again: {field} is no setting of this release "
            f"({first['msg']}); use the release of commit {lineage.get('code_commit')}."
        ) from None


def check_inputs(manifest: Manifest, weights: str, data: str) -> None:
    """Refuse to build from other weights or data than a version was made from.

    Raises
    ------
    BadInput
    """
    lineage = manifest.lineage
    for what, here, source in (
        ("weights", weights, lineage["settings"]["model"]["source"]),
        ("data", data, "inputs"),
    ):
        if here != lineage[f"{what}_hash"]:
            raise BadInput(
                f"the {what} of {source!r} are not those that {manifest.name} v{manifest.version} "
                f"was made from (sha256 {here[:12]}…, then {lineage[f'{what}_hash'][:12]}…): "
                "restore them."
            )


@flow(name="reproduce", flow_run_name="reproduce {recipe.name}", log_prints=False)
def rebuild(recipe: Recipe, registry: str, version: int) -> list[Compared]:
    """Build a version of an artifact again, as far as it comes out the same.

    Parameters
    ----------
    recipe : Recipe
        As of :func:`recipe_of`, with a store of its own.
    registry : str
        URL of the registry that holds the version.
    version : int
    """
    published = Registry(registry)
    artifact = published.load(recipe.name, version, verify=False)
    recorded = artifact.manifest.lineage["upstream"]
    found: list[Compared] = []

    def differs(step: Reference) -> bool:
        if step.step not in recorded:
            # A graph that was verified stands for the one before.
            return False
        then = recorded[step.step]
        same = step.content_hash == then["content_hash"]
        found.append(Compared(step.step, same, () if same else _why(step, then)))
        return not same

    last: Step = "verify" if recipe.verify.enabled else "recover"
    references = run_steps(recipe, until=last, enough=differs)
    if all(compared.same for compared in found):
        made = [references[step] for step in ("extract", "learn", "encode", last)]
        found.append(_compare_files(recipe, Steps(*made), published, artifact))
    return found


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, ...]:
    """Say what of two records of how something was made is not the same, one sentence each."""
    out: list[str] = []
    for key in sorted(then.keys() | now.keys()):
        old, new = then.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            out += differences(old, new)
        elif old != new:
            out.append(f"{key} is {_told(new)} here and was {_told(old)}")
    return tuple(out)


def _resolved(section: Mapping[str, Any], dtype: str | None) -> dict[str, Any]:
    """A section of settings with the type that `auto` came to."""
    unresolved = dtype is not None and section.get("dtype") == "auto"
    return {**section, "dtype": dtype} if unresolved else dict(section)


def _why(step: Reference, then: Mapping[str, Any]) -> tuple[str, ...]:
    if then.get("made_on") is None:
        return ("what it was made on was not recorded",)
    why = differences(then["made_on"], step.summary.get("made_on") or {})
    return why or ("nothing that is recorded was otherwise, so this step is not deterministic",)


def _compare_files(
    recipe: Recipe, steps: Steps, registry: Registry, artifact: Artifact
) -> Compared:
    """Make the version's files from steps that came out the same, and compare their digests."""
    parent = artifact.manifest.parent
    ancestors = [] if parent is None else registry.ancestors(recipe.name, parent)
    made = {path: digest([data]) for path, data in gather(recipe, steps, ancestors).files.items()}
    files = artifact.manifest.files
    stored = {path: entry.sha256 for path, entry in files.items() if path not in UNHASHED_FILES}
    wrong = [
        path for path in sorted(made.keys() | stored.keys()) if made.get(path) != stored.get(path)
    ]
    why = tuple(f"{path} differs" for path in wrong)
    return Compared("files", not wrong, why)


def _told(value: Any) -> str:
    return "not there" if value is None else repr(value)

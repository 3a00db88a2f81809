"""The nightly flow: a recipe by its name, on the schedule of its deployment."""

# No `from __future__ import annotations`: see flows/build.py.
import os
from datetime import timedelta
from pathlib import Path
from typing import Annotated

from prefect import flow
from pydantic import BaseModel, ConfigDict, Field

from flows.build import run_steps
from flows.recipe import load_recipe, recipe_names
from storage.references import Reference

__all__ = ["NightlySettings", "nightly"]

_LONGEST = timedelta(hours=20)


class NightlySettings(BaseModel):
    """What to run tonight."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    recipe: Annotated[str, Field(json_schema_extra={"enum": recipe_names()})] = "smollm2"
    """One of the recipes that come with Strata."""

    recipe_file: str = ""
    """Path of a recipe of your own (.yaml) on the machine that runs the flow; counts before the
    recipe's name."""

    settings: list[str] = Field(default_factory=list)
    """Changes to the recipe, such as learn.k=16; the last one of a name counts."""

    store: str = Field(default_factory=lambda: os.environ.get("STRATA_STORE", ".strata"))
    """Where results lie: a folder or a URL such as s3://bucket/prefix; every worker reaches it."""

    @property
    def chosen(self) -> str:
        """What runs, in a word or two."""
        return Path(self.recipe_file).stem if self.recipe_file else self.recipe


@flow(
    name="nightly",
    flow_run_name="nightly {night.chosen}",
    description=(
        "Turn a generative model into a new version of its concept artifact. What has not changed "
        "since the last night is not computed again."
    ),
    retries=1,
    retry_delay_seconds=60,
    timeout_seconds=_LONGEST.total_seconds(),
)
def nightly(night: NightlySettings = NightlySettings()) -> dict[str, Reference]:  # noqa: B008
    """Run a recipe by its name and publish the next version of its artifact.

    A retry goes on where the failed run stopped.

    Parameters
    ----------
    night : NightlySettings
        Which recipe, what to change in it, and where results lie.
    """
    chosen = load_recipe(
        night.recipe_file or night.recipe, [*night.settings, f"store={night.store}"]
    )
    return run_steps(chosen)

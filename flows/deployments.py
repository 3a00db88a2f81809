"""Every flow as a Prefect deployment: a form, tags, a schedule or a trigger, a limit of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.recipe import load_recipe
from flows.serving import nightly_schedule

__all__ = ["DEPLOYMENTS", "WORK_POOL", "Deployed", "deploy"]

WORK_POOL = "strata"


@dataclass(frozen=True)
class Deployed:
    """One deployment: a flow by its module and name, and how it is run.

    Attributes
    ----------
    entrypoint : str
        ``module.flow``; where the code is installed, a worker imports it from there.
    nightly : bool
        Whether it has the schedule.
    on_publication : bool
        Whether every version that is published, of any artifact, starts it.
    """

    entrypoint: str
    tags: Sequence[str]
    nightly: bool = False
    on_publication: bool = False

    @property
    def name(self) -> str:
        """Name of the flow, and of its deployment."""
        return str(self.flow.name)

    @property
    def flow(self) -> Any:
        """The flow itself."""
        from importlib import import_module

        module, _, name = self.entrypoint.rpartition(".")
        return getattr(import_module(module), name)


DEPLOYMENTS = (
    Deployed("flows.nightly.nightly", ("strata", "nightly"), nightly=True),
    Deployed("flows.build.build", ("strata",)),
    Deployed("flows.stages.extract", ("strata", "stage")),
    Deployed("flows.stages.learn", ("strata", "stage")),
    Deployed("flows.stages.recover", ("strata", "stage")),
    Deployed("flows.train_flows.train_sprites", ("strata", "training")),
    Deployed("flows.train_flows.train_digits", ("strata", "training")),
    Deployed("flows.train_flows.train_grammar", ("strata", "training")),
    Deployed("flows.steer_flow.steer", ("strata", "steering")),
    Deployed("flows.consumer.consume", ("strata", "consumer"), on_publication=True),
)


def deploy(
    *,
    work_pool: str = WORK_POOL,
    cron: str = "0 3 * * *",
    timezone: str = "UTC",
    store: str | None = None,
    recipe: str = "smollm2",
    notify: str | None = None,
) -> list[str]:
    """Register deployments and automations with the server that ``PREFECT_API_URL`` names.

    The work pool is made, of type ``process``, if there is none of that name. A deployment that is
    there already is replaced.

    Parameters
    ----------
    work_pool : str
    cron, timezone : str
        When the nightly flow runs.
    store : str, optional
        Where results lie; by default what the worker's ``STRATA_STORE`` says.
    recipe : str
        What the nightly flow runs, and what the other forms begin with: the name of a recipe, or a
        file on the machine of the workers.
    notify : str, optional
        The notification block that is told of a failed night, such as ``slack-webhook/operators``.

    Returns
    -------
    list of str
        Full names, such as ``nightly/nightly``.

    Raises
    ------
    BadInput
        If the schedule or the time zone is not one, the recipe is not valid, or there is no such
        block.
    """
    chosen = load_recipe(recipe, [f"store={store}"] if store else [])
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectNotFound

    from flows.automations import register_automations

    schedule = nightly_schedule(cron, timezone)
    with get_client(sync_client=True) as client:
        try:
            client.read_work_pool(work_pool)
        except ObjectNotFound:
            client.create_work_pool(WorkPoolCreate(name=work_pool, type="process"))
        register_automations(client, notify=notify)
    own = recipe.endswith((".yaml", ".yml"))
    named = {"recipe_file": str(Path(recipe).resolve())} if own else {"recipe": recipe}
    forms = {
        "night": named | ({"store": store} if store else {}),
        "recipe": chosen.model_dump(mode="json"),
    }
    names = []
    for deployed in DEPLOYMENTS:
        made = _deployment(deployed, schedule if deployed.nightly else None, forms)
        made.apply(work_pool_name=work_pool)
        names.append(f"{made.flow_name}/{made.name}")
    return names


def _deployment(deployed: Deployed, schedule: Any, forms: dict[str, Any]) -> Any:
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.types.entrypoint import EntrypointType

    from flows.consumer import on_publication

    taken = deployed.flow.parameters.properties
    parameters = {name: form for name, form in forms.items() if name in taken}
    # The second of two runs waits: both have work to do, and one model at a time fits the machine.
    limit = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.ENQUEUE)
    return deployed.flow.to_deployment(
        name=deployed.name,
        parameters=parameters,
        schedules=[schedule] if schedule is not None else [],
        triggers=[on_publication()] if deployed.on_publication else [],
        concurrency_limit=limit,
        tags=list(deployed.tags),
        entrypoint_type=EntrypointType.MODULE_PATH,
    )

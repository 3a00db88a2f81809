"""`strata up`, `down`, `status`, `deploy` and `metrics`: running Strata as a service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from flows.options import StoreOption
from flows.recipe import BadInput
from flows.stack import Running, Stack, describe

__all__ = ["register"]

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

RecipeArgument = Annotated[
    str, typer.Argument(help="What runs every night: a recipe's name, or a `.yaml` file.")
]
CronOption = Annotated[str, typer.Option(help="When the nightly flow runs by itself.")]
ZoneOption = Annotated[str, typer.Option(help="Time zone of the schedule.")]
NotifyOption = Annotated[
    str | None,
    typer.Option(
        envvar="STRATA_NOTIFY",
        help="Notification block told of failed nights, such as `slack-webhook/operators`.",
    ),
]
HomeOption = Annotated[
    Path | None,
    typer.Option("--home", envvar="STRATA_HOME", help="Folder of the stack's notes and logs."),
]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(up)
    app.command()(down)
    app.command()(status)
    app.command()(deploy)
    app.command()(metrics)


def up(
    recipe: RecipeArgument = "smollm2",
    store: StoreOption = None,
    postgres: Annotated[
        str | None,
        typer.Option(envvar="STRATA_POSTGRES", help="Database of the server; SQLite without it."),
    ] = None,
    cron: CronOption = "0 3 * * *",
    timezone: ZoneOption = "UTC",
    port: Annotated[int, typer.Option(help="Of the Prefect UI and API.")] = 4200,
    ray_port: Annotated[int, typer.Option(help="Of Ray.")] = 6379,
    dashboard_port: Annotated[int, typer.Option(help="Of Ray's dashboard.")] = 8265,
    home: HomeOption = None,
) -> None:
    """Start a whole Strata on this machine: Prefect with its UI, a worker, Ray, all deployments.

    Everything listens on the loopback address. It runs until `strata down`.
    """

    stack = Stack(home or Stack.default_folder(), port, ray_port, dashboard_port)
    try:
        stack.up(
            store=store or ".strata",
            postgres=postgres,
            cron=cron,
            timezone=timezone,
            recipe=recipe,
            announce=err.print,
        )
    except RuntimeError as error:
        err.print(f"[bold red]error:[/] {error}", soft_wrap=True)
        raise typer.Exit(1) from error
    _show(stack.running())
    out.print(f"\nOpen http://127.0.0.1:{port} and run [bold]nightly[/]; it also runs at {cron!r}.")
    out.print(f"For the command line: export PREFECT_API_URL={stack.api}", soft_wrap=True)


def down(home: HomeOption = None) -> None:
    """End what `strata up` started; what is stored stays."""

    ended = Stack(home or Stack.default_folder()).down()
    names = ", ".join(service.name for service in ended)
    out.print(f"ended: {names}" if names else "Nothing was running.")


def status(home: HomeOption = None) -> None:
    """Say what of the local stack runs; exit code 1 if something has ended by itself."""

    services = Stack(home or Stack.default_folder()).running()
    if not services:
        out.print("Nothing runs; `strata up` starts it.")
        return
    _show(services)
    if not all(service.alive for service in services):
        raise typer.Exit(1)


def deploy(
    recipe: RecipeArgument = "smollm2",
    work_pool: Annotated[str, typer.Option(help="Pool whose workers run the flows.")] = "strata",
    cron: CronOption = "0 3 * * *",
    timezone: ZoneOption = "UTC",
    store: StoreOption = None,
    notify: NotifyOption = None,
) -> None:
    """Register every flow as a deployment with the Prefect server that PREFECT_API_URL names.

    The automations come with it: runs whose process is gone are marked as crashed, every published
    version starts the flow `consume`, and a failed night is told to a notification block.
    """
    import os

    if not os.environ.get("PREFECT_API_URL"):
        raise BadInput(
            "PREFECT_API_URL is not set: set it to your server's, or run `strata up` for a local "
            "one."
        )
    from flows.deployments import deploy as register_all

    names = register_all(
        recipe=recipe,
        work_pool=work_pool,
        cron=cron,
        timezone=timezone,
        store=store,
        notify=notify,
    )
    for name in names:
        out.print(name)


def metrics(
    store: StoreOption = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 9464,
) -> None:
    """Serve metrics of runs and artifacts to Prometheus, on /metrics."""
    from flows.metrics import serve_metrics

    serve_metrics(host, port, store or ".strata")


def _show(services: list[Running]) -> None:

    table = Table("service", "state", "pid", "address", box=None)
    for row in describe(services):
        table.add_row(row["service"], row["state"], str(row["pid"]), row["address"])
    out.print(table)

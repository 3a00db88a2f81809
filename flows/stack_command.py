"""`strata up`, `down`, `status`, `deploy` and `metrics`: running Strata as a service."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.home import default_home
from flows.options import StoreOption
from flows.recipe import BadInput
from flows.services import HOST, Running
from flows.stack import Settings, Stack, describe

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
    recipe: Annotated[
        str | None,
        typer.Argument(
            help="What runs every night: a recipe's name, or a `.yaml` file.",
            show_default=Settings.recipe,
        ),
    ] = None,
    store: StoreOption = None,
    postgres: Annotated[
        str | None,
        typer.Option(
            envvar="STRATA_POSTGRES",
            help="Database of the server, for more than one person; SQLite without it.",
        ),
    ] = None,
    cron: Annotated[
        str | None,
        typer.Option(help="When the nightly flow runs by itself.", show_default=Settings.cron),
    ] = None,
    timezone: Annotated[
        str | None,
        typer.Option(help="Time zone of the schedule.", show_default=Settings.timezone),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(help="Of the Prefect UI and API.", show_default=str(Settings.port)),
    ] = None,
    ray_port: Annotated[
        int | None, typer.Option(help="Of Ray.", show_default=str(Settings.ray_port))
    ] = None,
    dashboard_port: Annotated[
        int | None,
        typer.Option(help="Of Ray's dashboard.", show_default=str(Settings.dashboard_port)),
    ] = None,
    change: Annotated[
        bool,
        typer.Option("--change", help="Keep results or records elsewhere than until now."),
    ] = False,
    home: HomeOption = None,
) -> None:
    """Start a whole Strata on this machine: Prefect with its UI, a worker, Ray, all deployments.

    Everything listens on the loopback address, Ray included, and wants a password or a token. It
    runs until `strata down`. What is left out is as the last time, from whatever folder it is said.
    """

    stack = Stack(home or default_home())
    asked = {
        "recipe": recipe,
        "store": store,
        "cron": cron,
        "timezone": timezone,
        "port": port,
        "ray_port": ray_port,
        "dashboard_port": dashboard_port,
    }
    try:
        settings = stack.up(asked, postgres=postgres, change=change, announce=err.print)
    except RuntimeError as error:
        err.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        raise typer.Exit(1) from error
    _welcome(stack, settings)


def _welcome(stack: Stack, settings: Settings) -> None:
    """Print what runs and how to reach it."""
    _show(stack.running())
    url = f"http://{HOST}:{settings.port}"
    login = escape(shlex.quote(str(stack.login_path)))
    out.print(f"\nresults      {escape(settings.store)}", soft_wrap=True)
    out.print(f"Prefect UI   {url}", soft_wrap=True)
    out.print(f"password     cat {login}", soft_wrap=True)
    out.print(
        f'other tools  export PREFECT_API_URL={url}/api PREFECT_API_AUTH_STRING="$(cat {login})"',
        soft_wrap=True,
    )
    out.print(f"\nRun [bold]nightly[/] there; it also runs at {settings.cron!r}.")
    if settings.database == "sqlite":
        out.print("Its records are kept by SQLite; for more than one person, give --postgres.")


def down(home: HomeOption = None) -> None:
    """End what `strata up` started; what is stored stays."""

    ended = Stack(home or default_home()).down()
    names = ", ".join(service.name for service in ended)
    out.print(f"ended: {names}" if names else "Nothing was running.")


def status(home: HomeOption = None) -> None:
    """Say what of the local stack runs; exit code 1 if something has ended by itself."""

    services = Stack(home or default_home()).running()
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
    from flows.prometheus import serve_metrics

    kept = Stack(default_home()).settings
    if store is None and kept is not None and kept.api == os.environ.get("PREFECT_API_URL"):
        store = kept.store
    serve_metrics(host, port, store or ".strata")


def _show(services: list[Running]) -> None:

    table = Table("service", "state", "pid", "address", box=None)
    for row in describe(services):
        table.add_row(row["service"], row["state"], str(row["pid"]), row["address"])
    out.print(table)

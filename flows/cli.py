"""The `strata` command line."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from compute.machine.leftovers import clear_leftovers
from flows.artifacts_command import artifacts
from flows.command_notes import forget_killed
from flows.doctor_command import doctor
from flows.failures import refuse
from flows.home import default_home
from flows.options import StoreOption
from flows.plain_words import plain, plain_markup
from flows.recipe import BadInput, Recipe, load_recipe, recipe_names
from flows.services import known_login
from flows.stack_command import register as register_stack
from flows.steer_command import steer
from flows.training_recipes import TRAININGS, load_training
from flows.waiting import waiting_told
from storage.locations import without_secrets
from storage.sealing.damage import Damaged

if TYPE_CHECKING:
    from compute.steps.plan import RunPlan

__all__ = ["app", "begin", "main"]

app = typer.Typer(
    name="strata",
    help="Turn a generative model into a versioned, causally tested concept hierarchy.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(artifacts, name="artifacts")
app.command()(doctor)
app.command()(steer)

register_stack(app)

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

RecipeArgument = Annotated[
    str, typer.Argument(help="Name of a recipe that comes with Strata, or a `.yaml` file.")
]
SetOption = Annotated[
    list[str],
    typer.Option(
        "--set",
        "-s",
        metavar="NAME=VALUE",
        help="Change one setting, such as `learn.k=16`. May be given several times.",
    ),
]


def main() -> None:
    """Run the command line; bad input and damage end with one sentence and exit code 2."""
    try:
        begin()
    except (BadInput, PermissionError, Damaged) as error:
        refuse(error)
        sys.exit(2)


def begin() -> None:
    """Clear what killed commands left and tell of them, and run the command of ``sys.argv``."""
    clear_leftovers()
    for sentence in forget_killed():
        err.print(f"[yellow]{escape(plain(without_secrets(sentence)))}[/]", soft_wrap=True)
    _find_login()
    app()


def _find_login() -> None:
    """Find the password of a server of this user's own."""
    api = os.environ.get("PREFECT_API_URL")
    if api and not {"PREFECT_API_AUTH_STRING", "PREFECT_API_KEY"} & os.environ.keys():
        login = known_login(api, default_home())
        if login is not None:
            os.environ["PREFECT_API_AUTH_STRING"] = login


@app.command()
def run(recipe: RecipeArgument, settings: SetOption = [], store: StoreOption = None) -> None:  # noqa: B006
    """Run a recipe: extract, learn, encode, recover, publish.

    What is done already is not done again; what was interrupted goes on where it stopped.
    `train-sprites`, `train-digits` and `train-grammar` train the models that come with Strata anew.
    """
    if recipe in TRAININGS:
        training = load_training(recipe, _settings(settings, store))
        server_answers = _begin_server()
        from flows.train_flows import run_training

        server_answers()
        run_training(training, out.print)
        return
    chosen = _recipe(recipe, settings, store)
    server_answers = _begin_server()
    # While the server starts.
    with waiting_told() as say:
        found = _check(chosen, with_model=True)
        say("waits for the Prefect server of this run")
        from flows.build import build
        from tasks.checking import already_checked

        server_answers()
    err.print(f"[bold]strata[/] runs {chosen.name!r} into {escape(chosen.store)}")
    with already_checked(chosen, found):
        references = build(chosen)
    _summary(references)


@app.command()
def serve(
    recipe: RecipeArgument = "smollm2",
    settings: SetOption = [],  # noqa: B006
    store: StoreOption = None,
    cron: Annotated[str, typer.Option(help="When to run by itself.")] = "0 3 * * *",
    timezone: Annotated[str, typer.Option(help="Time zone of the schedule.")] = "UTC",
) -> None:
    """Serve a recipe as a Prefect deployment, to be run from the UI and every night.

    Uses the Prefect server that `PREFECT_API_URL` names; without one, starts a server on this
    machine, reachable from this machine only.
    """
    chosen = _recipe(recipe, settings, store)
    _check(chosen)
    from flows.serving import serve_nightly

    serve_nightly(chosen, cron=cron, timezone=timezone, announce=err.print)


@app.command()
def check(recipe: RecipeArgument, settings: SetOption = [], store: StoreOption = None) -> None:  # noqa: B006
    """Prove, on a few samples and in seconds, that a recipe captures what it means.

    Loads the model, reads it batched, alone, padded, packed and without hooks, and says what held.
    """
    from flows.check_command import print_check

    chosen = _recipe(recipe, settings, store)
    print_check(chosen, _check(chosen, with_model=True, anew=True), out)


@app.command()
def estimate(
    recipe: RecipeArgument,
    settings: SetOption = [],  # noqa: B006
    store: StoreOption = None,
    rehearse: Annotated[
        bool, typer.Option(help="Load the model and try each step on a few rows, for the time.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Say what a recipe will take: rows, disk, time and memory."""
    from flows.estimate_command import print_estimate

    chosen = _recipe(recipe, settings, store)
    with err.status("rehearsing each step on a few rows" if rehearse else "planning"):
        print_estimate(chosen, rehearse=rehearse, as_json=as_json, out=out)


@app.command()
def recipes() -> None:
    """List the recipes that come with Strata."""
    table = Table("recipe", "what it does", box=None, header_style="bold")
    for name in recipe_names():
        table.add_row(name, load_recipe(name).description.strip())
    out.print(table)


def _recipe(recipe: str, settings: list[str], store: str | None) -> Recipe:
    return load_recipe(recipe, _settings(settings, store))


def _settings(settings: list[str], store: str | None) -> list[str]:
    return [*settings, *([f"store={store}"] if store else [])]


def _check(recipe: Recipe, *, with_model: bool = False, anew: bool = False) -> RunPlan:
    """Refuse bad input here, in seconds, rather than in a flow run that must start first."""
    from compute.cluster import disconnect
    from compute.steps.plan import check as look

    try:
        found = look(recipe)
        if with_model:
            from compute.steps.proving import prove

            with err.status("trying the model on a few samples"):
                found = prove(recipe, found, anew=anew)
    except (ValueError, PermissionError) as error:
        raise BadInput(str(error)) from error
    finally:
        disconnect()
    return found


def _begin_server() -> Callable[[], None]:
    """Begin to start a server if there is none, and give back what waits until it answers."""
    # Prefect's log lines stay off a terminal that shows progress bars; the API gets them all.
    if err.is_terminal:
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "WARNING")
    from flows.temporary_server import begin_server

    return begin_server()


def _summary(references: dict[str, Any]) -> None:
    from storage.registry.manifests import LOSS_SCORES

    told = references["publish"].summary
    title = f"{told['name']} v{told['version']}"
    if told["status"] == "published":
        out.print(f"\n[bold green]{title}[/] is published")
    else:
        reasons = "; ".join(told["rejections"])
        out.print(f"\n[bold red]{title}[/] is rejected: {plain_markup(reasons)}", soft_wrap=True)
    out.print(f"  artifact  {escape(told['artifact'])}", soft_wrap=True)
    out.print(f"  report    {escape(told['report'])}", soft_wrap=True)
    out.print(f"  content   {references['publish'].content_hash}\n", soft_wrap=True)
    heads = ("edges into", "explained variance", "L0", "dead", "loss recovered")
    found = Table("level", "name", "concepts", *heads, box=None)
    nodes, edges = told["graph"]["nodes"], told["graph"]["edges_into"]
    found.add_row("0", "observed", f"{nodes.get('0', 0):,}", "", "", "", "", "")
    for number, (name, scores) in enumerate(told["levels"].items(), 1):
        found.add_row(
            str(number),
            name,
            f"{nodes.get(str(number), 0):,}",
            f"{edges.get(str(number), 0):,}",
            f"{scores.get('explained_variance', math.nan):.3f}",
            f"{scores['l0']:.1f}",
            f"{scores['dead_share']:.1%}",
            next((f"{scores[key]:.3f}" for key in LOSS_SCORES if key in scores), ""),
        )
    out.print(found)
    spent = Table("step", "seconds", box=None)
    for name, reference in references.items():
        spent.add_row(name, f"{reference.seconds:.1f}")
    out.print(spent)

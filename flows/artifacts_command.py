"""`strata artifacts`: look at what has been published, compare it, pass it on."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from flows.options import StoreOption
from flows.plain_words import plain, plain_json, plain_markup

if TYPE_CHECKING:
    from storage.artifacts import ArtifactReference, Registry

__all__ = ["artifacts"]

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


class _Refusing(TyperGroup):
    """Whatever a registry refuses is said in one sentence, with exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        from obstore.exceptions import BaseError

        from storage.artifacts import AliasMoved
        from storage.locations import without_secrets

        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # Who reads, as `head`, has read enough.
            raise
        except (ValueError, KeyError, AliasMoved, OSError, BaseError) as error:
            # A store's own errors go on with the whole request; the first line says what happened.
            # str() of a plain KeyError shows its sentence in quotes.
            plain_key = type(error) is KeyError and error.args
            said = without_secrets(str(error.args[0] if plain_key else error))
            reason = said.strip().partition("\n")[0] or type(error).__name__
            err.print(f"[bold red]error:[/] {plain_markup(reason)}", soft_wrap=True)
            raise typer.Exit(2) from error


artifacts = typer.Typer(
    help="Look at what has been published, compare it, and pass it on.",
    no_args_is_help=True,
    cls=_Refusing,
)

Name = Annotated[str, typer.Argument(help="Name of the artifact.")]
Version = Annotated[str, typer.Argument(help="A number or an alias.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


@artifacts.command("list")
def list_versions(store: StoreOption = None, as_json: AsJson = False) -> None:
    """List all artifacts and their versions."""
    from storage.artifacts import BadSignature

    registry = _registry(store)
    found: list[ArtifactReference] = []
    pointing: dict[str, dict[str, int]] = {}
    damaged = False
    for name in registry.names():
        # One that is damaged hides no other.
        try:
            versions, pointing[name] = registry.versions(name), registry.aliases(name)
            found += versions
        except (ValueError, BadSignature) as error:
            damaged = True
            err.print(f"[bold red]error:[/] {plain_markup(str(error))}", soft_wrap=True)
    _print_versions(found, pointing, as_json=as_json)
    if damaged:
        raise typer.Exit(2)


def _print_versions(
    found: list[ArtifactReference], pointing: dict[str, dict[str, int]], *, as_json: bool
) -> None:
    if as_json:
        _print_json([version.model_dump(mode="json") for version in found])
        return
    table = Table("artifact", "version", "status", "content hash", "aliases", box=None)
    for version in found:
        pointers = pointing[version.name].items()
        aliases = ", ".join(alias for alias, number in pointers if number == version.version)
        table.add_row(
            version.name, str(version.version), version.status, version.content_hash[:12], aliases
        )
    out.print(table if found else "Nothing has been published here yet.")


@artifacts.command()
def show(name: Name, version: Version = "latest", store: StoreOption = None) -> None:
    """Show what one version holds."""
    from storage.registry.manifests import LEVEL_SCORES, shown_scores

    manifest = _registry(store).load(name, version, verify=False).manifest
    out.print(f"[bold]{manifest.name} v{manifest.version}[/] {manifest.status}")
    for reason in manifest.rejections:
        out.print(f"rejected: {plain_markup(reason)}")
    out.print(f"created       {manifest.created_at:%Y-%m-%d %H:%M} UTC")
    out.print(f"parent        {manifest.parent or 'none'}")
    out.print(f"content hash  {manifest.content_hash}")
    for key, value in manifest.counts.items():
        out.print(f"{plain_markup(key):<13} {value:,}")
    shown = shown_scores(manifest.levels)
    table = Table("level", "name", "concepts", *(LEVEL_SCORES[s] for s in shown), box=None)
    for level in manifest.levels:
        scores = [level.metrics.get(metric) for metric in shown]
        table.add_row(
            str(level.level),
            level.name,
            f"{level.n_concepts:,}",
            *(f"{s:.3f}" if isinstance(s, int | float) else "" for s in scores),
        )
    out.print(table)


@artifacts.command()
def verify(name: Name, version: Version = "latest", store: StoreOption = None) -> None:
    """Check every byte of a version against its record."""
    artifact = _registry(store).load(name, version, verify=True)
    size = sum(entry.bytes for entry in artifact.manifest.files.values())
    out.print(f"{name} v{artifact.version} is whole: {len(artifact.files)} files, {size:,} bytes.")


@artifacts.command()
def reproduce(
    name: Name,
    version: Version = "latest",
    store: StoreOption = None,
    scratch: Annotated[
        Path | None,
        typer.Option(
            help="Folder that takes what is built, and keeps it; by default a temporary one."
        ),
    ] = None,
) -> None:
    """Build a version again from its own manifest, and compare it byte by byte.

    The exit code is 0 where all is the same, and 1 where something differs.
    """
    from flows.reproduction import reproduce_version

    registry = _registry(store)
    manifest = registry.load(name, version, verify=False).manifest
    with contextlib.ExitStack() as stack:
        if scratch is None:
            made = stack.enter_context(tempfile.TemporaryDirectory(prefix="strata-reproduce-"))
            scratch = Path(made)
        place = plain_markup(str(scratch))
        err.print(
            f"[bold]strata[/] builds {name} v{manifest.version} again in {place}",
            soft_wrap=True,
        )
        same = True
        for compared in reproduce_version(registry, manifest, scratch):
            said = "the same bytes" if compared.same else f"differs: {'; '.join(compared.why)}"
            out.print(f"{compared.what:<8} {plain_markup(said)}", soft_wrap=True)
            same = same and compared.same
    verdict = "is reproduced" if same else "is not reproduced here"
    out.print(f"{name} v{manifest.version} {verdict}.")
    if not same:
        raise typer.Exit(1)


@artifacts.command()
def compare(
    name: Name,
    old: Version,
    new: Version = "latest",
    store: StoreOption = None,
    as_json: AsJson = False,
    most: Annotated[int, typer.Option(min=0, help="Examples of each fate to print.")] = 20,
) -> None:
    """Say which concepts and edges are kept, changed, born and gone."""
    found = _registry(store).compare(name, old, new)
    if as_json:
        typer.echo(plain_json(found.to_json().decode()))
    else:
        typer.echo(plain(found.to_text(most=most)), nl=False)


@artifacts.command()
def alias(name: Name, store: StoreOption = None, as_json: AsJson = False) -> None:
    """Show where every alias of an artifact points."""
    found = _registry(store).aliases(name)
    if as_json:
        _print_json(found)
        return
    table = Table("alias", "version", box=None)
    for pointer, version in sorted(found.items()):
        table.add_row(pointer, str(version))
    out.print(table)


@artifacts.command()
def promote(
    name: Name,
    version: Version = "latest",
    alias: Annotated[str, typer.Option(help="The alias to move.")] = "production",
    expected: Annotated[
        int | None, typer.Option(help="Move only if the alias points at this version now.")
    ] = None,
    reason: Annotated[str, typer.Option(help="Kept in the alias's history.")] = "",
    store: StoreOption = None,
) -> None:
    """Point an alias at a version."""
    move = _registry(store).promote(name, version, alias, expected=expected, reason=reason)
    before = f", before v{move.previous}" if move.previous is not None else ""
    out.print(f"{name} {alias} → v{move.version}{before}")


@artifacts.command()
def withdraw(
    name: Name,
    alias: Annotated[str, typer.Argument(help="The alias to end.")],
    reason: Annotated[str, typer.Option(help="Kept in the alias's history.")] = "",
    store: StoreOption = None,
) -> None:
    """End an alias; its history stays."""
    move = _registry(store).withdraw(name, alias, reason=reason)
    out.print(f"{name} {alias} no longer points at v{move.previous}")


@artifacts.command()
def history(
    name: Name,
    alias: Annotated[str, typer.Argument(help="The alias.")] = "latest",
    store: StoreOption = None,
    as_json: AsJson = False,
) -> None:
    """List all moves of an alias, oldest first."""
    moves = _registry(store).history(name, alias)
    if as_json:
        _print_json([move.model_dump(mode="json") for move in moves])
        return
    table = Table("moved at", "from", "to", "reason", box=None)
    for move in moves:
        ends = (f"v{end}" if end is not None else "" for end in (move.previous, move.version))
        table.add_row(f"{move.moved_at:%Y-%m-%d %H:%M:%S}", *ends, plain_markup(move.reason))
    out.print(table)


@artifacts.command()
def renew(name: Name, store: StoreOption = None) -> None:
    """Sign where the aliases point and what is removed, as it is found: look at it first."""
    found = _registry(store).renew(name)
    held = ", ".join(f"{alias} → v{version}" for alias, version in found.items())
    out.print(f"{name} {held or 'has no alias that was moved'}")


@artifacts.command()
def export(
    name: Name,
    version: Version = "latest",
    form: Annotated[
        str, typer.Option("--format", "-f", help="saelens, neuronpedia, hub or graphml.")
    ] = "hub",
    to: Annotated[
        Path | None, typer.Option("--to", help="A new folder.", show_default="NAME-vN-FORMAT")
    ] = None,
    store: StoreOption = None,
) -> None:
    """Write a version to a folder, in a format that other tools load."""
    from storage.exports.formats import export as write

    artifact = _registry(store).load(name, version, verify=False)
    target = to if to is not None else Path(f"{name}-v{artifact.version}-{form}")
    typer.echo(write(artifact, form, target))


@artifacts.command()
def clean(
    name: Annotated[str | None, typer.Argument(help="One artifact; all by default.")] = None,
    keep_last: Annotated[
        int | None, typer.Option(help="Remove older versions, unless an alias holds them.")
    ] = None,
    keep_days: Annotated[
        float | None, typer.Option(help="Keep all versions younger than this.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell.")] = False,
    store: StoreOption = None,
) -> None:
    """Remove what crashed publishers left and, if asked, old versions."""
    from storage.artifacts import Retention

    if keep_last is None and keep_days is not None:
        raise ValueError("keep_days is given without keep_last: say how many versions to keep.")
    retention = Retention(keep_last, keep_days) if keep_last is not None else None
    found = _registry(store).collect_garbage(
        name, retention=retention, grace=timedelta(hours=24), dry_run=dry_run
    )
    verb = "would remove" if dry_run else "removed"
    for artifact, versions in found.versions.items():
        out.print(f"{verb} {artifact} {', '.join(f'v{version}' for version in versions)}")
    out.print(f"{verb} {len(found.leftovers)} folders of publishers that did not finish")


@artifacts.command()
def serve(
    host: Annotated[
        str, typer.Option(help="Where to listen; beyond this machine only with a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8420,
    token: Annotated[
        str | None,
        typer.Option(envvar="STRATA_TOKEN", help="Ask every client for this bearer token."),
    ] = None,
    allowed_host: Annotated[
        list[str],
        typer.Option(
            "--allowed-host",
            metavar="NAME",
            help="A further name by which clients reach the service, such as that of a proxy in "
            "front of it. May be given several times. Without one, a service on this machine "
            "answers to localhost, 127.0.0.1 and [::1], and one that listens elsewhere, which has "
            "a token, to every name.",
        ),
    ] = [],  # noqa: B006
    store: StoreOption = None,
) -> None:
    """Serve all artifacts over HTTP, read-only, with their pages."""
    try:
        from storage.service import serve as listen
    except ModuleNotFoundError as error:
        raise ValueError(
            f"the service needs the package {error.name!r}: pip install 'strata[serve]'."
        ) from None
    registry = _registry(store)
    err.print(f"[bold]strata[/] serves {registry.url} on http://{host}:{port}/", soft_wrap=True)
    listen(registry.url, host=host, port=port, token=token, allowed_hosts=allowed_host)


def _registry(store: str | None) -> Registry:
    from storage.artifacts import Registry
    from storage.locations import Location

    return Registry(
        (Location(store or os.environ.get("STRATA_STORE", ".strata")) / "artifacts").url
    )


def _print_json(value: Any) -> None:
    typer.echo(plain_json(json.dumps(value, ensure_ascii=False, indent=1)))

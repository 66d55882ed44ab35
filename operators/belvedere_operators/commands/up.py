"""`belvedere up` and `belvedere down`: the control plane of this machine and all that belongs to it."""

from __future__ import annotations

import asyncio
import shutil
import time
from typing import TYPE_CHECKING

import click

from belvedere_platform.cli.options import artifacts_option, home_option, settings, verbose_option
from belvedere_platform.errors import Conflict, InvalidInput

if TYPE_CHECKING:
    from belvedere_operators.controlplane.installation import Installation

PORT = click.IntRange(1, 65535)


def _ports(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, int]:
    """Read NAME=PORT, several separated by commas or each with its own flag."""
    found: dict[str, int] = {}
    for value in ",".join(values).split(","):
        if not value:
            continue
        name, separator, number = value.partition("=")
        if not separator or not number.isdigit() or not 0 < int(number) < 65536:
            raise InvalidInput(
                f"--port is {value!r}; it must be NAME=PORT with a port from 1 to 65535, as in prometheus=9191"
            )
        found[name] = int(number)
    return found


@click.command()
@click.option("--gateway-port", type=PORT, help="Port of the gateway [default: 8080].")
@click.option(
    "--port",
    "ports",
    multiple=True,
    callback=_ports,
    metavar="NAME=PORT",
    help="Port of another part; may be given several times.",
)
@click.option("--scrape-seconds", type=click.FloatRange(0.5, 300), help="How often Prometheus looks [default: 1].")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Return only when everything is ready.")
@click.option("--timeout", type=click.FloatRange(1), default=180, show_default=True, help="Seconds to wait.")
@artifacts_option
@home_option
@verbose_option
def up(
    gateway_port: int | None, ports: dict[str, int], scrape_seconds: float | None, wait: bool, timeout: float
) -> None:
    """Start Belvedere on this machine, or adopt what runs of it already.

    Starts the control plane, a local Ray, the Envoy gateway, Prometheus and Alertmanager, all on 127.0.0.1.
    Names for --port: gateway, operator, prometheus, alertmanager, envoy-admin, xds, gateway-metrics, shadow-tap,
    ray-dashboard, ray-metrics, ray-client, serve-http, serve-grpc.
    """
    from belvedere_operators.controlplane.installation import open_installation
    from belvedere_operators.controlplane.lifecycle import start

    given = settings()
    if gateway_port is not None:
        ports = {**ports, "gateway": gateway_port}
    artifacts = given.artifacts_url if given.artifacts_url != (given.home / "artifacts").as_uri() else None
    installation = open_installation(given.home, ports=ports, artifacts_url=artifacts, scrape_seconds=scrape_seconds)
    _refuse_change_while_running(installation)
    began = time.monotonic()
    started = start(installation)
    try:
        if wait:
            asyncio.run(_show(installation, timeout))
    except KeyboardInterrupt:
        if started:
            click.echo("interrupted: stopping what was started", err=True)
            asyncio.run(_stop(installation))
        raise
    word = "started" if started else "runs already"
    click.echo(f"Belvedere {word} in {installation.home} ({time.monotonic() - began:.0f} s)")
    click.echo(where_to_look(installation))


def _refuse_change_while_running(installation: Installation) -> None:
    from belvedere_operators.controlplane.installation import load_installation
    from belvedere_operators.executors.process import Running

    before = load_installation(installation.home)
    if before is None or before == installation or not isinstance(installation.operator_slot().observe(), Running):
        return
    raise Conflict(
        f"Belvedere runs in {installation.home} with other ports or settings: `belvedere down` first, or leave the flags out"
    )


def where_to_look(installation: Installation) -> str:
    """Return what a user wants to know next."""
    rows = [
        ("gateway (V2 over HTTP and gRPC)", installation.url("gateway")),
        ("Prometheus", installation.url("prometheus")),
        ("Alertmanager", installation.url("alertmanager")),
        ("Ray dashboard", installation.url("ray-dashboard")),
        ("operator health, metrics", f"{installation.url('operator')}/readyz, /metrics"),
        ("logs", str(installation.home / "logs")),
        ("stop it", f"belvedere down --home {installation.home}"),
    ]
    return "\n".join(f"  {name:<32} {place}" for name, place in rows)


async def _show(installation: Installation, timeout_seconds: float) -> None:
    """Show the parts as they become ready: as a live table on a terminal, else one line for each change."""
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

    from belvedere_operators.controlplane.lifecycle import READY, follow

    console = Console(stderr=True)
    began, said = time.monotonic(), dict[str, str]()

    def table(parts: dict[str, str]) -> Table:
        grid = Table.grid(padding=(0, 2))
        for name, state in parts.items():
            mark = "[green]✓[/]" if state == READY else "[yellow]…[/]"
            grid.add_row(mark, name, "" if state == READY else f"[dim]{state[:100]}[/]")
        grid.add_row("", f"[dim]{time.monotonic() - began:.0f} s[/]", "")
        return grid

    with Live(console=console, transient=True, refresh_per_second=8, auto_refresh=False) as live:
        async for look in follow(installation, timeout_seconds=timeout_seconds):
            if console.is_terminal:
                live.update(table(look.parts), refresh=True)
                continue
            for name, state in look.parts.items():
                if state == READY and said.get(name) != READY:
                    click.echo(f"{time.monotonic() - began:6.1f} s  {name} is ready", err=True)
            said = dict(look.parts)


async def _stop(installation: Installation) -> int:
    from belvedere_operators.controlplane.lifecycle import stop

    return await stop(installation)


@click.command()
@click.option("--purge", is_flag=True, help="Remove the home directory too: store, artifacts, logs and measurements.")
@home_option
@verbose_option
def down(purge: bool) -> None:
    """Stop everything that `belvedere up` started here, even when the control plane is dead."""
    from belvedere_operators.controlplane.installation import load_installation

    home = settings().home
    installation = load_installation(home)
    if installation is None:
        click.echo(f"nothing runs in {home}: there is no installation")
        return
    num_processes = asyncio.run(_stop(installation))
    click.echo(f"stopped {num_processes} processes of {home}")
    if purge:
        shutil.rmtree(home)
        click.echo(f"removed {home}")

"""`belvedere gateway`: the control plane of Envoy, Envoy's bootstrap, and Envoy itself."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from belvedere_platform.cli.options import object_store, settings, store_option, verbose_option
from belvedere_platform.errors import Unavailable

_C = TypeVar("_C", bound=Callable[..., Any])
_PORT = click.IntRange(1, 65535)


@click.group()
def gateway() -> None:
    """Route requests to the replicas of each version."""


@gateway.command()
@click.option("--xds-port", type=_PORT, default=18000, show_default=True, help="where Envoy asks for its configuration")
@click.option("--metrics-port", type=_PORT, default=18001, show_default=True, help="metrics and health of this process")
@click.option("--tap-port", type=_PORT, default=18002, show_default=True, help="where Envoy sends sampled requests")
@click.option("--address", default="127.0.0.1", show_default=True, help="address of discovery and tap")
@click.option("--metrics-address", default="127.0.0.1", show_default=True, help="address of metrics and health")
@click.option("--tap-address", default="127.0.0.1", show_default=True, help="this process's address as Envoy sees it")
@click.option("--memory", type=click.Path(path_type=Path, dir_okay=False), help="file for the last good routes")
@click.option(
    "--watch-namespace", "namespaces", multiple=True, metavar="NAME", help="follow only these; may be repeated"
)
@store_option
@verbose_option
def serve(**fields: Any) -> None:
    """Follow routes and replicas in the object store and keep every Envoy told."""
    from belvedere_serving.gateway.serve import ServeSettings

    logging.basicConfig(
        level=logging.DEBUG if settings().verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    asyncio.run(_serve(ServeSettings(**fields)))


async def _serve(told: Any) -> None:
    from prometheus_client import CollectorRegistry

    from belvedere_serving.gateway.serve import ControlPlane

    loop, serving = asyncio.get_running_loop(), asyncio.current_task()
    assert serving is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, serving.cancel)
    try:
        async with object_store() as store:
            await ControlPlane(store, told, CollectorRegistry()).run()
    except asyncio.CancelledError:
        logging.getLogger(__name__).info("stopped")


def _envoy_options(command: _C) -> _C:
    options = (
        click.option("--gateway-port", type=_PORT, default=8080, show_default=True, help="where clients connect"),
        click.option("--gateway-address", default="127.0.0.1", show_default=True, help="address clients connect to"),
        click.option("--admin-port", type=_PORT, default=9901, show_default=True, help="Envoy's admin and metrics"),
        click.option("--admin-address", default="127.0.0.1", show_default=True, help="address of admin and metrics"),
        click.option("--stats-port", type=_PORT, help="metrics and readiness alone, for others to ask"),
        click.option("--stats-address", default="127.0.0.1", show_default=True, help="address of the same"),
        click.option("--xds-port", type=_PORT, default=18000, show_default=True, help="port of `gateway serve`"),
        click.option("--xds-address", default="127.0.0.1", show_default=True, help="host of `gateway serve`"),
        click.option("--node-id", default="gateway", show_default=True, help="name of this Envoy"),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _write_bootstrap(file: Path, fields: dict[str, Any]) -> None:
    from belvedere_serving.gateway.bootstrap import EnvoySettings, bootstrap

    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f"{file.name}.{os.getpid()}.draft")
    draft.write_text(bootstrap(EnvoySettings(**fields)))
    draft.replace(file)


@gateway.command("envoy-bootstrap")
@_envoy_options
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), required=True, help="file to write")
@verbose_option
def envoy_bootstrap(output: Path, **fields: Any) -> None:
    """Write the file that Envoy is started with."""
    _write_bootstrap(output, fields)


@gateway.command()
@_envoy_options
@click.option(
    "--output", type=click.Path(path_type=Path, dir_okay=False), required=True, help="bootstrap file to write"
)
@click.option("--threads", type=click.IntRange(1, 64), default=1, show_default=True, help="Envoy's worker threads")
@click.option("--log-level", default="warning", show_default=True, help="Envoy's log level")
@verbose_option
def envoy(output: Path, threads: int, log_level: str, **fields: Any) -> None:
    """Write the bootstrap and become Envoy: same process, so signals reach it."""
    from belvedere_serving.gateway.envoy import envoy_command

    _write_bootstrap(output, fields)
    command = envoy_command(output, num_threads=threads, log_level=log_level)
    os.execv(command[0], command)


@gateway.command()
@click.option("--admin-port", type=_PORT, default=9901, show_default=True, help="Envoy's admin")
@click.option("--admin-address", default="127.0.0.1", show_default=True, help="address of admin")
@click.option(
    "--shortest-seconds",
    type=click.FloatRange(min=0),
    default=12.0,
    show_default=True,
    help="time for clients to leave",
)
@click.option(
    "--longest-seconds", type=click.FloatRange(min=0), default=60.0, show_default=True, help="time for requests to end"
)
@verbose_option
def drain(admin_port: int, admin_address: str, shortest_seconds: float, longest_seconds: float) -> None:
    """Send Envoy's clients elsewhere and wait until their requests are answered: before Envoy is ended."""
    import time

    import httpx

    from belvedere_serving.gateway.drain import drain as drain_envoy

    with httpx.Client(base_url=f"http://{admin_address}:{admin_port}", timeout=5.0, trust_env=False) as client:
        left = drain_envoy(
            client,
            shortest_seconds=shortest_seconds,
            longest_seconds=longest_seconds,
            monotonic=time.monotonic,
            sleep=time.sleep,
        )
    if left:
        raise Unavailable(f"{left} requests were not answered within {longest_seconds:g} s")

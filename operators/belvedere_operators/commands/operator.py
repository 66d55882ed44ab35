"""`belvedere operator`: the control plane itself, on one machine or in a cluster."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from belvedere_platform.cli.options import artifacts_option, settings, store_option, verbose_option
from belvedere_platform.errors import InvalidInput


@click.command()
@click.option(
    "--embedded", is_flag=True, help="Act on this machine: run the children as processes, Ray jobs and so on."
)
@click.option("--address", default="0.0.0.0", show_default=True, help="Address of webhook, health and metrics.")
@click.option("--port", type=click.IntRange(1, 65535), default=8081, show_default=True, help="Port of the same.")
@click.option("--prometheus-url", default="http://prometheus-operated.monitoring:9090", show_default=True)
@click.option(
    "--alerts-secret-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File with the secret that Alertmanager sends.",
)
@click.option("--gateway-url", help="Where clients reach the gateway; shown in status.")
@click.option("--image", default="belvedere:dev", show_default=True, help="Image of what the operator starts.")
@click.option("--watch-namespace", help="Act on this namespace only.")
@click.option("--instance", default="cluster", show_default=True, help="Id of this installation.")
@artifacts_option
@store_option
@verbose_option
def operator(
    embedded: bool,
    address: str,
    port: int,
    prometheus_url: str,
    alerts_secret_file: Path | None,
    gateway_url: str | None,
    image: str,
    watch_namespace: str | None,
    instance: str,
) -> None:
    """Run the control plane in the foreground (`belvedere up` runs it for you)."""
    if embedded:
        _run_embedded()
        return
    if alerts_secret_file is None:
        raise InvalidInput("--alerts-secret-file is missing: without a secret anybody could abort a rollout")
    from belvedere_operators.controllers.context import Settings
    from belvedere_operators.controlplane.cluster import run_in_cluster
    from belvedere_operators.controlplane.logs import log_to

    log_to(None, verbose=settings().verbose)
    told = Settings(
        instance=instance,
        artifacts_url=settings().artifacts_url,
        store_url=settings().store_url,
        namespace=watch_namespace,
        prometheus_url=prometheus_url,
        alerts_secret=alerts_secret_file.read_text().strip(),
        gateway_url=gateway_url,
        image=image,
    )
    asyncio.run(run_in_cluster(told, address=address, port=port))


def _run_embedded() -> None:
    from belvedere_operators.controlplane.embedded import run_embedded
    from belvedere_operators.controlplane.installation import control_plane_lock, load_installation
    from belvedere_operators.controlplane.logs import log_to

    home = settings().home
    installation = load_installation(home)
    if installation is None:
        raise InvalidInput(f"there is no installation in {home}: `belvedere up --home {home}` makes one")
    with control_plane_lock(home):
        log_to(installation.log, verbose=settings().verbose)
        asyncio.run(run_embedded(installation))

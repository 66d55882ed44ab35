"""`belvedere operator`: the control plane itself, on one machine or in a cluster."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from belvedere_platform.cli.options import artifacts_option, settings, store_option, verbose_option
from belvedere_platform.errors import InvalidInput

if TYPE_CHECKING:
    from belvedere_operators.controlplane.cluster import Candidacy
    from belvedere_operators.manifests.raycluster import HeadStore

PREFIX = "BELVEDERE_OPERATOR"


NODES = "nodes"
WORKERS = 16


def _budget(context: click.Context, parameter: click.Parameter, given: str | None) -> float | str | None:
    if given is None or given == NODES:
        return given
    try:
        number = float(given)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise click.BadParameter(
            f"{given!r} is neither a number that is not negative nor {NODES!r}", context, parameter
        )
    return number


def _redis(context: click.Context, parameter: click.Parameter, given: str | None) -> str | None:
    if given is not None and not re.fullmatch(r"(rediss?://)?[^\s/:@]+:[0-9]{1,5}", given):
        raise click.BadParameter(f"{given!r} must be HOST:PORT, before it redis:// or rediss://", context, parameter)
    return given


@click.command(
    context_settings={"auto_envvar_prefix": PREFIX},
    epilog=f"Every option can be given by the environment, too: --pod-defaults as {PREFIX}_POD_DEFAULTS.",
)
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
@click.option(
    "--alerts-secret", metavar="NAMESPACE/NAME", help="Secret with it, key token; it is made when it is not there."
)
@click.option("--gateway-url", help="Where clients reach the gateway; shown in status.")
@click.option("--image", default="belvedere:dev", show_default=True, help="Image of what the operator starts.")
@click.option(
    "--pod-defaults",
    type=click.Path(path_type=Path, dir_okay=False),
    help="YAML file with what all pods of children get: sections all, training, engines, serving (docs/cluster.md).",
)
@click.option(
    "--watch-namespace", "namespaces", multiple=True, metavar="NAME", help="Act on this namespace only. Repeatable."
)
@click.option(
    "--lease",
    metavar="NAMESPACE/NAME",
    help="Act only while holding this Lease, so that several operators may run. Without it there must be one only.",
)
@click.option(
    "--accelerators",
    callback=_budget,
    metavar=f"NUMBER|{NODES}",
    help="How many accelerators TrainingRuns may hold at a time, more wait; `nodes` for what the nodes have, less what "
    "replicas hold. [default: nobody counts]",
)
@click.option(
    "--network-peers",
    type=click.Path(path_type=Path, dir_okay=False),
    help="YAML file with who may reach the pods of children: gateway, operator, kuberay, monitoring (docs/cluster.md). "
    "[default: everybody]",
)
@click.option(
    "--ray-redis",
    callback=_redis,
    metavar="HOST:PORT",
    help="Redis in which the Ray heads of services keep what they know, so that replicas outlive them; rediss://HOST:PORT "
    "with TLS. [default: their memory alone]",
)
@click.option(
    "--ray-redis-password",
    metavar="SECRET/KEY",
    help="Secret with its password; it must be in every namespace with services.",
)
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
    alerts_secret: str | None,
    gateway_url: str | None,
    image: str,
    pod_defaults: Path | None,
    namespaces: tuple[str, ...],
    lease: str | None,
    accelerators: float | str | None,
    network_peers: Path | None,
    ray_redis: str | None,
    ray_redis_password: str | None,
    instance: str,
) -> None:
    """Run the control plane in the foreground (`belvedere up` runs it for you)."""
    if embedded:
        _run_embedded()
        return
    import uvloop

    from belvedere_operators.controllers.context import Settings
    from belvedere_operators.controlplane.cluster import run_in_cluster
    from belvedere_operators.controlplane.logs import log_to
    from belvedere_operators.manifests.network import read_network_peers
    from belvedere_operators.manifests.pods import in_containers, read_pod_defaults
    from belvedere_platform.resources.pod_patch import PodDefaults

    told = Settings(
        instance=instance,
        artifacts_url=settings().artifacts_url,
        store_url=settings().store_url,
        namespaces=namespaces,
        prometheus_url=prometheus_url,
        alerts_secret=_secret(alerts_secret_file, alerts_secret, settings().store_url),
        gateway_url=gateway_url,
        image=image,
        accelerators=accelerators if isinstance(accelerators, float) else None,
        count_accelerators=accelerators == NODES,
        workers=WORKERS,
        network_peers=read_network_peers(network_peers) if network_peers else None,
        head_store=_head_store(ray_redis, ray_redis_password),
        pod_defaults=in_containers(read_pod_defaults(pod_defaults) if pod_defaults else PodDefaults()),
    )
    candidacy = _candidacy(lease, os.environ)
    log_to(None, verbose=settings().verbose)
    # Its loop is compiled: most of what the operator does is reading and writing sockets.
    uvloop.run(run_in_cluster(told, address=address, port=port, candidacy=candidacy))


def _secret(file: Path | None, kept: str | None, store_url: str) -> str:
    if file is not None and kept is not None:
        raise InvalidInput("--alerts-secret-file and --alerts-secret are both given: leave one of them out")
    if file is not None:
        return _secret_of_file(file)
    if kept is None:
        raise InvalidInput(
            "--alerts-secret-file and --alerts-secret are missing: without a secret anybody could abort a rollout"
        )
    return asyncio.run(_kept_secret(*_place("--alerts-secret", kept), store_url))


def _secret_of_file(path: Path) -> str:
    try:
        secret = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise InvalidInput(f"--alerts-secret-file {path} cannot be read: {error.strerror}") from error
    if not secret:
        raise InvalidInput(f"--alerts-secret-file {path} is empty: put a secret into it")
    return secret


async def _kept_secret(namespace: str, name: str, store_url: str) -> str:
    from belvedere_operators.alerts.secret import kept_token
    from belvedere_platform.store.connect import connect

    store = connect(store_url)
    try:
        return await kept_token(store, namespace, name)
    finally:
        await store.close()


def _place(option: str, text: str, form: str = "NAMESPACE/NAME") -> tuple[str, str]:
    namespace, separator, name = text.partition("/")
    if not separator or not namespace or not name or "/" in name:
        raise InvalidInput(f"{option} is {text!r}; it must be {form}")
    return namespace, name


def _head_store(address: str | None, password: str | None) -> HeadStore | None:
    from belvedere_operators.manifests.raycluster import HeadStore

    if address is None and password is not None:
        raise InvalidInput("--ray-redis-password is given without --ray-redis: say which Redis it is for")
    if address is None:
        return None
    secret = _place("--ray-redis-password", password, "SECRET/KEY") if password is not None else None
    return HeadStore(address=address, password=secret)


def _candidacy(lease: str | None, environment: Mapping[str, str]) -> Candidacy | None:
    from belvedere_operators.controlplane.cluster import Candidacy

    if lease is None:
        return None
    namespace, name = _place("--lease", lease)
    # A pod that is started again under its name is another candidate than the one that was killed.
    identity = f"{environment.get('POD_NAME') or socket.gethostname()}_{uuid.uuid4().hex[:8]}"
    return Candidacy(namespace=namespace, name=name, identity=identity)


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

"""The control plane of one machine as one running thing: store, controllers, executors, server."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import httpx

from belvedere_operators.alerts.webhook import AlertWebhook
from belvedere_operators.controllers import controllers
from belvedere_operators.controllers.context import Context, Settings
from belvedere_operators.controlplane.installation import NAMESPACE, Installation
from belvedere_operators.controlplane.server import OperatorServer, Parts, control_plane_parts, platform_parts
from belvedere_operators.executors.deployment import deployment_executor
from belvedere_operators.executors.job import job_executor
from belvedere_operators.executors.log_limit import LogLimit
from belvedere_operators.executors.prometheus_rule import prometheus_rule_executor
from belvedere_operators.executors.ray_dashboard import RayDashboard
from belvedere_operators.executors.rayjob import ray_job_executor
from belvedere_operators.executors.rayservice import ServeSettings, ray_service_executor
from belvedere_operators.executors.workload import Machine
from belvedere_operators.manifests.platform import platform_manifests
from belvedere_operators.runtime import Caches, ControlPlane, Runnable, SystemClock
from belvedere_platform.errors import BelvedereError
from belvedere_platform.store import ObjectStore
from belvedere_platform.store.connect import connect

log = logging.getLogger(__name__)

FIELD_MANAGER = "belvedere-platform"


def embedded_settings(installation: Installation) -> Settings:
    """Return how the controllers are set up on one machine."""
    return Settings(
        instance=installation.instance,
        artifacts_url=installation.artifacts_url,
        store_url=installation.store_url,
        home=str(installation.home),
        prometheus_url=installation.url("prometheus"),
        alerts_secret=installation.alerts_secret,
        gateway_url=installation.url("gateway"),
        cluster_cpus=float(installation.num_cpus),
    )


def executors(installation: Installation, machine: Machine, http: httpx.AsyncClient) -> list[Runnable]:
    """Return what acts on the children in place of a cluster."""
    ports = installation.ports
    ray = RayDashboard(address=f"127.0.0.1:{ports['ray-dashboard']}", http=http)
    serve = ServeSettings(http_port=ports["serve-http"], grpc_port=ports["serve-grpc"])
    return [
        deployment_executor(machine),
        job_executor(machine),
        ray_job_executor(machine, ray, installation.ray_directory),
        ray_service_executor(machine, ray, serve),
        prometheus_rule_executor(
            machine,
            directory=installation.rules_directory,
            prometheus_url=installation.url("prometheus"),
            http=http,
        ),
        LogLimit(home=installation.home, instance=installation.instance, clock=machine.clock),
    ]


async def run_embedded(installation: Installation) -> None:
    """Run until SIGTERM or SIGINT. What runs on the machine goes on without it."""
    store = connect(installation.store_url)
    clock = SystemClock()
    caches = Caches(store, clock=clock)
    context = Context(store=store, caches=caches, clock=clock, settings=embedded_settings(installation))
    machine = Machine(
        store=store,
        caches=caches,
        clock=clock,
        home=installation.home,
        instance=installation.instance,
        environment=installation.environment(),
    )
    async with httpx.AsyncClient(timeout=httpx.Timeout(10.0, connect=2.0), trust_env=False) as http:
        try:
            await install_platform(store, installation)
            await _run(context, executors(installation, machine, http), installation)
        finally:
            await context.http.aclose()
            await store.close()


async def install_platform(store: ObjectStore, installation: Installation) -> None:
    """Apply the platform's own Deployments and ConfigMaps."""
    for manifest in platform_manifests(installation):
        await store.apply(manifest, field_manager=FIELD_MANAGER)


async def _run(context: Context, acting: Sequence[Runnable], installation: Installation) -> None:
    plane: ControlPlane

    async def parts() -> Parts:
        found = await control_plane_parts(context.store, plane)
        return found | await platform_parts(context.store, NAMESPACE)

    server = OperatorServer(
        address="127.0.0.1",
        port=installation.ports["operator"],
        parts=parts,
        webhook=AlertWebhook(context.store, clock=context.clock, secret=installation.alerts_secret),
    )
    plane = ControlPlane(context.caches, [*controllers(context), *acting, server])
    log.info("control plane of %s starts", installation.home)
    with stopping_on_signals(plane.stop):
        await run_plane(plane)
    log.info("control plane stopped")


async def run_plane(plane: ControlPlane) -> None:
    """Run, and raise the first failure instead of a group of them."""
    try:
        await plane.run()
    except BaseExceptionGroup as group:
        known = group.subgroup(BelvedereError)
        first: BaseException = known if known is not None else group
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from group


@contextmanager
def stopping_on_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` at SIGTERM or SIGINT, for the time of a with block."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)

"""The gateway's control plane as one process: follows the store, tells Envoy, compares shadows, shows what it does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, ProcessCollector, generate_latest

from belvedere_platform.errors import Unavailable
from belvedere_platform.store.protocol import ObjectStore
from belvedere_platform.telemetry.gateway_metrics import EFFECTIVE_WEIGHT, REJECTED_ROUTES, ROUTABLE_REPLICAS
from belvedere_serving.gateway.candidate import CandidateClient
from belvedere_serving.gateway.memory import Memory, load_memory, save_memory
from belvedere_serving.gateway.routes import claim_conflicts
from belvedere_serving.gateway.shadow import ShadowMetrics, ShadowTap, serve_tap
from belvedere_serving.gateway.snapshot import Snapshot, build_snapshot, shares
from belvedere_serving.gateway.watch import Observed, Watcher
from belvedere_serving.gateway.world import World
from belvedere_serving.gateway.xds import Discovery, serve_discovery

log = logging.getLogger(__name__)

_GATHER_SECONDS = 0.02
"""Changes that come this close together are told to Envoy as one."""
_CLOSE_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """Where the control plane listens, and where Envoy finds the tap."""

    xds_port: int
    metrics_port: int
    tap_port: int
    address: str = "127.0.0.1"
    """Of discovery and the tap, which only Envoy asks."""
    metrics_address: str = "127.0.0.1"
    tap_address: str = "127.0.0.1"
    memory: Path | None = None
    """File with the last good routes and replicas."""
    namespaces: tuple[str, ...] = ()
    """Those to follow; all when empty."""


class ObservedState:
    """Gauges of what the gateway does, which may differ from what it was asked."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ["namespace", "service", "version", "protocol"]
        self._weight = Gauge(EFFECTIVE_WEIGHT, "percent of new requests", labels, registry=registry)
        self._replicas = Gauge(ROUTABLE_REPLICAS, "replicas that take new requests", labels, registry=registry)
        self._rejected = Gauge(
            REJECTED_ROUTES, "1 while the last good route is used", ["namespace", "name"], registry=registry
        )

    def show(self, world: World, observed: Observed) -> None:
        """Replace all gauges."""
        for gauge in (self._weight, self._replicas, self._rejected):
            gauge.clear()
        for share in shares(world):
            labels = (share.namespace, share.service, share.version, share.protocol)
            self._weight.labels(*labels).set(share.weight)
            self._replicas.labels(*labels).set(share.replicas)
        for namespace, name in observed.rejected:
            self._rejected.labels(namespace, name).set(1)


class ControlPlane:
    """Joins the parts; `run` ends when cancelled."""

    def __init__(self, store: ObjectStore, settings: ServeSettings, registry: CollectorRegistry) -> None:
        self._settings = settings
        self._registry = registry
        self._world = World()
        self._saved = load_memory(settings.memory) if settings.memory else Memory()
        self._observed = Observed(remembered=dict(self._saved.routes))
        self._serves_memory = False
        self._changed = asyncio.Event()
        self._watcher = Watcher(
            store, self._observed, self._changed.set, namespaces=settings.namespaces, on_silence=self._serve_memory
        )
        self._discovery = Discovery(registry)
        if self._saved.routes:
            # An Envoy that outlived the process before this one has what that one wrote down before it told it.
            self._discovery.recall(self._snapshot(_world_of(self._saved)))
        self._state = ObservedState(registry)
        self._conflicts: list[str] = []
        self._forgetful = False
        """Whether the memory could not be written."""

    async def run(self) -> None:
        """Serve until cancelled."""
        settings = self._settings
        client = CandidateClient()
        tap = ShadowTap(lambda: self._world, client, ShadowMetrics(self._registry))
        try:
            async with (
                _running(await _start(serve_tap(tap, f"{settings.address}:{settings.tap_port}"), settings.tap_port)),
                _running(
                    await _start(
                        serve_discovery(self._discovery, f"{settings.address}:{settings.xds_port}"), settings.xds_port
                    )
                ),
                self._metrics_page(),
                asyncio.TaskGroup() as group,
            ):
                group.create_task(self._watcher.run())
                group.create_task(tap.run())
                group.create_task(self._publish(client))
        finally:
            await client.close()

    async def _publish(self, client: CandidateClient) -> None:
        while True:
            await self._changed.wait()
            await asyncio.sleep(_GATHER_SECONDS)
            self._changed.clear()
            self._remember()
            self._tell(self._observed.world())
            self._report_conflicts()
            await client.keep_only(replica for found in self._world.replicas.values() for replica in found)

    def _tell(self, world: World) -> None:
        self._world = world
        self._discovery.publish(self._snapshot(world))
        self._state.show(world, self._observed)

    def _snapshot(self, world: World) -> Snapshot:
        return build_snapshot(world, tap_address=self._settings.tap_address, tap_port=self._settings.tap_port)

    def _serve_memory(self) -> None:
        """Go on from where the process before this one was, as long as the store cannot be read."""
        if self._serves_memory or not self._saved.routes:
            return
        self._serves_memory = True
        log.warning("the store cannot be read: serving what was remembered: file=%s", self._settings.memory)
        self._tell(_world_of(self._saved))

    def _report_conflicts(self) -> None:
        conflicts = claim_conflicts(self._world.routes.values())
        for sentence in conflicts:
            if sentence not in self._conflicts:
                log.error("two services claim one name: %s", sentence)
        self._conflicts = conflicts

    def _remember(self) -> None:
        current = Memory(routes=dict(self._observed.routes), replicas=dict(self._observed.replicas))
        if self._settings.memory is None or self._saved == current:
            return
        try:
            save_memory(self._settings.memory, current)
        except OSError as error:
            # A full disk must not keep Envoy from what is new. Tried again with the next change.
            if not self._forgetful:
                log.error("what is served cannot be written down: file=%s error=%s", self._settings.memory, error)
            self._forgetful = True
        else:
            self._saved, self._forgetful = current, False

    @asynccontextmanager
    async def _metrics_page(self) -> AsyncIterator[None]:
        ProcessCollector(registry=self._registry)
        app = web.Application()
        app.router.add_get("/metrics", self._show_metrics)
        app.router.add_get("/healthz", self._show_health)
        app.router.add_get("/readyz", self._show_readiness)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=_CLOSE_SECONDS)
        await runner.setup()
        try:
            await _start(
                web.TCPSite(runner, self._settings.metrics_address, self._settings.metrics_port).start(),
                self._settings.metrics_port,
            )
            yield
        finally:
            await runner.cleanup()

    async def _show_metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._registry), headers={"content-type": CONTENT_TYPE_LATEST})

    async def _show_health(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _show_readiness(self, request: web.Request) -> web.Response:
        if not (self._watcher.complete or self._serves_memory):
            raise web.HTTPServiceUnavailable(text="the store has not been read yet\n")
        return web.Response(text="ok\n")


def _world_of(memory: Memory) -> World:
    return Observed(routes=dict(memory.routes), replicas=dict(memory.replicas)).world()


async def _start(starting: Any, port: int) -> Any:
    try:
        return await starting
    except (OSError, RuntimeError) as error:
        raise Unavailable(f"port {port} cannot be opened: {error}; is something else listening there?") from error


@asynccontextmanager
async def _running(server: Any) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await server.stop(_CLOSE_SECONDS)

"""The control plane in a cluster: one of several leads, and nobody acts on the children but the cluster."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from prometheus_client import Gauge

from belvedere_operators.alerts.webhook import AlertWebhook
from belvedere_operators.controllers import controllers
from belvedere_operators.controllers.context import Context, Settings
from belvedere_operators.controlplane.embedded import run_plane, stopping_on_signals
from belvedere_operators.controlplane.server import OperatorServer, Parts, control_plane_parts, store_part
from belvedere_operators.runtime import CachedStore, Caches, Clock, Controller, ControlPlane, MeteredStore, SystemClock
from belvedere_operators.runtime.lease import LeaderElection
from belvedere_platform.store import ObjectStore
from belvedere_platform.store.connect import connect

log = logging.getLogger(__name__)

YOUNG_OBJECTS = 50_000
"""How many objects more there are before Python looks for cycles among them; it would be 700.

What the caches hold is millions of plain dicts without any, and Python would go through them again and again while they are
read: more than half of the time that reading them takes.
"""
LEADING = Gauge("belvedere_leader", "1 while this operator acts, 0 while it stands by")


@dataclass(frozen=True, kw_only=True)
class Candidacy:
    """The lease to hold while acting, and as whom."""

    namespace: str
    name: str
    identity: str


async def run_in_cluster(settings: Settings, *, address: str, port: int, candidacy: Candidacy | None) -> None:
    """Run until SIGTERM or SIGINT. Raises LeadershipLost when another may act now."""
    gc.set_threshold(YOUNG_OBJECTS, 20, 20)
    store, clock = MeteredStore(connect(settings.store_url)), SystemClock()
    operator = ClusterOperator(store, clock, settings, candidacy)
    server = OperatorServer(
        address=address,
        port=port,
        parts=operator.parts,
        stuck=operator.stuck,
        # A standby hears alerts too: it only writes them down, and the one that leads reads them.
        webhook=AlertWebhook(store, clock=clock, secret=settings.alerts_secret, namespaces=settings.namespaces),
    )
    stop = asyncio.Event()
    try:
        with stopping_on_signals(stop.set):
            await until_first(server.run, operator.run, stop.wait)
    finally:
        await operator.close()
        await store.close()
    log.info("control plane stopped")


class ClusterOperator:
    """The controllers of one process: idle until it leads."""

    def __init__(
        self, store: ObjectStore, clock: Clock, settings: Settings, candidacy: Candidacy | None = None
    ) -> None:
        self._store = store
        self._namespaces = settings.namespaces
        caches = Caches(store, clock=clock, namespaces=settings.namespaces)
        self._context = Context(store=CachedStore(store, caches), caches=caches, clock=clock, settings=settings)
        self._controllers = controllers(self._context)
        self._plane = ControlPlane(caches, self._controllers)
        self._election = (
            LeaderElection(
                store, namespace=candidacy.namespace, name=candidacy.name, identity=candidacy.identity, clock=clock
            )
            if candidacy is not None
            else None
        )
        self.acting = asyncio.Event()

    async def run(self) -> None:
        """Act, as soon as and as long as this process leads."""
        await (self._act() if self._election is None else self._election.lead(self._act))

    async def parts(self) -> Parts:
        """Say how ready this process is. One that stands by is, when it could take over."""
        if self.acting.is_set():
            return await control_plane_parts(self._store, self._plane, self._namespaces)
        return {"control plane": "ready", "store": await store_part(self._store, self._namespaces)}

    async def wait_ready(self) -> None:
        """Return when every cache of the process that acts has been filled."""
        await self._plane.ready.wait()

    def stuck(self) -> list[str]:
        """Name the reconciles that have not ended for so long that they never will."""
        return [told for one in self._controllers if isinstance(one, Controller) for told in one.stuck()]

    async def close(self) -> None:
        """Release connections."""
        await self._context.http.aclose()

    async def _act(self) -> None:
        self.acting.set()
        LEADING.set(1)
        try:
            await run_plane(self._plane)
        finally:
            LEADING.set(0)
            self.acting.clear()


async def until_first(*works: Callable[[], Awaitable[object]]) -> None:
    """Run all until one ends, then end the others and wait for them. Raises what the first one raised."""
    tasks = [asyncio.ensure_future(work()) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        first = next(task for task in tasks if task.done())
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    first.result()

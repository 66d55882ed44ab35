"""The operator's HTTP server: health, readiness that means it, metrics, and the alert webhook."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest

from belvedere_operators.alerts.webhook import AlertWebhook
from belvedere_operators.runtime import ControlPlane
from belvedere_platform.errors import BelvedereError, NotFound, Unavailable
from belvedere_platform.store import ObjectStore
from belvedere_platform.store.kinds import DEPLOYMENT, MODEL_SERVICE

READY = "ready"
Parts = dict[str, str]
"""By part: `ready`, or why not."""


async def control_plane_parts(store: ObjectStore, plane: ControlPlane, namespaces: Sequence[str] = ()) -> Parts:
    """Say whether the store answers and the caches are filled."""
    waiting = "; ".join(("reading the store", *plane.problems()))
    return {
        "control plane": "ready" if plane.ready.is_set() else waiting,
        "store": await store_part(store, namespaces),
    }


async def store_part(store: ObjectStore, namespaces: Sequence[str] = ()) -> str:
    """Say whether the store answers."""
    try:
        # Needs no right but one that the controllers need anyway, and costs the same however many objects there are.
        await store.get(MODEL_SERVICE, "readiness", namespaces[0] if namespaces else "default")
    except NotFound:
        return READY
    except BelvedereError as error:
        return str(error)
    return READY


async def platform_parts(store: ObjectStore, namespace: str) -> Parts:
    """Say of each Deployment of the platform whether it is available as it is wanted now."""
    listing = await store.list(DEPLOYMENT, namespace)
    return {item["metadata"]["name"]: _why_not(item.get("status", {}), item["metadata"]) for item in listing.items}


def _why_not(status: dict[str, object], metadata: dict[str, object]) -> str:
    if status.get("observedGeneration") != metadata.get("generation"):
        return "starting"
    conditions = status.get("conditions")
    for condition in conditions if isinstance(conditions, list) else ():
        if condition["type"] == "Available":
            return "ready" if condition["status"] == "True" else condition.get("message") or "starting"
    return "starting"


@dataclass(kw_only=True)
class OperatorServer:
    """Serves until cancelled."""

    address: str
    port: int
    parts: Callable[[], Awaitable[Parts]]
    webhook: AlertWebhook | None
    stuck: Callable[[], Sequence[str]] = tuple
    """What has hung so long that only a new process helps."""
    registry: CollectorRegistry = REGISTRY
    name: str = "server"

    async def run(self) -> None:
        """Listen. Raises Unavailable when the port is taken."""
        runner = web.AppRunner(self.application(), access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        try:
            try:
                await web.TCPSite(runner, self.address, self.port).start()
            except OSError as error:
                raise Unavailable(
                    f"port {self.port} of {self.address} cannot be had: {error.strerror or error}; "
                    "choose another with --port operator=PORT"
                ) from error
            await _for_ever()
        finally:
            await runner.cleanup()

    def application(self) -> web.Application:
        """Return the application."""
        application = web.Application(client_max_size=2**21)
        application.router.add_get("/healthz", self._health)
        application.router.add_get("/readyz", self._readiness)
        application.router.add_get("/metrics", self._metrics)
        if self.webhook is not None:
            self.webhook.add_to(application)
        return application

    async def _health(self, request: web.Request) -> web.Response:
        stuck = self.stuck()
        return web.Response(text="\n".join(stuck) or "ok\n", status=503 if stuck else 200)

    async def _readiness(self, request: web.Request) -> web.Response:
        try:
            parts = await self.parts()
        except BelvedereError as error:
            parts = {"store": str(error)}
        ready = all(state == "ready" for state in parts.values())
        return web.json_response({"ready": ready, "parts": parts}, status=200 if ready else 503)

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


async def _for_ever() -> None:

    await asyncio.Event().wait()

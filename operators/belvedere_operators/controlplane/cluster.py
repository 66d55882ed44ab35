"""The control plane in a cluster: the same controllers and server, and nobody acting on the children but the cluster."""

from __future__ import annotations

import logging

from belvedere_operators.alerts.webhook import AlertWebhook
from belvedere_operators.controllers import controllers
from belvedere_operators.controllers.context import Context, Settings
from belvedere_operators.controlplane.embedded import run_plane, stopping_on_signals
from belvedere_operators.controlplane.server import OperatorServer, control_plane_parts
from belvedere_operators.runtime import Caches, ControlPlane, SystemClock
from belvedere_platform.store.connect import connect

log = logging.getLogger(__name__)


async def run_in_cluster(settings: Settings, *, address: str, port: int) -> None:
    """Run until SIGTERM or SIGINT."""
    store, clock = connect(settings.store_url), SystemClock()
    caches = Caches(store, clock=clock, namespace=settings.namespace)
    context = Context(store=store, caches=caches, clock=clock, settings=settings)
    plane: ControlPlane
    server = OperatorServer(
        address=address,
        port=port,
        parts=lambda: control_plane_parts(store, plane),
        webhook=AlertWebhook(store, clock=clock, secret=settings.alerts_secret),
    )
    plane = ControlPlane(caches, [*controllers(context), server])
    try:
        with stopping_on_signals(plane.stop):
            await run_plane(plane)
    finally:
        await context.http.aclose()
        await store.close()
    log.info("control plane stopped")

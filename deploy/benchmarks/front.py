"""A real Envoy in front of one replica, with the control plane that it has in an installation, in this process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from prometheus_client import CollectorRegistry

from belvedere_platform.errors import Unavailable
from belvedere_platform.ports import free_ports
from belvedere_platform.resources.gateway_route import GatewayRoute
from belvedere_serving.gateway.bootstrap import EnvoySettings, bootstrap
from belvedere_serving.gateway.envoy import envoy_command
from belvedere_serving.gateway.snapshot import build_snapshot
from belvedere_serving.gateway.world import Replica, World
from belvedere_serving.gateway.xds import Discovery, serve_discovery

KEY = ("default", "bench", "bench-v1")
START_SECONDS = 60.0


@contextlib.asynccontextmanager
async def in_front_of(replica: Replica, folder: Path, *, timeout_seconds: float) -> AsyncIterator[int]:
    """Run an Envoy that sends all to one replica, each request with this deadline; gives its port."""
    port, admin, xds, tap = free_ports(4)
    discovery = Discovery(CollectorRegistry())
    namespace, service, version = KEY
    document = {
        "namespace": namespace,
        "service": service,
        "routing": {"default": True, "timeoutSeconds": timeout_seconds},
        "versions": [{"version": version, "weight": 100}],
    }
    route = GatewayRoute.model_validate(document)
    world = World(routes={(namespace, service): route}, replicas={KEY: (replica,)})
    discovery.publish(build_snapshot(world, tap_address="127.0.0.1", tap_port=tap))
    file = folder / "envoy.json"
    file.write_text(bootstrap(EnvoySettings(node_id="bench", gateway_port=port, admin_port=admin, xds_port=xds)))
    server = await serve_discovery(discovery, f"127.0.0.1:{xds}")
    try:
        with (folder / "envoy.log").open("wb") as log:
            envoy = await asyncio.create_subprocess_exec(*envoy_command(file), stderr=log)
        try:
            if not await _listens(envoy, port):
                raise Unavailable(f"Envoy did not listen; what it said is in {folder / 'envoy.log'}")
            yield port
        finally:
            if envoy.returncode is None:
                envoy.terminate()
            await envoy.wait()
    finally:
        await server.stop(0)


async def _listens(envoy: asyncio.subprocess.Process, port: int) -> bool:
    """Wait until somebody listens at a port; say whether that came about."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(START_SECONDS):
            while envoy.returncode is None:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    await asyncio.sleep(0.05)
                    continue
                writer.close()
                await writer.wait_closed()
                return True
    return False

"""A real Envoy with its control plane in the test's own loop."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from prometheus_client import CollectorRegistry

from belvedere_platform.ports import free_port
from belvedere_platform.resources.gateway_route import GatewayRoute
from belvedere_serving.gateway.bootstrap import EnvoySettings, bootstrap
from belvedere_serving.gateway.envoy import envoy_command
from belvedere_serving.gateway.snapshot import build_snapshot
from belvedere_serving.gateway.world import Replica, World
from belvedere_serving.gateway.xds import Discovery, serve_discovery

from .model_server import ModelServer
from .traffic import eventually

NAMESPACE, SERVICE = "default", "emoji"
PATIENCE_SECONDS = 60
"""What a busy machine may take to answer or to end; httpx alone gives up after five."""


@dataclass(kw_only=True)
class Gateway:
    """An Envoy and its control plane in the test's own loop."""

    port: int
    admin: httpx.AsyncClient
    settings: EnvoySettings
    registry: CollectorRegistry
    tap_port: int
    discovery: Discovery
    discovery_port: int
    server: Any = None
    envoy: Any = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def publish(self, world: World) -> None:
        self.discovery.publish(build_snapshot(world, tap_address="127.0.0.1", tap_port=self.tap_port))

    async def start_control_plane(self) -> None:
        self.server = await serve_discovery(self.discovery, f"127.0.0.1:{self.discovery_port}")

    async def stop_control_plane(self) -> None:
        await self.server.stop(0)

    async def replace_control_plane(self) -> None:
        """Stop it, and start another at its place that knows nothing of what this one said."""
        await self.stop_control_plane()
        self.discovery = Discovery(CollectorRegistry())
        await self.start_control_plane()

    async def until_connected(self) -> None:
        await eventually(self._connected, "Envoy to find its control plane")

    async def _connected(self) -> bool:
        return await self.value("envoy_control_plane_connected_state") == 1

    async def stats(self) -> str:
        return (await self.admin.get("/stats/prometheus")).text

    async def put(self, route: GatewayRoute, *servers: ModelServer) -> None:
        """Publish one service and wait until Envoy listens."""
        self.publish(world_of(route, *servers))
        await eventually(self._listens, "Envoy to listen")

    async def _listens(self) -> bool:
        assert self.envoy is None or self.envoy.returncode is None, f"Envoy has ended with {self.envoy.returncode}"
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except ConnectionRefusedError:
            return False
        writer.close()
        await writer.wait_closed()
        return True

    async def until_weights(self, **weights: int) -> None:
        """Wait until Envoy's routes give these versions these weights, and no other any."""
        await eventually(lambda: self._weighs(weights), f"the weights {weights}")

    async def _weighs(self, weights: dict[str, int]) -> bool:
        dump = (await self.admin.get("/config_dump?resource=dynamic_route_configs")).json()
        shares = [
            (cluster["name"].split("/")[2], cluster["weight"])
            for table in dump.get("configs", [])
            for route in table["route_config"]["virtual_hosts"][0]["routes"]
            for cluster in route.get("route", {}).get("weighted_clusters", {}).get("clusters", [])
        ]
        return bool(shares) and set(shares) == set(weights.items())

    async def value(self, name: str, **labels: str) -> float:
        """The sum of Envoy's samples of a metric that have these labels."""
        samples = re.findall(rf"^{name}{{(.*)}} (\S+)$", await self.stats(), flags=re.MULTILINE)
        wanted = {f'{key}="{value}"' for key, value in labels.items()}
        return sum(float(value) for found, value in samples if wanted <= set(found.split(",")))

    async def until(self, text: str, path: str = "/config_dump") -> None:
        """Wait until Envoy's admin page says something."""
        await eventually(lambda: self._says(path, text), f"{path} to say {text!r}")

    async def _says(self, path: str, text: str) -> bool:
        try:
            return text in (await self.admin.get(path)).text
        except httpx.HTTPError:
            return False


def world_of(route: GatewayRoute, *servers: ModelServer) -> World:
    replicas: dict[tuple[str, str, str], list[Replica]] = {}
    for server in servers:
        replicas.setdefault((route.namespace, route.service, server.version), []).append(server.replica)
    return World(
        routes={(route.namespace, route.service): route},
        replicas={key: tuple(sorted(found)) for key, found in replicas.items()},
    )


def route_of(weights: dict[str, int], **fields: Any) -> GatewayRoute:
    document = {
        "namespace": NAMESPACE,
        "service": SERVICE,
        "routing": {"default": True, **fields.pop("routing", {})},
        "versions": [{"version": version, "weight": weight} for version, weight in weights.items()],
        **fields,
    }
    return GatewayRoute.model_validate(document)


async def _end(process: asyncio.subprocess.Process) -> None:
    """End Envoy; one that does not go is killed, and fails the test."""
    if process.returncode is None:
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), PATIENCE_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise


@asynccontextmanager
async def running_gateway(folder: Path, *, envoy_dials: int, discovery_port: int) -> AsyncIterator[Gateway]:
    settings = EnvoySettings(
        node_id="test",
        gateway_port=free_port(),
        admin_port=free_port(),
        xds_port=envoy_dials,
        stats_port=free_port(),
    )
    file = folder / "envoy.json"
    file.write_text(bootstrap(settings))
    registry = CollectorRegistry()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{settings.admin_port}", timeout=PATIENCE_SECONDS) as admin:
        gateway = Gateway(
            port=settings.gateway_port,
            admin=admin,
            settings=settings,
            registry=registry,
            tap_port=free_port(),
            discovery=Discovery(registry),
            discovery_port=discovery_port,
        )
        await gateway.start_control_plane()
        try:
            with (folder / "envoy.log").open("wb") as log:
                gateway.envoy = process = await asyncio.create_subprocess_exec(*envoy_command(file), stderr=log)
            try:
                yield gateway
            finally:
                await _end(process)
                print((folder / "envoy.log").read_text()[-6000:])
        finally:
            # A server that is left running fails whichever test it is collected in, or hangs it: gRPC then joins its threads.
            await gateway.stop_control_plane()

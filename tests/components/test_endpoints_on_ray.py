"""The endpoints controller against a real Ray Serve with direct ingress: replicas come, drain and go."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from belvedere_operators.controllers.context import Context, Settings
from belvedere_operators.controllers.endpoints.controller import endpoints_controller
from belvedere_operators.manifests.ownership import service_labels
from belvedere_operators.runtime import Caches, ControlPlane, SystemClock
from belvedere_platform.ports import free_port
from belvedere_platform.store.embedded import EmbeddedStore
from belvedere_platform.store.kinds import ENDPOINT_SLICE, RAY_SERVICE
from scratch import scratch

pytestmark = pytest.mark.slow

NAME = "echo-v1"
APPLICATION = f"default.{NAME}"
DRAINING_SECONDS = 4
ECHO = """
import asyncio
from ray import serve

@serve.deployment(name="V2Server", ray_actor_options={"num_cpus": 0.1})
class Echo:
    async def __call__(self, request):
        return {"path": request.url.path}

    async def ServerLive(self, request):
        return b""

app = Echo.bind()
"""


@pytest.fixture(scope="module")
def dashboard() -> Iterator[str]:
    """A Ray of this test's own; yields the address of its dashboard."""
    with scratch("bv-ep-", under="/tmp") as temp:
        (temp / "echo_app.py").write_text(ECHO)
        port, base = free_port(), random.randrange(20_000, 29_000)
        environment = {
            **os.environ,
            "PYTHONPATH": str(temp),
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1",
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(DRAINING_SECONDS),
            "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(base),
            "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(base + 99),
            "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(base + 100),
            "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(base + 199),
        }
        command = [
            str(Path(sys.executable).parent / "ray"),
            "start",
            "--head",
            "--block",
            "--num-cpus=4",
            "--object-store-memory=80000000",
        ]
        command += [f"--temp-dir={temp}/ray", "--node-ip-address=127.0.0.1", f"--port={free_port()}"]
        command += [f"--dashboard-port={port}", f"--dashboard-agent-listen-port={free_port()}"]
        command += [f"--ray-client-server-port={free_port()}", f"--metrics-export-port={free_port()}"]
        with (temp / "out").open("wb") as out:
            process = subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)
        try:
            wait_for_dashboard(f"http://127.0.0.1:{port}/api/version", process, temp / "out")
            yield f"127.0.0.1:{port}"
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(10)


def wait_for_dashboard(url: str, process: subprocess.Popen[bytes], out: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if process.poll() is not None:
            pytest.fail(f"Ray did not start: {out.read_text()[-2000:]}")
        try:
            if httpx.get(url, timeout=20, trust_env=False).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.5)
    pytest.fail(f"the Ray dashboard at {url} did not answer in 120 s")


class World:
    """The controller at work on an embedded store."""

    def __init__(self, store: EmbeddedStore, address: str, http: httpx.AsyncClient) -> None:
        self.store, self.address, self.http = store, address, http

    async def deploy(self, num_replicas: int) -> None:
        """Deploy on Serve as the executor does, and say where in the RayService's status."""
        application = {
            "name": APPLICATION,
            "route_prefix": f"/{APPLICATION}",
            "import_path": "echo_app:app",
            "deployments": [
                {"name": "V2Server", "num_replicas": num_replicas, "graceful_shutdown_timeout_s": DRAINING_SECONDS + 6}
            ],
        }
        servicer = "belvedere_serving.server.grpc_service.add_to_server"
        config = {
            "proxy_location": "Disabled",
            "http_options": {"host": "127.0.0.1"},
            "grpc_options": {"port": free_port(), "grpc_servicer_functions": [servicer]},
            "applications": [application],
        }
        await self.put(config)
        labels = service_labels("echo", "v1")
        manifest: dict[str, Any] = {"apiVersion": "ray.io/v1", "kind": "RayService", "spec": {}}
        manifest["metadata"] = {"name": NAME, "namespace": "default", "labels": labels}
        await self.store.apply(manifest, field_manager="test")
        host, _, port = self.address.partition(":")
        cluster = {"head": {"serviceIP": host}, "endpoints": {"dashboard": port}}
        status = {"activeServiceStatus": {"applicationStatuses": {APPLICATION: {}}, "rayClusterStatus": cluster}}
        await self.store.apply_status({**manifest, "status": status}, field_manager="test")

    async def put(self, config: dict[str, Any]) -> None:
        """Deploy; a dashboard on a busy machine may drop a request while it starts, and a deployment can be repeated."""
        async with asyncio.timeout(120):
            while True:
                try:
                    url = f"http://{self.address}/api/serve/applications/"
                    response = await self.http.put(url, json=config, timeout=60)
                except httpx.TransportError:
                    await asyncio.sleep(1)
                    continue
                assert response.is_success, response.text
                return

    async def slices(self) -> list[dict[str, Any]]:
        return (await self.store.list(ENDPOINT_SLICE, "default")).items

    async def until(self, wished: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
        """Return the slices as soon as they are as wished."""
        async with asyncio.timeout(120):
            while True:
                listing = await self.store.list(ENDPOINT_SLICE, "default")
                if wished(listing.items):
                    return listing.items
                async for _ in self.store.watch(ENDPOINT_SLICE, "default", resource_version=listing.resource_version):
                    break


@pytest.fixture
async def world(dashboard: str, tmp_path: Path) -> AsyncIterator[World]:
    store, clock = EmbeddedStore(tmp_path / "store.db"), SystemClock()
    caches = Caches(store, clock=clock)
    settings = Settings(instance="test", artifacts_url=str(tmp_path), store_url=f"sqlite:///{tmp_path}/store.db")
    context = Context(store=store, caches=caches, clock=clock, settings=settings)
    plane = ControlPlane(caches, [endpoints_controller(context)])
    running = asyncio.create_task(plane.run())
    async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
        yield World(store, dashboard, http)
    plane.stop()
    await running
    await context.http.aclose()
    await store.close()


def conditions(one: dict[str, Any]) -> dict[str, bool]:
    return dict(one["endpoints"][0]["conditions"])


async def test_replicas_come_drain_and_go(world: World) -> None:
    await world.deploy(2)
    slices = await world.until(lambda found: len([one for one in found if conditions(one)["ready"]]) == 2)
    ports = set()
    for one in slices:
        by_name = {port["name"]: port["port"] for port in one["ports"]}
        assert set(by_name) == {"http", "grpc"}
        prefix = one["metadata"]["annotations"]["belvedere.dev/http-path-prefix"]
        url = f"http://{one['endpoints'][0]['addresses'][0]}:{by_name['http']}{prefix}/v2/health/ready"
        answer = await world.http.get(url)
        assert answer.is_success, answer.text
        ports |= set(by_name.values())
    assert len(ports) == 4

    await world.deploy(1)
    slices = await world.until(lambda found: any(conditions(one)["terminating"] for one in found))
    (draining,) = [one for one in slices if conditions(one)["terminating"]]
    assert conditions(draining) == {"ready": False, "serving": True, "terminating": True}
    assert {port["name"] for port in draining["ports"]} == {"http", "grpc"}
    (kept,) = await world.until(lambda found: len(found) == 1)
    assert conditions(kept)["ready"]

    await world.store.delete(RAY_SERVICE, NAME, "default")
    assert await world.until(lambda found: not found) == []

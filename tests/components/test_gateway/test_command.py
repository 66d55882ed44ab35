"""The gateway as its users start it: two processes, a store, and things that go wrong."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from belvedere_platform.store.connect import connect
from belvedere_platform.store.kinds import ENDPOINT_SLICE

pytestmark = pytest.mark.slow

MANAGER = "belvedere-test"
BODY = {"inputs": [{"name": "TEXT", "datatype": "BYTES", "shape": [1], "data": ["cat"]}]}


class Processes:
    """`belvedere gateway serve` and `belvedere gateway envoy` on one store."""

    def __init__(self, folder: Path, free_port: Any, stack: AsyncExitStack) -> None:
        self._folder = folder
        self._stack = stack
        self.ports = {name: free_port() for name in ("xds", "metrics", "tap", "gateway", "admin")}
        self.store_url = f"sqlite://{folder}/store.db"

    async def serve(self) -> asyncio.subprocess.Process:
        flags = [f"--{name}-port={self.ports[name]}" for name in ("xds", "metrics", "tap")]
        return await self._start("serve", "--store", self.store_url, "--memory", f"{self._folder}/routes.json", *flags)

    async def envoy(self) -> asyncio.subprocess.Process:
        flags = [f"--{name}-port={self.ports[name]}" for name in ("xds", "gateway", "admin")]
        return await self._start("envoy", "--output", f"{self._folder}/envoy.json", *flags)

    async def _start(self, *arguments: str) -> asyncio.subprocess.Process:
        program = "from belvedere_platform.cli.main import main; main()"
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            program,
            "gateway",
            *arguments,
            env={**os.environ, "BELVEDERE_HOME": str(self._folder)},
        )
        self._stack.push_async_callback(_end, process)
        return process

    def address(self, name: str) -> str:
        return f"http://127.0.0.1:{self.ports[name]}"


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.wait()


@pytest.fixture
async def processes(tmp_path: Path, free_port: Any) -> AsyncIterator[Processes]:
    async with AsyncExitStack() as stack:
        yield Processes(tmp_path, free_port, stack)


def route_map(text: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": "emoji-gateway",
            "namespace": "default",
            "labels": {"belvedere.dev/service": "emoji", "app.kubernetes.io/managed-by": "belvedere"},
        },
        "data": {"route.json": text},
    }


def endpoint_slice(server: Any) -> dict[str, Any]:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "addressType": "IPv4",
        "metadata": {
            "name": f"emoji-{server.version}-{server.http_port}",
            "namespace": "default",
            "labels": {
                "belvedere.dev/service": "emoji",
                "belvedere.dev/version": server.version,
                "app.kubernetes.io/managed-by": "belvedere",
            },
            "annotations": {"belvedere.dev/http-path-prefix": server.prefix},
        },
        "ports": [
            {"name": "http", "port": server.http_port, "protocol": "TCP"},
            {"name": "grpc", "port": server.grpc_port, "protocol": "TCP"},
        ],
        "endpoints": [
            {"addresses": ["127.0.0.1"], "conditions": {"ready": True, "serving": True, "terminating": False}}
        ],
    }


class Seen:
    """What a client is answered, and what the metrics say."""

    def __init__(self, processes: Processes, client: httpx.AsyncClient, until: Any) -> None:
        self._processes, self._client, self._until = processes, client, until

    async def version(self) -> str | None:
        """Return the version that answers a request now."""
        try:
            url = f"{self._processes.address('gateway')}/v2/models/embed_text/infer"
            answer = await self._client.post(url, json=BODY)
        except httpx.HTTPError:
            return None
        return answer.headers.get("belvedere-version") if answer.status_code == 200 else None

    async def comes_to(self, wanted: str) -> None:
        """Wait until a version answers."""

        async def check() -> bool:
            return await self.version() == wanted

        await self._until(check, f"answers of {wanted}")

    async def says(self, text: str) -> None:
        """Wait until the metrics say something."""

        async def check() -> bool:
            try:
                return text in (await self._client.get(f"{self._processes.address('metrics')}/metrics")).text
            except httpx.HTTPError:
                return False

        await self._until(check, f"the metrics to say {text}")


@pytest.fixture
async def seen(processes: Processes, until: Any) -> AsyncIterator[Seen]:
    async with httpx.AsyncClient(timeout=60) as client:
        yield Seen(processes, client, until)


ALL_FOR_V1 = (
    'belvedere_gateway_effective_weight{namespace="default",protocol="http",service="emoji",version="v1"} 100.0'
)
REJECTED = 'belvedere_gateway_rejected_routes{name="emoji-gateway",namespace="default"} 1.0'


async def test_the_gateway_follows_the_store_through_kills_and_bad_routes(
    processes: Processes, seen: Seen, servers: Any, route: Any
) -> None:
    store = connect(processes.store_url)

    async def applied(text: str) -> None:
        await store.apply(route_map(text), field_manager=MANAGER)

    one, two = await servers("v1", prefix="/one"), await servers("v2", prefix="/two")
    good = route({"v1": 100, "v2": 0}).model_dump_json(by_alias=True)
    await applied(good)
    for server in (one, two):
        await store.apply(endpoint_slice(server), field_manager=MANAGER)
    control, envoy = await processes.serve(), await processes.envoy()
    await seen.comes_to("v1")
    await seen.says(ALL_FOR_V1)

    # A route that cannot be used is said, and the last good one stays.
    bad = json.loads(good)
    bad["versions"][0]["weight"] = 90
    await applied(json.dumps(bad))
    await seen.says(REJECTED)
    assert await seen.version() == "v1"

    # Killed: Envoy goes on. Back again: the last good route is remembered although the store holds the bad one.
    control.kill()
    await control.wait()
    assert await seen.version() == "v1"
    control = await processes.serve()
    await seen.says("belvedere_gateway_envoys 1.0")
    await seen.says(REJECTED)
    assert await seen.version() == "v1"

    # Mended: it follows. A replica that leaves is gone, and the rest is shared anew.
    await applied(route({"v1": 0, "v2": 100}).model_dump_json(by_alias=True))
    await seen.comes_to("v2")
    await applied(route({"v1": 50, "v2": 50}).model_dump_json(by_alias=True))
    await store.delete(ENDPOINT_SLICE, f"emoji-v2-{two.http_port}", "default")
    await seen.says(ALL_FOR_V1)
    await seen.comes_to("v1")

    for process in (control, envoy):
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 60) == 0
    await store.close()


async def test_a_port_in_use_is_one_clear_sentence(processes: Processes, free_port: Any) -> None:
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", processes.ports["xds"])
    try:
        process = await processes.serve()
        assert await asyncio.wait_for(process.wait(), 120) == 5
    finally:
        server.close()
        await server.wait_closed()

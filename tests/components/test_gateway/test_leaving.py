"""What a cluster asks of a gateway pod: figures without the switches, and an end that no client notices."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.slow


async def test_metrics_and_readiness_are_open_and_the_switches_are_not(
    gateway: Any, route: Any, servers: Any, until: Any
) -> None:
    await gateway.put(route({"v1": 100}), await servers("v1"))
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{gateway.settings.stats_port}", timeout=60) as client:

        async def is_ready() -> bool:
            try:
                return (await client.get("/ready")).status_code == 200
            except httpx.ConnectError:
                return False  # static listeners open a moment after the others

        await until(is_ready, "the open part of the admin interface")
        assert "envoy_server_live" in (await client.get("/stats/prometheus")).text
        for closed in ("/quitquitquit", "/drain_listeners", "/config_dump", "/stats", "/"):
            assert (await client.post(closed)).status_code == 404


async def start_draining(gateway: Any, shortest_seconds: int, longest_seconds: int) -> asyncio.subprocess.Process:
    program = "from belvedere_platform.cli.main import main; main()"
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, "gateway", "drain", f"--admin-port={gateway.settings.admin_port}",
        f"--shortest-seconds={shortest_seconds}", f"--longest-seconds={longest_seconds}",
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


def held_request(gateway: Any, client: httpx.AsyncClient) -> asyncio.Task[httpx.Response]:
    """Ask what is not answered before the server is told to."""
    body = {"inputs": [{"name": "TEXT", "datatype": "BYTES", "shape": [1], "data": ["cat"]}]}
    return asyncio.create_task(client.post(f"http://{gateway.address}/v2/models/embed_text/infer", json=body))


async def test_draining_waits_for_what_was_asked_and_still_takes_what_comes(
    gateway: Any, route: Any, servers: Any, load: Any, until: Any
) -> None:
    server = await servers("v1", held=True)
    await gateway.put(route({"v1": 100}, routing={"timeoutSeconds": 300}), server)
    async with httpx.AsyncClient(timeout=300) as client:
        held = held_request(gateway, client)
        await gateway.until("http.gateway.downstream_rq_active: 1", "/stats")
        server.faults.held = False
        load.start(4)
        draining = await start_draining(gateway, shortest_seconds=1, longest_seconds=300)

        async def clients_are_told() -> bool:
            answer = await client.get(f"http://{gateway.address}/v2/health/ready")
            return answer.headers.get("connection") == "close"

        await until(clients_are_told, "a client to be sent elsewhere")
        await load.more(20)
        assert draining.returncode is None, "it does not wait for requests that are in flight"
        await load.stop()
        server.released.set()
        assert (await held).status_code == 200
    assert await asyncio.wait_for(draining.wait(), 60) == 0
    assert load.errors == {}
    assert server.num_in_flight == 0


async def test_draining_gives_up_in_the_end_and_says_how_many_were_left(gateway: Any, route: Any, servers: Any) -> None:
    server = await servers("v1", held=True)
    await gateway.put(route({"v1": 100}, routing={"timeoutSeconds": 300}), server)
    async with httpx.AsyncClient(timeout=300) as client:
        held = held_request(gateway, client)
        await gateway.until("http.gateway.downstream_rq_active: 1", "/stats")
        draining = await start_draining(gateway, shortest_seconds=0, longest_seconds=0)
        _, said = await draining.communicate()
        assert draining.returncode == 5
        assert "1 requests were not answered within 0 s" in said.decode()
        server.released.set()
        assert (await held).status_code == 200

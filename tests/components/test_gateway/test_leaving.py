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
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{gateway.settings.stats_port}") as client:

        async def is_ready() -> bool:
            try:
                return (await client.get("/ready")).status_code == 200
            except httpx.ConnectError:
                return False  # static listeners open a moment after the others

        await until(is_ready, "the open part of the admin interface")
        assert "envoy_server_live" in (await client.get("/stats/prometheus")).text
        for closed in ("/quitquitquit", "/drain_listeners", "/config_dump", "/stats", "/"):
            assert (await client.post(closed)).status_code == 404


async def test_draining_waits_for_what_was_asked_and_still_takes_what_comes(
    gateway: Any, route: Any, servers: Any, load: Any
) -> None:
    server = await servers("v1", delay_seconds=0.2)
    await gateway.put(route({"v1": 100}), server)
    load.start(4)
    await load.more(20)
    program = "from belvedere_platform.cli.main import main; main()"
    draining = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, "gateway", "drain",
        f"--admin-port={gateway.settings.admin_port}", "--shortest-seconds=1", "--longest-seconds=30",
    )  # fmt: skip
    await load.more(20)
    assert draining.returncode is None, "it does not wait for requests that are in flight"
    await load.stop()
    assert await asyncio.wait_for(draining.wait(), 20) == 0
    assert load.errors == {}
    assert server.num_in_flight == 0


async def test_draining_gives_up_in_the_end_and_says_how_many_were_left(gateway: Any, route: Any, servers: Any) -> None:
    await gateway.put(route({"v1": 100}), await servers("v1", delay_seconds=6))
    async with httpx.AsyncClient(timeout=20) as client:
        body = {"inputs": [{"name": "TEXT", "datatype": "BYTES", "shape": [1], "data": ["cat"]}]}
        slow = asyncio.create_task(client.post(f"http://{gateway.address}/v2/models/embed_text/infer", json=body))
        await gateway.until("http.gateway.downstream_rq_active: 1", "/stats")
        program = "from belvedere_platform.cli.main import main; main()"
        draining = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, "gateway", "drain",
            f"--admin-port={gateway.settings.admin_port}", "--shortest-seconds=0", "--longest-seconds=0",
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        _, said = await draining.communicate()
        assert draining.returncode == 5
        assert "1 requests were not answered within 0 s" in said.decode()
        assert (await slow).status_code == 200

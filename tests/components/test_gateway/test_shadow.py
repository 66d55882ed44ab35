"""The shadow tap behind a real Envoy: it sees pairs, counts agreement, and nobody else notices it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
from prometheus_client import CollectorRegistry

from belvedere_serving.gateway.candidate import CandidateClient
from belvedere_serving.gateway.shadow import ShadowMetrics, ShadowTap, serve_tap
from belvedere_serving.gateway.world import World

pytestmark = pytest.mark.slow

SAMPLING = {"stable": "v1", "candidate": "v2", "percent": 100, "minimumCosine": 0.8}


class Tap:
    """A tap with the counts it made."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.world = World()
        self.server: Any = None

    async def stop(self) -> None:
        await self.server.stop(0)

    def outcome(self, name: str) -> float:
        labels = {"namespace": "default", "service": "emoji", "candidate": "v2", "outcome": name}
        return self.registry.get_sample_value("belvedere_shadow_requests_total", labels) or 0

    def compared(self, agreed: str) -> float:
        labels = {"namespace": "default", "service": "emoji", "candidate": "v2", "model": "embed_text"}
        found = self.registry.get_sample_value("belvedere_shadow_comparisons_total", {**labels, "agreed": agreed})
        return found or 0


@pytest.fixture
async def tap(gateway: Any) -> AsyncIterator[Tap]:
    tap = Tap()
    client = CandidateClient()
    servicer = ShadowTap(lambda: tap.world, client, ShadowMetrics(tap.registry))
    tap.server = await serve_tap(servicer, f"127.0.0.1:{gateway.tap_port}")
    work = asyncio.create_task(servicer.run())
    yield tap
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    await tap.stop()
    await client.close()


async def _outcomes(tap: Tap, until: Any, name: str, count: int) -> None:
    async def enough() -> bool:
        return tap.outcome(name) >= count

    await until(enough, f"{count} shadow requests to be {name}, {tap.outcome(name)} are")


async def test_pairs_are_compared_for_json_binary_and_grpc(
    gateway: Any, servers: Any, route: Any, world: Any, inputs: Any, tap: Tap, until: Any
) -> None:
    stable, candidate = await servers("v1", prefix="/one"), await servers("v2", prefix="/two")
    tap.world = world(route({"v1": 100, "v2": 0}, shadow=SAMPLING), stable, candidate)
    await gateway.put(route({"v1": 100, "v2": 0}, shadow=SAMPLING), stable, candidate)

    async def ask_all_ways() -> None:
        body = {"inputs": [{"name": "TEXT", "datatype": "BYTES", "shape": [2], "data": ["cat", "狗"]}]}
        async with httpx.AsyncClient(base_url=f"http://{gateway.address}", timeout=60) as http:
            answer = await http.post("/services/default/emoji/v2/models/embed_text/infer", json=body)
            assert answer.headers["belvedere-version"] == "v1"

        def binary() -> Any:
            with tritonclient.http.InferenceServerClient(gateway.address) as client:
                plain = client.infer("embed_text", inputs(tritonclient.http))
                client.infer(
                    "embed_text", inputs(tritonclient.http), model_version="v1", request_compression_algorithm="gzip"
                )
                return plain

        assert (await asyncio.to_thread(binary)).get_response()["model_version"] == "v1"
        async with tritonclient.grpc.aio.InferenceServerClient(gateway.address) as client:
            await client.is_server_ready()
            await client.infer("embed_text", inputs(tritonclient.grpc), model_version="v1")
            await client.infer("embed_text", inputs(tritonclient.grpc), compression_algorithm="gzip")

    await ask_all_ways()
    await _outcomes(tap, until, "compared", 5)
    assert (tap.compared("true"), tap.compared("false")) == (10, 0)
    candidate.faults.wrong = True
    await ask_all_ways()
    await _outcomes(tap, until, "compared", 10)
    assert (tap.compared("true"), tap.compared("false")) == (10, 10)
    assert (candidate.num_http, candidate.num_grpc) == (6, 4)
    # The candidate's own figures know nothing of it.
    assert await gateway.value("envoy_cluster_upstream_rq_total", version="v2") == 0


async def test_only_a_share_of_the_stable_versions_requests_is_sampled(
    gateway: Any, servers: Any, route: Any, world: Any, load: Any, tap: Tap, until: Any
) -> None:
    stable, candidate = await servers("v1"), await servers("v2")
    sampled = route({"v1": 70, "v2": 30}, shadow={**SAMPLING, "percent": 20})
    tap.world = world(sampled, stable, candidate)
    await gateway.put(sampled, stable, candidate)
    load.start(4)
    await load.more(1500)
    await load.stop()
    assert load.errors == {}
    num_stable = load.answers["ok", "v1"]
    await _outcomes(tap, until, "compared", int(0.1 * num_stable))
    num_sampled = await gateway.value("envoy_cluster_shadow_tap_upstream_rq_total")
    assert abs(num_sampled / num_stable - 0.2) < 4.5 * (0.2 * 0.8 / num_stable) ** 0.5
    assert tap.compared("false") == 0


async def test_a_slow_failing_or_dead_candidate_and_a_dead_tap_harm_no_client(
    gateway: Any, servers: Any, route: Any, world: Any, load: Any, tap: Tap, until: Any
) -> None:
    stable, candidate = await servers("v1"), await servers("v2", http_status=500)
    sampled = route({"v1": 100}, shadow=SAMPLING)
    # The tap is patient for as long as the route says; clients are not to be late on a busy machine.
    tap.world = world(route({"v1": 100}, shadow=SAMPLING, routing={"timeoutSeconds": 1}), stable, candidate)
    await gateway.put(sampled, stable, candidate)
    load.start(2, ("http",))
    await _outcomes(tap, until, "candidate_failed", 10)
    candidate.faults.http_status, candidate.faults.delay_seconds = 200, 5
    await _outcomes(tap, until, "dropped", 50)
    await candidate.stack.aclose()
    await load.more(100)
    await tap.stop()
    await load.more(100)
    await load.stop()
    assert load.errors == {}
    assert sorted(load.latencies)[len(load.latencies) // 2] < candidate.faults.delay_seconds

"""What a real Prometheus reads from a real Envoy, through the queries that the judge and the alerts use."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
from tritonclient.utils import InferenceServerException

from belvedere_platform.telemetry import gateway_metrics as metrics

pytestmark = pytest.mark.slow

LIMIT_SECONDS = 2
"""What an answer may take: more than any of a busy machine's good ones, and it is waited for three times."""
URL = "/v2/models/embed_text/infer"
BODY = {"inputs": [{"name": "TEXT", "datatype": "BYTES", "shape": [1], "data": ["cat"]}]}


class Prometheus:
    """Queries on a Prometheus of the test's own."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def ask(self, query: str) -> dict[tuple[str, ...], float]:
        """Return values by the values of the labels, in the order of the labels' names."""
        answer = (await self._client.get("/api/v1/query", params={"query": query})).json()
        assert answer["status"] == "success", answer
        return {
            tuple(value for key, value in sorted(sample["metric"].items()) if key != "instance"): float(
                sample["value"][1]
            )
            for sample in answer["data"]["result"]
        }


@pytest.fixture
async def prometheus(gateway: Any, free_port: Any, until: Any, tmp_path: Path) -> AsyncIterator[Prometheus]:
    """Start a Prometheus that scrapes Envoy each second."""
    port = free_port()
    config = {
        "global": {"scrape_interval": "1s"},
        "scrape_configs": [
            {
                "job_name": "envoy",
                "metrics_path": "/stats/prometheus",
                "honor_labels": True,
                "static_configs": [{"targets": [f"127.0.0.1:{gateway.settings.admin_port}"]}],
            }
        ],
    }
    file = tmp_path / "prometheus.json"
    file.write_text(json.dumps(config))
    process = await asyncio.create_subprocess_exec(
        "prometheus",
        f"--config.file={file}",
        f"--storage.tsdb.path={tmp_path / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=error",
    )
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:

            async def ready() -> bool:
                try:
                    return (await client.get("/-/ready")).status_code == 200
                except httpx.HTTPError:
                    return False

            await until(ready, "Prometheus to be ready")
            yield Prometheus(client)
    finally:
        process.terminate()
        await process.wait()


async def test_requests_errors_and_latency_are_counted_for_the_version_that_gave_them(
    gateway: Any, servers: Any, route: Any, world: Any, inputs: Any, prometheus: Prometheus, until: Any
) -> None:
    good, bad = await servers("v1"), await servers("v2")
    await gateway.put(route({"v1": 100}), good, bad)
    ask = prometheus.ask
    namespace, service = "default", "emoji"

    async def counted(query: str, expected: dict[tuple[str, ...], float]) -> None:
        seen: dict[tuple[str, ...], float] = {}

        async def check() -> bool:
            seen.clear()
            seen.update(await ask(query))
            return seen == expected

        try:
            await until(check, query)
        except AssertionError:
            assert seen == expected, query

    async with httpx.AsyncClient(base_url=f"http://{gateway.address}", timeout=60) as http:
        for _ in range(3):
            assert (await http.post(URL, json=BODY)).status_code == 200
    # Nothing went wrong and gRPC was not used: both are said as zero, not by absence.
    await counted(metrics.requests_query(namespace, service), {("http", "v1"): 3, ("grpc", "v1"): 0})
    await counted(metrics.errors_query(namespace, service), {("http", "v1"): 0, ("grpc", "v1"): 0})

    gateway.publish(world(route({"v2": 100}, routing={"timeoutSeconds": LIMIT_SECONDS}), good, bad))
    await gateway.until_weights(v2=100)
    await _fail_over_http(gateway.address, bad)
    late = await _fail_over_grpc(gateway, bad, inputs, until)
    await counted(metrics.requests_query(namespace, service), {("http", "v2"): 5, ("grpc", "v2"): 7 + late})
    await counted(metrics.errors_query(namespace, service), {("http", "v2"): 4, ("grpc", "v2"): 5 + late})

    await counted(metrics.in_flight_query(namespace, service), {("http", "v2"): 0, ("grpc", "v2"): 0})

    # Answers in time have a latency, what was given up or broke off has none. Envoy counts them a moment later than requests.
    async def have_latencies() -> bool:
        buckets = await ask(metrics.latency_buckets_query(namespace, service))
        return buckets.get(("+Inf", "http", "v2")) == buckets.get(("60000", "http", "v2")) == 2

    await until(have_latencies, "two latencies")
    expressions = (
        metrics.error_ratio(namespace, service, "1m"),
        metrics.error_ratio(namespace, service, "1m", by=("namespace", "service", "version")),
        metrics.slow_ratio(namespace, service, 250, "1m"),
        metrics.latency_quantile(namespace, service, 0.95, "1m"),
        metrics.effective_weight_query(namespace, service),
        metrics.shadow_comparisons_query(namespace, service),
        metrics.shadow_requests_query(namespace, service),
    )
    for expression in expressions:
        await ask(expression)


async def _fail_over_http(address: str, server: Any) -> None:
    """One good answer; one 500, one reset, one timeout, and one that begins well."""
    async with httpx.AsyncClient(base_url=f"http://{address}", timeout=60) as http:
        assert (await http.post(URL, json=BODY)).status_code == 200
        server.faults.http_status = 500
        assert (await http.post(URL, json=BODY)).status_code == 500
        server.faults.http_status, server.faults.reset = 200, True
        assert (await http.post(URL, json=BODY)).status_code == 503
        server.faults.reset, server.faults.delay_seconds = False, 2 * LIMIT_SECONDS
        assert (await http.post(URL, json=BODY)).status_code == 504
        server.faults.delay_seconds, server.faults.breaks_off = 0, True
        with pytest.raises(httpx.RemoteProtocolError):
            await http.post(URL, json=BODY)
        server.faults.breaks_off = False


async def _fail_over_grpc(gateway: Any, server: Any, inputs: Any, until: Any) -> int:
    """Two answers that are no failures; four statuses, one that begins and ends without, and calls that are late.

    Returns how many were late: at the route's limit, and at a client's own deadline. Of such a call client and Envoy both
    know when it ends, Envoy a few milliseconds sooner; on a busy machine the client may come first, which counts for nobody.
    """
    code = grpc.StatusCode
    async with tritonclient.grpc.aio.InferenceServerClient(gateway.address) as client:
        await client.infer("embed_text", inputs(tritonclient.grpc))
        for status in (code.INVALID_ARGUMENT, code.UNKNOWN, code.INTERNAL, code.UNAVAILABLE, code.DATA_LOSS):
            server.faults.grpc_status = status
            with pytest.raises(InferenceServerException) as caught:
                await client.infer("embed_text", inputs(tritonclient.grpc))
            assert caught.value.status() == str(status)
        server.faults.grpc_status, server.faults.delay_seconds = code.OK, 2 * LIMIT_SECONDS

        async def late(timeout_seconds: float | None) -> float:
            with pytest.raises(InferenceServerException) as caught:
                await client.infer("embed_text", inputs(tritonclient.grpc), client_timeout=timeout_seconds)
            assert caught.value.status() in (str(code.DEADLINE_EXCEEDED), str(code.UNAVAILABLE))
            return await gateway.value("envoy_cluster_grpc", version="v2", grpc_status="4")

        assert await late(None) == 1

        async def counts_at_the_clients_deadline() -> bool:
            return await late(0.3) > 1

        await until(counts_at_the_clients_deadline, "a call to end a little before its client gives up")
        server.faults.delay_seconds = 0
        server.faults.breaks_off = True
        with pytest.raises(InferenceServerException):
            await client.infer("embed_text", inputs(tritonclient.grpc))
    return int(await gateway.value("envoy_cluster_grpc", version="v2", grpc_status="4"))

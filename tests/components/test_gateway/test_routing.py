"""Requests of unmodified clients through a real Envoy: which service, which version, what the answer says."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import httpx
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

pytestmark = pytest.mark.slow


async def test_both_triton_clients_reach_a_model_under_a_prefix_through_one_port(
    gateway: Any, servers: Any, route: Any, inputs: Any
) -> None:
    server = await servers("v1.0", prefix="/default.emoji-v1")
    await gateway.put(route({"v1.0": 100}), server)

    def over_http() -> Any:
        with tritonclient.http.InferenceServerClient(gateway.address) as client:
            assert client.is_server_ready()
            return client.infer("embed_text", inputs(tritonclient.http))

    def over_grpc() -> Any:
        with tritonclient.grpc.InferenceServerClient(gateway.address) as client:
            assert client.is_server_ready()
            return client.infer("embed_text", inputs(tritonclient.grpc))

    first, second = await asyncio.gather(asyncio.to_thread(over_http), asyncio.to_thread(over_grpc))
    assert first.get_response()["model_version"] == "v1.0"
    assert (first.as_numpy("EMBEDDING") == second.as_numpy("EMBEDDING")).all()
    assert server.paths == ["/default.emoji-v1/v2/models/embed_text/infer"]


async def test_a_service_is_found_by_header_host_path_and_default(gateway: Any, servers: Any, route: Any) -> None:
    server = await servers("v1", prefix="/app")
    await gateway.put(route({"v1": 100}, routing={"default": False, "hosts": ["emoji.example"]}), server)
    base = f"http://{gateway.address}"
    async with httpx.AsyncClient(timeout=60) as client:

        async def ready(path: str = "", **headers: str) -> httpx.Response:
            return await client.get(f"{base}{path}/v2/health/ready", headers=headers)

        by_header = await ready(**{"belvedere-service": "default/emoji"})
        assert (by_header.status_code, by_header.headers["belvedere-version"]) == (200, "v1")
        assert (await ready(host="Emoji.example")).status_code == 200
        assert (await ready(host="emoji.example:8080")).status_code == 200
        assert (await ready("/services/default/emoji")).status_code == 200
        assert (await ready()).status_code == 404
        assert "belvedere-service: NAMESPACE/NAME" in (await ready()).json()["error"]
        assert (await ready("/services/default/emojis")).status_code == 404
        # A name that is wrong is an error even where a host or a default would fit.
        assert (await ready(host="emoji.example", **{"belvedere-service": "default/none"})).status_code == 404


async def test_weights_hold_within_chance(gateway: Any, servers: Any, route: Any, load: Any) -> None:
    await gateway.put(route({"v1": 80, "v2": 20}), await servers("v1"), await servers("v2"))
    load.start(8)
    await load.more(2000)
    await load.stop()
    assert load.errors == {}
    share = load.answers["ok", "v2"] / load.num_answers
    assert abs(share - 0.2) < 4.5 * (0.2 * 0.8 / load.num_answers) ** 0.5


async def test_a_version_without_replicas_gets_nothing_and_none_at_all_says_so(
    gateway: Any, servers: Any, route: Any, world: Any, load: Any
) -> None:
    await gateway.put(route({"v1": 40, "v2": 60}), await servers("v1"))
    load.start()
    await load.more(100)
    await load.stop()
    assert set(load.answers) == {("ok", "v1")}

    gateway.publish(world(route({"v1": 40, "v2": 60})))
    await gateway.until("has no ready replica", "/config_dump?resource=dynamic_route_configs")
    async with httpx.AsyncClient(timeout=60) as client:
        answer = await client.get(f"http://{gateway.address}/v2/health/ready")
    assert answer.status_code == 503
    assert answer.json()["error"] == "service default/emoji has no ready replica"
    with (
        tritonclient.grpc.InferenceServerClient(gateway.address) as client,
        pytest.raises(InferenceServerException, match="has no ready replica") as caught,
    ):
        await asyncio.to_thread(client.is_server_ready)
    assert caught.value.status() == str(grpc.StatusCode.UNAVAILABLE)


async def test_a_refused_connection_is_repeated_elsewhere_under_the_same_prefix(
    gateway: Any, servers: Any, route: Any, load: Any
) -> None:
    alive, dead = await servers("v1", prefix="/app"), await servers("v1", prefix="/app")
    await dead.stack.aclose()
    await gateway.put(route({"v1": 100}), alive, dead)
    load.start()
    await load.more(200)
    await load.stop()
    assert load.errors == {}
    assert set(alive.paths) == {"/app/v2/models/embed_text/infer"}
    assert await gateway.value("envoy_cluster_upstream_rq_retry", version="v1") > 0


async def test_clients_cannot_steer_the_gateway_by_header(gateway: Any, servers: Any, route: Any) -> None:
    server = await servers("v1", http_status=503)
    await gateway.put(route({"v1": 100}), server)
    steering = {"x-envoy-retry-on": "5xx", "x-envoy-max-retries": "5"}
    async with httpx.AsyncClient(timeout=60) as client:
        answer = await client.post(f"http://{gateway.address}/v2/models/embed_text/infer", json={}, headers=steering)
    assert (answer.status_code, answer.json(), server.num_http) == (503, {"error": "told to fail"}, 1)

"""Changes under load: nothing a client sees may depend on when the control plane acts, or whether it lives."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.slow


async def test_changing_weights_and_versions_under_load_loses_no_request(
    gateway: Any, servers: Any, route: Any, world: Any, load: Any
) -> None:
    one, two = await servers("v1"), await servers("v2", prefix="/v2-app")
    await gateway.put(route({"v1": 100}), one)
    load.start(6)
    await load.more(100)
    for weight in (5, 50, 95):
        gateway.publish(world(route({"v1": 100 - weight, "v2": weight}), one, two))
        await gateway.until_weights(v1=100 - weight, v2=weight)
        await load.more(100)
    # The old version goes from the routes, its clusters and its replicas in one step.
    gateway.publish(world(route({"v2": 100}), two))
    await gateway.until_weights(v2=100)
    await load.only("v2")
    before = load.answers["ok", "v1"]
    await load.more(100)
    await load.stop()
    assert load.errors == {}
    assert load.answers["ok", "v1"] == before


async def test_a_replica_that_goes_under_load_finishes_its_requests(
    gateway: Any, servers: Any, route: Any, world: Any, load: Any, until: Any
) -> None:
    staying, leaving = await servers("v1", delay_seconds=0.02), await servers("v1", delay_seconds=0.3)
    await gateway.put(route({"v1": 100}), staying, leaving)
    load.start(6)
    await load.more(60)

    async def busy() -> bool:
        return leaving.num_in_flight >= 1

    await until(busy, "a request at the replica that leaves")
    gateway.publish(world(route({"v1": 100}), staying))

    async def forgotten() -> bool:
        page = (await gateway.admin.get("/clusters")).text
        return not any(f":{port}::" in page for port in (leaving.http_port, leaving.grpc_port))

    await until(forgotten, "Envoy to forget the replica that leaves")

    async def idle() -> bool:
        return leaving.num_in_flight == 0

    await until(idle, "the last request of the replica that leaves")
    answered = leaving.num_http + leaving.num_grpc
    await load.more(60)
    await leaving.stack.aclose()
    await load.more(60)
    await load.stop()
    assert load.errors == {}
    assert leaving.num_http + leaving.num_grpc - answered <= 1


async def test_traffic_outlives_the_control_plane_and_its_return_changes_nothing(
    gateway: Any, servers: Any, route: Any, world: Any, load: Any
) -> None:
    one, two = await servers("v1"), await servers("v2")
    state = world(route({"v1": 90, "v2": 10}), one, two)
    await gateway.put(route({"v1": 90, "v2": 10}), one, two)
    await gateway.until_weights(v1=90, v2=10)
    updates = await gateway.value("envoy_cluster_manager_cds_update_success")
    assert updates > 0
    load.start()
    await load.more(100)
    await gateway.stop_control_plane()
    await load.more(100)

    gateway.discovery = type(gateway.discovery)(type(gateway.registry)())
    gateway.publish(state)
    await gateway.start_control_plane()

    await gateway.until_connected()
    await load.more(100)
    assert await gateway.value("envoy_cluster_manager_cds_update_success") == updates
    assert await gateway.value("envoy_cluster_manager_cluster_modified") == 0
    # And it still hears what is new, also what became new while nobody told it.
    gateway.publish(world(route({"v1": 10, "v2": 90}), one, two))
    await gateway.until_weights(v1=10, v2=90)
    await gateway.stop_control_plane()
    gateway.discovery = type(gateway.discovery)(type(gateway.registry)())
    gateway.publish(world(route({"v2": 100}), two))
    await gateway.start_control_plane()
    await gateway.until_weights(v2=100)
    await load.more(100)
    await load.stop()
    assert load.errors == {}


async def test_the_first_replica_of_a_version_brings_its_prefix(
    gateway: Any, servers: Any, route: Any, world: Any, load: Any
) -> None:
    one, two = await servers("v1", prefix="/first"), await servers("v2", prefix="/second")
    await gateway.put(route({"v1": 50, "v2": 50}), one)
    await gateway.until_weights(v1=100)
    load.start()
    await load.more(100)
    gateway.publish(world(route({"v1": 50, "v2": 50}), one, two))
    await gateway.until_weights(v1=50, v2=50)
    await load.more(100)
    # And the last replica of a version takes its traffic away before it goes.
    gateway.publish(world(route({"v1": 50, "v2": 50}), two))
    await gateway.until_weights(v2=100)
    await load.more(100)
    await load.stop()
    assert load.errors == {}
    assert load.answers["ok", "v2"] > 0

"""EndpointSlices from Ray Serve's account of its replicas."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from belvedere_operators.controllers.endpoints.controller import EndpointsReconciler
from belvedere_operators.controllers.endpoints.decide import decide, slice_name
from belvedere_operators.controllers.endpoints.replicas import replicas_of
from belvedere_operators.runtime import After, Key
from belvedere_platform.store.kinds import ENDPOINT_SLICE, RAY_SERVICE

KEY = Key("default", "emoji-v1")
APPLICATION = "default.emoji-v1"


def replica(name: str, state: str = "RUNNING", address: str = "127.0.0.1") -> dict[str, Any]:
    return {"replica_id": name, "actor_name": f"SERVE_REPLICA::{name}", "state": state, "node_ip": address}


def target(name: str, port: int) -> dict[str, Any]:
    return {"ip": "127.0.0.1", "port": port, "instance_id": "", "name": f"SERVE_REPLICA::{name}"}


def details(
    replicas: list[dict[str, Any]], ports: dict[str, tuple[int, int]], prefix: str = f"/{APPLICATION}"
) -> dict[str, Any]:
    """What GET /api/serve/applications/ answers with direct ingress, as far as it is read."""
    groups = [
        {
            "protocol": protocol,
            "route_prefix": prefix,
            "app_name": APPLICATION,
            "ingress_deployment_name": "V2Server",
            "targets": [target(name, pair[index]) for name, pair in ports.items()],
        }
        for index, protocol in enumerate(("HTTP", "gRPC"))
    ]
    deployment = {"name": "V2Server", "replicas": replicas}
    other = {"protocol": "HTTP", "route_prefix": "/other", "app_name": "other", "targets": [target("x", 1)]}
    application = {"route_prefix": prefix, "deployments": {"V2Server": deployment}}
    return {"applications": {APPLICATION: application, "other": {"deployments": {}}}, "target_groups": [*groups, other]}


class Services:
    """One RayService on the bench, and the dashboard that it names."""

    def __init__(self, bench: Any) -> None:
        self.bench = bench
        self.reconciler = EndpointsReconciler(bench.context)
        self.answer: dict[str, Any] | None = None
        bench.answer = self._respond

    def _respond(self, request: httpx.Request) -> httpx.Response:
        assert str(request.url) == "http://10.0.0.1:8265/api/serve/applications/"
        if self.answer is None:
            raise httpx.ConnectError("connection refused", request=request)
        return httpx.Response(200, json=self.answer)

    async def apply(self, name: str = KEY.name, replicas: int = 0) -> None:
        labels = {"belvedere.dev/service": "emoji", "belvedere.dev/version": "v1"}
        spec = {"serveConfigV2": "{}", "rayClusterConfig": {"workerGroupSpecs": [{"replicas": replicas}]}}
        manifest: dict[str, Any] = {"apiVersion": "ray.io/v1", "kind": "RayService", "spec": spec}
        manifest["metadata"] = {"name": name, "namespace": "default", "labels": labels}
        await self.bench.store.apply(manifest, field_manager="test")
        cluster = {"head": {"serviceIP": "10.0.0.1"}, "endpoints": {"dashboard": "8265"}}
        active = {"applicationStatuses": {APPLICATION: {"status": "RUNNING"}}, "rayClusterStatus": cluster}
        await self.bench.set_status(RAY_SERVICE, name, activeServiceStatus=active)

    async def look(self, answer: dict[str, Any] | None) -> After | None:
        self.answer = answer
        await self.bench.clock.advance(1)
        return await self.reconciler.reconcile(KEY)

    async def ray_service(self) -> dict[str, Any]:
        found = await self.bench.get(RAY_SERVICE, KEY.name)
        assert found is not None
        return dict(found)

    async def slices(self) -> dict[str, dict[str, Any]]:
        listing = await self.bench.store.list(ENDPOINT_SLICE, "default")
        return {one["metadata"]["name"]: one for one in listing.items}


@pytest.fixture
async def services(bench: Any) -> Services:
    made = Services(bench)
    await made.apply()
    return made


async def test_each_replica_has_one_slice_with_both_ports(services: Services) -> None:
    answer = details([replica("a"), replica("b")], {"a": (30000, 40000), "b": (30001, 40001)})
    assert await services.look(answer) == After(1.0)
    slices = await services.slices()
    assert set(slices) == {slice_name("emoji-v1", "a"), slice_name("emoji-v1", "b")}
    one = slices[slice_name("emoji-v1", "b")]
    assert one["ports"] == [
        {"name": "http", "port": 30001, "protocol": "TCP"},
        {"name": "grpc", "port": 40001, "protocol": "TCP"},
    ]
    assert one["addressType"] == "IPv4"
    assert one["endpoints"] == [
        {"addresses": ["127.0.0.1"], "conditions": {"ready": True, "serving": True, "terminating": False}}
    ]
    assert (
        one["metadata"]["labels"].items() >= {"belvedere.dev/service": "emoji", "belvedere.dev/version": "v1"}.items()
    )
    assert one["metadata"]["annotations"] == {
        "belvedere.dev/replica": "b",
        "belvedere.dev/http-path-prefix": f"/{APPLICATION}",
    }
    before = one["metadata"]["resourceVersion"]
    await services.look(answer)
    assert (await services.slices())[one["metadata"]["name"]]["metadata"]["resourceVersion"] == before


async def test_a_root_application_has_no_prefix(services: Services) -> None:
    await services.look(details([replica("a")], {"a": (1, 2)}, prefix="/"))
    (one,) = (await services.slices()).values()
    assert "belvedere.dev/http-path-prefix" not in one["metadata"]["annotations"]


async def test_a_replica_drains_and_goes(services: Services) -> None:
    await services.look(details([replica("a"), replica("b")], {"a": (1, 2), "b": (3, 4)}))
    await services.look(details([replica("a"), replica("b", "STOPPING")], {"a": (1, 2)}))
    draining = (await services.slices())[slice_name("emoji-v1", "b")]
    assert draining["endpoints"][0]["conditions"] == {"ready": False, "serving": True, "terminating": True}
    assert [port["port"] for port in draining["ports"]] == [3, 4]
    await services.look(details([replica("a")], {"a": (1, 2)}))
    assert set(await services.slices()) == {slice_name("emoji-v1", "a")}


async def test_what_others_note_on_a_slice_is_no_change(services: Services) -> None:
    """On a cluster each applied object carries the digest of what it was applied as: nothing is written or hurried for that."""
    answer = details([replica("a")], {"a": (1, 2)})
    await services.look(answer)
    (one,) = (await services.slices()).values()
    noted = {**one, "metadata": {**one["metadata"], "annotations": {**one["metadata"]["annotations"], "other": "x"}}}
    assert decide(await services.ray_service(), replicas_of(answer, [APPLICATION]), [noted]).changes is False
    prefix = details([replica("a")], {"a": (1, 2)}, prefix="/")
    assert decide(await services.ray_service(), replicas_of(prefix, [APPLICATION]), [noted]).changes is True


async def test_a_starting_replica_is_not_there_yet(services: Services) -> None:
    await services.look(details([replica("a", "STARTING")], {}))
    assert await services.slices() == {}
    await services.look(details([replica("a", "RUNNING")], {}))
    assert await services.slices() == {}


async def test_slices_stay_while_the_dashboard_is_silent(services: Services) -> None:
    await services.look(details([replica("a")], {"a": (1, 2)}))
    assert await services.look(None) == After(1.0)
    assert len(await services.slices()) == 1


def by(controller: str, answer: dict[str, Any]) -> dict[str, Any]:
    return {**answer, "controller_info": {"actor_id": controller} if controller else {}}


async def test_replicas_outlive_the_head_that_started_them_until_the_next_has_one(services: Services) -> None:
    await services.apply(replicas=1)
    await services.look(by("one", details([replica("a")], {"a": (1, 2)})))
    # The next head knows nothing at first, then that a replica starts.
    for answer in ({}, by("two", details([], {})), by("two", details([replica("b", "STARTING")], {}))):
        await services.look(answer)
        assert set(await services.slices()) == {slice_name("emoji-v1", "a")}
    await services.look(by("two", details([replica("b")], {"b": (1, 2)})))
    assert set(await services.slices()) == {slice_name("emoji-v1", "b")}


async def test_replicas_that_the_next_head_knows_stay_as_they_were_while_it_asks_them(services: Services) -> None:
    await services.apply(replicas=2)
    await services.look(by("one", details([replica("a"), replica("b")], {"a": (1, 2), "b": (3, 4)})))
    before = await services.slices()
    asking = [replica("a", "RECOVERING"), replica("b", "RECOVERING")]
    for answer in ({}, by("one", details(asking, {})), by("one", details([replica("a"), asking[1]], {"a": (1, 2)}))):
        await services.look(answer)
        assert await services.slices() == before
    await services.look(by("one", details([replica("a")], {"a": (1, 2)})))
    assert set(await services.slices()) == {slice_name("emoji-v1", "a")}


async def test_a_replica_that_its_own_head_lost_goes_at_once(services: Services) -> None:
    await services.apply(replicas=1)
    await services.look(by("one", details([replica("a")], {"a": (1, 2)})))
    await services.look(by("one", details([], {})))
    assert await services.slices() == {}


async def test_no_replica_outlives_its_head_when_none_is_asked_for(services: Services) -> None:
    await services.look(by("one", details([replica("a")], {"a": (1, 2)})))
    await services.look(by("two", details([], {})))
    assert await services.slices() == {}


async def test_replicas_that_were_there_before_the_operator_are_looked_at_in_their_turn(services: Services) -> None:
    answer = details([replica("a")], {"a": (1, 2)})
    await services.apply(replicas=1)
    await services.look(answer)
    services.reconciler, asked = EndpointsReconciler(services.bench.context), len(services.bench.requests)
    after = await services.look(answer)
    assert after is not None
    assert 0 <= after.seconds <= 1
    assert len(services.bench.requests) == asked
    await services.look(answer)
    assert len(services.bench.requests) == asked + 1
    # Where a replica is missing there is no time to lose.
    await services.apply(replicas=2)
    services.reconciler = EndpointsReconciler(services.bench.context)
    await services.look(answer)
    assert len(services.bench.requests) == asked + 2


async def test_the_fewer_wait_for_replicas_the_sooner_each_is_looked_at(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("belvedere_operators.controllers.endpoints.controller.POLLS_PER_SECOND", 0.5)
    keys = [Key("default", f"emoji-v{number}") for number in range(4)]
    for key in keys:
        await services.apply(key.name, replicas=1)
    services.answer = None
    assert [await services.reconciler.reconcile(key) for key in keys] == [
        After(2.0),
        After(4.0),
        After(6.0),
        After(8.0),
    ]
    for key in keys[:3]:
        await services.bench.store.delete(RAY_SERVICE, key.name, "default")
        assert await services.reconciler.reconcile(key) is None
    assert await services.reconciler.reconcile(keys[3]) == After(2.0)


async def test_slices_go_with_their_service(services: Services) -> None:
    await services.look(details([replica("a")], {"a": (1, 2)}))
    await services.bench.store.delete(RAY_SERVICE, KEY.name, "default")
    assert await services.look(details([], {})) is None
    assert await services.slices() == {}


async def test_services_of_one_ray_share_one_answer(services: Services) -> None:
    await services.apply("emoji-v2")
    services.answer = details([replica("a")], {"a": (1, 2)})
    await services.reconciler.reconcile(KEY)
    await services.reconciler.reconcile(Key("default", "emoji-v2"))
    assert len(services.bench.requests) == 1


def test_serves_own_proxies_are_no_replicas() -> None:
    answer = details([replica("a")], {})
    proxy = {"ip": "127.0.0.1", "port": 8000, "instance_id": "", "name": "SERVE_PROXY_ACTOR"}
    answer["target_groups"] = [
        {"protocol": "HTTP", "route_prefix": "/", "app_name": APPLICATION, "targets": [proxy]},
        {"protocol": "HTTP", "route_prefix": "/", "app_name": "", "targets": [proxy]},
    ]
    assert [one.http_port for one in replicas_of(answer, [APPLICATION])] == [None]
    assert replicas_of({}, [APPLICATION]) == []


@pytest.mark.parametrize(
    ("host", "address"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "10.1.2.3"), (None, "10.1.2.3"), ("::1", "::1")]
)
def test_replicas_that_listen_on_loopback_are_there(host: str | None, address: str) -> None:
    answer = details([replica("a", address="10.1.2.3")], {"a": (1, 2)}) | {"http_options": {"host": host}}
    assert [one.address for one in replicas_of(answer, [APPLICATION])] == [address]

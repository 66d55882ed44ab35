"""What Envoy is told: shares that add up, no way to an empty cluster, the same bytes for the same world."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.route.v3 import route_pb2
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st

from belvedere_platform.resources.gateway_route import GatewayRoute
from belvedere_serving.gateway.routes import claim_conflicts
from belvedere_serving.gateway.snapshot import Snapshot, build_snapshot, joined, shares, version_of
from belvedere_serving.gateway.weights import effective_weights
from belvedere_serving.gateway.world import Replica, World

# One example builds some hundred messages; a shared machine must not make that a failure.
few = settings(max_examples=50, deadline=None)


def build(world: World) -> Snapshot:
    return build_snapshot(world, tap_address="127.0.0.1", tap_port=1)


def table(snapshot: Snapshot) -> list[dict[str, Any]]:
    configuration = route_pb2.RouteConfiguration()
    snapshot.routes["gateway"].Unpack(configuration)
    fields = json_format.MessageToDict(configuration, preserving_proto_field_name=True)
    return list(fields["virtual_hosts"][0]["routes"])


def targets(snapshot: Snapshot) -> Iterator[tuple[str, int]]:
    for route in table(snapshot):
        for cluster in route.get("route", {}).get("weighted_clusters", {}).get("clusters", []):
            yield cluster["name"], cluster["weight"]


def addresses(snapshot: Snapshot, cluster: str) -> list[str]:
    assignment = endpoint_pb2.ClusterLoadAssignment()
    snapshot.endpoints[cluster].Unpack(assignment)
    return [
        f"{found.endpoint.address.socket_address.address}:{found.endpoint.address.socket_address.port_value}"
        for locality in assignment.endpoints
        for found in locality.lb_endpoints
    ]


@st.composite
def worlds(draw: st.DrawFn) -> World:
    routes, replicas = {}, {}
    for service in draw(st.lists(st.sampled_from(["a", "b", "c.d"]), unique=True)):
        names = draw(st.lists(st.sampled_from(["v1", "v2", "v3.0", "v4"]), min_size=1, max_size=4, unique=True))
        cuts = sorted(draw(st.lists(st.integers(0, 100), min_size=len(names) - 1, max_size=len(names) - 1)))
        weights = [high - low for low, high in zip([0, *cuts], [*cuts, 100], strict=True)]
        shadow = {"stable": names[0], "candidate": names[-1], "percent": 10, "minimumCosine": 0.8}
        routes["default", service] = GatewayRoute.model_validate(
            {
                "namespace": "default",
                "service": service,
                "routing": {"hosts": [f"{service}.example"], "default": draw(st.booleans())},
                "versions": [{"version": n, "weight": w} for n, w in zip(names, weights, strict=True)],
                "shadow": draw(st.sampled_from([None, shadow])),
            }
        )
        for name in names:
            replicas["default", service, name] = tuple(
                Replica(
                    address=f"10.0.0.{number}",
                    http_port=draw(st.sampled_from([None, 8000])),
                    grpc_port=9000,
                    http_path_prefix=f"/{service}.{name}",
                )
                for number in range(draw(st.integers(0, 3)))
            )
    return World(routes=routes, replicas=replicas)


@few
@given(worlds())
def test_every_route_leads_to_replicas_and_its_weights_add_up(world: World) -> None:
    snapshot = build(world)
    for route in table(snapshot):
        if "direct_response" in route:
            continue
        clusters = route["route"]["weighted_clusters"]["clusters"]
        assert sum(cluster["weight"] for cluster in clusters) == 100
        assert all(cluster["weight"] > 0 for cluster in clusters)
        for cluster in clusters:
            assert cluster["name"] in snapshot.clusters
            assert addresses(snapshot, cluster["name"])


@few
@given(worlds(), st.randoms(use_true_random=False))
def test_the_same_world_gives_the_same_bytes(world: World, chance: random.Random) -> None:
    def shuffled(mapping: Any) -> Any:
        items = list(mapping.items())
        chance.shuffle(items)
        return dict(items)

    again = World(routes=shuffled(world.routes), replicas=shuffled(world.replicas))
    first, second = build(world), build(again)
    assert first == second
    for kind in ("clusters", "endpoints", "routes"):
        assert version_of(getattr(first, kind)) == version_of(getattr(second, kind))


@few
@given(worlds(), worlds())
def test_no_step_of_a_change_breaks_a_route(before: World, after: World) -> None:
    old, new = build(before), build(after)
    between = joined(old.clusters, old.endpoints, new)
    # Envoy takes clusters and replicas before routes, so the old routes must hold with the new clusters as well.
    for routes in (old, new):
        for name, _ in targets(routes):
            assert name in between.clusters
            assert addresses(between, name)


@few
@given(worlds())
def test_shares_say_what_the_routes_do(world: World) -> None:
    told = set(targets(build(world)))
    for share in shares(world):
        name = f"{share.namespace}/{share.service}/{share.version}/{share.protocol}"
        assert (share.weight > 0) == (name in dict(told))
        if share.weight:
            assert (name, share.weight) in told
            assert share.replicas > 0


def test_weights_go_to_versions_with_replicas_in_proportion(route: Any, world: Any, replica: Any) -> None:
    there = [replica()]
    cases: list[tuple[dict[str, int], dict[str, list[Replica]], dict[str, int]]] = [
        ({"v1": 95, "v2": 5}, {"v1": there, "v2": there}, {"v1": 95, "v2": 5}),
        ({"v1": 95, "v2": 5}, {"v1": there}, {"v1": 100}),
        ({"v1": 95, "v2": 5}, {"v2": there}, {"v2": 100}),
        ({"v1": 100, "v2": 0}, {"v2": there}, {}),
        ({"v1": 34, "v2": 33, "v3": 33}, {"v1": there, "v2": there}, {"v1": 51, "v2": 49}),
        ({"v1": 98, "v2": 1, "v3": 1}, {"v2": there, "v3": there}, {"v2": 50, "v3": 50}),
        ({"v1": 100}, {}, {}),
    ]
    for weights, replicas, expected in cases:
        given_route = route(weights)
        assert effective_weights(world(given_route, replicas=replicas), given_route, "http") == expected


def test_protocols_are_weighed_apart(route: Any, world: Any, replica: Any) -> None:
    given_route = route({"v1": 50, "v2": 50})
    state = world(given_route, replicas={"v1": [replica(http_port=None)], "v2": [replica()]})
    assert effective_weights(state, given_route, "http") == {"v2": 100}
    assert effective_weights(state, given_route, "grpc") == {"v1": 50, "v2": 50}


def test_a_service_without_replicas_answers_so(route: Any, world: Any) -> None:
    answers = [
        found["direct_response"] for found in table(build(world(route({"v1": 100}), replicas={}))) if "name" in found
    ]
    assert answers
    assert {answer["status"] for answer in answers} == {503}
    assert all("default/emoji has no ready replica" in answer["body"]["inline_string"] for answer in answers)


def test_only_the_stable_versions_share_is_tapped(route: Any, world: Any, replica: Any) -> None:
    shadow = {"stable": "v1", "candidate": "v2", "percent": 12.5, "minimumCosine": 0.8}
    state = world(route({"v1": 60, "v2": 40}, shadow=shadow), replicas={"v1": [replica()], "v2": [replica(2)]})
    sampled = [found for found in table(build(state)) if "runtime_fraction" in found["match"]]
    assert sampled
    for found in sampled:
        fraction = found["match"]["runtime_fraction"]["default_value"]
        assert fraction == {"numerator": 125_000, "denominator": "MILLION"}
        tapped = [c["name"] for c in found["route"]["weighted_clusters"]["clusters"] if "typed_per_filter_config" in c]
        assert [name.split("/")[2] for name in tapped] == ["v1"]


def test_no_shadow_without_a_candidate_that_is_there(route: Any, world: Any, replica: Any) -> None:
    shadow = {"stable": "v1", "candidate": "v2", "percent": 10, "minimumCosine": 0.8}
    state = world(route({"v1": 100}, shadow=shadow), replicas={"v1": [replica()]})
    assert not [found for found in table(build(state)) if "runtime_fraction" in found["match"]]


def test_the_prefix_is_put_in_for_http_alone(route: Any, world: Any, replica: Any) -> None:
    snapshot = build(world(route({"v1": 100}), replicas={"v1": [replica(http_path_prefix="/app")]}))

    def cluster(protocol: str) -> str:
        message = cluster_pb2.Cluster()
        snapshot.clusters[f"default/emoji/v1/{protocol}"].Unpack(message)
        return json_format.MessageToJson(message)

    assert 'local prefix = \\"/app\\"' in cluster("http")
    assert "prefix" not in cluster("grpc")


def test_names_claimed_twice_belong_to_the_first_and_are_reported(route: Any, world: Any, replica: Any) -> None:
    routing = {"default": True, "hosts": ["x.example"]}
    first, second = route({"v1": 100}, service="a", routing=routing), route({"v1": 100}, service="b", routing=routing)
    assert claim_conflicts([second, first]) == [
        "routing.hosts of default/b: 'x.example' belongs to default/a",
        "routing.default of default/b: default/a is the default already",
    ]
    names = [
        found["name"] for found in table(build(world(first, second, replicas={"v1": [replica()]}))) if "name" in found
    ]
    assert "default/a/http/default" in names
    assert "default/b/http/default" not in names

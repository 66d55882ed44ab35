"""What is read from stored objects, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from belvedere_platform.errors import InvalidInput
from belvedere_platform.store.kinds import CONFIG_MAP, ENDPOINT_SLICE
from belvedere_serving.gateway.watch import Observed
from belvedere_serving.gateway.world import Replica, gather_replicas, read_replicas, read_route

GOOD = {"namespace": "default", "service": "emoji", "versions": [{"version": "v1", "weight": 100}]}


def config_map(document: Any = GOOD, **metadata: Any) -> dict[str, Any]:
    text = document if isinstance(document, str) else json.dumps(document)
    labels = {"belvedere.dev/service": "emoji"}
    return {
        "metadata": {"name": "emoji-gateway", "namespace": "default", "labels": labels, **metadata},
        "data": {"route.json": text},
    }


def endpoint_slice(name: str = "a", conditions: Any = None, **changes: Any) -> dict[str, Any]:
    labels = {"belvedere.dev/service": "emoji", "belvedere.dev/version": "v1"}
    return {
        "metadata": {"name": name, "namespace": "default", "labels": labels, **changes.pop("metadata", {})},
        "ports": [{"name": "http", "port": 8000}, {"name": "grpc", "port": 9000}],
        "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": True} if conditions is None else conditions}],
        **changes,
    }


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "Invalid JSON"),
        ({**GOOD, "color": "red"}, "color: Extra inputs"),
        ({**GOOD, "namespace": "other"}, "namespace is 'other'; it must be the ConfigMap's own"),
        ({**GOOD, "service": "other"}, "service is 'other'; it must be the label"),
        ({**GOOD, "versions": [{"version": "v1", "weight": 90}]}, "add up to 90; they must add up to 100"),
        ({**GOOD, "versions": [{"version": "v1", "weight": 50}] * 2}, "names one version twice"),
        ({**GOOD, "versions": [{"version": "v1", "weight": 101}]}, "versions.0.weight"),
    ],
)
def test_a_bad_route_is_refused_with_its_place(document: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message) as caught:
        read_route(config_map(document))
    assert "ConfigMap default/emoji-gateway, key route.json" in str(caught.value)


@pytest.mark.parametrize(
    ("conditions", "takes"),
    [
        ({"ready": True}, True),
        ({}, True),
        ({"ready": None}, True),
        ({"ready": False}, False),
        ({"ready": False, "serving": True, "terminating": True}, False),
        ({"ready": True, "serving": True, "terminating": True}, False),
    ],
)
def test_only_what_is_ready_and_stays_takes_requests(conditions: Any, takes: bool) -> None:
    assert bool(read_replicas(endpoint_slice(conditions=conditions))) is takes


def test_a_replica_has_its_ports_and_prefix() -> None:
    (found,) = read_replicas(endpoint_slice(metadata={"annotations": {"belvedere.dev/http-path-prefix": "/a.b-c/"}}))
    expected = Replica(address="10.0.0.1", http_port=8000, grpc_port=9000, http_path_prefix="/a.b-c")
    assert found == (("default", "emoji", "v1"), expected)


@pytest.mark.parametrize(
    "broken",
    [
        endpoint_slice(metadata={"annotations": {"belvedere.dev/http-path-prefix": '/a" .. os.exit() .. "'}}),
        endpoint_slice(metadata={"labels": {"belvedere.dev/service": "emoji"}}),
        endpoint_slice(ports=[{"name": "metrics", "port": 1}]),
        endpoint_slice(endpoints=[{"addresses": [], "conditions": {"ready": True}}]),
        endpoint_slice(endpoints=[{"addresses": ["pod.example"], "conditions": {"ready": True}}]),
    ],
)
def test_a_slice_that_cannot_be_used_is_refused(broken: Any) -> None:
    with pytest.raises(InvalidInput, match="EndpointSlice default/a"):
        read_replicas(broken)


def test_each_ready_pod_of_a_clusters_own_slice_is_a_replica() -> None:
    pods = [
        {"addresses": [f"10.0.0.{number}"], "conditions": {"ready": number != 2, "terminating": number == 3}}
        for number in range(1, 5)
    ]
    found = read_replicas(endpoint_slice(endpoints=pods))
    assert [replica.address for _, replica in found] == ["10.0.0.1", "10.0.0.4"]


def test_one_address_counts_once() -> None:
    (found,) = read_replicas(endpoint_slice())
    assert gather_replicas([found, found]) == {found[0]: (found[1],)}


def test_the_last_good_reading_stays_until_the_object_goes() -> None:
    observed = Observed()
    observed.take(CONFIG_MAP, config_map())
    observed.take(ENDPOINT_SLICE, endpoint_slice())
    before = observed.world()
    observed.take(CONFIG_MAP, config_map("{"))
    assert observed.world() == before
    assert list(observed.rejected) == [("default", "emoji-gateway")]
    observed.take(CONFIG_MAP, config_map())
    assert observed.rejected == {}
    observed.replace_all(CONFIG_MAP, [])
    observed.replace_all(ENDPOINT_SLICE, [endpoint_slice("b", conditions={"ready": False})])
    assert observed.world().routes == {}
    assert observed.world().replicas == {}


def test_a_route_broken_while_nobody_looked_is_remembered() -> None:
    good = read_route(config_map())
    observed = Observed(remembered={("default", "emoji-gateway"): good, ("default", "gone-gateway"): good})
    observed.replace_all(CONFIG_MAP, [config_map("{")])
    assert observed.world().routes == {("default", "emoji"): good}

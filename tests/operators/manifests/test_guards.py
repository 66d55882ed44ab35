"""What stands beside a service's pods: who may reach them, and who scales them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from belvedere_operators.manifests.autoscaler import autoscaler
from belvedere_operators.manifests.network import NetworkPeers, network_policy, read_network_peers, training_policy
from belvedere_platform.errors import InvalidInput
from belvedere_platform.resources import ModelService

GATEWAY, OPERATOR, KUBERAY, PROMETHEUS = ({"podSelector": {"matchLabels": {"is": name}}} for name in "gokp")
PEERS = NetworkPeers(gateway=(GATEWAY,), operator=(OPERATOR,), kuberay=(KUBERAY,), monitoring=(PROMETHEUS,))
OWN = {"podSelector": {"matchLabels": {"belvedere.dev/service": "search"}}}


def scaled(owner: dict[str, Any], **scaling: Any) -> Any:
    return ModelService.model_validate({**owner, "spec": {**owner["spec"], "scaling": scaling}}).spec


def test_only_the_service_itself_and_the_peers_reach_its_pods(owner: Any) -> None:
    spec = network_policy(owner, PEERS)["spec"]
    assert spec["podSelector"] == OWN["podSelector"]
    assert spec["policyTypes"] == ["Ingress"]
    assert spec["ingress"] == [
        {"from": [OWN, GATEWAY, KUBERAY]},
        {"from": [OPERATOR], "ports": [{"port": 8265, "protocol": "TCP"}]},
        {"from": [PROMETHEUS], "ports": [{"port": "metrics", "protocol": "TCP"}]},
    ]


def test_of_pods_that_train_nobody_but_kuberay_and_monitoring_asks_anything() -> None:
    run = {"apiVersion": "belvedere.dev/v1alpha1", "kind": "TrainingRun"}
    made = training_policy({**run, "metadata": {"name": "clip", "namespace": "shop", "uid": "u-2"}}, PEERS)
    own = {"podSelector": {"matchLabels": {"belvedere.dev/training-run": "clip"}}}
    assert made["metadata"]["ownerReferences"][0]["uid"] == "u-2"
    assert made["spec"]["podSelector"] == own["podSelector"]
    assert made["spec"]["ingress"] == [
        {"from": [own, KUBERAY]},
        {"from": [PROMETHEUS], "ports": [{"port": "metrics", "protocol": "TCP"}]},
    ]


def test_where_nobody_is_named_nobody_is_let_in(owner: Any) -> None:
    assert network_policy(owner, NetworkPeers())["spec"]["ingress"] == [{"from": [OWN]}]


def test_a_file_of_peers_is_read_and_a_wrong_one_named(tmp_path: Path) -> None:
    file = tmp_path / "peers.yaml"
    file.write_text("operator: [{namespaceSelector: {}}]")
    assert read_network_peers(file) == NetworkPeers(operator=({"namespaceSelector": {}},))
    file.write_text("prometheus: []")
    with pytest.raises(InvalidInput, match=r"peers.yaml are wrong: prometheus: Extra inputs are not permitted"):
        read_network_peers(file)


def test_a_service_that_names_no_autoscaler_has_none(owner: Any, spec: Any) -> None:
    assert autoscaler(owner, spec, prometheus_url="http://p") is None


def test_by_cpu_the_service_is_scaled_between_its_bounds(owner: Any) -> None:
    spec = scaled(
        owner,
        maxReplicas=8,
        scaleInDelaySeconds=90,
        autoscaler={"kind": "HorizontalPodAutoscaler", "minReplicas": 2, "targetCpuPercent": 60},
    )
    made = autoscaler(owner, spec, prometheus_url="http://p")
    assert made is not None
    assert (made["apiVersion"], made["kind"]) == ("autoscaling/v2", "HorizontalPodAutoscaler")
    asked = made["spec"]
    assert asked["scaleTargetRef"] == {
        "apiVersion": "belvedere.dev/v1alpha1", "kind": "ModelService", "name": "search",
    }  # fmt: skip
    assert (asked["minReplicas"], asked["maxReplicas"]) == (2, 8)
    assert asked["metrics"][0]["resource"]["target"]["averageUtilization"] == 60
    assert asked["behavior"]["scaleDown"]["stabilizationWindowSeconds"] == 90


def test_by_requests_in_flight_keda_asks_the_prometheus_of_the_installation(owner: Any) -> None:
    spec = scaled(owner, maxReplicas=8, targetInFlight=6, autoscaler={"kind": "ScaledObject"})
    made = autoscaler(owner, spec, prometheus_url="http://p")
    assert made is not None
    asked = made["spec"]
    assert (asked["minReplicaCount"], asked["maxReplicaCount"]) == (1, 8)
    (trigger,) = asked["triggers"]
    assert trigger["type"] == "prometheus"
    assert (trigger["metadata"]["serverAddress"], trigger["metadata"]["threshold"]) == ("http://p", "6")
    assert 'namespace="shop", service="search"' in trigger["metadata"]["query"].replace('",service', '", service')


def test_a_prometheus_that_has_lost_sight_of_the_gateway_does_not_scale_in(owner: Any) -> None:
    made = autoscaler(owner, scaled(owner, autoscaler={"kind": "ScaledObject"}), prometheus_url="http://p")
    assert made is not None
    (trigger,) = made["spec"]["triggers"]
    # KEDA takes no answer for zero requests otherwise.
    assert trigger["metadata"]["ignoreNullValues"] == "false"


@pytest.mark.parametrize("length", [54, 55, 63])
def test_a_scaled_objects_name_can_be_a_label_as_keda_makes_it(owner: Any, length: int) -> None:
    owner["metadata"]["name"] = "s" * length
    made = autoscaler(owner, scaled(owner, autoscaler={"kind": "ScaledObject"}), prometheus_url="http://p")
    assert made is not None
    assert made["metadata"]["name"].endswith("-replicas")
    assert len(made["metadata"]["name"]) <= 63


@pytest.mark.parametrize(
    "asked", [{"kind": "Keda"}, {"kind": "ScaledObject", "minReplicas": 0}, {"kind": "ScaledObject", "max": 3}]
)
def test_an_autoscaler_that_is_not_known_is_refused(owner: Any, asked: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        scaled(owner, autoscaler=asked)

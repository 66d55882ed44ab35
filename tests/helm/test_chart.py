"""What the chart makes of its values, as the real helm renders it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import FULL, S3, Manifest, Refused, named, pod_specs, render, rendered

OPERATOR = "belvedere-operator"
GATEWAY = "belvedere-gateway"


def test_twice_the_same_values_give_the_same_bytes() -> None:
    for values in (S3, FULL):
        first = render(values)
        rendered.cache_clear()
        assert render(values) == first


def test_the_chart_needs_no_hook_but_for_its_test(manifests: list[Manifest]) -> None:
    hooked = [one["kind"] for one in manifests if "helm.sh/hook" in one["metadata"].get("annotations", {})]
    assert hooked == ["Pod"]


def test_selectors_never_change_with_the_chart(manifests: list[Manifest]) -> None:
    for one in manifests:
        if one["kind"] != "Deployment":
            continue
        selector = one["spec"]["selector"]["matchLabels"]
        assert set(selector) == {
            "app.kubernetes.io/name",
            "app.kubernetes.io/instance",
            "app.kubernetes.io/component",
        }
        labels = one["spec"]["template"]["metadata"]["labels"]
        assert selector.items() <= labels.items()
        # A label that changes with every version would start every pod anew at every upgrade.
        assert not {"helm.sh/chart", "app.kubernetes.io/version"} & set(labels)


def test_services_budgets_policies_and_monitors_find_their_pods(manifests: list[Manifest]) -> None:
    templates = {
        one["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/component"]: one["spec"]["template"]
        for one in manifests
        if one["kind"] == "Deployment"
    }
    for one in manifests:
        selector = {
            "Service": lambda spec: spec["selector"],
            "PodDisruptionBudget": lambda spec: spec["selector"]["matchLabels"],
            "NetworkPolicy": lambda spec: spec["podSelector"]["matchLabels"],
        }.get(one["kind"])
        if selector is None:
            continue
        found = selector(one["spec"])
        template = templates[found["app.kubernetes.io/component"]]
        assert found.items() <= template["metadata"]["labels"].items()
        named_ports = {
            port["name"] for container in template["spec"]["containers"] for port in container.get("ports", [])
        }
        asked = [port.get("targetPort", port.get("port")) for port in one["spec"].get("ports", [])]
        asked += [port["port"] for rule in one["spec"].get("ingress", []) for port in rule["ports"]]
        assert set(asked) <= named_ports


def test_changed_pod_defaults_start_the_operator_anew() -> None:
    def checksum(values: dict[str, Any]) -> str:
        operator = named(render(values), "Deployment", OPERATOR)
        return str(operator["spec"]["template"]["metadata"]["annotations"]["checksum/pod-defaults"])

    assert checksum(S3) == checksum({**S3, "gateway": {"replicas": 3}})
    assert checksum(S3) != checksum({**S3, "pods": {"nodeSelector": {"pool": "gpu"}}})


def test_pods_in_all_places_carry_what_was_given() -> None:
    manifests = render(FULL)
    for name, spec in pod_specs(manifests).items():
        assert spec["nodeSelector"] == {"pool": "cpu"}, name
        assert spec["imagePullSecrets"] == [{"name": "registry"}]
        assert spec["priorityClassName"] == "system-cluster-critical"
        for container in spec["containers"]:
            assert container["envFrom"] == [{"secretRef": {"name": "s3"}}], name
            env = {one["name"]: one.get("value") for one in container["env"]}
            assert len(env) == len(container["env"]), f"{name} names a variable twice"
            assert env["A"] == "1"
            assert env["B"] == ("2" if "gateway" in name else "3"), f"the component's own is stronger: {name}"
            assert {"name": "cache", "mountPath": "/var/cache/belvedere"} in container["volumeMounts"]
        mounted = {one["name"] for container in spec["containers"] for one in container["volumeMounts"]}
        assert mounted == {one["name"] for one in spec["volumes"]}


def test_the_operator_is_told_what_its_pods_have() -> None:
    manifests = render(FULL)
    told = yaml.safe_load(named(manifests, "ConfigMap", "belvedere-pod-defaults")["data"]["pods.yaml"])
    assert told["all"]["image"] == "belvedere:dev"
    assert told["all"]["serviceAccountName"] == "models"
    assert told["all"]["securityContext"]["runAsUser"] == 65532
    assert told["all"]["volumes"][0] == {"name": "artifacts", **FULL["artifacts"]["volume"]}
    assert told["all"]["volumeMounts"][0] == {"name": "artifacts", "mountPath": "/artifacts"}
    assert told["training"] == {
        "image": "trainer-cuda:dev",
        "imagePullPolicy": "IfNotPresent",
        "runtimeClassName": "nvidia",
    }
    assert set(told) == {"all", "training"}
    arguments = named(manifests, "Deployment", OPERATOR)["spec"]["template"]["spec"]["containers"][0]["args"]
    assert "--artifacts=file:///artifacts" in arguments
    assert "--accelerators=8" in arguments
    assert "--pod-defaults=/etc/belvedere/pods/pods.yaml" in arguments


@pytest.mark.parametrize(
    ("redis", "told"),
    [
        ({}, []),
        ({"address": "redis:6379"}, ["--ray-redis=redis:6379"]),
        (
            {"address": "rediss://redis.data:6380", "passwordSecret": {"name": "redis"}},
            ["--ray-redis=rediss://redis.data:6380", "--ray-redis-password=redis/password"],
        ),
    ],
    ids=["none", "open", "with a password"],
)
def test_the_operator_is_told_where_ray_heads_keep_what_they_know(redis: dict[str, Any], told: list[str]) -> None:
    operator = named(render({**S3, "models": {"redis": redis}}), "Deployment", OPERATOR)
    arguments = operator["spec"]["template"]["spec"]["containers"][0]["args"]
    assert [one for one in arguments if one.startswith("--ray-redis")] == told


def test_the_operator_is_told_who_may_reach_the_pods_that_serve(tmp_path: Path) -> None:
    from belvedere_operators.manifests.network import read_network_peers

    def peers(values: Manifest) -> Any:
        file = tmp_path / "peers.yaml"
        file.write_text(named(render(values), "ConfigMap", "belvedere-pod-defaults")["data"]["peers.yaml"])
        return read_network_peers(file)

    told = peers(FULL)
    manifests = render(FULL)
    for name, component in (("belvedere-gateway", told.gateway), ("belvedere-operator", told.operator)):
        (peer,) = component
        labels = named(manifests, "Deployment", name)["spec"]["template"]["metadata"]["labels"]
        assert peer["podSelector"]["matchLabels"].items() <= labels.items()
        assert peer["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "belvedere-system"}
    assert list(told.monitoring) == FULL["networkPolicies"]["monitoringFrom"]
    assert told.kuberay
    # Without a gateway of its own the release names nobody who was not named to it.
    other = [{"namespaceSelector": {"matchLabels": {"gateway": "yes"}}}]
    without = {"gateway": {"enabled": False}, "networkPolicies": {"modelsFrom": other}}
    assert list(peers({**S3, **without}).gateway) == other
    off = render({**S3, "networkPolicies": {"enabled": False}})
    assert "peers.yaml" not in named(off, "ConfigMap", "belvedere-pod-defaults")["data"]
    assert not [word for word in str(named(off, "Deployment", OPERATOR)).split("'") if "--network-peers" in word]


def test_every_program_takes_the_arguments_that_the_chart_gives_it(manifests: list[Manifest]) -> None:
    from belvedere_operators.commands.operator import operator
    from belvedere_serving.commands.gateway import gateway

    commands = {"operator": operator, **{f"gateway {name}": one for name, one in gateway.commands.items()}}
    asked = []
    for spec in pod_specs(manifests).values():
        for container in spec["containers"]:
            words = [*container["command"], *container["args"]]
            hook = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command")
            asked += [found for found in (words, hook) if found and found[0] == "belvedere"]
    assert len(asked) == 4
    for words in asked:
        name = " ".join(itertools.takewhile(lambda word: not word.startswith("-"), words[1:]))
        context = commands[name].make_context(name, list(words[1 + len(name.split()) :]))
        assert context.args == []


def test_the_operator_reads_what_the_chart_says_of_pods(manifests: list[Manifest], tmp_path: Path) -> None:
    from belvedere_operators.manifests.pods import read_pod_defaults

    file = tmp_path / "pods.yaml"
    file.write_text(named(manifests, "ConfigMap", "belvedere-pod-defaults")["data"]["pods.yaml"])
    assert read_pod_defaults(file).all.image == "belvedere:dev"


@pytest.mark.parametrize(
    ("values", "image"),
    [
        ({}, "belvedere:dev"),
        ({"image": {"registry": "r.example.com/ml/", "tag": "0.2.0"}}, "r.example.com/ml/belvedere:0.2.0"),
        ({"image": {"digest": "sha256:" + "a" * 64}}, "belvedere@sha256:" + "a" * 64),
        ({"operator": {"image": {"repository": "operator"}}}, "operator:dev"),
    ],
)
def test_images(values: dict[str, Any], image: str) -> None:
    operator = named(render({**S3, **values}), "Deployment", OPERATOR)
    assert operator["spec"]["template"]["spec"]["containers"][0]["image"] == image


def test_large_user_ids_stay_whole_numbers() -> None:
    manifests = render({**S3, "pods": {"securityContext": {"runAsUser": 1000700000}}})
    for spec in pod_specs(manifests).values():
        assert spec["securityContext"]["runAsUser"] == 1000700000
    text = named(manifests, "ConfigMap", "belvedere-pod-defaults")["data"]["pods.yaml"]
    assert "runAsUser: 1000700000\n" in text


def test_a_secret_is_only_rendered_from_a_token_that_was_given() -> None:
    def secret_arguments(alerts: dict[str, Any]) -> tuple[list[str], list[str]]:
        manifests = render({**S3, "alerts": alerts})
        container = named(manifests, "Deployment", OPERATOR)["spec"]["template"]["spec"]["containers"][0]
        secrets = [one["metadata"]["name"] for one in manifests if one["kind"] == "Secret"]
        return secrets, [argument for argument in container["args"] if argument.startswith("--alerts")]

    file = ["--alerts-secret-file=/etc/belvedere/alerts/token"]
    assert secret_arguments({"token": "0123456789abcdef"}) == (["belvedere-alerts"], file)
    assert secret_arguments({"existingSecret": "mine"}) == ([], file)
    assert secret_arguments({}) == ([], ["--alerts-secret=belvedere-system/belvedere-alerts"])


def test_definitions_are_upgraded_with_the_chart_and_outlive_it() -> None:
    def definitions(**crds: Any) -> list[Manifest]:
        return [one for one in render({**S3, "crds": crds}) if one["kind"] == "CustomResourceDefinition"]

    kept = definitions()
    assert len(kept) == 4
    assert all(one["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep" for one in kept)
    assert all(
        "helm.sh/resource-policy" not in one["metadata"].get("annotations", {}) for one in definitions(keep=False)
    )
    assert definitions(install=False) == []


def test_without_gateway_nothing_of_it_is_left() -> None:
    manifests = render({**S3, "gateway": {"enabled": False}})
    assert not [one for one in manifests if "gateway" in one["metadata"]["name"]]
    operator = named(manifests, "Deployment", OPERATOR)["spec"]["template"]["spec"]["containers"][0]
    assert not [argument for argument in operator["args"] if argument.startswith("--gateway-url")]


def test_one_replica_has_no_budget_that_would_block_a_drain() -> None:
    manifests = render({**S3, "operator": {"replicas": 1}, "gateway": {"replicas": 1}})
    assert not [one for one in manifests if one["kind"] == "PodDisruptionBudget"]


def test_a_claim_is_made_and_mounted() -> None:
    values = {"artifacts": {"claim": {"create": True, "size": "1Ti"}}, "watchNamespaces": ["belvedere-system"]}
    manifests = render(values)
    claim = named(manifests, "PersistentVolumeClaim", "belvedere-artifacts")
    assert claim["spec"]["resources"]["requests"]["storage"] == "1Ti"
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    volumes = pod_specs(manifests)[f"Deployment/{OPERATOR}"]["volumes"]
    assert {"name": "artifacts", "persistentVolumeClaim": {"claimName": "belvedere-artifacts"}} in volumes


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({}, "artifacts.url is empty"),
        ({"artifacts": {"url": "file:///srv"}}, "a path that every pod would have for itself"),
        (
            {"artifacts": {"url": "s3://b/p", "volume": {"hostPath": {"path": "/srv"}}}},
            "which only file:///PATH can use",
        ),
        ({"artifacts": {"claim": {"create": True}}}, "set it to [belvedere-system]"),
        ({"artifacts": {"url": "ftp://x"}}, "/artifacts/url"),
        ({**S3, "alerts": {"token": "short"}}, "/alerts/token"),
        ({**S3, "alerts": {"token": "0123456789abcdef", "existingSecret": "a"}}, "leave one of them out"),
        ({**S3, "operator": {"replica": 1}}, "'replica' not allowed"),
        ({**S3, "operators": {}}, "'operators' not allowed"),
        ({**S3, "pods": {"nodeSelectors": {}}}, "'nodeSelectors' not allowed"),
        ({**S3, "models": {"serving": {"pod": {"affinity": {}}}}}, "'affinity' not allowed"),
        ({**S3, "gateway": {"service": {"port": 0}}}, "/gateway/service/port"),
        ({**S3, "image": {"tag": ""}}, "/image/tag"),
        ({**S3, "watchNamespaces": ["Team_A"]}, "/watchNamespaces/0"),
        ({**S3, "pods": {"env": [{"name": "A", "values": "b"}]}}, "'values' not allowed"),
    ],
)
def test_what_cannot_work_is_refused_by_name(values: dict[str, Any], says: str) -> None:
    with pytest.raises(Refused) as refused:
        render(values)
    assert says in str(refused.value)


def test_names_are_unique_and_labelled(manifests: list[Manifest]) -> None:
    identities = [(one["kind"], one["metadata"].get("namespace"), one["metadata"]["name"]) for one in manifests]
    assert len(set(identities)) == len(identities)
    for one in manifests:
        if one["kind"] != "CustomResourceDefinition":
            assert one["metadata"]["labels"]["app.kubernetes.io/part-of"] == "belvedere"
            # The operator and the gateway take objects that are marked so for the operator's own.
            assert one["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "Helm"


def test_two_releases_share_no_name() -> None:
    def cluster_wide(release: str) -> set[tuple[str, str]]:
        manifests = render({**S3, "fullnameOverride": release, "crds": {"install": False}})
        return {(one["kind"], one["metadata"]["name"]) for one in manifests}

    assert not cluster_wide("one") & cluster_wide("two")

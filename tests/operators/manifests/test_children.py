"""What the builders write."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import yaml

from belvedere_operators.manifests.disruption import disruption_budget
from belvedere_operators.manifests.gateway import gateway_route
from belvedere_operators.manifests.pods import PodSettings
from belvedere_operators.manifests.prometheusrule import prometheus_rule
from belvedere_operators.manifests.raycluster import HeadStore
from belvedere_operators.manifests.rayservice import ray_service
from belvedere_operators.manifests.server import intent
from belvedere_platform.resources import GatewayRoute, ModelService
from belvedere_platform.resources.model_service import ModelServiceSpec

PODS = PodSettings(
    image="belvedere:test",
    environment={"BELVEDERE_ARTIFACTS": "file:///artifacts", "BELVEDERE_INSTANCE": "one"},
)


@pytest.fixture
def built(owner, spec):
    return ray_service(
        owner,
        spec,
        version="v2",
        engine_digest="sha256:" + "b" * 64,
        replicas=3,
        pods=PODS,
    )


def test_the_application_is_told_everything_it_needs(built):
    (application,) = yaml.safe_load(built["spec"]["serveConfigV2"])["applications"]
    assert application["import_path"] == "belvedere_serving.server.app:build"
    assert application["args"] == {
        "service": "search",
        "namespace": "shop",
        "model": "clip",
        "version": "v2",
        "engineDigest": "sha256:" + "b" * 64,
        "artifacts": "file:///artifacts",
        "maxBatchSize": 16,
        "batchWaitMilliseconds": 2.0,
        "maxQueuedRequests": 256,
        "threads": 1,
    }
    (deployment,) = application["deployments"]
    assert (deployment["name"], deployment["num_replicas"]) == ("V2Server", 3)
    assert deployment["ray_actor_options"] == {"num_cpus": 0.5, "resources": {"belvedere_slot": 1}}


def test_a_head_keeps_what_it_knows_where_the_installation_says(owner, spec, built):
    assert "gcsFaultToleranceOptions" not in built["spec"]["rayClusterConfig"]
    given = {"version": "v2", "engine_digest": "sha256:" + "b" * 64, "replicas": 3}
    open_store = replace(PODS, head_store=HeadStore(address="redis:6379"))
    made = ray_service(owner, spec, pods=open_store, **given)
    assert made["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"] == {"redisAddress": "redis:6379"}
    assert made["metadata"]["annotations"]["ray.io/gcs-ft-deletion-timeout"] == "60"
    # A service that runs keeps its pods when its installation gets one.
    assert ray_service(owner, spec, pods=open_store, running=built, **given) == built
    assert ray_service(owner, spec, pods=PODS, running=made, **given) == made


def test_what_a_service_says_of_its_server_reaches_the_application(owner, spec):
    writing = {"maxRunningTexts": 8, "maxNewTokens": 16, "cacheBlocks": 32, "cacheBlockSize": 16}
    said = {"models": ["caption"], "plugins": "/plugins", "writing": {**writing, "cachePrecision": "int8"}}
    asked = ModelService.model_validate({**owner, "spec": {**owner["spec"], "server": said}}).spec
    made = ray_service(owner, asked, version="v2", engine_digest="sha256:" + "b" * 64, replicas=1, pods=PODS)
    (application,) = yaml.safe_load(made["spec"]["serveConfigV2"])["applications"]
    given = {"models": ["caption"], "plugins": "/plugins", **writing, "cachePrecision": "int8"}
    assert given.items() <= application["args"].items()


def test_only_who_says_something_of_its_server_gets_new_replicas_for_it(owner, spec):
    def asked(**server):
        given = ModelService.model_validate({**owner, "spec": {**owner["spec"], "server": server}}).spec
        return intent(given, "sha256:" + "b" * 64)

    assert asked() == intent(spec, "sha256:" + "b" * 64)
    assert len({asked(), asked(models=["caption"]), asked(plugins="/p"), asked(writing={"cacheBlocks": 9})}) == 4


@pytest.mark.parametrize(
    ("asked", "digest"),
    [
        ({}, "26f0c96c53202da3"),
        ({"batching": {"maxBatchSize": 4}, "resources": {"cpu": 2}}, "dbb69054c8b71314"),
        (
            {
                "pod": {
                    "env": [{"name": "A", "value": "b"}],
                    "tolerations": [{"key": "gpu", "operator": "Exists"}],
                    "volumes": [{"name": "m", "persistentVolumeClaim": {"claimName": "c"}}],
                    "volumeMounts": [{"name": "m", "mountPath": "/m"}],
                }
            },
            "4cb79251325c8a92",
        ),
    ],
)
def test_what_runs_asks_what_it_asked_when_an_earlier_belvedere_started_it(asked, digest):
    # Another digest restarts every model at the next upgrade: leave a new field out of it where nothing is said.
    spec = ModelServiceSpec.model_validate({"model": "clip", "version": "v1", **asked})
    assert intent(spec, "sha256:" + "b" * 64) == digest


def test_replicas_are_reached_directly_and_probed_without_serves_proxy(built):
    cluster = built["spec"]["rayClusterConfig"]
    (group,) = cluster["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    environment = {one["name"]: one["value"] for one in container["env"]}
    assert environment["RAY_SERVE_ENABLE_DIRECT_INGRESS"] == "1"
    assert environment["BELVEDERE_INSTANCE"] == "one"
    assert container["readinessProbe"]["httpGet"]["port"] == 52365
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (3, 3, 3)


@pytest.mark.parametrize(("cpu", "head"), [(0.1, "0.1"), (4, "0.5")])
def test_a_head_asks_for_no_more_than_a_replica(owner, spec, cpu, head):
    small = spec.model_copy(update={"resources": spec.resources.model_copy(update={"cpu": cpu})})
    made = ray_service(owner, small, version="v2", engine_digest="sha256:" + "b" * 64, replicas=1, pods=PODS)
    (container,) = made["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"]
    assert container["resources"]["requests"]["cpu"] == head


def test_the_head_has_the_port_without_which_kuberay_calls_no_service_ready(built):
    (container,) = built["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"]
    assert "serve" in {port["name"] for port in container["ports"]}


def test_children_are_labelled_and_owned(owner, spec, built):
    children = [
        built,
        gateway_route(owner, spec, weights={"v1": 100}),
        prometheus_rule(owner, spec, stable="v1"),
    ]
    for child in children:
        metadata = child["metadata"]
        assert metadata["namespace"] == "shop"
        assert metadata["labels"]["belvedere.dev/service"] == "search"
        assert metadata["labels"]["app.kubernetes.io/managed-by"] == "belvedere"
        assert metadata["ownerReferences"][0]["uid"] == "u-1"
    assert built["metadata"]["labels"]["belvedere.dev/version"] == "v2"


def test_the_same_arguments_give_the_same_bytes(owner, spec):
    once, again = (json.dumps(prometheus_rule(owner, spec, stable="v1", candidate="v2")) for _ in range(2))
    assert once == again


def test_the_route_is_what_the_gateway_reads(owner, spec):
    manifest = gateway_route(owner, spec, weights={"v1": 90, "v2": 10}, shadow=("v1", "v2"))
    route = GatewayRoute.model_validate_json(manifest["data"]["route.json"])
    assert [(one.version, one.weight) for one in route.versions] == [("v1", 90), ("v2", 10)]
    assert route.shadow is not None
    assert (route.shadow.candidate, route.shadow.percent) == ("v2", 20)


@pytest.mark.parametrize(("replicas", "kept"), [(3, 2), (1, 0), (0, 0)])
def test_all_but_one_replica_of_the_stable_version_outlast_a_drain(owner, replicas, kept):
    asked = ModelService.model_validate({**owner, "spec": {**owner["spec"], "scaling": {"maxReplicas": 3}}}).spec
    budget = disruption_budget(owner, asked, stable="v1", replicas=replicas)
    assert budget["spec"]["minAvailable"] == kept
    # Kubernetes would ask the pods' owner for its scale, which a RayCluster does not have, and refuse every eviction.
    assert "maxUnavailable" not in budget["spec"]
    selected = budget["spec"]["selector"]["matchLabels"]
    assert (selected["belvedere.dev/version"], selected["belvedere.dev/role"]) == ("v1", "replica")


def test_a_service_that_never_has_two_replicas_holds_up_no_drain(owner, spec):
    assert disruption_budget(owner, spec, stable="v1", replicas=1) is None


def test_weights_that_are_no_whole_are_a_defect(owner, spec):
    with pytest.raises(AssertionError):
        gateway_route(owner, spec, weights={"v1": 90})


def test_an_upgrade_leaves_what_runs_alone_until_the_service_asks_for_something_else(owner, spec, built):
    other = PodSettings(image="belvedere:next", environment={"BELVEDERE_ARTIFACTS": "s3://elsewhere"})
    given = {"version": "v2", "engine_digest": "sha256:" + "b" * 64, "pods": other, "running": built}
    assert ray_service(owner, spec, replicas=3, **given) == built
    grown = ray_service(owner, spec, replicas=5, **given)
    (group,) = grown["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (5, 5, 5)
    assert group["template"] == built["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["template"]
    (application,) = json.loads(grown["spec"]["serveConfigV2"])["applications"]
    assert application["deployments"][0]["num_replicas"] == 5
    for change in (
        {"resources": {"cpu": 2}},
        {"pod": {"annotations": {"again": "1"}}},
        {"batching": {"maxBatchSize": 4}},
    ):
        asked = ModelService.model_validate({**owner, "spec": {**owner["spec"], **change}}).spec
        changed = ray_service(owner, asked, replicas=3, **given)
        head = changed["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]
        assert head["image"] == "belvedere:next"

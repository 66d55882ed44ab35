"""The pods of children: restricted by default, and otherwise as installation, duty and object ask, in this order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from belvedere_operators.manifests.enginejob import engine_job
from belvedere_operators.manifests.pods import PodSettings, in_containers, pod_template, read_pod_defaults
from belvedere_operators.manifests.rayjob import ray_job
from belvedere_operators.manifests.rayservice import ray_service
from belvedere_platform.errors import InvalidInput
from belvedere_platform.resources import ModelService
from belvedere_platform.resources.engine import EngineSpec
from belvedere_platform.resources.pod_patch import PodDefaults, PodPatch
from belvedere_platform.resources.training_run import TrainingRunSpec

DIGEST = "sha256:" + "a" * 64
METADATA = {"name": "run", "namespace": "shop", "uid": "u-1"}


def pods(**defaults: Any) -> PodSettings:
    return PodSettings(
        image="belvedere:1", environment={"BELVEDERE_STORE": "kubernetes://"}, defaults=PodDefaults(**defaults)
    )


def training(spec: dict[str, Any] | None = None, **defaults: Any) -> dict[str, Any]:
    base = {"model": "clip", "data": {"dataset": "emoji"}, "optimization": {"pairs": 10}}
    return ray_job(
        TrainingRunSpec.model_validate({**base, **(spec or {})}),
        metadata=METADATA,
        attempt=1,
        data_digest=DIGEST,
        parent_digest=None,
        pods=pods(**defaults),
    )


def templates(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    spec = manifest["spec"]
    if "template" in spec:
        return [spec["template"]]
    cluster = spec.get("rayClusterSpec") or spec["rayClusterConfig"]
    return [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


@pytest.fixture
def every_template(owner: Any, spec: Any) -> list[dict[str, Any]]:
    children = [
        training(),
        engine_job(
            EngineSpec(model_version="v1"), metadata=METADATA, model_digest=DIGEST, tag="engines/x", pods=pods()
        ),
        ray_service(owner, spec, version="v1", engine_digest=DIGEST, replicas=2, pods=pods()),
    ]
    return [template for child in children for template in templates(child)]


def test_every_pod_is_what_pod_security_calls_restricted(every_template: list[dict[str, Any]]) -> None:
    assert len(every_template) == 5
    for template in every_template:
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        for volume in pod["volumes"]:
            assert set(volume) - {"name"} <= {"configMap", "secret", "emptyDir", "persistentVolumeClaim", "csi"}
        for container in pod["containers"]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert security["readOnlyRootFilesystem"] is True
            mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
            assert {"/tmp", "/dev/shm", "/var/cache/belvedere"} <= mounted


def test_every_ray_pod_has_probes_of_its_own_and_a_port_for_metrics(every_template: list[dict[str, Any]]) -> None:
    for template in every_template:
        (container,) = template["spec"]["containers"]
        if container["name"] == "build":
            continue
        assert "httpGet" in container["readinessProbe"]
        assert "httpGet" in container["livenessProbe"]
        assert {"name": "metrics", "containerPort": 8080, "protocol": "TCP"} in container["ports"]
        assert {"name": "RAY_AUTH_MODE", "value": "disabled"} in container["env"]


def test_a_head_has_no_work_and_each_worker_one_replica(owner: Any, spec: Any) -> None:
    child = ray_service(owner, spec, version="v1", engine_digest=DIGEST, replicas=2, pods=pods())
    cluster = child["spec"]["rayClusterConfig"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert "resources" not in cluster["headGroupSpec"]["rayStartParams"]
    # As KubeRay's documentation quotes it: it becomes a word of a shell command.
    assert cluster["workerGroupSpecs"][0]["rayStartParams"]["resources"] == r'"{\"belvedere_slot\": 1}"'
    spread = cluster["workerGroupSpecs"][0]["template"]["spec"]["topologySpreadConstraints"]
    assert [one["topologyKey"] for one in spread] == ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]


def test_the_object_comes_after_the_duty_and_the_duty_after_the_installation() -> None:
    claim = {"name": "artifacts", "persistent_volume_claim": {"claim_name": "artifacts"}}
    job = training(
        {"pod": {"image": "own:1", "env": [{"name": "C", "value": "object"}], "nodeSelector": {"zone": "b"}}},
        all={
            "image": "all:1",
            "env": [{"name": name, "value": "all"} for name in "ABC"],
            "volumes": [claim],
            "volume_mounts": [{"name": "artifacts", "mount_path": "/artifacts"}],
            "image_pull_secrets": [{"name": "registry"}],
            "node_selector": {"pool": "gpu"},
            "container_security_context": {"readOnlyRootFilesystem": False},
        },
        training={"env": [{"name": "B", "value": "training"}], "tolerations": [{"key": "gpu", "operator": "Exists"}]},
        serving={"image": "other:1"},
    )
    for template in templates(job):
        pod, (container,) = template["spec"], template["spec"]["containers"]
        assert container["image"] == "own:1"
        env = {one["name"]: one["value"] for one in container["env"]}
        assert (env["A"], env["B"], env["C"], env["BELVEDERE_STORE"]) == ("all", "training", "object", "kubernetes://")
        assert {"name": "artifacts", "persistentVolumeClaim": {"claimName": "artifacts"}} in pod["volumes"]
        assert {"name": "artifacts", "mountPath": "/artifacts"} in container["volumeMounts"]
        assert pod["imagePullSecrets"] == [{"name": "registry"}]
        assert pod["nodeSelector"] == {"pool": "gpu", "zone": "b"}
        assert pod["tolerations"] == [{"key": "gpu", "operator": "Exists"}]
        assert container["securityContext"]["readOnlyRootFilesystem"] is False
        assert container["securityContext"]["allowPrivilegeEscalation"] is False


def test_a_volume_of_the_installation_takes_the_place_of_a_built_in_one() -> None:
    job = training(all={"volumes": [{"name": "cache", "host_path": {"path": "/var/lib/belvedere/cache"}}]})
    for template in templates(job):
        (cache,) = [one for one in template["spec"]["volumes"] if one["name"] == "cache"]
        assert cache == {"name": "cache", "hostPath": {"path": "/var/lib/belvedere/cache"}}


def test_labels_that_belvedere_selects_by_cannot_be_taken_away() -> None:
    template = pod_template(
        {"name": "c"},
        duty="serving",
        pods=pods(),
        patch=PodPatch(labels={"team": "a", "belvedere.dev/service": "other"}),
        labels={"belvedere.dev/service": "search"},
    )
    assert template["metadata"]["labels"] == {"team": "a", "belvedere.dev/service": "search"}


def test_a_job_in_a_queue_begins_suspended_and_names_it() -> None:
    job = training({"queue": "research"})
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "research"
    assert job["spec"]["suspend"] is True
    assert training()["spec"]["suspend"] is False


FILE = """
all:
  image: registry/belvedere:1
  env: [{name: HOME, value: /home/me}, {name: KEY, valueFrom: {secretKeyRef: {name: s3, key: key}}}]
  envFrom: [{secretRef: {name: s3}}]
serving:
  securityContext: {fsGroup: 7}
"""


def test_the_file_is_read_and_a_container_is_told_where_it_may_write(tmp_path: Path) -> None:
    file = tmp_path / "pods.yaml"
    file.write_text(FILE)
    defaults = in_containers(read_pod_defaults(file))
    template = pod_template(
        {"name": "c"}, duty="serving", pods=PodSettings(image="x", defaults=defaults), patch=None, labels={}
    )
    (container,) = template["spec"]["containers"]
    env = {one["name"]: one.get("value") or one.get("valueFrom") for one in container["env"]}
    assert env == {
        "BELVEDERE_CACHE": "/var/cache/belvedere",
        "HOME": "/home/me",
        "KEY": {"secretKeyRef": {"name": "s3", "key": "key"}},
        "USER": "belvedere",
    }
    assert container["envFrom"] == [{"secretRef": {"name": "s3"}}]
    assert template["spec"]["securityContext"]["fsGroup"] == 7
    assert template["spec"]["securityContext"]["runAsNonRoot"] is True


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("everything: {}", "everything: Extra inputs are not permitted"),
        ("all: {hostNetwork: true}", "all.hostNetwork: Extra inputs"),
        ("all: {volumes: [{name: a}]}", "all.volumes.0: Value error, volume a must have exactly one of"),
        ("all: {imagePullPolicy: Perhaps}", "all.imagePullPolicy: Input should be 'Always'"),
        ("all: [", "are not YAML"),
    ],
)
def test_a_wrong_file_is_refused_by_the_field(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "pods.yaml"
    file.write_text(text)
    with pytest.raises(InvalidInput, match=says):
        read_pod_defaults(file)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"absent\.yaml cannot be read: No such file"):
        read_pod_defaults(tmp_path / "absent.yaml")


def test_a_gpu_engine_is_built_and_served_on_gpus(owner: Any) -> None:
    target = {"runtime": "tensorrt", "precision": "fp16", "device": "gpu"}
    spec = EngineSpec.model_validate({"modelVersion": "v1", "target": target})
    job = engine_job(spec, metadata=METADATA, model_digest=DIGEST, tag="engines/x", pods=pods())
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "1"}
    asked = ModelService.model_validate({**owner, "spec": {**owner["spec"], "engine": {"target": target}}}).spec
    service = ray_service(owner, asked, version="v1", engine_digest=DIGEST, replicas=2, pods=pods())
    (group,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert group["rayStartParams"]["num-gpus"] == "1"
    assert group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    head = service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert "nvidia.com/gpu" not in head["resources"]["limits"]
    (application,) = json.loads(service["spec"]["serveConfigV2"])["applications"]
    assert application["deployments"][0]["ray_actor_options"]["num_gpus"] == 1

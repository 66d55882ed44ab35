"""The whole of Belvedere on a cluster, from `helm install` to nothing left: train, compile, serve, replace, revert, scale.

The tests build on each other, in their order: a fixture brings the cluster to a point of the story and keeps it there.
"""

from __future__ import annotations

import os
import re
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton

from .conftest import ROOT, Cluster
from .load import Load
from .test_pods import POD, RESTRICTED

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

VALUES = Path(__file__).parent / "values.yaml"
TRAINING_SECONDS = 900
ROLLOUT_SECONDS = 600
OUR_KINDS = "trainingruns,modelversions,engines,modelservices"
CHILDREN = "rayjobs,rayservices,rayclusters,jobs,deployments,pods,endpointslices,configmaps,prometheusrules,services,podmonitors"


@dataclass(frozen=True, kw_only=True)
class Release:
    """Belvedere in a namespace of a cluster."""

    cluster: Cluster
    namespace: str

    def apply(self, *manifests: dict[str, Any]) -> None:
        self.cluster.apply(*manifests, namespace=self.namespace)

    def wait(self, kind: str, name: str, condition: str, seconds: int = TRAINING_SECONDS) -> None:
        self.cluster.wait(kind, name, self.namespace, condition, seconds)

    def get(self, kind: str, name: str) -> dict[str, Any]:
        return self.cluster.get(kind, name, self.namespace)

    def names(self, kinds: str) -> set[str]:
        """Return what there is of some kinds, but for what Kubernetes itself puts into every namespace."""
        found = self.cluster.kubectl("get", kinds, "-n", self.namespace, "-o", "name", "--ignore-not-found").split()
        return {name for name in found if name != "configmap/kube-root-ca.crt"}

    def helm(self, *arguments: str) -> str:
        command = ["helm", f"--kubeconfig={self.cluster.kubeconfig}", f"--namespace={self.namespace}", *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"{done.stdout}{done.stderr}\n{self.cluster.describe(self.namespace)}"
        return done.stdout

    def job(self, name: str, *command: str, service_account: str | None = None) -> None:
        """Run a command of Belvedere in a pod to its end."""
        container = {
            "name": "main",
            "image": "belvedere:dev",
            "command": list(command),
            "env": [
                {"name": "BELVEDERE_ARTIFACTS", "value": "file:///artifacts"},
                {"name": "BELVEDERE_STORE", "value": "kubernetes://"},
                {"name": "BELVEDERE_CACHE", "value": "/tmp/cache"},
                {"name": "HOME", "value": "/tmp"},
            ],
            "securityContext": RESTRICTED,
            "resources": {"requests": {"cpu": "10m", "memory": "128Mi"}},
            "volumeMounts": [{"name": "artifacts", "mountPath": "/artifacts"}, {"name": "tmp", "mountPath": "/tmp"}],
        }
        spec: dict[str, Any] = {
            "restartPolicy": "Never",
            "securityContext": POD,
            "containers": [container],
            "volumes": [
                {"name": "artifacts", "persistentVolumeClaim": {"claimName": "belvedere-artifacts"}},
                {"name": "tmp", "emptyDir": {}},
            ],
        }
        if service_account:
            spec["serviceAccountName"] = service_account
        self.apply(
            {
                "apiVersion": "batch/v1",
                "kind": "Job",
                "metadata": {"name": name},
                "spec": {"backoffLimit": 0, "template": {"spec": spec}},
            }
        )
        self.wait("job", name, "condition=Complete", 300)


@pytest.fixture(scope="module")
def release(cluster: Cluster) -> Iterator[Release]:
    """The chart, installed from nothing into a namespace in which pods must be as restricted as Kubernetes knows."""
    namespace = f"belvedere-{uuid.uuid4().hex[:6]}"
    cluster.kubectl("create", "namespace", namespace)
    cluster.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    release = Release(cluster=cluster, namespace=namespace)
    release.helm(
        "install",
        "belvedere",
        str(ROOT / "helm" / "belvedere"),
        *(f"--values={path}" for path in (VALUES, os.environ.get("BELVEDERE_TEST_VALUES")) if path),
        f"--set=watchNamespaces={{{namespace}}}",
        "--wait",
        "--timeout=5m",
    )
    yield release
    release.helm("uninstall", "belvedere", "--ignore-not-found")
    cluster.kubectl("delete", "namespace", namespace, "--ignore-not-found", "--timeout=300s")


@pytest.fixture(scope="module")
def data(release: Release) -> str:
    """A data set that was built by a Job of the cluster."""
    release.job("build-shapes", "belvedere", "data", "build", "shapes")
    return "shapes"


def training_run(name: str, data: str) -> dict[str, Any]:
    """Return a run of seconds: what it learns does not matter here, that it comes through does."""
    return {
        "apiVersion": "belvedere.dev/v1alpha1",
        "kind": "TrainingRun",
        "metadata": {"name": name},
        "spec": {
            "model": "shapes",
            "size": "nano",
            "data": {"dataset": data},
            "optimization": {"pairs": 320, "batchSize": 32, "learningRate": 0.001, "warmupPairs": 64},
            "workers": {"min": 1, "max": 1, "resources": {"cpu": 0.7, "memory": "2Gi"}},
            "evaluation": {"everyPairs": 320, "gates": [{"metric": "heldout_style_en_r10", "minimum": 0}]},
        },
    }


@pytest.fixture(scope="module")
def version(release: Release, data: str) -> str:
    """A version that was trained in Ray pods under KubeRay."""
    name = "shapes-v1"
    release.apply(training_run(name, data))
    release.wait("trainingrun", name, "jsonpath={.status.phase}=Succeeded")
    release.wait("modelversion", name, "condition=Ready", 120)
    return name


@pytest.fixture(scope="module")
def engine(release: Release, version: str) -> str:
    """The version's engine, built by a Job."""
    return built(release, version)


def built(release: Release, version: str) -> str:
    name = f"{version}-onnxruntime-fp32"
    release.apply(
        {
            "apiVersion": "belvedere.dev/v1alpha1",
            "kind": "Engine",
            "metadata": {"name": name},
            "spec": {
                "modelVersion": version,
                "target": {"runtime": "onnxruntime", "precision": "fp32", "device": "cpu"},
                "parity": {"cosineMinimum": 0.99, "top1AgreementMinimum": 0.9},
            },
        }
    )
    release.wait("engine", name, "condition=Ready", 600)
    return name


def model_service(version: str) -> dict[str, Any]:
    """Return the service, at a version."""
    return {
        "apiVersion": "belvedere.dev/v1alpha1",
        "kind": "ModelService",
        "metadata": {"name": "shapes"},
        "spec": {
            "model": "shapes",
            "version": version,
            "backend": "rayServe",
            "engine": {
                "target": {"runtime": "onnxruntime", "precision": "fp32", "device": "cpu"},
                "parity": {"cosineMinimum": 0.99, "top1AgreementMinimum": 0.9},
            },
            # The machine is small and busy: how fast it answers is not what is tested.
            "slo": {"availability": 0.98, "latency": {"thresholdMilliseconds": 2000, "objective": 0.5}},
            "scaling": {"minReplicas": 1, "maxReplicas": 2},
            "rollout": {
                "intervalSeconds": 2,
                "steps": [{"weight": 50, "holdSeconds": 5}],
                "gates": {"errors": {"maximumRatio": 2}},
                "deadlineSeconds": ROLLOUT_SECONDS - 60,
                "keepStableSeconds": 1,
            },
            "routing": {"default": True, "timeoutSeconds": 5},
            "batching": {"maxBatchSize": 8, "waitMilliseconds": 2, "maxQueuedRequests": 64},
            "resources": {"cpu": 0.1, "memory": "1Gi"},
        },
    }


@pytest.fixture(scope="module")
def service(release: Release, version: str, engine: str) -> str:
    """A service of the version that is ready."""
    release.apply(model_service(version))
    release.wait("modelservice", "shapes", "condition=Ready", 600)
    return "shapes"


@contextmanager
def gateway(release: Release) -> Iterator[str]:
    """Give the address at which a client outside the cluster reaches the gateway."""
    forward = ["port-forward", f"--namespace={release.namespace}", "service/belvedere-gateway", ":80"]
    command = ["kubectl", f"--kubeconfig={release.cluster.kubeconfig}", *forward]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"127\.0\.0\.1:(\d+)", process.stdout.readline())
            assert found, "kubectl names no port"
            yield f"127.0.0.1:{found[1]}"
        finally:
            process.terminate()


def embed(address: str, *texts: str) -> tuple[np.ndarray, str]:
    """Return the embeddings of texts and the version that made them."""
    with triton.InferenceServerClient(address) as client:
        words = triton.InferInput("TEXT", [len(texts)], "BYTES")
        words.set_data_from_numpy(np.array([text.encode() for text in texts], dtype=np.object_))
        answer = client.infer("embed_text", [words], client_timeout=30)
        return answer.as_numpy("EMBEDDING"), answer.get_response().model_version


def test_the_chart_passes_its_own_test(release: Release) -> None:
    release.helm("test", "belvedere", "--timeout=5m")


def test_a_run_trains_in_ray_pods_and_becomes_a_version(release: Release, version: str) -> None:
    run = release.get("trainingrun", version)
    assert run["status"]["modelVersion"] == version
    assert run["status"]["gates"][0]["passed"]
    made = release.get("modelversion", version)
    assert made["spec"]["digest"].startswith("sha256:")
    assert made["spec"]["lineage"]["trainingRun"] == version


def test_an_engine_is_built_by_a_job_and_agrees_with_its_source(release: Release, engine: str) -> None:
    status = release.get("engine", engine)["status"]
    assert status["digest"].startswith("sha256:")
    assert min(parity["cosineMin"] for parity in status["parity"].values()) >= 0.99


def test_a_client_outside_is_answered_through_the_gateway(release: Release, service: str, version: str) -> None:
    with gateway(release) as address:
        embedding, by = embed(address, "a red circle", "a blue square")
    assert by == version
    np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 1, atol=1e-4)


def imported(release: Release, tag: str, version: str) -> None:
    """Make a version of an artifact and compile it."""
    release.apply(*importer())
    words = ("belvedere", "model", "import", f"--from={tag}", f"--name={version}", "--model=shapes")
    waiver = ("--waive-evaluation=it is there to be rolled out", f"--namespace={release.namespace}")
    release.job(f"import-{version}", *words, *waiver, service_account="importer")
    built(release, version)


def test_a_good_candidate_is_promoted(release: Release, version: str, service: str) -> None:
    candidate = "shapes-v2"
    imported(release, f"models/{version}", candidate)
    with gateway(release) as address, Load(address) as load:
        release.apply(model_service(candidate))
        release.wait("modelservice", service, f"jsonpath={{.status.stable.version}}={candidate}", ROLLOUT_SECONDS)
    assert load.versions[candidate]


def test_a_bad_candidate_is_reverted(release: Release, version: str, service: str) -> None:
    stable = release.get("modelservice", service)["status"]["stable"]["version"]
    candidate, tag = "shapes-v3", "imports/shapes-v3"
    release.job("derive", "belvedere", "train", "derive", f"--from=models/{version}", "--fault=failing", f"--tag={tag}")
    imported(release, tag, candidate)
    with gateway(release) as address, Load(address):
        release.apply(model_service(candidate))
        release.wait("modelservice", service, "jsonpath={.status.rollout.phase}=Aborted", ROLLOUT_SECONDS)
        assert release.get("modelservice", service)["status"]["stable"]["version"] == stable
        _, by = embed(address, "a red circle")
    assert by == stable


def test_it_scales_out_and_in(release: Release, service: str) -> None:
    for replicas in (2, 1):
        release.cluster.kubectl("scale", "modelservice", service, f"--replicas={replicas}", "-n", release.namespace)
        release.wait("modelservice", service, f"jsonpath={{.status.stable.routableReplicas}}={replicas}", 400)


def importer() -> list[dict[str, Any]]:
    """Return what a Job needs that makes ModelVersions."""
    rule = {"apiGroups": ["belvedere.dev"], "resources": ["modelversions"], "verbs": ["get", "create", "patch"]}
    subject = {"kind": "ServiceAccount", "name": "importer"}
    rbac = "rbac.authorization.k8s.io"
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "importer"}},
        {"apiVersion": f"{rbac}/v1", "kind": "Role", "metadata": {"name": "importer"}, "rules": [rule]},
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "RoleBinding",
            "metadata": {"name": "importer"},
            "roleRef": {"apiGroup": rbac, "kind": "Role", "name": "importer"},
            "subjects": [subject],
        },
    ]


def test_what_is_deleted_leaves_nothing(release: Release, service: str) -> None:
    for kind in OUR_KINDS.split(","):
        release.cluster.kubectl("delete", kind, "--all", "-n", release.namespace, "--timeout=300s")
    release.cluster.kubectl("delete", "jobs", "--all", "-n", release.namespace, "--timeout=300s")
    release.helm("uninstall", "belvedere", "--wait", "--timeout=5m")
    for kind in ("pods", "rayclusters"):
        release.cluster.kubectl("wait", kind, "--all", "--for=delete", "-n", release.namespace, "--timeout=300s")
    assert release.names(f"{OUR_KINDS},{CHILDREN}") == set()

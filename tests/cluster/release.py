"""Belvedere in a namespace of a cluster: what the tests ask it for, and how they reach it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from .cluster import PATIENCE_SECONDS, POD, RESTRICTED, Cluster
from .node import ROOT

VALUES = Path(__file__).parent / "values.yaml"
ROLLOUT_SECONDS = PATIENCE_SECONDS
HELM_WAITS = f"--timeout={PATIENCE_SECONDS}s"


@dataclass(frozen=True, kw_only=True)
class Release:
    """Belvedere in a namespace of a cluster."""

    cluster: Cluster
    namespace: str
    uninstalled: list[datetime] = field(default_factory=list)
    """When Helm began to take it away."""

    def apply(self, *manifests: dict[str, Any]) -> None:
        self.cluster.apply(*manifests, namespace=self.namespace)

    def wait(self, kind: str, name: str, condition: str) -> None:
        self.cluster.wait(kind, name, self.namespace, condition)

    def get(self, kind: str, name: str) -> dict[str, Any]:
        return self.cluster.get(kind, name, self.namespace)

    def scale(self, service: str, replicas: int) -> None:
        """Give a service so many replicas and wait until all can be reached."""
        self.cluster.kubectl("scale", "modelservice", service, f"--replicas={replicas}", "-n", self.namespace)
        self.wait_routable(service, replicas)

    def wait_routable(self, service: str, replicas: int) -> None:
        """Return when so many replicas of the stable version can be reached."""
        self.wait("modelservice", service, f"jsonpath={{.status.stable.routableReplicas}}={replicas}")

    def address_on_a_node(self) -> str:
        """Return where the gateway listens on a node."""
        ports = self.get("service", "belvedere-gateway")["spec"]["ports"]
        nodes = json.loads(self.cluster.kubectl("get", "nodes", "-o", "json"))["items"]
        addresses = {each["type"]: each["address"] for each in nodes[0]["status"]["addresses"]}
        return f"{addresses['InternalIP']}:{ports[0]['nodePort']}"

    def names(self, kinds: str) -> set[str]:
        """Return what there is of some kinds, but for what Kubernetes itself puts into every namespace."""
        found = self.cluster.kubectl("get", kinds, "-n", self.namespace, "-o", "name", "--ignore-not-found").split()
        return {name for name in found if name != "configmap/kube-root-ca.crt"}

    def uninstall(self) -> None:
        self.uninstalled.append(datetime.now(UTC))
        self.helm("uninstall", "belvedere", "--wait", HELM_WAITS)

    def helm(self, *arguments: str) -> str:
        command = ["helm", f"--kubeconfig={self.cluster.kubeconfig}", f"--namespace={self.namespace}", *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"{done.stdout}{done.stderr}\n{self.cluster.describe(self.namespace)}"
        return done.stdout

    def chart(self, verb: str, *more: str) -> str:
        """Return what helm says when it does something with the chart, as it is installed for these tests."""
        values = [f"--values={path}" for path in (VALUES, os.environ.get("BELVEDERE_TEST_VALUES")) if path]
        watched = f"--set=watchNamespaces={{{self.namespace}}}"
        return self.helm(verb, "belvedere", str(ROOT / "helm" / "belvedere"), *values, watched, *more)

    def belvedere(self, *arguments: str) -> str:
        """Return what `kubectl belvedere …` prints."""
        return self.cluster.kubectl("belvedere", *arguments, "--namespace", self.namespace)

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
        self.wait("job", name, "condition=Complete")


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


def built(release: Release, version: str) -> str:
    """Build the engine of a version and return its name."""
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
    release.wait("engine", name, "condition=Ready")
    return name


def redis() -> list[dict[str, Any]]:
    """Return a Redis of the namespace, as a user of the chart would bring one: in it Ray heads keep what they know."""
    labels = {"app": "redis"}
    words = ["redis-server", "--save", "", "--dir", "/tmp", "--requirepass", "$(PASSWORD)"]
    container = {
        "name": "redis",
        "image": "docker.io/library/redis:7",
        "command": words,
        "env": [{"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "redis", "key": "password"}}}],
        "securityContext": RESTRICTED,
        "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}},
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
    pod = {"securityContext": POD, "containers": [container], "volumes": [{"name": "tmp", "emptyDir": {}}]}
    template = {"metadata": {"labels": labels}, "spec": pod}
    ports = [{"port": 6379}]
    return [
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "redis"}, "stringData": {"password": "hush"}},
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "redis"},
            "spec": {"selector": labels, "ports": ports},
        },
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "redis"},
            "spec": {"selector": {"matchLabels": labels}, "template": template},
        },
    ]


SERVICE = "shapes"


def model_service(version: str, *, name: str = SERVICE, backend: str = "rayServe") -> dict[str, Any]:
    """Return a service, at a version. The first of them is the one that a request gets which names none."""
    return {
        "apiVersion": "belvedere.dev/v1alpha1",
        "kind": "ModelService",
        "metadata": {"name": name},
        "spec": {
            "model": "shapes",
            "version": version,
            "backend": backend,
            "engine": {
                "target": {"runtime": "onnxruntime", "precision": "fp32", "device": "cpu"},
                "parity": {"cosineMinimum": 0.99, "top1AgreementMinimum": 0.9},
            },
            # The machine is small and busy: how fast it answers is not what is tested.
            "slo": {"availability": 0.98, "latency": {"thresholdMilliseconds": 2000, "objective": 0.5}},
            "scaling": {"minReplicas": 1, "maxReplicas": 2, "scaleInDelaySeconds": 2},
            "rollout": {
                "intervalSeconds": 2,
                "steps": [{"weight": 50, "holdSeconds": 5}],
                "gates": {"errors": {"maximumRatio": 2}},
                "deadlineSeconds": ROLLOUT_SECONDS - 60,
                "keepStableSeconds": 1,
            },
            "routing": {"default": name == SERVICE, "timeoutSeconds": 5},
            "batching": {"maxBatchSize": 8, "waitMilliseconds": 2, "maxQueuedRequests": 64},
            "resources": {"cpu": 0.1, "memory": "1Gi"},
        },
    }


def imported(release: Release, tag: str, version: str) -> None:
    """Make a version of an artifact. The service that wants it has it compiled."""
    release.apply(*importer())
    words = ("belvedere", "model", "import", f"--from={tag}", f"--name={version}", "--model=shapes")
    waiver = ("--waive-evaluation=it is there to be rolled out", f"--namespace={release.namespace}")
    release.job(f"import-{version}", *words, *waiver, service_account="importer")


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


def embed(address: str, *texts: str, service: str | None = None) -> tuple[np.ndarray, str]:
    """Return the embeddings of texts and the version that made them, of the default service unless another is named."""
    headers = {"belvedere-service": service} if service else {}
    with triton.InferenceServerClient(address) as client:
        words = triton.InferInput("TEXT", [len(texts)], "BYTES")
        words.set_data_from_numpy(np.array([text.encode() for text in texts], dtype=np.object_))
        answer = client.infer("embed_text", [words], headers=headers, client_timeout=30)
        return answer.as_numpy("EMBEDDING"), answer.get_response().model_version


def wait_answered_by(address: str, version: str, *texts: str, service: str | None = None) -> None:
    """Return when a version answers: what the status says reaches the gateways a moment later."""
    deadline, said = time.monotonic() + PATIENCE_SECONDS, ""
    while said != version:
        assert time.monotonic() < deadline, f"waited {PATIENCE_SECONDS} s for answers of {version}; the last: {said}"
        try:
            said = embed(address, *texts, service=service)[1]
        except InferenceServerException as error:
            said = str(error)
        if said != version:
            time.sleep(0.5)

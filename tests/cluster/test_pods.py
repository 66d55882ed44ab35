"""What Belvedere needs of any cluster: pods, names, services, volumes, KubeRay, and a Prometheus that finds its monitors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from .cluster import POD, RESTRICTED, Cluster

pytestmark = [pytest.mark.slow, pytest.mark.cluster]


def pod(
    name: str, *command: str, disk: str | None = None, container: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return a pod with one container of our own image, which can write to /tmp and its volume alone."""
    volumes: dict[str, tuple[str, Mapping[str, Any]]] = {"tmp": ("/tmp", {"emptyDir": {}})}
    if disk:
        volumes["disk"] = ("/disk", {"persistentVolumeClaim": {"claimName": disk}})
    main = {
        "name": "main",
        "image": "belvedere:dev",
        "command": list(command),
        "securityContext": RESTRICTED,
        "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}},
        "volumeMounts": [{"name": volume, "mountPath": path} for volume, (path, _) in volumes.items()],
        **(container or {}),
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "restartPolicy": "Never",
            # A first process that has no handler for it is not ended by SIGTERM.
            "terminationGracePeriodSeconds": 1,
            "securityContext": POD,
            "containers": [main],
            "volumes": [{"name": volume, **source} for volume, (_, source) in volumes.items()],
        },
    }


def test_our_image_has_what_belvedere_needs(cluster: Cluster, namespace: str) -> None:
    check = "import belvedere_platform, ray, torch, onnxruntime; print(torch.ones(2).sum().item())"
    cluster.apply(pod("python", "python", "-c", check), namespace=namespace)
    cluster.wait("pod", "python", namespace, "jsonpath={.status.phase}=Succeeded")
    assert cluster.kubectl("logs", "python", "-n", namespace).splitlines()[-1] == "2.0"


def test_a_service_is_found_by_name_and_answers(cluster: Cluster, namespace: str) -> None:
    ready = {"readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1}}
    serve = ("python", "-m", "http.server", "8080", "--directory", "/etc")
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
    }
    cluster.apply(pod("web", *serve, container=ready), service, namespace=namespace)
    cluster.wait("pod", "web", namespace, "condition=Ready")
    # From within a pod, and also from the pod that is the service itself.
    ask = f"import urllib.request as u; print(u.urlopen('http://web.{namespace}.svc.cluster.local/passwd').status)"
    cluster.apply(pod("client", "python", "-c", ask), namespace=namespace)
    cluster.wait("pod", "client", namespace, "jsonpath={.status.phase}=Succeeded")
    assert cluster.kubectl("logs", "client", "-n", namespace).strip() == "200"
    assert cluster.kubectl("exec", "web", "-n", namespace, "--", "python", "-c", ask).strip() == "200"


def test_a_volume_outlives_the_pod_that_wrote_to_it(cluster: Cluster, namespace: str) -> None:
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "disk"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    cluster.apply(claim, pod("writer", "sh", "-c", "echo kept > /disk/file", disk="disk"), namespace=namespace)
    cluster.wait("pod", "writer", namespace, "jsonpath={.status.phase}=Succeeded")
    cluster.apply(pod("reader", "cat", "/disk/file", disk="disk"), namespace=namespace)
    cluster.wait("pod", "reader", namespace, "jsonpath={.status.phase}=Succeeded")
    assert cluster.kubectl("logs", "reader", "-n", namespace).strip() == "kept"


def ray_pod(cpus: str) -> dict[str, Any]:
    """Return the template of a Ray pod that needs next to nothing."""
    container = {
        "name": "ray",
        "image": "belvedere:dev",
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "env": [{"name": "RAY_AUTH_MODE", "value": "disabled"}],
        "resources": {"requests": {"cpu": "50m", "memory": "256Mi"}, "limits": {"cpu": cpus, "memory": "2Gi"}},
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
    }
    return {
        "spec": {
            "securityContext": POD,
            "containers": [container],
            "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory"}}],
        }
    }


def test_kuberay_runs_a_job_on_a_head_and_a_worker(cluster: Cluster, namespace: str) -> None:
    script = "import ray; ray.init(); print(ray.get(ray.remote(num_cpus=1)(lambda: 42).remote()))"
    job = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": "hello"},
        "spec": {
            "entrypoint": f'python -c "{script}"',
            "submissionMode": "HTTPMode",
            "rayClusterSpec": {
                "rayVersion": "2.60.0",
                "headGroupSpec": {
                    "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},
                    "template": ray_pod("1"),
                },
                "workerGroupSpecs": [
                    {
                        "groupName": "workers",
                        "replicas": 1,
                        "minReplicas": 1,
                        "maxReplicas": 1,
                        "rayStartParams": {"num-cpus": "1"},
                        "template": ray_pod("1"),
                    }
                ],
            },
        },
    }
    cluster.apply(job, namespace=namespace)
    cluster.wait("rayjob", "hello", namespace, "jsonpath={.status.jobStatus}=SUCCEEDED")
    workers = cluster.kubectl("get", "pods", "-n", namespace, "-l", "ray.io/node-type=worker", "-o", "name")
    assert len(workers.split()) == 1

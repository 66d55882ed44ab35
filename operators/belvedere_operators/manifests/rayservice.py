"""The RayService that serves one version of a ModelService."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from belvedere_operators.manifests.ownership import child_metadata, service_labels
from belvedere_platform.resources.model_service import ModelServiceSpec
from belvedere_platform.store import Manifest
from belvedere_platform.store.kinds import RAY_SERVICE

APPLICATION = "belvedere_serving.server.app:build"
GRPC_SERVICER = "belvedere_serving.server.grpc_service.add_to_server"
INGRESS = "V2Server"
RAY_VERSION = "2.60.0"
CPUS_ANNOTATION = "belvedere.dev/cpus"

RAY_ENVIRONMENT: Mapping[str, str] = {
    "RAY_AUTH_MODE": "disabled",
    # Each replica listens on ports of its own, so that the gateway reaches it without Serve's proxy between.
    "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1",
    "RAY_SERVE_DEFAULT_HTTP_HOST": "0.0.0.0",
}
DRAIN_SECONDS = 20


def ray_service_name(service: str, version: str) -> str:
    """Return the name of the RayService of a version of a service."""
    return f"{service}-{version}"


def ray_service(
    owner: Manifest,
    spec: ModelServiceSpec,
    *,
    version: str,
    engine_digest: str,
    replicas: int,
    image: str,
    environment: Mapping[str, str],
) -> Manifest:
    """Return the RayService for a version with so many replicas."""
    service, namespace = owner["metadata"]["name"], owner["metadata"]["namespace"]
    annotations = {CPUS_ANNOTATION: f"{replicas * spec.resources.cpu:g}"}
    arguments = {
        "service": service,
        "namespace": namespace,
        "model": spec.model,
        "version": version,
        "engineDigest": engine_digest,
        "artifacts": environment.get("BELVEDERE_ARTIFACTS", ""),
        "maxBatchSize": spec.batching.max_batch_size,
        "batchWaitMilliseconds": spec.batching.wait_milliseconds,
        "maxQueuedRequests": spec.batching.max_queued_requests,
        "threads": max(1, math.floor(spec.resources.cpu)),
    }
    return {
        "apiVersion": RAY_SERVICE.api_version,
        "kind": RAY_SERVICE.kind,
        "metadata": child_metadata(
            owner, ray_service_name(service, version), service_labels(service, version), annotations
        ),
        "spec": {
            "serveConfigV2": _serve_config(service, version, spec, arguments, replicas),
            "rayClusterConfig": _cluster(spec, service, version, replicas, image, {**RAY_ENVIRONMENT, **environment}),
        },
    }


def _serve_config(
    service: str, version: str, spec: ModelServiceSpec, arguments: Mapping[str, Any], replicas: int
) -> str:
    deployment = {
        "name": INGRESS,
        "num_replicas": replicas,
        # How many requests Serve lets in is the application's to say: its own queue must fill first, and refuses in V2.
        "graceful_shutdown_timeout_s": DRAIN_SECONDS,
        "graceful_shutdown_wait_loop_s": 1,
        "ray_actor_options": {"num_cpus": spec.resources.cpu},
    }
    config = {
        "http_options": {"host": "0.0.0.0", "port": 8000},
        "grpc_options": {"port": 9000, "grpc_servicer_functions": [GRPC_SERVICER]},
        "applications": [
            {
                "name": ray_service_name(service, version),
                "route_prefix": "/",
                "import_path": APPLICATION,
                "args": dict(arguments),
                "deployments": [deployment],
            }
        ],
    }
    # JSON is YAML, and unlike YAML it has one way to write a thing: the same state gives the same bytes.
    return json.dumps(config, indent=1, sort_keys=True)


def _cluster(
    spec: ModelServiceSpec, service: str, version: str, replicas: int, image: str, environment: Mapping[str, str]
) -> dict[str, Any]:
    def pod(cpu: float, memory: str) -> dict[str, Any]:
        container = {
            "name": "ray",
            "image": image,
            "env": [{"name": name, "value": value} for name, value in sorted(environment.items())],
            "resources": {"requests": {"cpu": f"{cpu:g}", "memory": memory}, "limits": {"memory": memory}},
            # KubeRay's own probe asks Serve's proxy, which direct ingress does not start on workers.
            "readinessProbe": {
                "httpGet": {"path": "/api/local_raylet_healthz", "port": 52365},
                "periodSeconds": 2,
                "failureThreshold": 10,
            },
        }
        labels = service_labels(service, version)
        return {"metadata": {"labels": labels}, "spec": {"containers": [container]}}

    return {
        "rayVersion": RAY_VERSION,
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},
            "template": pod(0.5, "2Gi"),
        },
        "workerGroupSpecs": [
            {
                "groupName": "replicas",
                "replicas": replicas,
                "minReplicas": replicas,
                "maxReplicas": replicas,
                "rayStartParams": {"num-cpus": f"{math.ceil(spec.resources.cpu)}"},
                "template": pod(spec.resources.cpu, spec.resources.memory),
            }
        ],
    }

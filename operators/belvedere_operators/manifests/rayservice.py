"""The RayService that serves one version of a ModelService."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from belvedere_operators.manifests.ownership import ROLE_LABEL, child_metadata, service_labels
from belvedere_operators.manifests.pods import PodSettings, env_list, pod_template
from belvedere_operators.manifests.raycluster import GPU, RAY_ENVIRONMENT, RAY_VERSION, head_container, worker_container
from belvedere_platform.resources.model_service import ModelServiceSpec
from belvedere_platform.store import Manifest
from belvedere_platform.store.kinds import RAY_SERVICE

APPLICATION = "belvedere_serving.server.app:build"
GRPC_SERVICER = "belvedere_serving.server.grpc_service.add_to_server"
INGRESS = "V2Server"
CPUS_ANNOTATION = "belvedere.dev/cpus"
INTENT_ANNOTATION = "belvedere.dev/intent"
SLOT = "belvedere_slot"
"""A Ray resource of which each worker pod has one and each replica takes one: so no two share a pod."""

SERVE_ENVIRONMENT: Mapping[str, str] = {
    **RAY_ENVIRONMENT,
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
    pods: PodSettings,
    running: Manifest | None = None,
) -> Manifest:
    """Return the RayService for a version with so many replicas. One that runs what is asked for keeps its pods as they are.

    Otherwise each upgrade of the operator, and each change of the installation's pod defaults, would restart every model.
    """
    asked = intent(spec, engine_digest)
    annotations = {CPUS_ANNOTATION: f"{replicas * spec.resources.cpu:g}", INTENT_ANNOTATION: asked}
    service = owner["metadata"]["name"]
    if running is not None and running["metadata"].get("annotations", {}).get(INTENT_ANNOTATION) == asked:
        body = _resized(running["spec"], replicas)
    else:
        body = _spec(owner, spec, version, engine_digest, replicas, pods)
    return {
        "apiVersion": RAY_SERVICE.api_version,
        "kind": RAY_SERVICE.kind,
        "metadata": child_metadata(
            owner, ray_service_name(service, version), service_labels(service, version), annotations
        ),
        "spec": body,
    }


def intent(spec: ModelServiceSpec, engine_digest: str) -> str:
    """Return a digest of all that a service asks of the replicas of a version."""
    asked = spec.model_dump(mode="json", by_alias=True, include={"model", "batching", "resources", "pod"})
    text = json.dumps({**asked, "engineDigest": engine_digest}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _resized(spec: Mapping[str, Any], replicas: int) -> dict[str, Any]:
    """Return the spec of a RayService with so many replicas and nothing else changed."""
    config = json.loads(spec["serveConfigV2"])
    config["applications"][0]["deployments"][0]["num_replicas"] = replicas
    cluster = spec["rayClusterConfig"]
    (group,) = cluster["workerGroupSpecs"]
    sized = {**group, "replicas": replicas, "minReplicas": replicas, "maxReplicas": replicas}
    return {
        "serveConfigV2": _text(config),
        "rayClusterConfig": {**cluster, "workerGroupSpecs": [sized]},
    }


def _spec(
    owner: Manifest,
    spec: ModelServiceSpec,
    version: str,
    engine_digest: str,
    replicas: int,
    pods: PodSettings,
) -> dict[str, Any]:
    service, namespace = owner["metadata"]["name"], owner["metadata"]["namespace"]
    arguments = {
        "service": service,
        "namespace": namespace,
        "model": spec.model,
        "version": version,
        "engineDigest": engine_digest,
        "artifacts": pods.environment.get("BELVEDERE_ARTIFACTS", ""),
        "maxBatchSize": spec.batching.max_batch_size,
        "batchWaitMilliseconds": spec.batching.wait_milliseconds,
        "maxQueuedRequests": spec.batching.max_queued_requests,
        "threads": max(1, math.floor(spec.resources.cpu)),
    }
    return {
        "serveConfigV2": _serve_config(service, version, spec, arguments, replicas),
        "rayClusterConfig": _cluster(spec, service, version, replicas, pods),
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
        "ray_actor_options": {
            "num_cpus": spec.resources.cpu,
            "resources": {SLOT: 1},
            **({"num_gpus": 1} if on_gpu(spec) else {}),
        },
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
    return _text(config)


def _text(config: Mapping[str, Any]) -> str:
    # JSON is YAML, and unlike YAML it has one way to write a thing: the same state gives the same bytes.
    return json.dumps(config, indent=1, sort_keys=True)


def _cluster(spec: ModelServiceSpec, service: str, version: str, replicas: int, pods: PodSettings) -> dict[str, Any]:
    labels = service_labels(service, version)
    cpu, memory = spec.resources.cpu, spec.resources.memory

    def pod(container: Mapping[str, Any], role: str) -> Manifest:
        return pod_template(
            {**container, "env": env_list({**pods.environment, **SERVE_ENVIRONMENT})},
            duty="serving",
            pods=pods,
            patch=spec.pod,
            labels={**labels, ROLE_LABEL: role},
            spec=spread(labels) if role == "replica" else None,
        )

    return {
        "rayVersion": RAY_VERSION,
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},
            "template": pod(head_container("ray", replica_resources(min(0.5, cpu), "2Gi"), serves=True), "head"),
        },
        "workerGroupSpecs": [
            {
                "groupName": "replicas",
                "numOfHosts": 1,
                "replicas": replicas,
                "minReplicas": replicas,
                "maxReplicas": replicas,
                "rayStartParams": {
                    "num-cpus": f"{math.ceil(cpu)}",
                    **({"num-gpus": "1"} if on_gpu(spec) else {}),
                    # KubeRay puts this into a shell command as it is, so it brings its own quotes.
                    "resources": json.dumps(json.dumps({SLOT: 1})),
                },
                "template": pod(worker_container("ray", replica_resources(cpu, memory, gpu=on_gpu(spec))), "replica"),
            }
        ],
    }


def on_gpu(spec: ModelServiceSpec) -> bool:
    """Return whether the engines of a service run on a GPU: each replica then has one to itself."""
    return spec.engine.target.device == "gpu"


def replica_resources(cpu: float, memory: str, *, gpu: bool = False) -> dict[str, Any]:
    """Return what a container asks for and may have."""
    device = {GPU: "1"} if gpu else {}
    return {"requests": {"cpu": f"{cpu:g}", "memory": memory, **device}, "limits": {"memory": memory, **device}}


def spread(labels: Mapping[str, str]) -> dict[str, Any]:
    """Return what keeps the replicas of one version apart, first over zones, then over nodes, as far as there are any."""

    def over(key: str) -> dict[str, Any]:
        return {
            "maxSkew": 1,
            "topologyKey": key,
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": {**labels, ROLE_LABEL: "replica"}},
        }

    return {"topologySpreadConstraints": [over("topology.kubernetes.io/zone"), over("kubernetes.io/hostname")]}

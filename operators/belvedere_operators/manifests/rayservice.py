"""The RayService that serves one version of a ModelService."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from belvedere_operators.manifests.ownership import ROLE_LABEL
from belvedere_operators.manifests.pods import env_list, pod_template
from belvedere_operators.manifests.raycluster import RAY_ENVIRONMENT, RAY_VERSION, head_container, worker_container
from belvedere_operators.manifests.server import Asked, Server, on_gpu, replica_resources, server_name, spread
from belvedere_platform.store import Manifest
from belvedere_platform.store.kinds import RAY_SERVICE

APPLICATION = "belvedere_serving.server.app:build"
GRPC_SERVICER = "belvedere_serving.server.grpc_service.add_to_server"
INGRESS = "V2Server"
SLOT = "belvedere_slot"
"""A Ray resource of which each worker pod has one and each replica takes one: so no two share a pod."""

INGRESS_ENVIRONMENT: Mapping[str, str] = {
    # Each replica listens on ports of its own, so that the gateway reaches it without Serve's proxy between.
    "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1",
    # What takes long in our server has threads of its own; a second event loop only adds four changes of thread to a request.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    # uvloop accepts one connection a turn: when many come at once, under overload say, the last ones wait for seconds.
    "RAY_USE_UVLOOP": "0",
    # What Ray does for a request costs more than to refuse it: under overload this does so first.
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "belvedere_serving.server.door:middlewares",
}
SERVE_ENVIRONMENT: Mapping[str, str] = {
    **RAY_ENVIRONMENT,
    **INGRESS_ENVIRONMENT,
    "RAY_SERVE_DEFAULT_HTTP_HOST": "0.0.0.0",
}
DRAIN_SECONDS = 20
CLEANUP_ANNOTATION = "ray.io/gcs-ft-deletion-timeout"
CLEANUP_SECONDS = 60
"""How long KubeRay holds a deleted cluster for its Redis to be cleaned up. In a namespace that ends no Job can do so any more."""


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


def _spec(asked: Asked) -> dict[str, Any]:
    spec, service, pods = asked.spec, asked.service, asked.pods
    arguments = {
        "service": service,
        "namespace": asked.owner["metadata"]["namespace"],
        "model": spec.model,
        "version": asked.version,
        "engineDigest": asked.engine_digest,
        "artifacts": pods.environment.get("BELVEDERE_ARTIFACTS", ""),
        "maxBatchSize": spec.batching.max_batch_size,
        "batchWaitMilliseconds": spec.batching.wait_milliseconds,
        "maxQueuedRequests": spec.batching.max_queued_requests,
        "threads": max(1, math.floor(spec.resources.cpu)),
        **(spec.server.arguments() if spec.server else {}),
    }
    return {
        "serveConfigV2": _serve_config(asked, arguments),
        "rayClusterConfig": _cluster(asked),
    }


def _serve_config(asked: Asked, arguments: Mapping[str, Any]) -> str:
    deployment = {
        "name": INGRESS,
        "num_replicas": asked.replicas,
        # How many requests Serve lets in is the application's to say: its own queue must fill first, and refuses in V2.
        "graceful_shutdown_timeout_s": DRAIN_SECONDS,
        "graceful_shutdown_wait_loop_s": 1,
        "ray_actor_options": {
            "num_cpus": asked.spec.resources.cpu,
            "resources": {SLOT: 1},
            **({"num_gpus": 1} if on_gpu(asked.spec) else {}),
        },
    }
    config = {
        "http_options": {"host": "0.0.0.0", "port": 8000},
        "grpc_options": {"port": 9000, "grpc_servicer_functions": [GRPC_SERVICER]},
        "applications": [
            {
                "name": server_name(asked.service, asked.version),
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


def _cluster(asked: Asked) -> dict[str, Any]:
    spec, replicas, pods, labels = asked.spec, asked.replicas, asked.pods, asked.labels
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
        **({"gcsFaultToleranceOptions": pods.head_store.options()} if pods.head_store else {}),
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


def _cleanup(spec: Mapping[str, Any]) -> Mapping[str, str]:
    kept = "gcsFaultToleranceOptions" in spec["rayClusterConfig"]
    return {CLEANUP_ANNOTATION: f"{CLEANUP_SECONDS}"} if kept else {}


ray_service = Server(kind=RAY_SERVICE, built=_spec, resized=_resized, annotations=_cleanup)
"""Makes the RayService for a version."""

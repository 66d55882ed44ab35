"""The Deployment of Triton that serves one version of a ModelService, and the Service that names its replicas."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from belvedere_operators.manifests.ownership import ROLE_LABEL, child_metadata, service_labels
from belvedere_operators.manifests.pods import env_list, pod_template
from belvedere_operators.manifests.server import Asked, Server, on_gpu, replica_resources, server_name, spread
from belvedere_platform.store import Manifest
from belvedere_platform.store.kinds import DEPLOYMENT, SERVICE

PORTS: Mapping[str, int] = {"http": 8000, "grpc": 8001, "metrics": 8002}
OWN_PORTS_ANNOTATION = "belvedere.dev/own-ports"
"""On a pod template: where pods share a machine's addresses, each gets ports of its own, in BELVEDERE_PORT_NAME."""
ADDRESS_VARIABLE = "BELVEDERE_ADDRESS"
DRAIN_SECONDS = 3
"""How long a replica that was told to go still answers: until no gateway sends requests there any more."""
LONGEST_REQUEST_SECONDS = 30


def port_variable(port: str) -> str:
    """Return the name of the variable that holds a port of a pod."""
    return f"BELVEDERE_PORT_{port.upper()}"


def _spec(asked: Asked) -> Manifest:
    labels = asked.labels
    role = {ROLE_LABEL: "replica"}
    template = pod_template(
        _container(asked),
        duty="serving",
        pods=asked.pods,
        patch=asked.spec.pod,
        labels={**labels, **role},
        spec={
            **spread(labels),
            "terminationGracePeriodSeconds": DRAIN_SECONDS + LONGEST_REQUEST_SECONDS + 15,
        },
    )
    annotations = {**template["metadata"].get("annotations", {}), OWN_PORTS_ANNOTATION: "true"}
    template["metadata"]["annotations"] = annotations
    return {
        "replicas": asked.replicas,
        "selector": {"matchLabels": {**labels, **role}},
        # A new template starts beside the old one, which goes when the new is ready.
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        "template": template,
    }


def triton_service(owner: Manifest, version: str) -> Manifest:
    """Return the Service over a version's replicas. A cluster writes its EndpointSlices, with these labels on them."""
    service = owner["metadata"]["name"]
    labels = service_labels(service, version)
    return {
        "apiVersion": SERVICE.api_version,
        "kind": SERVICE.kind,
        "metadata": child_metadata(owner, server_name(service, version), labels),
        "spec": {
            "clusterIP": "None",
            "selector": {**labels, ROLE_LABEL: "replica"},
            "ports": [{"name": name, "port": PORTS[name], "targetPort": name} for name in ("http", "grpc")],
        },
    }


def _resized(spec: Mapping[str, Any], replicas: int) -> Manifest:
    return {**spec, "replicas": replicas}


def _container(asked: Asked) -> dict[str, Any]:
    spec = asked.spec
    batching, cpu = spec.batching, spec.resources.cpu
    instances = (spec.server.instances if spec.server else None) or 1
    arguments = [
        *("triton", "serve", asked.engine_digest),
        *("--model-version", asked.version),
        *("--host", f"$({ADDRESS_VARIABLE})"),
        *(word for name in PORTS for word in (f"--{name}-port", f"$({port_variable(name)})")),
        *("--max-batch-size", f"{batching.max_batch_size}"),
        *("--batch-wait-milliseconds", f"{batching.wait_milliseconds:g}"),
        *("--max-queued-requests", f"{batching.max_queued_requests}"),
        # A plan is run by Triton's own backend for it: the vendor's image has no TensorRT for Python.
        *(("--backend", "tensorrt") if on_gpu(spec) else ()),
        *(("--instances", f"{instances}") if instances > 1 else ()),
        *("--threads", f"{max(1, math.floor(cpu / instances))}"),
        *("--drain-seconds", f"{DRAIN_SECONDS}"),
    ]
    if spec.server is not None and spec.server.writing is not None:
        arguments += ["--writing", json.dumps(spec.server.writing.arguments())]
    told = {ADDRESS_VARIABLE: "0.0.0.0", **{port_variable(name): f"{number}" for name, number in PORTS.items()}}
    return {
        "name": "triton",
        "command": ["belvedere"],
        "args": arguments,
        "env": env_list({**asked.pods.environment, **told}),
        "ports": [{"name": name, "containerPort": number} for name, number in PORTS.items()],
        "resources": replica_resources(cpu, spec.resources.memory, gpu=on_gpu(spec)),
        "readinessProbe": {
            "httpGet": {"path": "/v2/health/ready", "port": "http"},
            "periodSeconds": 2,
            "timeoutSeconds": 2,
            "failureThreshold": 3,
        },
    }


triton_deployment = Server(kind=DEPLOYMENT, built=_spec, resized=_resized)
"""Makes the Deployment for a version."""

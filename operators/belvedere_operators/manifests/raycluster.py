"""What the pods of every Ray cluster have in common: their environment, ports and probes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RAY_VERSION = "2.60.0"
GPU = "nvidia.com/gpu"
# KubeRay and the operator ask the dashboard without a token; who may reach it is a NetworkPolicy's to say.
RAY_ENVIRONMENT: Mapping[str, str] = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
DASHBOARD_PORT, AGENT_PORT, METRICS_PORT = 8265, 52365, 8080


def head_container(name: str, resources: Mapping[str, Any]) -> dict[str, Any]:
    """Return the container of a head. It runs no work, so its health is that of Ray's own services."""
    ports = [
        {"name": "gcs-server", "containerPort": 6379},
        {"name": "dashboard", "containerPort": DASHBOARD_PORT},
        {"name": "client", "containerPort": 10001},
        {"name": "metrics", "containerPort": METRICS_PORT},
    ]
    health = {"path": "/api/gcs_healthz", "port": DASHBOARD_PORT}
    return {"name": name, "resources": dict(resources), "ports": ports, **_probes(health)}


def worker_container(name: str, resources: Mapping[str, Any]) -> dict[str, Any]:
    """Return the container of a worker."""
    ports = [{"name": "metrics", "containerPort": METRICS_PORT}]
    # KubeRay's own probe asks Serve's proxy, which direct ingress does not start on workers, and needs wget in the image.
    health = {"path": "/api/local_raylet_healthz", "port": AGENT_PORT}
    return {"name": name, "resources": dict(resources), "ports": ports, **_probes(health)}


def _probes(health: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "readinessProbe": {"httpGet": dict(health), "periodSeconds": 2, "timeoutSeconds": 2, "failureThreshold": 10},
        # Patient: a machine that is busy is not dead, and a worker that is killed takes its replica with it.
        "livenessProbe": {
            "httpGet": dict(health),
            "initialDelaySeconds": 60,
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": 12,
        },
    }

"""What the pods of every Ray cluster have in common: their environment, ports and probes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

RAY_VERSION = "2.60.0"
GPU = "nvidia.com/gpu"
# KubeRay and the operator ask the dashboard without a token; who may reach it is a NetworkPolicy's to say.
RAY_ENVIRONMENT: Mapping[str, str] = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    # After thirty seconds a head gives up, is started anew, and on a busy node is late again.
    "RAY_raylet_start_wait_time_s": "120",
}
DASHBOARD_PORT, AGENT_PORT, METRICS_PORT, SERVE_PORT = 8265, 52365, 8080, 8000


@dataclass(frozen=True, kw_only=True)
class HeadStore:
    """A Redis in which a head keeps what it knows: the one that takes its place then knows the replicas, and they stay."""

    address: str
    password: tuple[str, str] | None = None
    """The Secret with it, in the namespace of the pods, and the key; none for a Redis that asks for none."""

    def options(self) -> dict[str, Any]:
        """Return what KubeRay is told of it. Under which name a cluster keeps its state there is KubeRay's to choose."""
        if self.password is None:
            return {"redisAddress": self.address}
        name, key = self.password
        reference = {"secretKeyRef": {"name": name, "key": key}}
        return {"redisAddress": self.address, "redisPassword": {"valueFrom": reference}}


def head_container(name: str, resources: Mapping[str, Any], *, serves: bool = False) -> dict[str, Any]:
    """Return the container of a head. It runs no work, so its health is that of Ray's own services."""
    ports = {"gcs-server": 6379, "dashboard": DASHBOARD_PORT, "client": 10001, "metrics": METRICS_PORT}
    if serves:
        # KubeRay never calls a RayService ready whose head has no port of this name, though no request needs it here.
        ports["serve"] = SERVE_PORT
    health = {"path": "/api/gcs_healthz", "port": DASHBOARD_PORT}
    return {"name": name, "resources": dict(resources), "ports": _ports(ports), **_probes(health)}


def worker_container(name: str, resources: Mapping[str, Any]) -> dict[str, Any]:
    """Return the container of a worker."""
    ports = _ports({"metrics": METRICS_PORT})
    # KubeRay's own probe asks Serve's proxy, which direct ingress does not start on workers, and needs wget in the image.
    health = {"path": "/api/local_raylet_healthz", "port": AGENT_PORT}
    return {"name": name, "resources": dict(resources), "ports": ports, **_probes(health)}


def _ports(ports: Mapping[str, int]) -> list[dict[str, Any]]:
    # The protocol is said as the API server would fill it in: what is read back is then what was written.
    return [{"name": name, "containerPort": port, "protocol": "TCP"} for name, port in ports.items()]


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

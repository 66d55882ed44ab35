"""The cluster's own autoscaler of a ModelService, where one is asked for: it sets `spec.scaling.minReplicas` through `/scale`."""

from __future__ import annotations

from typing import Any

from belvedere_operators.manifests.naming import child_name
from belvedere_operators.manifests.ownership import child_metadata, service_labels
from belvedere_platform.resources.model_service import Autoscaler, ModelServiceSpec
from belvedere_platform.store import Manifest
from belvedere_platform.store.kinds import HORIZONTAL_POD_AUTOSCALER, SCALED_OBJECT
from belvedere_platform.telemetry.gateway_metrics import in_flight_query

KINDS = {kind.kind: kind for kind in (HORIZONTAL_POD_AUTOSCALER, SCALED_OBJECT)}
POLL_SECONDS = 15
TARGET_CPU_PERCENT = 70
LONGEST_NAME = 63
"""KEDA makes the name of a ScaledObject a label."""
LONGEST_WINDOW_SECONDS = 3600
"""What the API server takes for a stabilization window."""


def autoscaler(owner: Manifest, spec: ModelServiceSpec, *, prometheus_url: str) -> Manifest | None:
    """Return the HorizontalPodAutoscaler or the ScaledObject that a service asks for, if any."""
    asked = spec.scaling.autoscaler
    if asked is None:
        return None
    kind, service = KINDS[asked.kind], owner["metadata"]["name"]
    target = {"apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": service}
    build = _scaled_object if kind is SCALED_OBJECT else _pod_autoscaler
    return {
        "apiVersion": kind.api_version,
        "kind": kind.kind,
        "metadata": child_metadata(owner, _name(service), service_labels(service)),
        "spec": {
            "scaleTargetRef": target,
            **build(asked, spec, namespace=owner["metadata"]["namespace"], service=service, prometheus=prometheus_url),
        },
    }


def _pod_autoscaler(asked: Autoscaler, spec: ModelServiceSpec, **_: str) -> dict[str, Any]:
    target = {"type": "Utilization", "averageUtilization": asked.target_cpu_percent or TARGET_CPU_PERCENT}
    return {
        "minReplicas": asked.min_replicas or 1,
        "maxReplicas": spec.scaling.max_replicas,
        "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": target}}],
        "behavior": {"scaleDown": {"stabilizationWindowSeconds": _window_seconds(spec)}},
    }


def _scaled_object(
    asked: Autoscaler, spec: ModelServiceSpec, *, namespace: str, service: str, prometheus: str
) -> dict[str, Any]:
    trigger = {
        "serverAddress": prometheus,
        "query": f"sum({in_flight_query(namespace, service)})",
        "threshold": f"{spec.scaling.target_in_flight:g}",
        # No answer is no measurement: taken for zero, a Prometheus that has lost sight of the gateway would take replicas away.
        "ignoreNullValues": "false",
    }
    behavior = {"scaleDown": {"stabilizationWindowSeconds": _window_seconds(spec)}}
    return {
        # Without a minimum of at least one, KEDA would take a service to zero that nothing would bring back.
        "minReplicaCount": asked.min_replicas or 1,
        "maxReplicaCount": spec.scaling.max_replicas,
        "pollingInterval": POLL_SECONDS,
        "advanced": {"horizontalPodAutoscalerConfig": {"behavior": behavior}},
        "triggers": [{"type": "prometheus", "metadata": trigger}],
    }


def _name(service: str) -> str:
    plain = f"{service}-replicas"
    return plain if len(plain) <= LONGEST_NAME else child_name(service, "replicas", longest=LONGEST_NAME)


def _window_seconds(spec: ModelServiceSpec) -> int:
    return min(LONGEST_WINDOW_SECONDS, round(spec.scaling.scale_in_delay_seconds))

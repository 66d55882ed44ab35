"""The PodDisruptionBudget of a ModelService: nodes are drained one replica of the stable version at a time."""

from __future__ import annotations

from belvedere_operators.manifests.ownership import (
    ROLE_LABEL,
    SERVICE_LABEL,
    VERSION_LABEL,
    child_metadata,
    service_labels,
)
from belvedere_platform.resources.model_service import ModelServiceSpec
from belvedere_platform.store import Manifest
from belvedere_platform.store.kinds import POD_DISRUPTION_BUDGET


def disruption_budget(owner: Manifest, spec: ModelServiceSpec, *, stable: str, replicas: int) -> Manifest | None:
    """Return the budget; None for a service that never has more than one replica, which a drain must be able to move."""
    if spec.scaling.max_replicas < 2:
        return None
    service = owner["metadata"]["name"]
    return {
        "apiVersion": POD_DISRUPTION_BUDGET.api_version,
        "kind": POD_DISRUPTION_BUDGET.kind,
        "metadata": child_metadata(owner, f"{service}-replicas", service_labels(service)),
        "spec": {
            # A number of pods, never maxUnavailable or a percentage: for these Kubernetes asks the pods' owner for its
            # scale, which a RayCluster does not have, and then refuses every eviction.
            "minAvailable": max(0, replicas - 1),
            "selector": {"matchLabels": {SERVICE_LABEL: service, VERSION_LABEL: stable, ROLE_LABEL: "replica"}},
            # A replica that does not serve protects nobody, and must not keep its node from being emptied.
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }

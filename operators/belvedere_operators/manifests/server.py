"""What serves one version of a ModelService, whichever model server it is: its name, what it is asked, and when its pods stay."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from belvedere_operators.manifests.ownership import ROLE_LABEL, child_metadata, service_labels
from belvedere_operators.manifests.raycluster import GPU
from belvedere_platform.resources.model_service import ModelServiceSpec
from belvedere_platform.store import Kind, Manifest

CPUS_ANNOTATION = "belvedere.dev/cpus"
INTENT_ANNOTATION = "belvedere.dev/intent"


def server_name(service: str, version: str) -> str:
    """Return the name of what serves a version of a service."""
    return f"{service}-{version}"


def server(
    kind: Kind,
    owner: Manifest,
    spec: ModelServiceSpec,
    *,
    version: str,
    engine_digest: str,
    replicas: int,
    running: Manifest | None,
    resized: Callable[[Mapping[str, Any]], Manifest],
    built: Callable[[], Manifest],
) -> Manifest:
    """Return the server of a version with so many replicas. One that runs what is asked for keeps its pods as they are.

    Otherwise each upgrade of the operator, and each change of the installation's pod defaults, would restart every model.
    """
    asked = intent(spec, engine_digest)
    stays = running is not None and running["metadata"].get("annotations", {}).get(INTENT_ANNOTATION) == asked
    annotations = {CPUS_ANNOTATION: f"{replicas * spec.resources.cpu:g}", INTENT_ANNOTATION: asked}
    service = owner["metadata"]["name"]
    labels = service_labels(service, version)
    return {
        "apiVersion": kind.api_version,
        "kind": kind.kind,
        "metadata": child_metadata(owner, server_name(service, version), labels, annotations),
        "spec": resized(running["spec"]) if running is not None and stays else built(),
    }


def intent(spec: ModelServiceSpec, engine_digest: str) -> str:
    """Return a digest of all that a service asks of the replicas of a version."""
    asked = spec.model_dump(mode="json", by_alias=True, include={"model", "batching", "resources", "pod"})
    # Not the field itself: a service that says nothing of its server keeps its replicas when Belvedere is upgraded.
    if told := spec.server.arguments() if spec.server else {}:
        asked["server"] = told
    text = json.dumps({**asked, "engineDigest": engine_digest}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


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

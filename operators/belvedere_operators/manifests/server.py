"""What serves one version of a ModelService, whichever model server it is: its name, what it is asked, and when its pods stay."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from belvedere_operators.manifests.ownership import ROLE_LABEL, child_metadata, service_labels
from belvedere_operators.manifests.pods import PodSettings
from belvedere_operators.manifests.raycluster import GPU
from belvedere_platform.resources.model_service import ModelServiceSpec
from belvedere_platform.store import Kind, Manifest

CPUS_ANNOTATION = "belvedere.dev/cpus"
INTENT_ANNOTATION = "belvedere.dev/intent"


def server_name(service: str, version: str) -> str:
    """Return the name of what serves a version of a service."""
    return f"{service}-{version}"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is to serve a version: of which service, with which engine, on how many replicas, in what pods."""

    owner: Manifest
    spec: ModelServiceSpec
    version: str
    engine_digest: str
    replicas: int
    pods: PodSettings

    @property
    def service(self) -> str:
        """Return the name of the service."""
        name: str = self.owner["metadata"]["name"]
        return name

    @property
    def labels(self) -> dict[str, str]:
        """Return the labels of all that serves the version."""
        return service_labels(self.service, self.version)


def _no_more(spec: Mapping[str, Any]) -> Mapping[str, str]:
    return {}


@dataclass(frozen=True, kw_only=True)
class Server:
    """A model server: the kind of object that serves a version on it, what its spec is, and how it gets another number of replicas."""

    kind: Kind
    built: Callable[[Asked], Manifest]
    resized: Callable[[Mapping[str, Any], int], Manifest]
    annotations: Callable[[Mapping[str, Any]], Mapping[str, str]] = _no_more
    """What an object with this spec is annotated with beside what all are."""

    def __call__(
        self,
        owner: Manifest,
        spec: ModelServiceSpec,
        *,
        version: str,
        engine_digest: str,
        replicas: int,
        pods: PodSettings,
        running: Manifest | None = None,
    ) -> Manifest:
        """Return what serves a version with so many replicas. One that runs what is asked for keeps its pods as they are.

        Otherwise each upgrade of the operator, and each change of the installation's pod defaults, would restart every model.
        """
        asked = Asked(
            owner=owner, spec=spec, version=version, engine_digest=engine_digest, replicas=replicas, pods=pods
        )
        meant = intent(spec, engine_digest)
        stays = running is not None and running["metadata"].get("annotations", {}).get(INTENT_ANNOTATION) == meant
        made = self.resized(running["spec"], replicas) if running is not None and stays else self.built(asked)
        cpus = f"{replicas * spec.resources.cpu:g}"
        annotations = {CPUS_ANNOTATION: cpus, INTENT_ANNOTATION: meant, **self.annotations(made)}
        return {
            "apiVersion": self.kind.api_version,
            "kind": self.kind.kind,
            "metadata": child_metadata(owner, server_name(asked.service, version), asked.labels, annotations),
            "spec": made,
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

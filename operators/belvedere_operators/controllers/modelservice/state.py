"""Everything that one reconcile of a ModelService has read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from belvedere_operators.alerts.book import Book
from belvedere_operators.controllers.modelservice.journal import Journal, RolloutRecord
from belvedere_operators.controllers.modelservice.metrics import Metrics
from belvedere_operators.delivery.rollout import Request
from belvedere_platform.resources import Engine, ModelService, ModelVersion
from belvedere_platform.resources.model_service import ModelServiceSpec
from belvedere_platform.resources.pod_patch import PodPatch
from belvedere_platform.store import Kind, Manifest

STALE_ALERT_SECONDS = 900.0
"""A firing alert that was not repeated for so long is no longer believed."""

LOST_PATH_SECONDS = 300.0
"""Without a heartbeat for so long, alerts no longer reach us."""


@dataclass(frozen=True, kw_only=True)
class State:
    """Frozen: `decide` depends on this and on nothing else."""

    now: float
    manifest: Manifest
    service: ModelService
    journal: Journal
    journal_version: str | None = None
    versions: Mapping[str, ModelVersion] = field(default_factory=dict)
    """ModelVersions that exist, of those that matter here."""
    version_manifests: Mapping[str, Manifest] = field(default_factory=dict)
    engines: Mapping[str, Engine] = field(default_factory=dict)
    """Engines that exist, by version."""
    servers: Mapping[str, Manifest] = field(default_factory=dict)
    """What serves this service's versions and exists, by version: RayServices, or with backend triton Deployments."""
    guards: tuple[Manifest, ...] = ()
    """What exists beside the servers: disruption budget, network policy and autoscaler."""
    missing_kind: Kind | None = None
    """The kind of the autoscaler asked for, when the cluster does not know it."""
    routable: Mapping[str, int] = field(default_factory=dict)
    """Ready replicas by version, from EndpointSlices."""
    num_services: int = 1
    """How many services this control plane looks after."""
    num_waiting: int = 0
    """How many of them wait for the gateway to send them requests."""
    cluster_cpus: float | None = None
    """CPUs that replicas may use; None when the cluster does not say."""
    cpus_of_others: float = 0.0
    book: Book = field(default_factory=Book)
    request: Request | None = None
    metrics: Metrics | None = None
    """Read in this reconcile; None when it is not time to look, or when it failed."""
    metrics_problem: str | None = None

    @property
    def name(self) -> str:
        """The service's name."""
        return str(self.manifest["metadata"]["name"])

    @property
    def namespace(self) -> str:
        """The service's namespace."""
        return str(self.manifest["metadata"]["namespace"])

    @property
    def generation(self) -> int:
        """The generation of the spec."""
        return generation_of(self.manifest)

    @property
    def spec(self) -> ModelServiceSpec:
        """What is asked."""
        return self.service.spec

    @property
    def looked(self) -> bool:
        """Whether this reconcile asked the metrics, with or without success."""
        return self.metrics is not None or self.metrics_problem is not None


def generation_of(manifest: Manifest) -> int:
    """Return the generation of an object's spec."""
    return int(manifest["metadata"].get("generation", 1))


def wants_rollout(spec: ModelServiceSpec, generation: int, journal: Journal) -> bool:
    """Return whether another version is asked for than the stable one, and not one that was aborted under the same intent.

    An aborted candidate is not tried again until the intent changes.
    """
    last = journal.rollout
    refused = (
        last is not None
        and last.phase == "Aborted"
        and last.signal != "spec"
        and last.candidate == spec.version
        and asks_the_same(spec, generation, last)
    )
    return spec.version != journal.stable and not refused


def asks_the_same(spec: ModelServiceSpec, generation: int, last: RolloutRecord) -> bool:
    """Return whether the spec asks what it asked when this rollout began.

    One that nobody has changed does, even where a newer Belvedere makes another digest of it, by new fields and defaults.
    """
    return generation == (last.confirmed or last.generation) or last.intent == intent_of(spec)


def intent_of(spec: ModelServiceSpec) -> str:
    """Return a digest of what the outcome of a rollout depends on.

    Scaling and pausing are left out: an autoscaler or a `resume` must not bring an aborted candidate back.
    """
    # What asks nothing of the pods is left out too: an outcome from before there was such a field still counts.
    silent = {"pod": True} if spec.pod == PodPatch() else {}
    fields = spec.model_dump(mode="json", by_alias=True, exclude={"scaling": True, "rollout": {"paused"}, **silent})
    for gate in fields["rollout"]["gates"].values():
        if gate is not None and gate["enabled"]:
            del gate["enabled"]
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]

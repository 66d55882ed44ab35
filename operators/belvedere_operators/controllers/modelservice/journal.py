"""What the controller remembers between looks, in one ConfigMap that is written before anything is acted on.

Everything else (routes, RayServices, rules, status) follows from the journal and from what is observed. One write decides;
a process that is killed before it has decided nothing, and one that is killed after it is continued by its successor.
"""

from __future__ import annotations

import json
from typing import Any

from belvedere_operators.delivery.codec import from_json, to_json
from belvedere_operators.delivery.counters import Baseline
from belvedere_operators.delivery.evidence import Evidence
from belvedere_operators.delivery.judge import JudgeState
from belvedere_operators.delivery.rollout import Phase
from belvedere_operators.delivery.scaling import Scale
from belvedere_operators.manifests.ownership import child_metadata, service_labels
from belvedere_platform.errors import CorruptData
from belvedere_platform.resources.base import Part
from belvedere_platform.resources.model_service_status import EvidenceSummary
from belvedere_platform.store import Manifest
from belvedere_platform.store.kinds import CONFIG_MAP

JOURNAL_KEY = "evidence.json"
KEPT_DECISIONS = 100


def journal_name(service: str) -> str:
    """Return the name of the ConfigMap with the journal of a service."""
    return f"{service}-evidence"


class Record(Part):
    """One decision with what it was based on."""

    time: float
    decision: str
    candidate: str | None = None
    from_weight: int | None = None
    to_weight: int | None = None
    signal: str
    reason: str
    inputs: dict[str, Any] = {}
    evidence: dict[str, Any] = {}


class RolloutRecord(Part):
    """Where the rollout of a candidate stands, or how the last one ended."""

    candidate: str
    phase: Phase
    generation: int
    intent: str
    """Digest of the part of the spec that the outcome depends on."""
    confirmed: int | None = None
    """The newest generation that asks the same, where that is not the one that began."""
    started: float
    deadline_from: float
    weight: int = 0
    step: int | None = None
    step_started: float | None = None
    requests_at_step: int = 0
    first_weight: float | None = None
    completed: float | None = None
    signal: str | None = None
    reason: str = ""

    @property
    def active(self) -> bool:
        """Whether it is still undecided."""
        return self.phase in ("Preparing", "Progressing", "Paused")


class Retiring(Part):
    """A version without traffic that stays until a time: warm after a promotion, draining after an abort."""

    version: str
    replicas: int
    until: float


class Side(Part):
    """What was measured of one version at the last look."""

    share: float | None = None
    p95_milliseconds: float | None = None
    error_ratio: float | None = None
    slow_ratio: float | None = None


class ScaleRecord(Part):
    """How many replicas are wanted."""

    replicas: int
    reason: str = ""
    last_change: float | None = None
    below_since: float | None = None

    def state(self) -> Scale:
        """Return it as the scaling decision takes it."""
        return Scale(
            replicas=self.replicas, reason=self.reason, last_change=self.last_change, below_since=self.below_since
        )

    @staticmethod
    def of(scale: Scale) -> ScaleRecord:
        """Return a scaling decision as a record."""
        return ScaleRecord(
            replicas=scale.replicas, reason=scale.reason, last_change=scale.last_change, below_since=scale.below_since
        )


class Looked(Part):
    """The last look at the metrics."""

    time: float
    problem: str | None = None
    sides: dict[str, Side] = {}
    in_flight: float | None = None
    effective_weight: dict[str, float] = {}
    """Percent of new requests by version, as the gateway said."""


class ShownLook(Looked):
    """What status shows of a look that another process took: it stands until this one takes its own."""


class CounterBaseline(Part):
    """Counters as they stood at the last look that was used."""

    values: dict[str, float] = {}
    missing: dict[str, int] = {}


class Journal(Part):
    """All of it."""

    stable: str | None = None
    served: bool = False
    """Whether the stable version has ever been routable: until then another one may simply take its place."""
    engines: dict[str, str] = {}
    """Engine digest by version, pinned when first used: a rebuilt engine must not slip under a running version."""
    rollout: RolloutRecord | None = None
    retiring: tuple[Retiring, ...] = ()
    judge: dict[str, Any] | None = None
    closing: EvidenceSummary | None = None
    """What the judge knew when the last rollout ended."""
    baseline: CounterBaseline | None = None
    looked: Looked | None = None
    scale: ScaleRecord | None = None
    handled_request: str | None = None
    decisions: tuple[Record, ...] = ()

    @property
    def active(self) -> RolloutRecord | None:
        """The rollout in progress, if there is one."""
        return self.rollout if self.rollout is not None and self.rollout.active else None

    def judge_state(self) -> JudgeState | None:
        """Return the judge's state."""
        return from_json(self.judge) if self.judge is not None else None

    def counters(self) -> Baseline | None:
        """Return the counters of the last look."""
        if self.baseline is None:
            return None
        return Baseline(values=self.baseline.values, missing=self.baseline.missing)

    def with_(self, **changes: Any) -> Journal:
        """Return the journal with some fields changed."""
        return self.model_copy(update=changes)

    def note(self, record: Record) -> Journal:
        """Return the journal with one more decision."""
        return self.with_(decisions=(*self.decisions, record)[-KEPT_DECISIONS:])


def summary(evidence: Evidence) -> EvidenceSummary:
    """Return the evidence as status shows it."""
    return EvidenceSummary(
        harm={gate: float(f"{value:.4g}") for gate, value in evidence.harm.items()},
        safe={gate: float(f"{value:.4g}") for gate, value in evidence.safe.items()},
        abort_at=evidence.abort_at,
        promote_at=evidence.promote_at,
        line=evidence.line,
    )


def judge_fields(state: JudgeState) -> dict[str, Any]:
    """Return the judge's state as the journal keeps it."""
    return to_json(state)


def baseline_fields(baseline: Baseline) -> CounterBaseline:
    """Return a baseline as the journal keeps it."""
    return CounterBaseline(values=dict(baseline.values), missing=dict(baseline.missing))


def read_journal(manifest: Manifest | None) -> Journal:
    """Return the journal in a ConfigMap, or an empty one. Raises CorruptData when it cannot be read."""
    if manifest is None:
        return Journal()
    try:
        return Journal.model_validate_json(manifest["data"][JOURNAL_KEY])
    except (KeyError, ValueError) as error:
        name = manifest["metadata"]["name"]
        raise CorruptData(
            f"ConfigMap {name}: {JOURNAL_KEY} cannot be read ({error}); delete it to begin again from the versions that run"
        ) from error


def journal_manifest(owner: Manifest, journal: Journal, resource_version: str | None) -> Manifest:
    """Return the ConfigMap to write. With a resource version it is refused if someone else wrote since."""
    service = owner["metadata"]["name"]
    metadata = child_metadata(owner, journal_name(service), service_labels(service))
    if resource_version is not None:
        metadata["resourceVersion"] = resource_version
    fields = journal.model_dump(by_alias=True, mode="json", exclude_defaults=True)
    return {
        "apiVersion": CONFIG_MAP.api_version,
        "kind": CONFIG_MAP.kind,
        "metadata": metadata,
        "data": {JOURNAL_KEY: json.dumps(fields, sort_keys=True)},
    }

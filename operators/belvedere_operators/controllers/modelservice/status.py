"""The status of a ModelService: what is observed, on both sides."""

from __future__ import annotations

from datetime import UTC, datetime

from belvedere_operators.controllers.context import Settings
from belvedere_operators.controllers.modelservice.conditions import conditions_of
from belvedere_operators.controllers.modelservice.journal import Journal, Record, RolloutRecord, summary
from belvedere_operators.controllers.modelservice.looking import evidence_now
from belvedere_operators.controllers.modelservice.replicas import desired_replicas
from belvedere_operators.controllers.modelservice.state import State
from belvedere_operators.delivery.evidence import Evidence
from belvedere_operators.manifests.ownership import ROLE_LABEL, SERVICE_LABEL
from belvedere_operators.runtime import timestamp
from belvedere_platform.resources.model_service_status import (
    DecisionRecord,
    ModelServiceStatus,
    RolloutState,
    ScalingState,
    ServedVersion,
)

SHOWN_DECISIONS = 20


def status_of(state: State, journal: Journal, settings: Settings) -> ModelServiceStatus:
    """Return the whole status."""
    evidence = evidence_now(state, journal)
    active = journal.active
    candidate_weight = active.weight if active is not None else 0
    return ModelServiceStatus(
        observed_generation=state.generation,
        conditions=conditions_of(state, journal),
        stable=_side(state, journal, journal.stable, 100 - candidate_weight, None),
        candidate=_side(state, journal, active.candidate, candidate_weight, evidence) if active else None,
        evidence=summary(evidence) if active is not None else journal.closing,
        rollout=_rollout(journal),
        scaling=_scaling(journal),
        replicas=sum(state.routable.values()),
        selector=f"{SERVICE_LABEL}={state.name},{ROLE_LABEL}=replica",
        url=f"{settings.gateway_url}/services/{state.namespace}/{state.name}" if settings.gateway_url else None,
        decisions=tuple(decision_record(record) for record in journal.decisions[-SHOWN_DECISIONS:]),
    )


def decision_record(record: Record) -> DecisionRecord:
    """Return a decision as status and `rollout history` show it."""
    moved = {"fromWeight": record.from_weight, "toWeight": record.to_weight}
    return DecisionRecord(
        time=precise(record.time),
        decision=record.decision,
        candidate=record.candidate,
        signal=record.signal,
        reason=record.reason,
        inputs={**{name: value for name, value in moved.items() if value is not None}, **record.inputs},
        evidence=record.evidence,
    )


def precise(seconds: float) -> str:
    """Return a time with milliseconds: decisions of one second must keep their order."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def moment(seconds: float | None) -> str | None:
    """Return a time as Kubernetes writes it."""
    return timestamp(datetime.fromtimestamp(seconds, UTC)) if seconds is not None else None


def _side(
    state: State, journal: Journal, version: str | None, weight: int, evidence: Evidence | None
) -> ServedVersion | None:
    if version is None:
        return None
    seen = journal.looked.sides.get(version) if journal.looked is not None else None
    totals = evidence.totals if evidence is not None else None
    return ServedVersion(
        version=version,
        engine=journal.engines.get(version),
        desired_weight=weight if journal.served else 0,
        observed_weight=round(seen.share, 2) if seen is not None and seen.share is not None else None,
        routable_replicas=state.routable.get(version, 0),
        desired_replicas=desired_replicas(state, journal).get(version, 0),
        p95_milliseconds=round(seen.p95_milliseconds, 3)
        if seen is not None and seen.p95_milliseconds is not None
        else None,
        requests=totals.candidate_requests if totals else None,
        errors=totals.candidate_errors if totals else None,
    )


def _rollout(journal: Journal) -> RolloutState | None:
    last: RolloutRecord | None = journal.rollout
    if last is None:
        return None
    return RolloutState(
        phase=last.phase,
        candidate=last.candidate,
        step=last.step,
        step_start_time=moment(last.step_started),
        start_time=moment(last.started),
        first_weight_time=moment(last.first_weight),
        completion_time=moment(last.completed),
        generation=last.generation,
        last_request_id=journal.handled_request,
    )


def _scaling(journal: Journal) -> ScalingState | None:
    scale = journal.scale
    if scale is None:
        return None
    return ScalingState(
        desired_replicas=scale.replicas,
        reason=scale.reason,
        last_scale_time=moment(scale.last_change),
        below_since=moment(scale.below_since),
    )

"""What is known of a ModelService: the versions that serve, how a rollout stands, and what was decided on what evidence."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from belvedere_platform.resources.base import Part, Status, Timestamp


class ServedVersion(Part):
    """One side of the service, as observed."""

    version: str
    engine: str | None = None
    desired_weight: int | None = None
    observed_weight: Annotated[float | None, Field(description="percent of the requests since the last look")] = None
    routable_replicas: int = 0
    desired_replicas: int = 0
    p95_milliseconds: float | None = None
    requests: Annotated[int | None, Field(description="requests answered during this rollout")] = None
    errors: int | None = None


class EvidenceSummary(Part):
    """What the judge knows, by gate: e-values that the candidate is worse, and that it is not."""

    harm: Annotated[dict[str, float], Field(description="e-value against 'no worse', by gate; abort at 1/alpha")] = {}
    safe: Annotated[
        dict[str, float], Field(description="e-value for 'within the margin', by gate; promote when all reach 1/beta")
    ] = {}
    abort_at: float | None = None
    promote_at: float | None = None
    line: Annotated[str, Field(description="the same as one readable line")] = ""


class RolloutState(Part):
    """Where the rollout stands."""

    phase: Literal["Preparing", "Progressing", "Paused", "Promoted", "Aborted"]
    candidate: str
    step: int | None = None
    step_start_time: Timestamp | None = None
    start_time: Timestamp | None = None
    first_weight_time: Timestamp | None = None
    completion_time: Timestamp | None = None
    generation: Annotated[
        int | None, Field(description="generation of the ModelService that asked for this rollout")
    ] = None
    last_request_id: str | None = None


class DecisionRecord(Part):
    """One decision with what it was based on."""

    time: Timestamp
    decision: str
    candidate: str | None = None
    signal: Annotated[
        str | None, Field(description="what decided: judge:errors, alert:NAME, shadow, person, deadline, …")
    ] = None
    reason: str
    inputs: dict[str, Any] = {}
    evidence: dict[str, Any] = {}


class ScalingState(Part):
    """Why there are as many replicas as there are."""

    desired_replicas: int
    reason: str = ""
    last_scale_time: Timestamp | None = None
    below_since: Annotated[Timestamp | None, Field(description="since when one replica fewer would do")] = None


class ModelServiceStatus(Status):
    """Two-sided: what is, not what was asked."""

    stable: ServedVersion | None = None
    candidate: ServedVersion | None = None
    evidence: EvidenceSummary | None = None
    rollout: RolloutState | None = None
    scaling: ScalingState | None = None
    replicas: Annotated[int | None, Field(description="routable replicas of all versions")] = None
    selector: str | None = None
    url: str | None = None
    decisions: Annotated[tuple[DecisionRecord, ...], Field(max_length=20)] = ()

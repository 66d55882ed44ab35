"""The conditions of a ModelService, each with its reason."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Literal

from belvedere_operators.alerts.rules import STABLE_ERRORS
from belvedere_operators.controllers.modelservice.journal import Journal, ShownLook
from belvedere_operators.controllers.modelservice.obstacles import accepted, engine_obstacle, surge
from belvedere_operators.controllers.modelservice.state import LOST_PATH_SECONDS, STALE_ALERT_SECONDS, State
from belvedere_operators.delivery.capacity import Fit, fit
from belvedere_operators.runtime import Failure, set_condition, set_from_failure
from belvedere_platform.resources.base import Condition

Found = tuple[str, Literal["True", "False", "Unknown"], str, str]
"""Type, status, reason, message."""


def conditions_of(state: State, journal: Journal) -> tuple[Condition, ...]:
    """Return all conditions. A transition time only moves when a status does."""
    now = datetime.fromtimestamp(state.now, UTC)
    before = tuple(Condition.model_validate(one) for one in (state.manifest.get("status") or {}).get("conditions", ()))
    conditions = set_from_failure(
        before,
        accepted(state),
        type_="Accepted",
        reason="Accepted",
        message=f"{state.spec.version} of {state.spec.model}",
        generation=state.generation,
        now=now,
    )
    for type_, status, reason, message in _found(state, journal):
        conditions = set_condition(
            conditions,
            type_=type_,
            status=status,
            reason=reason,
            message=message,
            generation=state.generation,
            now=now,
        )
    return conditions


def _found(state: State, journal: Journal) -> Iterable[Found]:
    yield _engine(state, journal)
    yield _capacity(state, journal)
    yield _ready(state, journal)
    yield _progress(journal)
    yield _slo(state, journal)
    yield _degraded(state, journal)


def _engine(state: State, journal: Journal) -> Found:
    failure = engine_obstacle(state, journal, state.spec.version)
    if failure is None:
        return "EngineReady", "True", "Ready", journal.engines[state.spec.version]
    return "EngineReady", "False", failure.reason, failure.message


def _capacity(state: State, journal: Journal) -> Found:
    found = _fit(state, journal)
    if found.fits is None:
        return "CapacityAvailable", "Unknown", "Unreported", found.message
    if found.fits:
        return "CapacityAvailable", "True", "Fits", found.message
    return "CapacityAvailable", "False", "WaitingForCapacity", found.message


def _fit(state: State, journal: Journal) -> Fit:
    if journal.active is not None:
        return surge(state, journal, journal.active)
    replicas = {journal.stable: journal.scale.replicas} if journal.stable and journal.scale else {}
    return fit(
        total_cpus=state.cluster_cpus,
        used_by_others=state.cpus_of_others,
        replicas=replicas or {state.spec.version: state.spec.scaling.min_replicas},
        cpu_each=state.spec.resources.cpu,
    )


def _ready(state: State, journal: Journal) -> Found:
    stable = journal.stable
    if stable is None:
        return "Ready", "False", "WaitingForEngine", "no version has been accepted yet"
    routable = state.routable.get(stable, 0)
    if routable:
        if not _reached_by_gateway(state, journal, stable):
            return "Ready", "False", "WaitingForGateway", f"the gateway does not send requests to {stable} yet"
        return "Ready", "True", "Routable", f"{routable} replicas of {stable} are routable"
    failure = engine_obstacle(state, journal, stable)
    if failure is not None:
        return "Ready", "False", "WaitingForEngine", failure.message
    if not journal.served:
        return "Ready", "False", "WaitingForReplicas", f"no replica of {stable} is routable yet"
    return "Ready", "False", "NoReplicas", f"no replica of {stable} is routable"


def _reached_by_gateway(state: State, journal: Journal, stable: str) -> bool:
    """Return whether clients get answers. Once they did, a gateway that falls silent for a while is not taken for a loss:

    its Envoys go on with what they know. Without metrics at all the replicas' word is the only one there is.
    """
    before = (state.manifest.get("status") or {}).get("conditions", ())
    if any(one["type"] == "Ready" and one["status"] == "True" for one in before):
        return True
    looked = journal.looked
    if looked is None:
        return False
    return looked.problem is not None or looked.effective_weight.get(stable, 0.0) > 0


def _progress(journal: Journal) -> Found:
    last = journal.rollout
    if last is None:
        serves = journal.stable if journal.served else "nothing"
        return "RolloutProgressing", "False", "Complete", f"{serves} serves; no rollout yet"
    said = f"{last.candidate}: {last.reason}" if last.reason else last.candidate
    if last.phase == "Progressing":
        reason = "NoTraffic" if last.signal == "noData" else "Progressing"
        return "RolloutProgressing", "True", reason, said
    if last.phase == "Preparing":
        return "RolloutProgressing", "True", "Preparing", said
    if last.phase == "Paused":
        return "RolloutProgressing", "False", "Paused", said
    if last.phase == "Promoted":
        return "RolloutProgressing", "False", "Complete", said
    reason = "EngineRefused" if last.signal == "engine" else "Aborted"
    return "RolloutProgressing", "False", reason, said


def _slo(state: State, journal: Journal) -> Found:
    looked, slo = journal.looked, state.spec.slo
    if isinstance(looked, ShownLook):
        (stands,) = (one for one in state.manifest["status"]["conditions"] if one["type"] == "SLOMet")
        return "SLOMet", stands["status"], stands["reason"], stands["message"]
    side = looked.sides.get(journal.stable) if looked is not None and journal.stable is not None else None
    if side is None or looked is None or looked.problem is not None:
        return "SLOMet", "Unknown", "NoData", (looked.problem if looked else None) or "not measured yet"
    if side.error_ratio is not None and side.error_ratio > 1 - slo.availability:
        told = f"{side.error_ratio:.2%} of the answers are errors; {1 - slo.availability:.2%} are allowed"
        return "SLOMet", "False", "ErrorBudgetBurning", told
    if side.slow_ratio is not None and side.slow_ratio > 1 - slo.latency.objective:
        limit = slo.latency.threshold_milliseconds
        told = f"{side.slow_ratio:.2%} of the answers take over {limit:g} ms; {1 - slo.latency.objective:.2%} may"
        return "SLOMet", "False", "LatencyBudgetBurning", told
    if side.error_ratio is None:
        return "SLOMet", "Unknown", "NoData", "no requests in the window"
    return "SLOMet", "True", "WithinObjective", f"{side.error_ratio:.2%} errors"


def _degraded(state: State, journal: Journal) -> Found:
    failure = _trouble(state, journal)
    if failure is None:
        return "Degraded", "False", "Healthy", ""
    return "Degraded", "True", failure.reason, failure.message


def _trouble(state: State, journal: Journal) -> Failure | None:
    if journal.looked is not None and journal.looked.problem is not None:
        return Failure(reason="MetricsUnavailable", message=journal.looked.problem)
    heard = state.book.heartbeat()
    if heard is not None and state.now - heard > LOST_PATH_SECONDS:
        return Failure(
            reason="AlertPathLost",
            message=f"the watchdog alert was last heard at {datetime.fromtimestamp(heard, UTC):%H:%M:%S} UTC: alerts no longer reach the operator",
        )
    firing = state.book.firing(now=state.now, stale_seconds=STALE_ALERT_SECONDS)
    for told in firing:
        if told.name == STABLE_ERRORS:
            return Failure(reason="ErrorBudgetBurning", message=told.summary)
    if journal.served and journal.stable is not None and journal.scale is not None:
        routable = state.routable.get(journal.stable, 0)
        if routable < journal.scale.replicas:
            return Failure(
                reason="FewerReplicas", message=f"{routable} of {journal.scale.replicas} replicas are routable"
            )
    last = journal.rollout
    if last is not None and last.phase == "Aborted" and last.candidate == state.spec.version:
        return Failure(
            reason="CandidateRejected",
            message=f"spec.version is {last.candidate}, which was aborted ({last.reason}); {journal.stable} serves",
        )
    return None

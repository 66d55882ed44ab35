"""What keeps a version from being served: the checks behind Accepted, EngineReady and CapacityAvailable."""

from __future__ import annotations

from belvedere_operators.controllers.modelservice.gather import engine_name
from belvedere_operators.controllers.modelservice.journal import Journal, RolloutRecord
from belvedere_operators.controllers.modelservice.replicas import needed
from belvedere_operators.controllers.modelservice.state import State
from belvedere_operators.delivery.capacity import Fit, fit
from belvedere_operators.runtime import Failure, find_condition, first_failure

REFUSED = ("ParityFailed", "LatencyBudgetExceeded")
"""Reasons of an Engine that building again cannot cure: the version is not good enough for its target."""


def accepted(state: State) -> Failure | None:
    """Return why the spec cannot be followed, or None."""
    version = state.versions.get(state.spec.version)
    if version is None:
        return Failure(
            reason="ModelVersionNotFound",
            message=f"spec.version is {state.spec.version}; no such ModelVersion in namespace {state.namespace}",
        )
    if version.spec.model != state.spec.model:
        return Failure(
            reason="ModelMismatch",
            message=f"spec.model is {state.spec.model}, but ModelVersion {state.spec.version} is of model {version.spec.model}",
        )
    if state.missing_kind is not None:
        kind = state.missing_kind
        return Failure(
            reason="AutoscalerNotInstalled",
            message=f"spec.scaling.autoscaler.kind is {kind.kind}, and the cluster does not know {kind.plural} of "
            f"{kind.group}: install what brings it, or leave scaling.autoscaler out",
        )
    return None


def engine_obstacle(state: State, journal: Journal, version: str) -> Failure | None:
    """Return why a version has no engine to run, or None. An engine once pinned stays good."""
    if version in journal.engines:
        return None
    if version not in state.versions:
        return Failure(reason="ModelVersionNotFound", message=f"ModelVersion {version} does not exist")
    engine = state.engines.get(version)
    name = engine_name(version, state.spec)
    ready = find_condition(engine.status.conditions, "Ready") if engine and engine.status else None
    if ready is None:
        return Failure(reason="Building", message=f"Engine {name} has not been built yet")
    if ready.reason in ("ParityFailed", "LatencyBudgetExceeded", "BuildFailed"):
        return Failure(reason=ready.reason, message=f"Engine {name}: {ready.message or ready.reason}")
    return Failure(reason="Building", message=f"Engine {name}: {ready.message or ready.reason}")


def refused_engine(state: State, candidate: str) -> Failure | None:
    """Return why the candidate's engine was refused for good, or None."""
    failure = engine_obstacle(state, state.journal, candidate)
    return failure if failure is not None and failure.reason in REFUSED else None


def surge(state: State, journal: Journal, active: RolloutRecord) -> Fit:
    """Return whether both sides fit the cluster, each with the replicas it will have at the next share."""
    assert journal.stable is not None
    assert journal.scale is not None
    counts = needed(state, journal, active)
    staying = {one.version: one.replicas for one in journal.retiring}
    both = {journal.stable: journal.scale.replicas, active.candidate: max(counts.now, counts.next)}
    return fit(
        total_cpus=state.cluster_cpus,
        used_by_others=state.cpus_of_others,
        replicas={**staying, **both},
        cpu_each=state.spec.resources.cpu,
    )


def capacity_obstacle(state: State, journal: Journal, active: RolloutRecord) -> Failure | None:
    """Return why the candidate's replicas do not fit, or None when they do or nobody can say."""
    found = surge(state, journal, active)
    return Failure(reason="WaitingForCapacity", message=found.message) if found.fits is False else None


def candidate_obstacle(state: State, journal: Journal, active: RolloutRecord) -> Failure | None:
    """Return the first thing that keeps the candidate from running."""
    checks = (
        lambda given: engine_obstacle(given, journal, active.candidate),
        lambda given: capacity_obstacle(given, journal, active),
    )
    return first_failure(checks, state)

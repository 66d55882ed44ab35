"""Decide about an Engine from what is there: the version, the artifact of its key, the Job. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from pydantic import ValidationError

from belvedere_operators.manifests.enginejob import engine_job, engine_job_name
from belvedere_operators.manifests.pods import PodSettings
from belvedere_operators.runtime import Failure, find_condition, first_failure, set_condition
from belvedere_platform.resources.base import Condition
from belvedere_platform.resources.engine import (
    BatchPoint,
    CandidateReport,
    Engine,
    EngineStatus,
    LatencyReport,
    ParityGate,
    ParityReport,
)
from belvedere_platform.store import Manifest

LOOK_AGAIN_SECONDS = 10.0
BUILDING_AGAIN_SECONDS = 30.0
NEEDS = {"openvino": "openvino", "tensorrt": "tensorrt", "litert": "ai-edge-litert"}
"""By runtime, the package that not every installation builds engines with."""


@dataclass(frozen=True, kw_only=True)
class Built:
    """An engine artifact and what its build measured."""

    digest: str
    size_bytes: int
    model_digest: str
    parity: Mapping[str, ParityReport]
    latency: Mapping[str, LatencyReport]
    toolchain: Mapping[str, str]
    device: str
    gate: ParityGate | None = None
    """The gate that the build was asked to meet."""
    curve: Mapping[str, tuple[BatchPoint, ...]] = field(default_factory=dict)
    chosen: str | None = None
    candidates: Mapping[str, CandidateReport] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class BuildJob:
    """The Job of the engine, as its status says."""

    name: str
    succeeded: bool = False
    failed: bool = False
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class State:
    """Everything `decide` looks at."""

    engine: Engine
    now: datetime
    pods: PodSettings
    toolchain: Mapping[str, str] = field(default_factory=dict)
    """Versions of what builds engines, by package."""
    tag: str | None = None
    model_digest: str | None = None
    version_ready: bool = False
    job: BuildJob | None = None
    built: Built | None = None
    unreadable: str | None = None
    earlier: Built | None = None
    """What an earlier toolchain built for this very spec, where it is there still."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What to write, and when to look again."""

    status: EngineStatus
    children: tuple[Manifest, ...] = ()
    after_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class _Readiness:
    reason: str
    message: str
    ready: bool = False
    build: bool = False
    after_seconds: float | None = None


def parse_built(digest: str, size_bytes: int, config: Mapping[str, Any]) -> Built:
    """Return what an engine artifact's config says. Raises ValueError where it is not what the contract says."""
    try:
        return Built(
            digest=digest,
            size_bytes=size_bytes,
            model_digest=config["modelDigest"],
            parity={name: ParityReport.model_validate(one) for name, one in config["parity"].items()},
            latency={name: LatencyReport.model_validate(one) for name, one in config["latency"].items()},
            toolchain={name: str(value) for name, value in config["toolchain"].items()},
            device=str(config["device"]),
            gate=ParityGate.model_validate(config["parityGate"]) if "parityGate" in config else None,
            curve={
                name: tuple(BatchPoint.model_validate(point) for point in points)
                for name, points in config.get("curve", {}).items()
            },
            chosen=config.get("chosen"),
            candidates={
                name: CandidateReport.model_validate(one) for name, one in config.get("candidates", {}).items()
            },
        )
    except KeyError as error:
        raise ValueError(f"the config of engine artifact {digest} has no {error.args[0]}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"the config of engine artifact {digest} is wrong at {where}: {first['msg']}") from error


def parity_holds(state: State) -> Failure | None:
    """Refuse an engine that strays from its source model."""
    assert state.built is not None
    gate = state.engine.spec.parity
    if not state.built.parity:
        return Failure(
            reason="ParityFailed", message="the build measured no parity, so nothing proves the engine right"
        )
    strayed = []
    for name, report in sorted(state.built.parity.items()):
        if report.cosine_min < gate.cosine_minimum:
            strayed.append(
                f"{name}: smallest cosine {report.cosine_min:.4f}, spec.parity.cosineMinimum is {gate.cosine_minimum:g}"
            )
        if report.top1_agreement < gate.top1_agreement_minimum:
            strayed.append(
                f"{name}: top-1 agreement {report.top1_agreement:.4f}, "
                f"spec.parity.top1AgreementMinimum is {gate.top1_agreement_minimum:g}"
            )
    if not strayed:
        return None
    samples = max(report.samples for report in state.built.parity.values())
    return Failure(reason="ParityFailed", message=f"{'; '.join(strayed)} (on {samples} held-out inputs)")


def latency_is_in_budget(state: State) -> Failure | None:
    """Refuse an engine that is slower than allowed."""
    assert state.built is not None
    budget = state.engine.spec.latency_budget_milliseconds
    if budget is None:
        return None
    if not state.built.latency:
        return Failure(
            reason="LatencyBudgetExceeded", message="the build measured no latency to hold against the budget"
        )
    slow = [
        f"{name}: p50 {report.p50_milliseconds:.2f} ms"
        for name, report in sorted(state.built.latency.items())
        if report.p50_milliseconds > budget
    ]
    if not slow:
        return None
    return Failure(
        reason="LatencyBudgetExceeded",
        message=f"{'; '.join(slow)}; spec.latencyBudgetMilliseconds is {budget:g}",
    )


GATES = (parity_holds, latency_is_in_budget)


def decide(state: State) -> Decision:
    """Return what the state calls for."""
    readiness = _readiness(state)
    children: tuple[Manifest, ...] = ()
    if readiness.build:
        assert state.model_digest is not None
        assert state.tag is not None
        job = engine_job(
            state.engine.spec,
            metadata=state.engine.metadata,
            model_digest=state.model_digest,
            tag=state.tag,
            pods=state.pods,
        )
        children = (job,)
    return Decision(status=_status(state, readiness), children=children, after_seconds=readiness.after_seconds)


def stands(engine: Engine) -> bool:
    """Return whether the engine was found ready for what its spec asks now.

    Then it stays, whatever builds engines today: an upgrade of the operator would otherwise build every engine anew.
    """
    return engine.status is not None and _found_ready(engine, engine.status) is not None


def _found_ready(engine: Engine, status: EngineStatus) -> Condition | None:
    ready = find_condition(status.conditions, "Ready")
    asked = status.observed_generation == engine.metadata.get("generation") and status.digest is not None
    return ready if asked and ready is not None and ready.status == "True" else None


def _readiness(state: State) -> _Readiness:
    if state.model_digest is None:
        return _Readiness(
            reason="Pending",
            message=f"waits for ModelVersion {state.engine.spec.model_version}",
            after_seconds=LOOK_AGAIN_SECONDS,
        )
    if state.unreadable is not None:
        return _Readiness(reason="BuildFailed", message=state.unreadable)
    if state.built is not None:
        refused = first_failure(GATES, state)
        if refused is not None and _another_way_may_do(state):
            return _without_artifact(state)
        if refused is not None:
            return _Readiness(reason=refused.reason, message=refused.message)
        if state.job is None:
            return _Readiness(
                ready=True, reason="Reused", message=f"the store had {state.tag}, built from the same model"
            )
        return _Readiness(ready=True, reason="Built", message="parity and latency hold")
    if state.earlier is not None:
        assert state.engine.status is not None
        ready = _found_ready(state.engine, state.engine.status)
        assert ready is not None
        return _Readiness(ready=True, reason=ready.reason, message=ready.message)
    if not state.version_ready:
        return _Readiness(
            reason="Pending",
            message=f"ModelVersion {state.engine.spec.model_version} is not Ready",
            after_seconds=LOOK_AGAIN_SECONDS,
        )
    return _without_artifact(state)


def _another_way_may_do(state: State) -> bool:
    """Whether the engine was built for another gate, and for this one nobody has tried yet."""
    assert state.built is not None
    spec = state.engine.spec
    tried = state.job is not None and (state.job.succeeded or state.job.failed)
    return state.built.gate not in (None, spec.parity) and not tried and parity_holds(state) is not None


def _without_artifact(state: State) -> _Readiness:
    job = state.job
    if job is None and (lacking := _lacking(state)) is not None:
        return _Readiness(
            reason="BuildFailed",
            message=f"spec.target.runtime is {state.engine.spec.target.runtime}, and what builds engines here lacks "
            f"{lacking}: install it there, or name an image that has it in spec.pod.image",
        )
    if job is None:
        return _Readiness(
            reason="Building", message="the build is submitted", build=True, after_seconds=BUILDING_AGAIN_SECONDS
        )
    if job.failed:
        return _Readiness(
            reason="BuildFailed",
            message=f"Job {job.name} failed: {job.message or 'see its log'}; delete the Job to build again",
        )
    if job.succeeded:
        return _Readiness(
            reason="BuildFailed",
            message=f"Job {job.name} succeeded but left no artifact tagged {state.tag}; delete the Job to build again",
            after_seconds=LOOK_AGAIN_SECONDS,
        )
    return _Readiness(reason="Building", message=f"Job {job.name} is building", after_seconds=BUILDING_AGAIN_SECONDS)


def _lacking(state: State) -> str | None:
    """Return the package that a build would miss. Of an image that somebody names here nothing is known."""
    defaults, spec = state.pods.defaults, state.engine.spec
    another_image = spec.pod.image or defaults.engines.image or defaults.all.image
    needed = NEEDS.get(spec.target.runtime)
    return (
        needed if "torch" in state.toolchain and not another_image and needed not in (None, *state.toolchain) else None
    )


def _status(state: State, readiness: _Readiness) -> EngineStatus:
    built = state.built or state.earlier
    has_job = state.job is not None or readiness.build
    before = state.engine.status or EngineStatus()
    return EngineStatus(
        observed_generation=state.engine.metadata.get("generation"),
        conditions=_conditions(state, readiness, before.conditions),
        digest=built.digest if built is not None else None,
        job=engine_job_name(state.engine.metadata["name"], state.engine.spec.parity) if has_job else None,
        parity=dict(built.parity) if built is not None else {},
        latency=dict(built.latency) if built is not None else {},
        curve=dict(built.curve) if built is not None else {},
        chosen=built.chosen if built is not None else None,
        candidates=dict(built.candidates) if built is not None else {},
        toolchain=dict(built.toolchain) if built is not None else {},
        device=built.device if built is not None else None,
        size_bytes=built.size_bytes if built is not None else None,
    )


def _conditions(state: State, readiness: _Readiness, before: tuple[Condition, ...]) -> tuple[Condition, ...]:
    generation = state.engine.metadata.get("generation")
    version = state.engine.spec.model_version

    def put(
        conditions: tuple[Condition, ...], type_: str, status: Literal["True", "False"], reason: str, message: str
    ) -> tuple[Condition, ...]:
        return set_condition(
            conditions, type_=type_, status=status, reason=reason, message=message, generation=generation, now=state.now
        )

    if state.model_digest is None:
        conditions = put(
            before,
            "Accepted",
            "False",
            "ModelVersionNotFound",
            f"spec.modelVersion is {version}, and there is no such ModelVersion in this namespace",
        )
    else:
        conditions = put(before, "Accepted", "True", "Accepted", f"ModelVersion {version} is there")
    return put(conditions, "Ready", "True" if readiness.ready else "False", readiness.reason, readiness.message)

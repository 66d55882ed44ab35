"""Decide what a rollout does next, from everything that is known at one moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from belvedere_operators.delivery.evidence import Evidence

Phase = Literal["Preparing", "Progressing", "Paused", "Promoted", "Aborted"]
Authority = Literal["scaleOut", "pause", "abort", "hold"]
Verb = Literal["promote", "abort", "resume"]


@dataclass(frozen=True, kw_only=True)
class Step:
    """A share of the traffic in percent, and how long to stay at least."""

    weight: int
    hold_seconds: float


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a person asked for, once: `identity` tells a repeated request from a new one."""

    verb: Verb
    identity: str
    candidate: str | None = None


@dataclass(frozen=True, kw_only=True)
class Alert:
    """A firing alert about this service. An alert acts on a candidate only when it carries the candidate's version."""

    name: str
    action: Authority
    version: str | None = None
    summary: str = ""


@dataclass(frozen=True, kw_only=True)
class Replicas:
    """Replicas of the candidate: how many answer now, and how many the present share, the next and all traffic need."""

    routable: int
    needed_now: int
    needed_next: int
    needed_all: int
    obstacle: str | None = None
    """Why the candidate cannot run yet (its engine, capacity), as a sentence."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where the rollout stands. `step` is None before the first share; times are seconds since the epoch."""

    candidate: str
    started: float
    weight: int = 0
    step: int | None = None
    step_started: float | None = None
    requests_at_step: int = 0
    deadline_from: float | None = None


@dataclass(frozen=True, kw_only=True)
class State:
    """Everything that a decision may depend on."""

    now: float
    steps: Sequence[Step]
    deadline_seconds: float
    progress: Progress
    replicas: Replicas
    evidence: Evidence = field(default_factory=Evidence)
    metrics_problem: str | None = None
    alerts: Sequence[Alert] = ()
    paused: bool = False
    request: Request | None = None


@dataclass(frozen=True, kw_only=True)
class Hold:
    """Nothing moves."""

    reason: str
    signal: str
    preparing: bool = False


@dataclass(frozen=True, kw_only=True)
class SetWeight:
    """The candidate gets this share, as this step of the plan (None: taken back to before the first)."""

    weight: int
    step: int | None
    reason: str
    signal: str


@dataclass(frozen=True, kw_only=True)
class Promote:
    """The candidate becomes the stable version."""

    reason: str
    signal: str


@dataclass(frozen=True, kw_only=True)
class Abort:
    """The candidate gets nothing, at once, and goes."""

    reason: str
    signal: str


@dataclass(frozen=True, kw_only=True)
class Pause:
    """Nothing moves until someone, or what paused it, says so."""

    reason: str
    signal: str


Decision = Hold | SetWeight | Promote | Abort | Pause


def decide(state: State) -> Decision:
    """Return the decision: a person's word first, then what protects clients, then what moves forward."""
    for rule in (_asked, _harm, _alarm, _unroutable, _paused, _late, _unprepared, _blind, _advance):
        decision = rule(state)
        if decision is not None:
            return decision
    return _finish(state)


def _asked(state: State) -> Decision | None:
    request = state.request
    if request is None or request.candidate not in (None, state.progress.candidate):
        return None
    if request.verb == "abort":
        return Abort(reason="asked for by a person", signal="person")
    if request.verb == "promote":
        if state.replicas.routable < state.replicas.needed_all:
            return Hold(
                reason=f"promotion was asked for; {state.replicas.routable} of {state.replicas.needed_all} replicas are routable",
                signal="person",
                preparing=state.progress.step is None,
            )
        return Promote(reason="asked for by a person", signal="person")
    return None


def _harm(state: State) -> Decision | None:
    evidence = state.evidence
    if not evidence.harmful:
        return None
    gate = evidence.harmful[0]
    return Abort(
        reason=f"{gate}: e-value {evidence.harm[gate]:.3g} against 'no worse' reached {evidence.abort_at:g}",
        signal="shadow" if gate == "shadow" else f"judge:{gate}",
    )


def _alarm(state: State) -> Decision | None:
    for alert in _about_candidate(state, "abort"):
        return Abort(reason=_said(alert), signal=f"alert:{alert.name}")
    return None


def _paused(state: State) -> Decision | None:
    if state.paused:
        return Pause(reason="spec.rollout.paused is true", signal="person")
    for alert in state.alerts:
        if alert.action == "pause" and alert.version in (None, state.progress.candidate):
            return Pause(reason=_said(alert), signal=f"alert:{alert.name}")
    return None


def _unroutable(state: State) -> Decision | None:
    if state.progress.weight > 0 and state.replicas.routable == 0:
        return SetWeight(
            weight=0, step=None, reason="no replica of the candidate is routable any more", signal="replicas"
        )
    return None


def _late(state: State) -> Decision | None:
    since = state.progress.deadline_from or state.progress.started
    if state.now - since >= state.deadline_seconds:
        missing = ", ".join(state.evidence.unproven) or "nothing"
        return Pause(
            reason=f"not finished {state.deadline_seconds:g} s after it began; still unproven: {missing}",
            signal="deadline",
        )
    return None


def _blind(state: State) -> Decision | None:
    if state.metrics_problem:
        return Hold(reason=state.metrics_problem, signal="metrics")
    for alert in state.alerts:
        if alert.action == "hold":
            return Hold(reason=_said(alert), signal=f"alert:{alert.name}")
    return None


def _unprepared(state: State) -> Decision | None:
    replicas = state.replicas
    if replicas.obstacle and replicas.routable < replicas.needed_now:
        return Hold(reason=replicas.obstacle, signal="replicas", preparing=True)
    if replicas.routable < replicas.needed_now:
        return Hold(
            reason=f"{replicas.routable} of {replicas.needed_now} replicas are routable",
            signal="replicas",
            preparing=state.progress.step is None,
        )
    return None


def _advance(state: State) -> Decision | None:
    progress, steps = state.progress, state.steps
    if progress.step is None:
        return SetWeight(weight=steps[0].weight, step=0, reason="the candidate's replicas are routable", signal="steps")
    # The plan may have become shorter since: the last step stands for all beyond it.
    index = min(progress.step, len(steps) - 1)
    step = steps[index]
    if progress.weight != step.weight:
        return SetWeight(
            weight=step.weight, step=index, reason=f"step {index + 1} gives {step.weight} %", signal="spec"
        )
    stayed = state.now - (progress.step_started or progress.started)
    if stayed < step.hold_seconds:
        return Hold(reason=f"step {index + 1} of {len(steps)} holds {step.hold_seconds:g} s", signal="steps")
    if state.evidence.totals.candidate_requests <= progress.requests_at_step:
        return Hold(
            reason="the candidate got no requests in this step; nothing is proven without traffic", signal="noData"
        )
    if state.replicas.routable < state.replicas.needed_next:
        return Hold(
            reason=f"the next share needs {state.replicas.needed_next} routable replicas; {state.replicas.routable} are",
            signal="replicas",
        )
    if index + 1 < len(steps):
        return SetWeight(
            weight=steps[index + 1].weight,
            step=index + 1,
            reason=f"step {index + 1} held {stayed:.0f} s without harm",
            signal="steps",
        )
    return None


def _finish(state: State) -> Decision:
    evidence = state.evidence
    if evidence.unproven:
        missing = ", ".join(f"{gate} {evidence.safe[gate]:.1f}/{evidence.promote_at:g}" for gate in evidence.unproven)
        return Hold(reason=f"waiting for proof: {missing}", signal="evidence")
    proven = ", ".join(f"{gate} {value:.3g}" for gate, value in evidence.safe.items()) or "no gate is set"
    return Promote(reason=f"every gate is proven: {proven} of {evidence.promote_at:g}", signal="evidence")


def _about_candidate(state: State, action: Authority) -> list[Alert]:
    return [alert for alert in state.alerts if alert.action == action and alert.version == state.progress.candidate]


def _said(alert: Alert) -> str:
    return f"alert {alert.name}: {alert.summary}" if alert.summary else f"alert {alert.name} is firing"

"""Decide, purely, how the journal goes on: which version is stable, what the rollout does, how many replicas there are."""

from __future__ import annotations

from belvedere_operators.alerts.book import for_decision
from belvedere_operators.controllers.modelservice.gather import versions_of
from belvedere_operators.controllers.modelservice.journal import (
    Journal,
    Record,
    Retiring,
    RolloutRecord,
    ScaleRecord,
    summary,
)
from belvedere_operators.controllers.modelservice.looking import evidence_now, take
from belvedere_operators.controllers.modelservice.obstacles import accepted, candidate_obstacle, refused_engine
from belvedere_operators.controllers.modelservice.replicas import candidate_replicas, needed
from belvedere_operators.controllers.modelservice.state import STALE_ALERT_SECONDS, State, intent_of, wants_rollout
from belvedere_operators.delivery import rollout
from belvedere_operators.delivery.evidence import Evidence
from belvedere_operators.delivery.rollout import Abort, Decision, Hold, Pause, Promote, SetWeight
from belvedere_operators.delivery.scaling import Bounds, Load, Scale, decide_scale


def decide(state: State) -> Journal:
    """Return the journal after this reconcile. The same state gives the same journal."""
    journal = _pin_engines(state, _forget_retired(state, state.journal))
    journal = _identify(state, journal)
    if journal.stable is None:
        return journal
    journal = take(state, journal)
    journal = _hear(state, _scale(state, journal))
    if journal.active is not None:
        journal = _roll(state, journal, journal.active)
    return _close_request(state, journal)


def _forget_retired(state: State, journal: Journal) -> Journal:
    return journal.with_(retiring=tuple(one for one in journal.retiring if one.until > state.now))


def _pin_engines(state: State, journal: Journal) -> Journal:
    mattering = versions_of(state.spec, journal, state.manifest)
    pinned = {version: digest for version, digest in journal.engines.items() if version in mattering}
    for version, engine in state.engines.items():
        ready = engine.status is not None and any(
            condition.type == "Ready" and condition.status == "True" for condition in engine.status.conditions
        )
        if ready and engine.status is not None and engine.status.digest is not None:
            pinned.setdefault(version, engine.status.digest)
    return journal.with_(engines=pinned)


def _identify(state: State, journal: Journal) -> Journal:
    """Settle which versions the two sides have: the first is served without a rollout, a new one becomes the candidate."""
    wanted = state.spec.version
    if journal.stable is None:
        journal = _recollect(state, journal)
    if journal.stable is None or not journal.served:
        if accepted(state) is not None and journal.stable is None:
            return journal
        served = journal.stable == wanted and state.routable.get(wanted, 0) > 0
        scale = journal.scale or ScaleRecord(replicas=state.spec.scaling.min_replicas)
        return journal.with_(stable=wanted, served=served, scale=scale)
    last = journal.rollout
    if last is not None and not last.active and last.candidate != wanted:
        # Asking for another version takes back what was asked before: asking for it again is a new wish.
        journal = journal.with_(rollout=last.model_copy(update={"intent": ""}))
    active = journal.active
    if active is not None and active.candidate != wanted:
        journal = _end(
            state, journal, active, Abort(reason=f"spec.version is now {wanted}", signal="spec"), evidence=Evidence()
        )
        active = None
    if active is None and wants_rollout(state.spec, state.generation, journal):
        return _begin(state, journal) if accepted(state) is None else journal
    return _confirm(state, journal)


def _confirm(state: State, journal: Journal) -> Journal:
    """Note that what is asked now is what was aborted, so that neither a newer Belvedere nor other scaling brings it back."""
    last = journal.rollout
    if last is None or last.phase != "Aborted" or state.spec.version == journal.stable:
        return journal
    confirmed = None if state.generation == last.generation else state.generation
    return journal.with_(rollout=last.model_copy(update={"intent": intent_of(state.spec), "confirmed": confirmed}))


def _recollect(state: State, journal: Journal) -> Journal:
    """Return the journal with the stable version that status names, if the journal was lost while it served.

    Without this, losing one ConfigMap would put an unproven version in the place of the one that serves.
    """
    stable = ((state.manifest.get("status") or {}).get("stable") or {}).get("version")
    if stable is None or not state.routable.get(stable, 0):
        return journal
    replicas = max(state.spec.scaling.min_replicas, state.routable[stable])
    return journal.with_(stable=stable, served=True, scale=ScaleRecord(replicas=replicas))


def _begin(state: State, journal: Journal) -> Journal:
    candidate = state.spec.version
    record = RolloutRecord(
        candidate=candidate,
        phase="Preparing",
        generation=state.generation,
        intent=intent_of(state.spec),
        started=state.now,
        deadline_from=state.now,
    )
    retiring = tuple(one for one in journal.retiring if one.version != candidate)
    return journal.with_(rollout=record, retiring=retiring, judge=None, baseline=None, looked=None)


def _hear(state: State, journal: Journal) -> Journal:
    """Record the first time that an alert speaks about the candidate, even when the judge has decided already."""
    last = journal.rollout
    if last is None or last.phase == "Promoted":
        return journal
    firing = state.book.firing(now=state.now, stale_seconds=STALE_ALERT_SECONDS)
    recorded = {one.signal for one in journal.decisions if one.candidate == last.candidate and one.time >= last.started}
    for alert in for_decision(firing, since=last.started):
        signal = f"alert:{alert.name}"
        if alert.version == last.candidate and signal not in recorded:
            record = Record(
                time=state.now,
                decision="Alert",
                candidate=last.candidate,
                signal=signal,
                reason=alert.summary or f"{alert.name} is firing",
                inputs={"action": alert.action},
            )
            journal = journal.note(record)
    return journal


def _roll(state: State, journal: Journal, active: RolloutRecord) -> Journal:
    evidence = evidence_now(state, journal)
    request = state.request if state.request and state.request.identity != journal.handled_request else None
    if request is not None and request.verb == "resume":
        active = active.model_copy(update={"deadline_from": state.now})
        journal = journal.with_(rollout=active, handled_request=request.identity)
    refusal = refused_engine(state, active.candidate)
    if refusal is not None:
        return _end(state, journal, active, Abort(reason=refusal.message, signal="engine"), evidence=evidence)
    decision = rollout.decide(_question(state, journal, active, evidence))
    return _carry_out(state, journal, active, decision, evidence)


def _question(state: State, journal: Journal, active: RolloutRecord, evidence: Evidence) -> rollout.State:
    counts = needed(state, journal, active)
    obstacle = candidate_obstacle(state, journal, active)
    firing = state.book.firing(now=state.now, stale_seconds=STALE_ALERT_SECONDS)
    looked = journal.looked
    problem = "no look at the metrics yet" if looked is None else looked.problem
    if problem is None and journal.baseline is None:
        problem = "no look at the metrics yet"
    return rollout.State(
        now=state.now,
        steps=tuple(
            rollout.Step(weight=step.weight, hold_seconds=step.hold_seconds) for step in state.spec.rollout.steps
        ),
        deadline_seconds=state.spec.rollout.deadline_seconds,
        progress=rollout.Progress(
            candidate=active.candidate,
            started=active.started,
            weight=active.weight,
            step=active.step,
            step_started=active.step_started,
            requests_at_step=active.requests_at_step,
            deadline_from=active.deadline_from,
        ),
        replicas=rollout.Replicas(
            routable=state.routable.get(active.candidate, 0),
            needed_now=counts.now,
            needed_next=counts.next,
            needed_all=counts.all,
            obstacle=obstacle.message if obstacle else None,
        ),
        evidence=evidence,
        metrics_problem=problem,
        alerts=for_decision(firing, since=active.started),
        paused=state.spec.rollout.paused,
        request=state.request if state.request and state.request.identity != journal.handled_request else None,
    )


def _carry_out(
    state: State, journal: Journal, active: RolloutRecord, decision: Decision, evidence: Evidence
) -> Journal:
    match decision:
        case Abort() | Promote():
            return _end(state, journal, active, decision, evidence=evidence)
        case SetWeight(weight=weight, step=step):
            first = active.first_weight if active.first_weight is not None else (state.now if weight else None)
            moved = active.model_copy(
                update={
                    "phase": "Preparing" if step is None else "Progressing",
                    "weight": weight,
                    "step": step,
                    "step_started": state.now,
                    "requests_at_step": evidence.totals.candidate_requests,
                    "first_weight": first,
                    "signal": decision.signal,
                    "reason": decision.reason,
                }
            )
            return journal.with_(rollout=moved).note(_record(state, active, decision, weight, evidence))
        case Pause() | Hold():
            return _wait(state, journal, active, decision, evidence)


def _wait(state: State, journal: Journal, active: RolloutRecord, decision: Pause | Hold, evidence: Evidence) -> Journal:
    moving = "Preparing" if active.step is None else "Progressing"
    phase = "Paused" if isinstance(decision, Pause) else moving
    waiting = active.model_copy(update={"phase": phase, "signal": decision.signal, "reason": decision.reason})
    journal = journal.with_(rollout=waiting)
    if (phase, decision.signal) == (active.phase, active.signal):
        # Still waiting for the same thing: only the figures in the reason have moved.
        return journal
    return journal.note(_record(state, active, decision, active.weight, evidence))


def _end(
    state: State, journal: Journal, active: RolloutRecord, decision: Abort | Promote, *, evidence: Evidence
) -> Journal:
    """End the rollout. The side that lost keeps its replicas for a while, without traffic."""
    assert journal.stable is not None
    assert journal.scale is not None
    promoted = isinstance(decision, Promote)
    loser = journal.stable if promoted else active.candidate
    spec = state.spec
    stay = spec.rollout.keep_stable_seconds if promoted else spec.routing.timeout_seconds
    replicas = journal.scale.replicas if promoted else candidate_replicas(state, journal, active)
    ended = active.model_copy(
        update={
            "phase": "Promoted" if promoted else "Aborted",
            "weight": 100 if promoted else 0,
            "completed": state.now,
            "signal": decision.signal,
            "reason": decision.reason,
        }
    )
    retired = Retiring(version=loser, replicas=replicas, until=state.now + stay)
    others = tuple(one for one in journal.retiring if one.version != loser)
    return journal.with_(
        stable=active.candidate if promoted else journal.stable,
        rollout=ended,
        retiring=(*others, retired),
        closing=summary(evidence),
    ).note(_record(state, active, decision, ended.weight, evidence))


def _record(state: State, active: RolloutRecord, decision: Decision, weight: int, evidence: Evidence) -> Record:
    totals = evidence.totals
    return Record(
        time=state.now,
        decision=type(decision).__name__,
        candidate=active.candidate,
        from_weight=active.weight,
        to_weight=weight,
        signal=decision.signal,
        reason=decision.reason,
        inputs={
            "candidateRequests": totals.candidate_requests,
            "candidateErrors": totals.candidate_errors,
            "stableRequests": totals.stable_requests,
            "stableErrors": totals.stable_errors,
            "routableReplicas": state.routable.get(active.candidate, 0),
        },
        evidence=summary(evidence).model_dump(include={"harm", "safe", "line"}),
    )


def _scale(state: State, journal: Journal) -> Journal:
    assert journal.stable is not None
    assert journal.scale is not None
    scaling, interval = state.spec.scaling, state.spec.rollout.interval_seconds
    firing = state.book.firing(now=state.now, stale_seconds=STALE_ALERT_SECONDS)
    looked = journal.looked
    wanted = decide_scale(
        journal.scale.state(),
        Bounds(
            minimum=scaling.min_replicas,
            # With an autoscaler there is one number: what it wrote. Two that decide would pull against each other.
            maximum=scaling.max_replicas if scaling.autoscaler is None else scaling.min_replicas,
            target_in_flight=scaling.target_in_flight,
            scale_in_delay_seconds=scaling.scale_in_delay_seconds,
            settle_seconds=max(10.0, 4 * interval),
        ),
        Load(
            now=state.now,
            routable=state.routable.get(journal.stable, 0),
            in_flight=looked.in_flight if looked is not None and looked.problem is None else None,
            overload_alert=next((one.name for one in firing if one.action == "scaleOut"), None),
            rollout_active=journal.active is not None,
        ),
    )
    return _note_scale(state, journal.with_(scale=ScaleRecord.of(wanted)), journal.scale.replicas, wanted)


def _note_scale(state: State, journal: Journal, before: int, wanted: Scale) -> Journal:
    if wanted.replicas == before:
        return journal
    looked = journal.looked
    return journal.note(
        Record(
            time=state.now,
            decision="ScaleOut" if wanted.replicas > before else "ScaleIn",
            signal="alert" if wanted.reason.startswith("alert ") else "scaling",
            reason=wanted.reason,
            inputs={
                "from": before,
                "to": wanted.replicas,
                "inFlight": looked.in_flight if looked else None,
            },
        )
    )


def _close_request(state: State, journal: Journal) -> Journal:
    """Mark a request as handled once there is no rollout that it could still be about."""
    request = state.request
    if request is None or request.identity == journal.handled_request or journal.active is not None:
        return journal
    wanted = state.spec.version
    if request.candidate == wanted and wants_rollout(state.spec, state.generation, journal):
        # Asked together with the version itself, whose rollout waits for its ModelVersion.
        return journal
    return journal.with_(handled_request=request.identity)

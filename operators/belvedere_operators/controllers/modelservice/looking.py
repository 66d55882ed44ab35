"""Take one look at the metrics into the journal: the judge's wealth, the counters' baseline, the figures for people."""

from __future__ import annotations

from belvedere_operators.controllers.modelservice.journal import (
    Journal,
    Looked,
    ShownLook,
    Side,
    baseline_fields,
    judge_fields,
)
from belvedere_operators.controllers.modelservice.metrics import Metrics, observe
from belvedere_operators.controllers.modelservice.state import State
from belvedere_operators.delivery import judge
from belvedere_operators.delivery.counters import Increments, Sample, UnusableSamples, increments
from belvedere_operators.delivery.evidence import Evidence, evidence_of
from belvedere_operators.delivery.judge import JudgePlan, Limit
from belvedere_operators.delivery.observation import check
from belvedere_platform.resources.model_service import ModelServiceSpec
from belvedere_platform.store import Manifest


def judge_plan(spec: ModelServiceSpec) -> JudgePlan:
    """Return what the judge shall judge, from the gates and the SLO."""
    gates, slo = spec.rollout.gates.asked(), spec.slo
    errors, latency = gates.errors, gates.latency
    return JudgePlan(
        abort=spec.rollout.confidence.abort,
        promote=spec.rollout.confidence.promote,
        errors=Limit(maximum_ratio=errors.maximum_ratio, budget=1 - slo.availability) if errors else None,
        latency=Limit(maximum_ratio=latency.maximum_ratio, budget=1 - slo.latency.objective) if latency else None,
        slow_milliseconds=slo.latency.threshold_milliseconds,
        minimum_agreement=gates.shadow.minimum_agreement if gates.shadow else None,
    )


def take(state: State, journal: Journal) -> Journal:
    """Return the journal after this reconcile's look at the metrics; unchanged when there was none."""
    if state.metrics is None:
        if state.metrics_problem is None:
            return journal
        before = journal.looked
        return journal.with_(
            looked=Looked(time=state.now, problem=state.metrics_problem, sides=before.sides if before else {})
        )
    try:
        return _use(state, journal, state.metrics)
    except UnusableSamples as error:
        # The baseline stays, so that the next look that makes sense covers the time since.
        problem = f"the metrics contradict themselves: {error}"
        return journal.with_(looked=_figures(state, state.metrics, None, problem))


def shown_look(manifest: Manifest, journal: Journal, *, time: float) -> ShownLook | None:
    """Return what status shows of the last look, taken at a time; None for a service that must be looked at to go on."""
    status = manifest.get("status") or {}
    conditions = {one["type"]: one["status"] for one in status.get("conditions", ())}
    stable = status.get("stable") or {}
    stands = conditions.get("Ready") == "True" and conditions.get("Degraded") == "False" and "SLOMet" in conditions
    current = status.get("observedGeneration") == manifest["metadata"].get("generation")
    if not (stands and current) or journal.active is not None or stable.get("version") != journal.stable:
        return None
    side = Side(share=stable.get("observedWeight"), p95_milliseconds=stable.get("p95Milliseconds"))
    return ShownLook(time=time, sides={stable["version"]: side}, effective_weight={stable["version"]: 100.0})


def evidence_now(state: State, journal: Journal) -> Evidence:
    """Return what the judge knows about the candidate."""
    return evidence_of(journal.judge_state() or judge.begin(judge_plan(state.spec)))


def _use(state: State, journal: Journal, metrics: Metrics) -> Journal:
    counted = increments(journal.counters(), metrics.counters)
    active = journal.active
    if active is None or journal.stable is None:
        return journal.with_(looked=_figures(state, metrics, counted, None), judge=None, baseline=None)
    seen = observe(counted.samples, stable=journal.stable, candidate=active.candidate)
    check(seen)
    plan = judge_plan(state.spec)
    known = journal.judge_state()
    if known is None or known.plan != plan:
        # Wealth won against one hypothesis says nothing about another: changed gates begin anew.
        known = judge.begin(plan)
    return journal.with_(
        looked=_figures(state, metrics, counted, None),
        judge=judge_fields(judge.look(known, seen)),
        baseline=baseline_fields(counted.baseline),
    )


def _figures(state: State, metrics: Metrics, counted: Increments | None, problem: str | None) -> Looked:
    requests = _requests(counted.samples if counted else ())
    total = sum(requests.values())
    versions = {*metrics.p95, *metrics.error_ratio, *metrics.slow_ratio, *requests}
    sides = {
        version: Side(
            share=100 * requests.get(version, 0.0) / total if total else None,
            p95_milliseconds=metrics.p95.get(version),
            error_ratio=metrics.error_ratio.get(version),
            slow_ratio=metrics.slow_ratio.get(version),
        )
        for version in sorted(versions)
    }
    return Looked(
        time=state.now,
        problem=problem,
        sides=sides,
        in_flight=metrics.in_flight,
        effective_weight=dict(metrics.effective_weight),
    )


def _requests(samples: tuple[Sample, ...] | tuple[()]) -> dict[str, float]:
    found: dict[str, float] = {}
    for sample in samples:
        if sample.name == "requests" and "version" in sample.labels:
            version = sample.labels["version"]
            found[version] = found.get(version, 0.0) + sample.value
    return found

"""The alert rules of a ModelService: what is burnt how fast, seen over two windows, and what may be done about it.

An error (or latency) budget burns with rate b when the share of bad answers is b times what the SLO allows. Each tier asks
a long window, so that a blip does nothing, and a short one, so that the alert ends soon after the trouble. The windows follow
`rollout.intervalSeconds`, because an alert that needs an hour cannot help a rollout of ten minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from belvedere_platform.resources.model_service import ModelServiceSpec
from belvedere_platform.telemetry import gateway_metrics as metrics

WATCHDOG = "BelvedereWatchdog"
CANDIDATE_ERRORS = "CandidateErrorBudgetBurn"
CANDIDATE_LATENCY = "CandidateLatencyBudgetBurn"
STABLE_ERRORS = "StableErrorBudgetBurn"
OVERLOAD = "ServiceOverloaded"

FEWEST_BAD_ANSWERS = 3
"""Fewer bad answers in the long window than this prove nothing, whatever their share."""


@dataclass(frozen=True, kw_only=True)
class Tier:
    """Two windows in looks of the judge, and the burn rate above which both must be."""

    long_looks: float
    short_looks: float
    burn: float


TIERS = (Tier(long_looks=20, short_looks=4, burn=10), Tier(long_looks=60, short_looks=10, burn=3))
LARGEST_SHARE = 0.5
"""A burn rate may ask for more than all answers to be bad; half of them is enough for any."""

Share = Callable[[str], str]
"""PromQL for the share of bad answers by version, for a window."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The service that the rules are about, and the versions on its two sides."""

    namespace: str
    service: str
    stable: str
    candidate: str | None = None


def rules_of(subject: Subject, spec: ModelServiceSpec) -> list[dict[str, Any]]:
    """Return the rules of a service, in Prometheus' form."""
    found = [_watchdog(subject), _stable_errors(subject, spec), _overload(subject, spec)]
    if subject.candidate is not None:
        found += [_candidate_errors(subject, spec), _candidate_latency(subject, spec)]
    return found


def evaluation_seconds(spec: ModelServiceSpec) -> float:
    """Return how often the rules are evaluated."""
    return max(1.0, min(15.0, spec.rollout.interval_seconds / 2))


def longest_window_seconds(spec: ModelServiceSpec) -> float:
    """Return for how long after the trouble the fast tier can still see it."""
    return max(30.0, TIERS[0].long_looks * spec.rollout.interval_seconds)


def window(seconds: float) -> str:
    """Return a duration as Prometheus writes it; whole seconds, never less than four."""
    return f"{max(4, round(seconds))}s"


def _watchdog(subject: Subject) -> dict[str, Any]:
    summary = "Always firing: its arrival shows that alerts reach the operator."
    return _rule(subject, WATCHDOG, "vector(1)", action="heartbeat", summary=summary)


def _candidate_errors(subject: Subject, spec: ModelServiceSpec) -> dict[str, Any]:
    budget = 1 - spec.slo.availability
    burning = _unless_both(subject, spec, _error_share(subject), _error_count(subject), budget)
    summary = f"errors of {subject.candidate} burn the error budget of {budget:.3%}"
    return _rule(subject, CANDIDATE_ERRORS, burning, action="abort", summary=summary)


def _candidate_latency(subject: Subject, spec: ModelServiceSpec) -> dict[str, Any]:
    budget = 1 - spec.slo.latency.objective
    threshold = spec.slo.latency.threshold_milliseconds
    burning = _unless_both(subject, spec, _slow_share(subject, threshold), _slow_count(subject, threshold), budget)
    summary = f"answers of {subject.candidate} slower than {threshold:g} ms burn the latency budget of {budget:.3%}"
    return _rule(subject, CANDIDATE_LATENCY, burning, action="abort", summary=summary)


def _stable_errors(subject: Subject, spec: ModelServiceSpec) -> dict[str, Any]:
    budget = 1 - spec.slo.availability
    expr = _burning(subject, spec, _error_share(subject), _error_count(subject), budget, subject.stable)
    summary = f"errors of {subject.stable} burn the error budget of {budget:.3%}: no time to judge a candidate"
    return _rule(subject, STABLE_ERRORS, expr, action="hold", summary=summary)


def _overload(subject: Subject, spec: ModelServiceSpec) -> dict[str, Any]:
    interval = spec.rollout.interval_seconds
    in_flight = f"sum({metrics.in_flight_query(subject.namespace, subject.service)})"
    averaged = f"avg_over_time(({in_flight})[{window(4 * interval)}:{window_step(interval)}])"
    selector = f'{{namespace="{subject.namespace}",service="{subject.service}"}}'
    replicas = f"sum(max by (version) ({metrics.ROUTABLE_REPLICAS}{selector}))"
    target = spec.scaling.target_in_flight
    rule = _rule(
        subject,
        OVERLOAD,
        f"{averaged} / ({replicas} > 0) > {target:g}",
        action="scaleOut",
        summary=f"more than {target:g} requests in flight for each replica",
    )
    return {**rule, "for": f"{max(1, round(interval))}s"}


def window_step(interval_seconds: float) -> str:
    """Return the resolution of a subquery."""
    return f"{max(1, round(interval_seconds / 2))}s"


def _unless_both(subject: Subject, spec: ModelServiceSpec, share: Share, count: Share, budget: float) -> str:
    """Return PromQL that holds when the candidate burns this budget and the stable version burns neither of its own.

    What both suffer is not the candidate's fault, and taking it away would not help. Either budget counts, because the same
    trouble shows as slow answers on one side and as timeouts, which are errors, on the other.
    """
    assert subject.candidate is not None
    slow = spec.slo.latency
    candidate = _burning(subject, spec, share, count, budget, subject.candidate)
    errors = _burning(
        subject, spec, _error_share(subject), _error_count(subject), 1 - spec.slo.availability, subject.stable
    )
    threshold = slow.threshold_milliseconds
    latency = _burning(
        subject,
        spec,
        _slow_share(subject, threshold),
        _slow_count(subject, threshold),
        1 - slow.objective,
        subject.stable,
    )
    return f"({candidate}) unless on () ({errors}) unless on () ({latency})"


def _burning(subject: Subject, spec: ModelServiceSpec, share: Share, count: Share, budget: float, version: str) -> str:
    # Seen within the short window is enough: the judge may have taken the version away before the rules were looked at.
    seen = window(TIERS[0].short_looks * spec.rollout.interval_seconds)
    only = (
        f'and on (version) present_over_time({metrics.IN_FLIGHT}{{namespace="{subject.namespace}",'
        f'service="{subject.service}",version="{version}"}}[{seen}])'
    )
    tiers: Sequence[str] = [
        _tier(tier, spec.rollout.interval_seconds, share, count, min(LARGEST_SHARE, tier.burn * budget))
        for tier in TIERS
    ]
    return f"(({') or ('.join(tiers)})) {only}"


def _tier(tier: Tier, interval_seconds: float, share: Share, count: Share, limit: float) -> str:
    long, short = window(tier.long_looks * interval_seconds), window(tier.short_looks * interval_seconds)
    enough = f"{count(long)} >= {FEWEST_BAD_ANSWERS}"
    return f"({share(long)}) > {limit:.6g} and ({share(short)}) > {limit:.6g} and ({enough})"


def _error_share(subject: Subject) -> Share:
    return lambda length: metrics.error_ratio(subject.namespace, subject.service, length)


def _error_count(subject: Subject) -> Share:
    return lambda length: f"{metrics.error_rate(subject.namespace, subject.service, length)} * {length[:-1]}"


def _slow_share(subject: Subject, threshold: float) -> Share:
    return lambda length: metrics.slow_ratio(subject.namespace, subject.service, threshold, length)


def _slow_count(subject: Subject, threshold: float) -> Share:
    def count(length: str) -> str:
        rate = metrics.request_rate(subject.namespace, subject.service, length)
        return f"({_slow_share(subject, threshold)(length)}) * {rate} * {length[:-1]}"

    return count


def _rule(subject: Subject, name: str, expr: str, *, action: str, summary: str) -> dict[str, Any]:
    return {
        "alert": name,
        "expr": expr,
        "labels": {"namespace": subject.namespace, "service": subject.service, "belvedere_action": action},
        "annotations": {"summary": summary},
    }

"""Judge a candidate from counts: e-values that it does harm, and that it stays within its gates.

Harm (abort): errors, and answers slower than each bucket edge, more frequent than the stable version's; shadow answers
that disagree more often than allowed. Safe (promote): the candidate's rate is below the gate's multiple of the stable
one's, **or** below the SLO's budget. The null of the second is "neither holds", so the mean of both e-values serves.
Formulas: docs/delivery.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from belvedere_operators.delivery.dispersion import Dispersion
from belvedere_operators.delivery.eprocess import (
    Wealth,
    bet_on_ratio,
    bet_on_share,
    e_value,
    grid,
    mean_of,
    start,
)
from belvedere_operators.delivery.observation import Agreement, Observation

RATIO_BETS = 40
EDGE_BETS = 20
SHARE_BETS = 20
SHADOW_SLOTS = 8
"""Models of one service whose shadow answers are judged; the mean over a fixed number needs no correction."""

WARM_UP_ANSWERS = 10
"""A replica's first answers are slow for reasons that pass (caches, thread pools): latency is judged after them."""


@dataclass(frozen=True, kw_only=True)
class Limit:
    """One gate on a rate: a multiple of the stable version's, and the SLO's budget."""

    maximum_ratio: float
    budget: float


@dataclass(frozen=True, kw_only=True)
class JudgePlan:
    """What is judged and how surely. `abort` and `promote` are error probabilities."""

    abort: float = 0.05
    promote: float = 0.05
    errors: Limit | None = None
    latency: Limit | None = None
    slow_milliseconds: float = 250.0
    minimum_agreement: float | None = None

    @property
    def gates(self) -> tuple[str, ...]:
        """Names of the gates that are set."""
        present = {"errors": self.errors, "latency": self.latency, "shadow": self.minimum_agreement}
        return tuple(name for name, gate in present.items() if gate is not None)

    @property
    def abort_at(self) -> float:
        """E-value at which one gate aborts: the error probability is shared among the gates."""
        return max(1, len(self.gates)) / self.abort

    @property
    def promote_at(self) -> float:
        """E-value that every gate must reach. A bad candidate must get past its own gate, so nothing is shared."""
        return 1 / self.promote


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Counts since the rollout began, for people to read."""

    looks: int = 0
    candidate_requests: int = 0
    candidate_errors: int = 0
    candidate_timed: int = 0
    stable_requests: int = 0
    stable_errors: int = 0


@dataclass(frozen=True, kw_only=True)
class Bets:
    """The three processes of one rate."""

    harm: Wealth
    ratio: Wealth = ()
    budget: Wealth = ()
    dispersion: Dispersion = field(default_factory=Dispersion)


@dataclass(frozen=True, kw_only=True)
class JudgeState:
    """All that must be kept between looks. `plan` tells whether the wealth still belongs to the present gates."""

    plan: JudgePlan
    totals: Totals = field(default_factory=Totals)
    errors: Bets | None = None
    edges: Mapping[float, Bets] = field(default_factory=dict)
    shadow: Mapping[str, Bets] = field(default_factory=dict)


def begin(plan: JudgePlan) -> JudgeState:
    """Return the state before any data."""
    errors = Bets(harm=start(RATIO_BETS), ratio=start(RATIO_BETS), budget=start(SHARE_BETS)) if plan.errors else None
    return JudgeState(plan=plan, errors=errors)


def look(state: JudgeState, seen: Observation) -> JudgeState:
    """Return the state after one look. A look without requests changes nothing but the number of looks."""
    return replace(
        state,
        errors=_judge_errors(state, seen),
        edges=_judge_edges(state, seen),
        shadow=_judge_shadow(state, seen),
        totals=_count(state.totals, seen),
    )


def slow_edge(plan: JudgePlan, edges: Mapping[float, object]) -> float | None:
    """Return the bucket edge that stands for the SLO's threshold: the smallest that is not below it, as in the alerts."""
    above = [edge for edge in edges if edge >= plan.slow_milliseconds * (1 - 1e-9)]
    return min(above, default=max(edges, default=None))


def harm_ratio(limit: Limit) -> float:
    """Return the multiple of slow answers that is not yet harm: half of what the gate allows.

    Both versions share a machine and differ in load, so their latencies are never equal; errors have no such excuse.
    """
    return 1 + (limit.maximum_ratio - 1) / 2


def _judge_errors(state: JudgeState, seen: Observation) -> Bets | None:
    limit, bets = state.plan.errors, state.errors
    if limit is None or bets is None:
        return None
    trials = (seen.candidate.requests, seen.stable.requests)
    events = (seen.candidate.errors, seen.stable.errors)
    return _bet(bets, limit, null=1.0, reach=50, trials=trials, events=events)


def _judge_edges(state: JudgeState, seen: Observation) -> Mapping[float, Bets]:
    limit = state.plan.latency
    if limit is None:
        return {}
    edges = state.edges or _choose_edges(state.plan, seen)
    warm = state.totals.candidate_timed >= WARM_UP_ANSWERS
    judged: dict[float, Bets] = {}
    for edge, bets in edges.items():
        trials = (seen.candidate.timed if warm else 0, seen.stable.timed)
        events = (seen.candidate.slow.get(edge, 0) if warm else 0, seen.stable.slow.get(edge, 0))
        judged[edge] = _bet(bets, limit, null=harm_ratio(limit), reach=20, trials=trials, events=events)
    return judged


def _choose_edges(plan: JudgePlan, seen: Observation) -> Mapping[float, Bets]:
    """Fix the edges at the first look that has any; those far below the SLO's threshold are nobody's harm."""
    known = {edge: None for edge in (*seen.candidate.slow, *seen.stable.slow) if math.isfinite(edge)}
    promise = slow_edge(plan, known)
    chosen: dict[float, Bets] = {}
    for edge in sorted(known):
        if edge == promise:
            chosen[edge] = Bets(harm=start(EDGE_BETS), ratio=start(RATIO_BETS), budget=start(SHARE_BETS))
        elif edge >= plan.slow_milliseconds / 10:
            chosen[edge] = Bets(harm=start(EDGE_BETS))
    return chosen


def _bet(
    bets: Bets, limit: Limit, *, null: float, reach: float, trials: tuple[int, int], events: tuple[int, int]
) -> Bets:
    past = bets.dispersion
    temper = past.temper_ratio(*trials)
    worse = grid(1.1 * null, reach * null, len(bets.harm))
    harm = bet_on_ratio(bets.harm, worse, null=null, trials=trials, events=events, temper=temper)
    ratio, budget = bets.ratio, bets.budget
    if ratio:
        within = grid(0.25 * limit.maximum_ratio, 0.9 * limit.maximum_ratio, len(ratio))
        ratio = bet_on_ratio(ratio, within, null=limit.maximum_ratio, trials=trials, events=events, temper=temper)
    if budget:
        below = grid(0.02 * limit.budget, 0.9 * limit.budget, len(budget))
        budget = bet_on_share(
            budget, below, null=limit.budget, trials=trials[0], events=events[0], temper=past.temper_share(trials[0])
        )
    return Bets(harm=harm, ratio=ratio, budget=budget, dispersion=past.look(trials[1], events[1]))


def _judge_shadow(state: JudgeState, seen: Observation) -> Mapping[str, Bets]:
    minimum = state.plan.minimum_agreement
    if minimum is None:
        return {}
    judged = dict(state.shadow)
    for model in sorted(seen.shadow):
        if model in judged or len(judged) < SHADOW_SLOTS:
            bets = judged.get(model) or Bets(harm=start(SHARE_BETS), budget=start(SHARE_BETS))
            judged[model] = _bet_on_agreement(bets, minimum, seen.shadow[model])
    return judged


def _bet_on_agreement(bets: Bets, minimum: float, seen: Agreement) -> Bets:
    allowed = 1 - minimum
    events = seen.compared - seen.agreed
    more = allowed + (1 - allowed) * np.linspace(0.05, 0.95, len(bets.harm))
    less = grid(0.02 * allowed, 0.9 * allowed, len(bets.budget))
    return Bets(
        harm=bet_on_share(bets.harm, more, null=allowed, trials=seen.compared, events=events),
        budget=bet_on_share(bets.budget, less, null=allowed, trials=seen.compared, events=events),
    )


def _count(totals: Totals, seen: Observation) -> Totals:
    return Totals(
        looks=totals.looks + 1,
        candidate_requests=totals.candidate_requests + seen.candidate.requests,
        candidate_errors=totals.candidate_errors + seen.candidate.errors,
        candidate_timed=totals.candidate_timed + seen.candidate.timed,
        stable_requests=totals.stable_requests + seen.stable.requests,
        stable_errors=totals.stable_errors + seen.stable.errors,
    )


def harm_of(state: JudgeState) -> dict[str, float]:
    """Return by gate the e-value against "the candidate is no worse"."""
    found: dict[str, float] = {}
    if state.errors is not None:
        found["errors"] = e_value(state.errors.harm)
    if state.plan.latency is not None:
        found["latency"] = mean_of([e_value(bets.harm) for bets in state.edges.values()])
    if state.plan.minimum_agreement is not None:
        found["shadow"] = mean_of([e_value(bets.harm) for bets in state.shadow.values()], slots=SHADOW_SLOTS)
    return found


def safe_of(state: JudgeState) -> dict[str, float]:
    """Return by gate the e-value against "the candidate breaks this gate"."""
    found: dict[str, float] = {}
    if state.errors is not None:
        found["errors"] = mean_of([e_value(state.errors.ratio), e_value(state.errors.budget)])
    if state.plan.latency is not None:
        edge = slow_edge(state.plan, state.edges)
        bets = state.edges.get(edge) if edge is not None else None
        found["latency"] = mean_of([e_value(bets.ratio), e_value(bets.budget)]) if bets else 1.0
    if state.plan.minimum_agreement is not None:
        # Every model that was seen must agree: a broken one must not hide behind the traffic of another.
        found["shadow"] = min((e_value(bets.budget) for bets in state.shadow.values()), default=1.0)
    return found

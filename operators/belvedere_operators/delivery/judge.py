"""Judge a candidate from counts: e-values that it does harm, and that it stays within its gates.

Harm (abort): errors more frequent than the stable version's; answers over the SLO's threshold and each higher bucket edge
more frequent than the gate's multiple of the stable version's; answers slower than the stable version's by more than that
factor; shadow answers that disagree more often than allowed. Safe (promote): the candidate's rate is below the gate's multiple of the stable
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
    """The processes of one rate: harm against the stable version, safety by ratio and by budget."""

    harm: Wealth = ()
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
    latency: Bets | None = None
    slow_edge: float | None = None
    shadow: Mapping[str, Bets] = field(default_factory=dict)


def begin(plan: JudgePlan) -> JudgeState:
    """Return the state before any data."""
    errors = Bets(harm=start(RATIO_BETS), ratio=start(RATIO_BETS), budget=start(SHARE_BETS)) if plan.errors else None
    return JudgeState(plan=plan, errors=errors)


def look(state: JudgeState, seen: Observation) -> JudgeState:
    """Return the state after one look. A look without requests changes nothing but the number of looks."""
    edges, latency, promise = _judge_latency(state, seen)
    return replace(
        state,
        errors=_judge_errors(state, seen),
        edges=edges,
        latency=latency,
        slow_edge=promise,
        shadow=_judge_shadow(state, seen),
        totals=_count(state.totals, seen),
    )


def slow_edge(plan: JudgePlan, edges: Mapping[float, object]) -> float | None:
    """Return the bucket edge that stands for the SLO's threshold: the smallest that is not below it, as in the alerts."""
    above = [edge for edge in edges if edge >= plan.slow_milliseconds * (1 - 1e-9)]
    return min(above, default=max(edges, default=None))


def compared_edge(edge: float, factor: float, promise: float, edges: Mapping[float, object]) -> float | None:
    """Return the stable version's edge to set against an edge of the candidate's, or None when there is none.

    Over the SLO's threshold shares are compared at the same edge: slow answers may not become much more frequent. Below it
    nothing was promised, and the candidate does harm only by being slower by more than the factor: it is over its edge more
    often than the stable version is over an edge lower by the factor. The same edge would not do there: a shift by a few
    milliseconds doubles shares near the middle, and two versions that differ in load are never equally fast.
    """
    if edge >= promise:
        return edge
    return max((lower for lower in edges if lower <= edge / factor * (1 + 1e-9)), default=None)


def _judge_errors(state: JudgeState, seen: Observation) -> Bets | None:
    limit, bets = state.plan.errors, state.errors
    if limit is None or bets is None:
        return None
    trials = (seen.candidate.requests, seen.stable.requests)
    events = (seen.candidate.errors, seen.stable.errors)
    return _bet(bets, limit, trials=trials, events=events)


def _judge_latency(state: JudgeState, seen: Observation) -> tuple[Mapping[float, Bets], Bets | None, float | None]:
    """Return the harm at each edge, the safety at the edge of the SLO, and that edge."""
    limit = state.plan.latency
    known = {edge: None for edge in (*seen.candidate.slow, *seen.stable.slow) if math.isfinite(edge)}
    promise = state.slow_edge if state.slow_edge is not None else slow_edge(state.plan, known)
    if limit is None or promise is None:
        return {}, None, None
    # Edges are fixed at the first look that has any: an average over a growing set would be no e-value.
    edges = state.edges or _harm_edges(state.plan, known)
    warm = state.totals.candidate_timed >= WARM_UP_ANSWERS
    candidate, stable = seen.candidate, seen.stable
    trials = (candidate.timed if warm else 0, stable.timed)

    def judged(bets: Bets, edge: float, lower: float | None, null: float) -> Bets:
        if lower is None or edge not in known:
            return bets
        over = (candidate.slow.get(edge, 0) if warm else 0, stable.slow.get(lower, 0))
        return _bet(bets, limit, trials=trials, events=over, null=null, reach=20)

    harm = {
        edge: judged(
            bets,
            edge,
            compared_edge(edge, limit.maximum_ratio, promise, known),
            limit.maximum_ratio if edge >= promise else 1.0,
        )
        for edge, bets in edges.items()
    }
    safety = state.latency or Bets(ratio=start(RATIO_BETS), budget=start(SHARE_BETS))
    return harm, judged(safety, promise, promise, 1.0), promise


def _harm_edges(plan: JudgePlan, known: Mapping[float, object]) -> Mapping[float, Bets]:
    """Return the edges at which the candidate can do harm: those far below the SLO's threshold are nobody's harm."""
    return {edge: Bets(harm=start(EDGE_BETS)) for edge in sorted(known) if edge >= plan.slow_milliseconds / 10}


def _bet(
    bets: Bets,
    limit: Limit,
    *,
    trials: tuple[int, int],
    events: tuple[int, int],
    null: float = 1.0,
    reach: float = 50,
) -> Bets:
    """Return the bets after one look; `null` is the ratio up to which there is no harm. An empty process stays empty."""
    past = bets.dispersion
    temper = past.temper_ratio(*trials)
    harm, ratio, budget = bets.harm, bets.ratio, bets.budget
    if harm:
        worse = grid(1.1 * null, reach * null, len(harm))
        harm = bet_on_ratio(harm, worse, null=null, trials=trials, events=events, temper=temper)
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
        bets = state.latency
        found["latency"] = mean_of([e_value(bets.ratio), e_value(bets.budget)]) if bets else 1.0
    if state.plan.minimum_agreement is not None:
        # Every model that was seen must agree: a broken one must not hide behind the traffic of another.
        found["shadow"] = min((e_value(bets.budget) for bets in state.shadow.values()), default=1.0)
    return found

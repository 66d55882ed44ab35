"""Simulated traffic for the judge: requests arrive by chance, events happen by chance, shocks come to one side or both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from belvedere_operators.delivery import judge
from belvedere_operators.delivery.evidence import evidence_of
from belvedere_operators.delivery.judge import JudgePlan, Limit
from belvedere_operators.delivery.observation import Counts, Observation

LOOK_SECONDS = 15
LOOKS = 240


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Requests a second in all, the candidate's share, the error rates, and how much they are shaken from look to look."""

    rate: float = 100.0
    share: float = 0.1
    stable: float = 0.005
    candidate: float = 0.005
    variation: float = 0.0
    shocks_in_common: bool = False
    looks: int = LOOKS


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Seconds until the judge would abort or promote, None for never."""

    abort_seconds: float | None
    promote_seconds: float | None


def play(scenario: Scenario, rng: np.random.Generator, plan: JudgePlan) -> Outcome:
    """Let the judge look after every interval, and stop at the first abort."""
    size = scenario.looks
    shares = np.full(size, scenario.share)
    requests = (
        rng.poisson(scenario.rate * shares * LOOK_SECONDS),
        rng.poisson(scenario.rate * (1 - shares) * LOOK_SECONDS),
    )
    shaken = [_shocks(scenario.variation, size, rng) for _ in range(2)]
    if scenario.shocks_in_common:
        shaken[1] = shaken[0]
    errors = [
        rng.binomial(count, np.clip(rate * shock, 0, 1))
        for count, rate, shock in zip(requests, (scenario.candidate, scenario.stable), shaken, strict=True)
    ]
    state, promoted = judge.begin(plan), None
    for look in range(size):
        seen = Observation(
            candidate=Counts(requests=int(requests[0][look]), errors=int(errors[0][look])),
            stable=Counts(requests=int(requests[1][look]), errors=int(errors[1][look])),
        )
        state = judge.look(state, seen)
        evidence = evidence_of(state)
        if evidence.harmful:
            return Outcome(abort_seconds=(look + 1) * LOOK_SECONDS, promote_seconds=promoted)
        if promoted is None and not evidence.unproven:
            promoted = (look + 1) * LOOK_SECONDS
    return Outcome(abort_seconds=None, promote_seconds=promoted)


def _shocks(variation: float, size: int, rng: np.random.Generator) -> np.ndarray:
    if variation == 0:
        return np.ones(size)
    return rng.gamma(1 / variation**2, variation**2, size)


@pytest.fixture
def errors_only() -> JudgePlan:
    return JudgePlan(errors=Limit(maximum_ratio=2, budget=0.01))


@pytest.fixture
def outcomes(errors_only: JudgePlan) -> Callable[[Scenario, int], list[Outcome]]:
    def run(scenario: Scenario, runs: int) -> list[Outcome]:
        rng = np.random.default_rng(7)
        return [play(scenario, rng, errors_only) for _ in range(runs)]

    return run


@pytest.fixture
def scenario() -> type[Scenario]:
    return Scenario

"""The judge on simulated traffic, looking at every interval for an hour: how often it errs, and how soon it sees."""

from __future__ import annotations

import math
from statistics import median

import numpy as np
import pytest

from belvedere_operators.delivery import judge
from belvedere_operators.delivery.evidence import evidence_of
from belvedere_operators.delivery.judge import JudgePlan, Limit
from belvedere_operators.delivery.observation import Agreement, Counts, Observation
from belvedere_platform.telemetry.gateway_metrics import LATENCY_EDGES_MILLISECONDS

ALPHA = 0.05
EDGES = LATENCY_EDGES_MILLISECONDS


def share(outcomes, kind):
    return sum(getattr(one, kind) is not None for one in outcomes) / len(outcomes)


def typical(outcomes, kind):
    return median([getattr(one, kind) for one in outcomes if getattr(one, kind) is not None])


def within_noise(observed, allowed, runs):
    """Whether a share may come from this error probability: three standard errors above it at most."""
    return observed <= allowed + 3 * math.sqrt(allowed * (1 - allowed) / runs)


@pytest.mark.parametrize("rate", [100.0, 10.0])
@pytest.mark.parametrize("errors", [0.005, 0.03])
@pytest.mark.slow
def test_equal_versions_are_rarely_aborted(outcomes, scenario, rate, errors):
    found = outcomes(scenario(rate=rate, stable=errors, candidate=errors), 100)
    assert within_noise(share(found, "abort_seconds"), ALPHA, 100)


@pytest.mark.parametrize("variation", [0.3, 0.7])
@pytest.mark.slow
def test_shocks_to_one_side_are_not_taken_for_harm(outcomes, scenario, variation):
    found = outcomes(scenario(variation=variation), 100)
    assert within_noise(share(found, "abort_seconds"), ALPHA, 100)


@pytest.mark.slow
def test_shocks_to_both_sides_are_not_taken_for_harm(outcomes, scenario):
    found = outcomes(scenario(variation=1.4, shocks_in_common=True), 60)
    assert within_noise(share(found, "abort_seconds"), ALPHA, 60)


@pytest.mark.parametrize(
    ("rate", "errors", "seconds"),
    [(100.0, 0.01, 600), (100.0, 0.02, 150), (100.0, 0.05, 60), (100.0, 0.2, 30), (10.0, 0.05, 180), (10.0, 0.2, 60)],
)
@pytest.mark.slow
def test_a_worse_candidate_is_seen_in_time(outcomes, scenario, rate, errors, seconds):
    found = outcomes(scenario(rate=rate, candidate=errors), 30)
    assert share(found, "abort_seconds") == 1
    assert typical(found, "abort_seconds") <= seconds
    assert within_noise(share(found, "promote_seconds"), ALPHA, 30)


@pytest.mark.slow
def test_a_good_candidate_is_proven_safe(outcomes, scenario):
    found = outcomes(scenario(), 40)
    assert share(found, "promote_seconds") > 0.95
    assert typical(found, "promote_seconds") <= 600


def test_without_a_single_error_the_budget_proves_it(errors_only):
    state = judge.begin(errors_only)
    looks = 0
    while evidence_of(state).unproven and looks < 40:
        looks += 1
        state = judge.look(state, Observation(candidate=Counts(requests=30), stable=Counts(requests=270)))
    assert 300 <= 30 * looks <= 600


def test_a_stable_version_over_the_budget_is_beaten_by_ratio_alone(outcomes, scenario):
    found = outcomes(scenario(stable=0.03, candidate=0.03, looks=60), 10)
    assert share(found, "promote_seconds") >= 0.9


@pytest.mark.slow
def test_changing_shares_do_not_deceive(errors_only):
    """A rollout moves the share while it looks; the observed split is in each bet, so errors stay rare."""
    rng = np.random.default_rng(3)
    aborted = 0
    for _ in range(80):
        state = judge.begin(errors_only)
        for look in range(120):
            part = (0.05, 0.25, 0.5, 0.9)[look // 30]
            candidate, stable = int(rng.poisson(600 * part)), int(rng.poisson(600 * (1 - part)))
            seen = Observation(
                candidate=Counts(requests=candidate, errors=int(rng.binomial(candidate, 0.01))),
                stable=Counts(requests=stable, errors=int(rng.binomial(stable, 0.01))),
            )
            state = judge.look(state, seen)
            if evidence_of(state).harmful:
                aborted += 1
                break
    assert within_noise(aborted / 80, ALPHA, 80)


def latencies(rng, requests, typical=80.0, scale=1.0, tail=0.0):
    times = rng.lognormal(np.log(typical), 0.6, requests) * scale
    if tail:
        times[rng.random(requests) < tail] *= 4
    return Counts(requests=requests, timed=requests, slow={edge: int((times > edge).sum()) for edge in EDGES})


def judge_latency(rng, looks=120, typical=80.0, **worse):
    """Return the seconds until abort and until the proof of safety, at 100 requests a second and a share of a tenth."""
    plan = JudgePlan(latency=Limit(maximum_ratio=1.5, budget=0.05), slow_milliseconds=250)
    state, proven = judge.begin(plan), None
    for look in range(looks):
        seen = Observation(
            candidate=latencies(rng, int(rng.poisson(150)), typical, **worse),
            stable=latencies(rng, int(rng.poisson(1350)), typical),
        )
        state = judge.look(state, seen)
        evidence = evidence_of(state)
        if evidence.harmful:
            return (look + 1) * 15, proven
        if proven is None and not evidence.unproven:
            proven = (look + 1) * 15
    return None, proven


@pytest.mark.parametrize(("worse", "seconds"), [({"scale": 1.5}, 120), ({"scale": 4.0}, 45), ({"tail": 0.05}, 120)])
def test_a_slower_candidate_is_seen_in_time(worse, seconds):
    rng = np.random.default_rng(5)
    found = [judge_latency(rng, **worse)[0] for _ in range(5)]
    assert all(one is not None and one <= seconds for one in found), found


@pytest.mark.slow
def test_a_few_milliseconds_far_below_the_promise_are_no_harm():
    """Both versions answer in a fifth of what is promised; a third more of that is a matter of load, not of versions."""
    rng = np.random.default_rng(9)
    found = [judge_latency(rng, looks=60, typical=20.0, scale=1.33) for _ in range(10)]
    assert [aborted for aborted, _ in found] == [None] * 10
    assert all(proven is not None for _, proven in found)


@pytest.mark.slow
def test_several_times_slower_is_harm_even_within_the_promise():
    rng = np.random.default_rng(9)
    found = [judge_latency(rng, typical=20.0, scale=4.0)[0] for _ in range(5)]
    assert all(one is not None and one <= 60 for one in found), found


@pytest.mark.slow
def test_an_equally_fast_candidate_is_promoted_and_never_aborted():
    rng = np.random.default_rng(6)
    found = [judge_latency(rng, looks=60) for _ in range(20)]
    assert [aborted for aborted, _ in found] == [None] * 20
    assert all(proven is not None for _, proven in found)


@pytest.mark.parametrize(("agreement", "harmful"), [(0.95, False), (0.5, True)])
def test_answers_that_disagree_are_seen_whatever_the_other_model_does(agreement, harmful):
    rng = np.random.default_rng(8)
    state = judge.begin(JudgePlan(minimum_agreement=0.9))
    for _ in range(200):
        seen = Observation(
            shadow={
                "embed_text": Agreement(compared=2, agreed=int(rng.binomial(2, agreement))),
                "embed_image": Agreement(compared=40, agreed=40),
            }
        )
        state = judge.look(state, seen)
        if evidence_of(state).harmful:
            break
    assert bool(evidence_of(state).harmful) is harmful
    assert bool(evidence_of(state).unproven) is harmful

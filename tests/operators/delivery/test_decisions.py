"""The decision about one moment, as a table: what is known, and what is done."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from belvedere_operators.delivery.evidence import Evidence
from belvedere_operators.delivery.judge import Totals
from belvedere_operators.delivery.observation import Counts, Observation, UnusableSamples, check
from belvedere_operators.delivery.rollout import (
    Abort,
    Alert,
    Hold,
    Pause,
    Progress,
    Promote,
    Replicas,
    Request,
    SetWeight,
    State,
    Step,
    decide,
)

STEPS = (Step(weight=10, hold_seconds=10), Step(weight=50, hold_seconds=10))
PROVEN = Evidence(harm={"errors": 0.5}, safe={"errors": 25.0}, totals=Totals(candidate_requests=500))
UNPROVEN = replace(PROVEN, safe={"errors": 3.0})
HARMFUL = replace(PROVEN, harm={"errors": 21.0})
READY = Replicas(routable=2, needed_now=1, needed_next=1, needed_all=2)


@pytest.fixture
def at_step():
    def make(step=0, *, stayed=20.0, **changes):
        weight = STEPS[step].weight if step is not None else 0
        progress = Progress(
            candidate="v2", started=0.0, weight=weight, step=step, step_started=100.0, requests_at_step=10
        )
        state = State(
            now=100.0 + stayed,
            steps=STEPS,
            deadline_seconds=3600,
            progress=progress,
            replicas=READY,
            evidence=UNPROVEN,
        )
        return replace(state, **changes)

    return make


def alert(action, version="v2"):
    return Alert(name="Burn", action=action, version=version)


def test_a_ready_candidate_gets_the_first_share(at_step):
    decision = decide(at_step(None))
    assert (decision.weight, decision.step) == (10, 0)


def test_a_step_is_held_for_its_time(at_step):
    assert isinstance(decide(at_step(0, stayed=9.0)), Hold)
    assert decide(at_step(0, stayed=10.0)).weight == 50


def test_only_proof_promotes(at_step):
    waiting = decide(at_step(1))
    assert isinstance(waiting, Hold)
    assert "errors 3.0/20" in waiting.reason
    assert isinstance(decide(at_step(1, evidence=PROVEN)), Promote)


def test_proof_does_not_shorten_the_last_step(at_step):
    assert isinstance(decide(at_step(1, stayed=5.0, evidence=PROVEN)), Hold)


def test_without_requests_nothing_moves(at_step):
    quiet = replace(UNPROVEN, totals=Totals(candidate_requests=10))
    decision = decide(at_step(0, evidence=quiet))
    assert (type(decision), decision.signal) == (Hold, "noData")


def test_harm_aborts_at_any_time_even_when_paused_or_blind(at_step):
    for changes in ({}, {"paused": True}, {"metrics_problem": "gone"}, {"stayed": 99999.0}):
        decision = decide(at_step(0, evidence=HARMFUL, **changes))
        assert (type(decision), decision.signal) == (Abort, "judge:errors")


def test_a_persons_word_comes_first(at_step):
    promote = Request(verb="promote", identity="1", candidate="v2")
    assert isinstance(decide(at_step(0, evidence=HARMFUL, request=promote)), Promote)
    assert isinstance(decide(at_step(1, evidence=PROVEN, request=replace(promote, verb="abort"))), Abort)


def test_a_word_about_another_candidate_is_ignored(at_step):
    request = Request(verb="abort", identity="1", candidate="v1")
    assert isinstance(decide(at_step(0, request=request)), SetWeight)


def test_a_person_cannot_promote_what_is_not_routable(at_step):
    request = Request(verb="promote", identity="1")
    few = replace(READY, routable=1)
    assert isinstance(decide(at_step(0, request=request, replicas=few)), Hold)


@pytest.mark.parametrize(
    ("given_alert", "kind"),
    [
        (alert("abort"), Abort),
        (alert("abort", "v1"), SetWeight),
        (alert("abort", None), SetWeight),
        (alert("pause"), Pause),
        (alert("pause", None), Pause),
        (alert("hold", "v1"), Hold),
        (alert("scaleOut", None), SetWeight),
        (alert("scaleOut"), SetWeight),
    ],
)
def test_an_alert_does_what_it_has_authority_for(at_step, given_alert, kind):
    assert isinstance(decide(at_step(0, alerts=(given_alert,))), kind)


def test_a_candidate_without_replicas_loses_its_traffic(at_step):
    decision = decide(at_step(1, replicas=replace(READY, routable=0)))
    assert (decision.weight, decision.step) == (0, None)


def test_the_next_share_waits_for_its_replicas(at_step):
    decision = decide(at_step(0, replicas=replace(READY, needed_next=3)))
    assert (type(decision), decision.signal) == (Hold, "replicas")


def test_the_deadline_pauses_and_says_what_is_missing(at_step):
    decision = decide(at_step(0, stayed=4000.0))
    assert isinstance(decision, Pause)
    assert "errors" in decision.reason


def test_missing_metrics_hold(at_step):
    decision = decide(at_step(0, metrics_problem="Prometheus does not answer"))
    assert (type(decision), decision.reason) == (Hold, "Prometheus does not answer")


def test_a_plan_that_became_shorter_is_followed(at_step):
    state = at_step(1, evidence=PROVEN)
    assert decide(replace(state, steps=STEPS[:1])).weight == 10


@pytest.mark.parametrize(
    "counts",
    [
        Counts(requests=1, errors=2),
        Counts(requests=5, timed=3, slow={100.0: 4}),
        Counts(requests=5, timed=5, slow={100.0: 1, 250.0: 2}),
        Counts(requests=-1),
    ],
)
def test_counts_that_contradict_themselves_are_not_used(counts):
    with pytest.raises(UnusableSamples):
        check(Observation(candidate=counts))


@given(
    harm=st.floats(0, 1e6),
    safe=st.floats(0, 1e6),
    stayed=st.floats(0, 1e4),
    step=st.sampled_from([None, 0, 1]),
    routable=st.integers(0, 3),
    paused=st.booleans(),
    problem=st.sampled_from([None, "no metrics"]),
)
def test_a_harmful_or_unproven_candidate_is_never_promoted(harm, safe, stayed, step, routable, paused, problem):
    evidence = Evidence(harm={"errors": harm}, safe={"errors": safe}, totals=Totals(candidate_requests=99))
    progress = Progress(candidate="v2", started=0.0, weight=50 if step else 10, step=step, step_started=0.0)
    decision = decide(
        State(
            now=stayed,
            steps=STEPS,
            deadline_seconds=5000,
            progress=progress,
            replicas=replace(READY, routable=routable),
            evidence=evidence,
            metrics_problem=problem,
            paused=paused,
        )
    )
    if isinstance(decision, Promote):
        assert safe >= 20 > harm
        assert step == 1
        assert routable > 0
        assert not paused
        assert problem is None

"""What holds of the judge whatever the counts are."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from belvedere_operators.delivery import judge
from belvedere_operators.delivery.codec import from_json, to_json
from belvedere_operators.delivery.evidence import evidence_of
from belvedere_operators.delivery.judge import JudgePlan, Limit
from belvedere_operators.delivery.observation import Agreement, Counts, Observation

PLAN = JudgePlan(
    errors=Limit(maximum_ratio=2, budget=0.01),
    latency=Limit(maximum_ratio=1.5, budget=0.05),
    slow_milliseconds=250,
    minimum_agreement=0.9,
)


@st.composite
def counts(draw):
    requests = draw(st.integers(0, 500))
    over = sorted(draw(st.lists(st.integers(0, requests), min_size=3, max_size=3)), reverse=True)
    return Counts(
        requests=requests,
        errors=draw(st.integers(0, requests)),
        timed=requests,
        slow=dict(zip((100.0, 250.0, 1000.0), over, strict=True)),
    )


@st.composite
def observations(draw):
    compared = draw(st.integers(0, 50))
    return Observation(
        stable=draw(counts()),
        candidate=draw(counts()),
        shadow={"embed_text": Agreement(compared=compared, agreed=draw(st.integers(0, compared)))},
    )


def after(looks, plan=PLAN):
    state = judge.begin(plan)
    for one in looks:
        state = judge.look(state, one)
    return state


def test_before_any_data_every_e_value_is_one():
    evidence = evidence_of(judge.begin(PLAN))
    assert set(evidence.harm.values()) == {1.0}
    assert set(evidence.safe.values()) == {1.0}


@given(st.integers(1, 20))
def test_looks_without_requests_prove_nothing(looks):
    evidence = evidence_of(after([Observation()] * looks))
    assert set(evidence.harm.values()) == {1.0}
    assert set(evidence.safe.values()) == {1.0}
    assert evidence.totals.looks == looks


@given(st.lists(observations(), max_size=6))
@settings(max_examples=40, deadline=None)
def test_e_values_are_finite_and_never_negative(looks):
    evidence = evidence_of(after(looks))
    values = [*evidence.harm.values(), *evidence.safe.values()]
    assert all(math.isfinite(value) and value >= 0 for value in values)
    json.dumps({"harm": dict(evidence.harm), "line": evidence.line}, allow_nan=False)


@given(st.lists(observations(), max_size=5), observations())
@settings(max_examples=40, deadline=None)
def test_a_restarted_judge_goes_on_exactly(looks, last):
    state = after(looks)
    restored = from_json(json.loads(json.dumps(to_json(state), allow_nan=False)))
    assert restored == state
    assert judge.look(restored, last) == judge.look(state, last)


@given(st.lists(observations(), max_size=3), st.integers(1, 400), st.integers(1, 400), st.integers(0, 100))
@settings(max_examples=60, deadline=None)
def test_more_errors_of_the_candidate_are_more_harm_and_less_safety(looks, candidate, stable, errors):
    plan = JudgePlan(errors=Limit(maximum_ratio=2, budget=0.01))
    state = after(looks, plan)
    errors = min(errors, candidate - 1)
    fewer = Observation(candidate=Counts(requests=candidate, errors=errors), stable=Counts(requests=stable, errors=1))
    more = replace(fewer, candidate=Counts(requests=candidate, errors=errors + 1))
    one, other = evidence_of(judge.look(state, fewer)), evidence_of(judge.look(state, more))
    assert other.harm["errors"] >= one.harm["errors"] * (1 - 1e-9)
    assert other.safe["errors"] <= one.safe["errors"] * (1 + 1e-9)


@given(observations())
@settings(max_examples=40, deadline=None)
def test_the_order_of_models_and_edges_does_not_matter(seen):
    swapped = replace(
        seen,
        candidate=replace(seen.candidate, slow=dict(reversed(seen.candidate.slow.items()))),
        stable=replace(seen.stable, slow=dict(reversed(seen.stable.slow.items()))),
    )
    assert after([seen]) == after([swapped])


def test_thresholds_share_the_abort_probability_and_not_the_promotion():
    assert PLAN.abort_at == pytest.approx(3 / 0.05)
    assert PLAN.promote_at == pytest.approx(1 / 0.05)


def test_a_gate_that_is_not_set_is_neither_shown_nor_needed():
    evidence = evidence_of(after([Observation()], JudgePlan(errors=Limit(maximum_ratio=2, budget=0.01))))
    assert set(evidence.harm) == set(evidence.safe) == {"errors"}


def test_the_first_answers_of_a_replica_do_not_count_as_slow():
    cold = Counts(requests=10, timed=10, slow={250.0: 10, 1000.0: 10})
    warm = Counts(requests=200, timed=200, slow={250.0: 2, 1000.0: 0})
    evidence = evidence_of(after([Observation(candidate=cold, stable=warm)]))
    assert evidence.harm["latency"] == 1.0


def test_the_line_shows_every_gate_against_its_threshold():
    line = evidence_of(judge.begin(PLAN)).line
    assert line.startswith("errors harm ▁ 1/60 safe ▁ 1/20 · latency")
    assert "shadow" in line

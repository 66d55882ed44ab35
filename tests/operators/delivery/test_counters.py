"""Increments between two looks."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from belvedere_operators.delivery.counters import FORGET_AFTER_LOOKS, Baseline, Sample, UnusableSamples, increments

VALUES = st.dictionaries(st.sampled_from("abcdef"), st.floats(0, 1e9), max_size=6)


def samples(values):
    return [Sample(name="requests", labels={"version": name}, value=value) for name, value in values.items()]


def counted(before, values):
    found = increments(before, samples(values))
    return {one.labels["version"]: one.value for one in found.samples}, found.baseline


@given(VALUES)
def test_the_first_look_counts_nothing(values):
    assert set(counted(None, values)[0].values()) <= {0.0}


@given(st.lists(VALUES, min_size=2, max_size=6))
def test_increments_are_never_negative(looks):
    baseline = None
    for values in looks:
        found, baseline = counted(baseline, values)
        assert all(value >= 0 for value in found.values())


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=20))
def test_increments_add_up_to_what_was_counted(steps):
    total, baseline, seen = 0.0, counted(None, {"a": 0.0})[1], 0.0
    for step in steps:
        total += step
        found, baseline = counted(baseline, {"a": total})
        seen += found["a"]
    assert seen == total


@given(VALUES)
def test_the_order_of_the_series_does_not_matter(values):
    baseline = counted(None, {"a": 1.0})[1]
    forward = increments(baseline, samples(values))
    backward = increments(baseline, samples(dict(reversed(values.items()))))
    assert dict(forward.baseline.values) == dict(backward.baseline.values)
    assert sorted(one.value for one in forward.samples) == sorted(one.value for one in backward.samples)


def test_a_restarted_process_counts_from_zero():
    assert counted(Baseline(values=counted(None, {"a": 100.0})[1].values), {"a": 7.0})[0] == {"a": 7.0}


def test_a_new_series_counts_whole():
    baseline = counted(None, {"a": 5.0})[1]
    assert counted(baseline, {"a": 5.0, "b": 3.0})[0] == {"a": 0.0, "b": 3.0}


def test_a_series_that_was_away_for_a_look_is_not_counted_twice():
    baseline = counted(None, {"a": 100.0})[1]
    _, baseline = counted(baseline, {})
    assert counted(baseline, {"a": 104.0})[0] == {"a": 4.0}


def test_a_series_that_is_gone_is_forgotten_in_the_end():
    baseline = counted(None, {"a": 100.0})[1]
    for _ in range(FORGET_AFTER_LOOKS + 1):
        _, baseline = counted(baseline, {})
    assert not baseline.values


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_a_value_that_is_no_count_is_refused(value):
    with pytest.raises(UnusableSamples, match="requests"):
        increments(None, samples({"a": value}))


def test_a_series_given_twice_is_refused():
    with pytest.raises(UnusableSamples, match="twice"):
        increments(None, samples({"a": 1.0}) * 2)

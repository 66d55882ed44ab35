"""Scaling and capacity, decided from figures."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from belvedere_operators.delivery.capacity import fit
from belvedere_operators.delivery.scaling import Bounds, Load, Scale, decide_scale, share_of

BOUNDS = Bounds(minimum=1, maximum=4, target_in_flight=4, scale_in_delay_seconds=60)
TWO = Scale(replicas=2)
BUSY = Load(now=1000.0, routable=2, in_flight=20.0, overload_alert="ServiceOverloaded")
CALM = Load(now=1000.0, routable=2, in_flight=1.0)


def test_an_alert_adds_one_replica():
    assert decide_scale(TWO, BOUNDS, BUSY).replicas == 3


@pytest.mark.parametrize(
    "changes", [{"routable": 1}, {"now": 5.0}], ids=["one is pending", "the last change has not settled"]
)
def test_an_alert_waits_for_what_was_added_before(changes):
    current = Scale(replicas=2, last_change=0.0)
    assert decide_scale(current, BOUNDS, replace(BUSY, **changes)).replicas == 2


def test_the_maximum_holds():
    assert decide_scale(Scale(replicas=4), BOUNDS, replace(BUSY, routable=4)).replicas == 4


def test_scale_in_needs_the_whole_delay():
    first = decide_scale(TWO, BOUNDS, CALM)
    assert (first.replicas, first.below_since) == (2, 1000.0)
    assert decide_scale(first, BOUNDS, replace(CALM, now=1059.0)).replicas == 2
    assert decide_scale(first, BOUNDS, replace(CALM, now=1060.0)).replicas == 1


def test_a_burst_starts_the_delay_anew():
    calm = decide_scale(TWO, BOUNDS, CALM)
    burst = decide_scale(calm, BOUNDS, replace(CALM, now=1030.0, in_flight=4.5))
    assert burst.below_since is None


@pytest.mark.parametrize(
    "changes", [{"rollout_active": True}, {"in_flight": None}, {"routable": 1}, {"in_flight": float("nan")}]
)
def test_scale_in_never_happens_blind_or_during_a_rollout(changes):
    ready = Scale(replicas=2, below_since=0.0)
    assert decide_scale(ready, BOUNDS, replace(CALM, **changes)).replicas == 2


@given(
    replicas=st.integers(1, 8),
    routable=st.integers(0, 8),
    in_flight=st.none() | st.floats(0, 100),
    alert=st.none() | st.just("ServiceOverloaded"),
    since=st.none() | st.floats(0, 1000),
)
def test_the_scale_stays_in_bounds_and_moves_by_one(replicas, routable, in_flight, alert, since):
    load = Load(now=1000.0, routable=routable, in_flight=in_flight, overload_alert=alert)
    wanted = decide_scale(Scale(replicas=replicas, below_since=since), BOUNDS, load).replicas
    assert BOUNDS.minimum <= wanted <= BOUNDS.maximum
    if replicas <= BOUNDS.maximum:
        assert abs(wanted - replicas) <= 1
    if wanted < replicas <= BOUNDS.maximum:
        assert in_flight is not None
        assert in_flight / wanted <= BOUNDS.target_in_flight


@pytest.mark.parametrize(("replicas", "weight", "needed"), [(1, 5, 1), (4, 25, 1), (4, 26, 2), (4, 100, 4), (3, 50, 2)])
def test_a_share_has_enough_replicas(replicas, weight, needed):
    assert share_of(replicas, weight) == needed


def test_a_surge_that_does_not_fit_is_refused_with_the_figures():
    assert fit(total_cpus=4, used_by_others=1, replicas={"v1": 2, "v2": 1}, cpu_each=1).fits is True
    refused = fit(total_cpus=4, used_by_others=2, replicas={"v1": 2, "v2": 1}, cpu_each=1)
    assert refused.fits is False
    assert "need 3 CPUs and 2 are free" in refused.message
    assert fit(total_cpus=None, used_by_others=0, replicas={"v1": 1}, cpu_each=1).fits is None

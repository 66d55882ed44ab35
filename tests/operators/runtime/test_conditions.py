"""Conditions and checks: a transition is a change of status, nothing less."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from belvedere_operators.runtime import Failure, find_condition, first_failure, is_true, set_condition, set_from_failure
from belvedere_platform.resources import Condition

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(minutes=5)


def ready(conditions: tuple[Condition, ...] = (), now: datetime = NOW, **changes: Any) -> tuple[Condition, ...]:
    given: dict[str, Any] = {"type_": "Ready", "status": "True", "reason": "Built", "generation": 1, **changes}
    return set_condition(conditions, now=now, **given)


def test_a_new_condition_begins_now() -> None:
    (condition,) = ready()
    assert condition.last_transition_time == "2026-01-01T00:00:00Z"
    assert condition.observed_generation == 1


@pytest.mark.parametrize(
    ("changes", "moved"),
    [
        ({}, False),
        ({"reason": "Reused"}, False),
        ({"message": "as before"}, False),
        ({"generation": 2}, False),
        ({"status": "False", "reason": "Failed"}, True),
        ({"status": "Unknown", "reason": "Lost"}, True),
    ],
)
def test_only_a_new_status_moves_the_time(changes: dict[str, Any], moved: bool) -> None:
    (condition,) = ready(ready(), now=LATER, **changes)
    assert (condition.last_transition_time == "2026-01-01T00:05:00Z") == moved


def test_others_keep_their_place() -> None:
    conditions = ready(ready(ready(type_="Accepted"), type_="Degraded"), type_="Accepted", status="False")
    assert [(condition.type, condition.status) for condition in conditions] == [
        ("Accepted", "False"),
        ("Degraded", "True"),
    ]
    assert find_condition(conditions, "Ready") is None
    assert is_true(conditions, "Degraded")
    assert not is_true(conditions, "Accepted")
    assert not is_true(conditions, "Ready")


def test_a_failure_gives_reason_and_message() -> None:
    failure = Failure(reason="ParityFailed", message="the smallest cosine is 0.91")
    (failed,) = set_from_failure((), failure, type_="Ready", reason="Built", generation=1, now=NOW)
    assert (failed.status, failed.reason, failed.message) == ("False", "ParityFailed", "the smallest cosine is 0.91")
    (built,) = set_from_failure((failed,), None, type_="Ready", reason="Built", generation=1, now=LATER)
    assert (built.status, built.reason, built.last_transition_time) == ("True", "Built", "2026-01-01T00:05:00Z")


def test_the_first_failure_counts() -> None:
    def below(limit: int) -> Any:
        return lambda state: None if state < limit else Failure(reason="TooLarge", message=f"not below {limit}")

    checks = (below(10), below(5), below(3))
    assert first_failure(checks, 1) is None
    assert first_failure(checks, 7) == Failure(reason="TooLarge", message="not below 5")

"""Conditions of an object: kept by type, with the time of the last transition only moving when the status does."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Literal

from belvedere_operators.runtime.checks import Failure
from belvedere_operators.runtime.clock import timestamp
from belvedere_platform.resources.base import Condition

ConditionStatus = Literal["True", "False", "Unknown"]


def find_condition(conditions: Iterable[Condition], type_: str) -> Condition | None:
    """Return the condition of a type, or None."""
    return next((condition for condition in conditions if condition.type == type_), None)


def is_true(conditions: Iterable[Condition], type_: str) -> bool:
    """Return whether the condition of a type is there and `True`."""
    condition = find_condition(conditions, type_)
    return condition is not None and condition.status == "True"


def set_condition(
    conditions: Iterable[Condition],
    *,
    type_: str,
    status: ConditionStatus,
    reason: str,
    message: str = "",
    generation: int | None,
    now: datetime,
) -> tuple[Condition, ...]:
    """Return the conditions with this one set. `lastTransitionTime` is kept while the status stays the same."""
    existing = tuple(conditions)
    before = find_condition(existing, type_)
    same_status = before is not None and before.status == status and before.last_transition_time is not None
    condition = Condition(
        type=type_,
        status=status,
        reason=reason,
        message=message,
        observed_generation=generation,
        last_transition_time=before.last_transition_time if before is not None and same_status else timestamp(now),
    )
    if before is None:
        return (*existing, condition)
    return tuple(condition if other.type == type_ else other for other in existing)


def set_from_failure(
    conditions: Iterable[Condition],
    failure: Failure | None,
    *,
    type_: str,
    reason: str,
    message: str = "",
    generation: int | None,
    now: datetime,
) -> tuple[Condition, ...]:
    """Return the conditions with this one `False` for a failure, or `True` with the reason and message given."""
    return set_condition(
        conditions,
        type_=type_,
        status="True" if failure is None else "False",
        reason=reason if failure is None else failure.reason,
        message=message if failure is None else failure.message,
        generation=generation,
        now=now,
    )

"""Readiness as a chain of checks: the first failure is the reason and the message."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

State = TypeVar("State")


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a check does not hold: a CamelCase reason and a sentence."""

    reason: str
    message: str


Check = Callable[[State], Failure | None]


def first_failure(checks: Iterable[Callable[[State], Failure | None]], state: State) -> Failure | None:
    """Return the failure of the first check that does not hold, or None."""
    for check in checks:
        failure = check(state)
        if failure is not None:
            return failure
    return None

"""Which settings to try next, and which of those tried are worth having. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any


@dataclass(frozen=True, order=True, kw_only=True)
class Settings:
    """One way to serve. `engine` is a digest; the others are those of a ModelService or of Triton."""

    engine: str
    max_batch_size: int = 16
    batch_wait_milliseconds: float = 2
    instances: int = 1
    threads: int = 1


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What a server with some settings did with so many clients at once."""

    settings: Settings
    clients: int
    per_second: float
    p50_milliseconds: float
    latency_milliseconds: float
    """At the percentile of the objective."""


Space = Mapping[str, Sequence[Any]]
"""By setting, the values to try, in their order."""


def neighbours(settings: Settings, space: Space) -> Iterator[Settings]:
    """Yield the settings that differ from these in one of them."""
    for name, values in space.items():
        for value in values:
            if value != getattr(settings, name):
                yield replace(settings, **{name: value})


def first(space: Space) -> Settings:
    """Return where to begin: the middle value of each setting."""
    return Settings(**{name: values[len(values) // 2] for name, values in space.items()})


def check_space(space: Space) -> None:
    """Refuse a space that names what is no setting, or nothing to try."""
    known = {field.name for field in fields(Settings)}
    assert set(space) == known, (set(space), known)
    assert all(space.values()), space


def best(trials: Sequence[Trial], objective_milliseconds: float) -> Trial | None:
    """Return the trial that answers most within the objective, None when none does. Of equals the first is taken."""
    within = [trial for trial in trials if trial.latency_milliseconds <= objective_milliseconds]
    return max(within, key=lambda trial: trial.per_second) if within else None


def better(trial: Trial | None, other: Trial | None, *, margin: float) -> bool:
    """Whether a trial is better than another by more than what may be chance."""
    if trial is None:
        return False
    return other is None or trial.per_second > other.per_second * (1 + margin)


def front(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials that no other beats in both throughput and latency, by latency."""
    kept: list[Trial] = []
    for trial in sorted(trials, key=lambda one: (one.latency_milliseconds, -one.per_second)):
        if not kept or trial.per_second > kept[-1].per_second:
            kept.append(trial)
    return kept

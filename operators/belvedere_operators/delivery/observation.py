"""What was counted between two looks, per version, and whether it makes sense."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from belvedere_operators.delivery.counters import UnusableSamples


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What one version did since the last look. `slow[edge]`: answers that took longer than edge milliseconds."""

    requests: int = 0
    errors: int = 0
    timed: int = 0
    slow: Mapping[float, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Shadowed answers of one V2 model since the last look."""

    compared: int = 0
    agreed: int = 0


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One look: both sides, and the comparison of their answers by V2 model."""

    stable: Counts = field(default_factory=Counts)
    candidate: Counts = field(default_factory=Counts)
    shadow: Mapping[str, Agreement] = field(default_factory=dict)


def check(observation: Observation) -> None:
    """Raise UnusableSamples when the counts contradict each other: such a look proves nothing."""
    for side, counts in (("stable", observation.stable), ("candidate", observation.candidate)):
        _check_counts(side, counts)
    for model, agreement in observation.shadow.items():
        if not 0 <= agreement.agreed <= agreement.compared:
            raise UnusableSamples(f"shadow {model}: {agreement.agreed} of {agreement.compared} comparisons agreed")


def _check_counts(side: str, counts: Counts) -> None:
    if min(counts.requests, counts.errors, counts.timed, 0, *counts.slow.values()) < 0:
        raise UnusableSamples(f"{side}: a count is negative: {counts}")
    if counts.errors > counts.requests:
        raise UnusableSamples(f"{side}: {counts.errors} errors in {counts.requests} requests")
    over = counts.timed
    for edge in sorted(counts.slow):
        if counts.slow[edge] > over:
            raise UnusableSamples(f"{side}: {counts.slow[edge]} answers over {edge} ms, but only {over} over less")
        over = counts.slow[edge]

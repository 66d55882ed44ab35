"""How many replicas each side needs for its share of the traffic."""

from __future__ import annotations

from dataclasses import dataclass

from belvedere_operators.controllers.modelservice.journal import Journal, RolloutRecord
from belvedere_operators.controllers.modelservice.state import State
from belvedere_operators.delivery.scaling import share_of


@dataclass(frozen=True, kw_only=True)
class Needed:
    """Candidate replicas for the share it has, for the next one, and for all of the traffic."""

    now: int
    next: int
    all: int


def needed(state: State, journal: Journal, active: RolloutRecord) -> Needed:
    """Return how many replicas the candidate needs. The next share's are started while the present one is held."""
    assert journal.scale is not None
    total, steps = journal.scale.replicas, state.spec.rollout.steps
    if active.step is None:
        upcoming = steps[0].weight
        return Needed(now=share_of(total, upcoming), next=share_of(total, upcoming), all=total)
    index = active.step + 1
    upcoming = steps[index].weight if index < len(steps) else 100
    return Needed(now=share_of(total, active.weight), next=share_of(total, upcoming), all=total)


def candidate_replicas(state: State, journal: Journal, active: RolloutRecord) -> int:
    """Return how many replicas of the candidate to run now."""
    counts = needed(state, journal, active)
    asked = state.request
    promoting = asked is not None and asked.verb == "promote" and asked.identity != journal.handled_request
    return max(counts.now, counts.next, counts.all if promoting else 0)


def desired_replicas(state: State, journal: Journal) -> dict[str, int]:
    """Return by version how many replicas shall run: stable, candidate, and those that still retire."""
    if journal.stable is None or journal.scale is None:
        return {}
    desired = {one.version: one.replicas for one in journal.retiring}
    desired[journal.stable] = journal.scale.replicas
    if journal.active is not None:
        desired[journal.active.candidate] = candidate_replicas(state, journal, journal.active)
    return desired

"""Searches the settings: each is tried on the real server, the best is kept, and its neighbours are tried until none is better."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Any

from belvedere_platform.errors import Unavailable
from belvedere_serving.client.load import Body, Outcome, closed_loop
from belvedere_serving.tuning.search import Settings, Space, Trial, best, better, check_space, first, front, neighbours

Start = Callable[[Settings], AbstractContextManager[tuple[str, ...]]]
"""Starts a server with some settings and gives its URL, or one for each of its replicas."""
MARGIN = 0.05
"""How much more a neighbour must answer to be better: less than that is chance."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What is asked: a percentile of the latency within so many milliseconds."""

    milliseconds: float
    percentile: float = 95
    clients: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    seconds: float = 2.0


@dataclass(kw_only=True)
class Tuning:
    """What was tried, and what came out."""

    objective: Objective
    trials: list[Trial] = field(default_factory=list)
    chosen: Trial | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the whole as plain data."""
        return {
            "objective": asdict(self.objective),
            "chosen": asdict(self.chosen) if self.chosen else None,
            "front": [asdict(trial) for trial in front(self.trials)],
            "trials": [asdict(trial) for trial in self.trials],
        }


def tune(
    start: Start,
    space: Space,
    given: Sequence[Body],
    objective: Objective,
    *,
    say: Callable[[str], None] = lambda message: None,
) -> Tuning:
    """Return the best settings found, with everything that was measured on the way."""
    check_space(space)
    tuning = Tuning(objective=objective)
    tried: set[Settings] = set()

    def attempt(settings: Settings) -> Trial | None:
        tried.add(settings)
        found = measure(start, settings, given, objective)
        tuning.trials += found
        top = best(found, objective.milliseconds)
        say(_sentence(settings, top, found))
        return top

    here = first(space)
    tuning.chosen = attempt(here)
    moved = True
    while moved:
        moved = False
        for settings in neighbours(here, space):
            if settings in tried:
                continue
            candidate = attempt(settings)
            if better(candidate, tuning.chosen, margin=MARGIN):
                here, tuning.chosen, moved = settings, candidate, True
                break
    return tuning


def measure(start: Start, settings: Settings, given: Sequence[Body], objective: Objective) -> list[Trial]:
    """Return how a server with some settings does with more and more clients, until it is past the objective."""
    trials: list[Trial] = []
    with start(settings) as urls:
        asyncio.run(ask_all(urls, given, clients=2 * len(urls), seconds=min(1.0, objective.seconds)))
        for clients in objective.clients:
            outcome = asyncio.run(ask_all(urls, given, clients=clients, seconds=objective.seconds))
            if not outcome.latencies:
                raise Unavailable(f"the server answered {dict(outcome.statuses)} to good requests")
            trials.append(
                Trial(
                    settings=settings,
                    clients=clients,
                    per_second=round(outcome.per_second, 2),
                    p50_milliseconds=round(outcome.percentile(50), 3),
                    latency_milliseconds=round(outcome.percentile(objective.percentile), 3),
                )
            )
            if trials[-1].latency_milliseconds > 2 * objective.milliseconds:
                break
    return trials


async def ask_all(urls: Sequence[str], given: Sequence[Body], *, clients: int, seconds: float) -> Outcome:
    """Let so many clients, shared out evenly, ask the replicas at the same time, and return what came back from all."""
    shares = [clients // len(urls) + (number < clients % len(urls)) for number in range(len(urls))]
    asked = (
        closed_loop(url, given, clients=share, seconds=seconds)
        for url, share in zip(urls, shares, strict=True)
        if share
    )
    whole = Outcome()
    for outcome in await asyncio.gather(*asked):
        whole.latencies += outcome.latencies
        whole.refused += outcome.refused
        whole.statuses += outcome.statuses
        whole.seconds = max(whole.seconds, outcome.seconds)
    return whole


def _sentence(settings: Settings, top: Trial | None, found: Sequence[Trial]) -> str:
    shown = (
        f"{settings.engine[:19]} batch {settings.max_batch_size}, wait {settings.batch_wait_milliseconds:g} ms, "
        f"{settings.instances} x {settings.threads} threads"
    )
    if top is None:
        return f"{shown}: misses the objective, {found[0].latency_milliseconds:.1f} ms with one client"
    return f"{shown}: {top.per_second:.0f}/s at {top.latency_milliseconds:.1f} ms with {top.clients} clients"

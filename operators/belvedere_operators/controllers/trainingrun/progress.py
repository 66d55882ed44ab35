"""Ask Prometheus how far the runs are, all of them at once. Without it training goes on, and a run says it cannot be watched."""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from belvedere_operators.runtime import Clock, Key
from belvedere_platform.resources.training_run import TrainingProgress

PREFIX = "ray_belvedere_training_"
SHARED_SECONDS = 1.0
"""One answer serves all runs that ask within this time."""
_GAUGES = ("loss", "images_per_second", "pairs", "recall")
Series = list[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What Prometheus answered: progress, or nothing yet, or why it could not be asked."""

    progress: TrainingProgress | None = None
    failure: str | None = None


def progress_query() -> str:
    """Return the PromQL that selects every training gauge."""
    names = "|".join(f"{PREFIX}{gauge}" for gauge in _GAUGES)
    return f'{{__name__=~"{names}"}}'


class ProgressBoard:
    """The progress of every run, as Prometheus knew it at the last question."""

    def __init__(self, http: httpx.AsyncClient, prometheus_url: str, clock: Clock) -> None:
        self._http, self._url, self._clock = http, prometheus_url, clock
        self._asked: tuple[float, asyncio.Task[dict[Key, Series] | str]] | None = None

    async def read(self, key: Key) -> Reading:
        """Return a run's progress."""
        now = self._clock.monotonic()
        if self._asked is None or now - self._asked[0] >= SHARED_SECONDS:
            self._asked = (now, asyncio.create_task(self._ask()))
        # A reader that is cancelled must not cancel the question for the others.
        answer = await asyncio.shield(self._asked[1])
        if isinstance(answer, str):
            return Reading(failure=answer)
        return Reading(progress=progress_of(answer.get(key, [])))

    async def _ask(self) -> dict[Key, Series] | str:
        """Return the series of each run, or why they are not known."""
        if not self._url:
            return "no Prometheus is configured"
        try:
            response = await self._http.get(f"{self._url}/api/v1/query", params={"query": progress_query()})
            response.raise_for_status()
            return by_run(response.json()["data"]["result"])
        except (httpx.HTTPError, ValueError, KeyError) as error:
            return f"Prometheus at {self._url} does not answer: {type(error).__name__} {error}".strip()


def by_run(series: Iterable[Mapping[str, Any]]) -> dict[Key, Series]:
    """Return the series by the run that they are of."""
    found: dict[Key, Series] = defaultdict(list)
    for one in series:
        labels = one["metric"]
        found[Key(labels.get("namespace", ""), labels.get("run", ""))].append(one)
    return dict(found)


def progress_of(series: Iterable[Mapping[str, Any]]) -> TrainingProgress | None:
    """Return the progress in an instant vector. When an earlier attempt's series are still there, the one furthest on counts."""
    by_worker: dict[str, list[tuple[Mapping[str, str], float]]] = {}
    for one in series:
        value = float(one["value"][1])
        if math.isfinite(value):
            by_worker.setdefault(one["metric"].get("WorkerId", ""), []).append((one["metric"], value))
    if not by_worker:
        return None

    def gauge(worker: str, name: str) -> float | None:
        found = (value for labels, value in by_worker[worker] if labels["__name__"] == PREFIX + name)
        return next(found, None)

    furthest = max(sorted(by_worker), key=lambda worker: gauge(worker, "pairs") or -1.0)
    pairs = gauge(furthest, "pairs")
    return TrainingProgress(
        pairs=None if pairs is None else int(pairs),
        loss=gauge(furthest, "loss"),
        images_per_second=gauge(furthest, "images_per_second"),
        recall={
            labels["metric"]: value
            for labels, value in by_worker[furthest]
            if labels["__name__"] == f"{PREFIX}recall" and "metric" in labels
        },
    )

"""Ask Prometheus how far a run is. Without Prometheus training goes on, and the run says that it cannot be watched."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from belvedere_operators.runtime import Key
from belvedere_platform.resources.training_run import TrainingProgress

PREFIX = "ray_belvedere_training_"
_GAUGES = ("loss", "images_per_second", "pairs", "recall")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What Prometheus answered: progress, or nothing yet, or why it could not be asked."""

    progress: TrainingProgress | None = None
    failure: str | None = None


def progress_query(key: Key) -> str:
    """Return the PromQL that selects every training gauge of a run."""
    names = "|".join(f"{PREFIX}{gauge}" for gauge in _GAUGES)
    return f'{{__name__=~"{names}",namespace="{key.namespace}",run="{key.name}"}}'


async def read_progress(http: httpx.AsyncClient, prometheus_url: str, key: Key) -> Reading:
    """Return the run's progress."""
    if not prometheus_url:
        return Reading(failure="no Prometheus is configured")
    try:
        response = await http.get(f"{prometheus_url}/api/v1/query", params={"query": progress_query(key)})
        response.raise_for_status()
        series = response.json()["data"]["result"]
    except (httpx.HTTPError, ValueError, KeyError) as error:
        return Reading(
            failure=f"Prometheus at {prometheus_url} does not answer: {type(error).__name__} {error}".strip()
        )
    return Reading(progress=progress_of(series))


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

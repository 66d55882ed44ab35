"""Read what the gateway measured of a service from Prometheus, all of it at one moment."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from belvedere_operators.alerts.rules import window
from belvedere_operators.delivery.counters import Sample
from belvedere_operators.delivery.observation import Agreement, Counts, Observation
from belvedere_platform.errors import Unavailable
from belvedere_platform.resources.model_service import ModelServiceSpec
from belvedere_platform.telemetry import gateway_metrics

QUESTION = "belvedere_question"
REQUESTS, ERRORS, WITHIN, SHADOW = "requests", "errors", "within", "shadow"


@dataclass(frozen=True, kw_only=True)
class Vector:
    """One element of an instant query's answer."""

    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """What one look read: raw counters for the judge, and figures for scaling and for people."""

    counters: Sequence[Sample] = ()
    in_flight: float | None = None
    p95: Mapping[str, float] = field(default_factory=dict)
    error_ratio: Mapping[str, float] = field(default_factory=dict)
    slow_ratio: Mapping[str, float] = field(default_factory=dict)
    effective_weight: Mapping[str, float] = field(default_factory=dict)
    """Percent of new requests by version, as the gateway says of itself; without a version that it does not know yet."""


class Prometheus:
    """Instant queries over HTTP."""

    def __init__(self, client: httpx.AsyncClient, url: str, *, timeout_seconds: float = 5.0) -> None:
        self._client = client
        self._url = url.rstrip("/") + "/api/v1/query"
        self._timeout_seconds = timeout_seconds

    async def query_all(self, expressions: Mapping[str, str], *, at: float) -> dict[str, list[Vector]]:
        """Return the vectors of several expressions at one time, asked for at once. Raises Unavailable."""
        found: dict[str, list[Vector]] = {name: [] for name in expressions}
        for vector in await self.query(together(expressions), at=at):
            labels = dict(vector.labels)
            found[labels.pop(QUESTION)].append(Vector(labels=labels, value=vector.value))
        return found

    async def query(self, expression: str, *, at: float) -> list[Vector]:
        """Return the vector of an expression at a time. Raises Unavailable."""
        try:
            response = await self._client.post(
                self._url, data={"query": expression, "time": f"{at:.3f}"}, timeout=self._timeout_seconds
            )
            answer: dict[str, Any] = response.json()
        except (httpx.HTTPError, ValueError) as error:
            raise Unavailable(f"Prometheus at {self._url} does not answer: {error!r}") from error
        if answer.get("status") != "success":
            raise Unavailable(f"Prometheus at {self._url} refused {expression}: {answer.get('error')}")
        return [Vector(labels=item["metric"], value=float(item["value"][1])) for item in answer["data"]["result"]]


def together(expressions: Mapping[str, str]) -> str:
    """Return one expression for the vectors of all, each element labelled with the name of its own."""
    return " or ".join(
        f'label_replace({expression}, "{QUESTION}", "{name}", "", "")' for name, expression in expressions.items()
    )


async def look(prometheus: Prometheus, namespace: str, service: str, spec: ModelServiceSpec, *, at: float) -> Metrics:
    """Return everything measured of a service. One time for all queries, so that the figures belong together."""
    length = window(20 * spec.rollout.interval_seconds)
    short = window(4 * spec.rollout.interval_seconds)
    threshold = spec.slo.latency.threshold_milliseconds
    expressions = {
        REQUESTS: gateway_metrics.requests_query(namespace, service),
        ERRORS: gateway_metrics.errors_query(namespace, service),
        WITHIN: gateway_metrics.latency_buckets_query(namespace, service),
        SHADOW: gateway_metrics.shadow_comparisons_query(namespace, service),
        "in_flight": f"sum(avg_over_time({gateway_metrics.IN_FLIGHT}{_selector(namespace, service)}[{short}]))",
        "p95": gateway_metrics.latency_quantile(namespace, service, 0.95, length),
        "error_ratio": gateway_metrics.error_ratio(namespace, service, length),
        "slow_ratio": gateway_metrics.slow_ratio(namespace, service, threshold, length),
        "effective_weight": gateway_metrics.effective_weight_query(namespace, service),
    }
    found = await prometheus.query_all(expressions, at=at)
    return Metrics(
        counters=[sample for name in (REQUESTS, ERRORS, WITHIN, SHADOW) for sample in _samples(name, found[name])],
        in_flight=next((one.value for one in found["in_flight"] if math.isfinite(one.value)), None),
        p95=_by_version(found["p95"]),
        error_ratio=_by_version(found["error_ratio"]),
        slow_ratio=_by_version(found["slow_ratio"]),
        effective_weight=_by_version(found["effective_weight"]),
    )


def observe(counted: Iterable[Sample], *, stable: str, candidate: str) -> Observation:
    """Return the increments of one look as the judge takes them."""
    samples = list(counted)
    return Observation(
        stable=_counts(samples, stable),
        candidate=_counts(samples, candidate),
        shadow=_agreement(samples, candidate),
    )


def _counts(samples: Sequence[Sample], version: str) -> Counts:
    totals: dict[str, float] = defaultdict(float)
    within: dict[float, float] = defaultdict(float)
    for sample in samples:
        if sample.labels.get("version") != version:
            continue
        if sample.name == WITHIN:
            within[float(sample.labels["le"])] += sample.value
        elif sample.name in (REQUESTS, ERRORS):
            totals[sample.name] += sample.value
    timed = round(within.get(math.inf, 0.0))
    slow = {edge: timed - round(count) for edge, count in within.items() if math.isfinite(edge)}
    return Counts(requests=round(totals[REQUESTS]), errors=round(totals[ERRORS]), timed=timed, slow=slow)


def _agreement(samples: Sequence[Sample], candidate: str) -> dict[str, Agreement]:
    counts: dict[tuple[str, bool], float] = defaultdict(float)
    for sample in samples:
        if sample.name == SHADOW and sample.labels.get("candidate") == candidate:
            counts[sample.labels.get("model", ""), sample.labels.get("agreed") == "true"] += sample.value
    return {
        model: Agreement(compared=round(counts[model, True] + counts[model, False]), agreed=round(counts[model, True]))
        for model in sorted({model for model, _ in counts})
    }


def _samples(name: str, vectors: Iterable[Vector]) -> list[Sample]:
    return [Sample(name=name, labels=one.labels, value=one.value) for one in vectors]


def _by_version(vectors: Iterable[Vector]) -> dict[str, float]:
    return {one.labels["version"]: one.value for one in vectors if "version" in one.labels and math.isfinite(one.value)}


def _selector(namespace: str, service: str) -> str:
    return f'{{namespace="{namespace}",service="{service}"}}'

"""What the gateway measures of each version: the names, the Envoy settings that make them, and the PromQL that reads them.

Envoy counts for two clusters a version, `NAMESPACE/SERVICE/VERSION/http` and `…/grpc`; the tag rules below turn these names
into the labels `namespace, service, version, protocol`. What is what:

- A **request** is an attempt that got an answer or was given up by the gateway. An attempt that never reached a model and
  was repeated is not counted, its repetition is. Requests that the shadow tap sends do not pass Envoy and count nowhere here.
- An **error** is an HTTP answer 5xx, or a gRPC status UNKNOWN, DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE or DATA_LOSS. A timeout,
  a reset and a refused connection are answered by Envoy in the version's name (504 or 503, gRPC 4 or 14), so they count too,
  and so does an answer that began well and broke off before its end, or before a gRPC status.
  A gRPC client's own deadline is kept by Envoy and counts as DEADLINE_EXCEEDED; an HTTP client that hangs up leaves no answer to count.
- **Latency** is the time from the whole request to the whole answer, in milliseconds; timeouts and resets have none, they are errors.
  Envoy brings histograms up to date once a second, so buckets can be a second behind the counters: take the share of slow answers
  from the buckets alone (`le="+Inf"` is all of them).

Queries for the judge return counters as they stand, one sample for each version, protocol and Envoy process (label `instance`,
and `le` for buckets), never summed over processes, so that the reader can see a counter start again at zero. A series that was not
there at the last look stood at zero.
Scrape Envoy and the gateway with `honor_labels: true`: the labels `namespace` and `service` are theirs.
"""

from __future__ import annotations

from collections.abc import Iterable

HTTP_REQUESTS = "envoy_cluster_upstream_rq_completed"
HTTP_ANSWERS = "envoy_cluster_upstream_rq_xx"
"""By label envoy_response_code_class, "1" to "5"."""
GRPC_ANSWERS = "envoy_cluster_grpc"
"""By label grpc_status, the number of the status."""
LATENCY = "envoy_cluster_upstream_rq_time"
BROKEN_ANSWERS_STAT = "broken_answers"
BROKEN_ANSWERS = f"envoy_gateway_{BROKEN_ANSWERS_STAT}"
"""Answers that began well and broke off. Among the HTTP answers they are counted as good, among the gRPC answers not at all."""
IN_FLIGHT = "envoy_cluster_upstream_rq_active"
TIMEOUTS = "envoy_cluster_upstream_rq_timeout"

EFFECTIVE_WEIGHT = "belvedere_gateway_effective_weight"
"""Gauge by namespace, service, version, protocol: percent of new requests that Envoy is told to send; 0 without ready replicas."""
ROUTABLE_REPLICAS = "belvedere_gateway_routable_replicas"
"""Gauge by namespace, service, version, protocol."""
REJECTED_ROUTES = "belvedere_gateway_rejected_routes"
"""Gauge by namespace and name of the object: 1 while its newest text is refused and the last good one stays in use."""

SHADOW_COMPARISONS = "belvedere_shadow_comparisons_total"
"""Counter by namespace, service, candidate, model, agreed ("true" or "false"): one for each embedding compared."""
SHADOW_COSINE = "belvedere_shadow_cosine"
"""Histogram by namespace, service, candidate, model."""
SHADOW_REQUESTS = "belvedere_shadow_requests_total"
"""Counter by namespace, service, candidate, outcome: what became of each sampled request (see `SHADOW_OUTCOMES`)."""
SHADOW_OUTCOMES: dict[str, str] = {
    "compared": "both answered and the embeddings were compared",
    "dropped": "the queue was full",
    "stable_failed": "the stable version did not answer well, so there is nothing to compare with",
    "candidate_failed": "the candidate answered an error, did not answer in time or could not be reached",
    "no_replica": "the candidate has no replica that is ready",
    "unreadable": "a request or an answer is not V2 that can be compared",
}

ERROR_GRPC_STATUSES: tuple[int, ...] = (2, 4, 13, 14, 15)
"""UNKNOWN, DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE, DATA_LOSS."""

LATENCY_EDGES_MILLISECONDS: tuple[float, ...] = (
    1, 2, 3, 5, 7, 10, 15, 20, 25, 30, 40, 50, 60, 75, 100, 125, 150, 200, 250, 300, 400, 500,
    750, 1000, 1500, 2000, 3000, 5000, 7500, 10000, 15000, 20000, 30000, 60000,
)  # fmt: skip
"""Upper edges of the latency buckets (label `le`, in milliseconds; Envoy adds +Inf)."""

_CLUSTER = r"^cluster\."
TAG_RULES: tuple[tuple[str, str | None], ...] = (
    ("namespace", _CLUSTER + r"(([^/]+)/)[^/]+/[^/]+/(?:http|grpc)\."),
    ("service", _CLUSTER + r"[^/]+/(([^/]+)/)[^/]+/(?:http|grpc)\."),
    ("version", _CLUSTER + r"[^/]+/[^/]+/(([^/]+)/)(?:http|grpc)\."),
    ("protocol", _CLUSTER + r"[^/]+/[^/]+/[^/]+/((http|grpc)\.)"),
    ("grpc_status", _CLUSTER + r"[^/]+/[^/]+/[^/]+/grpc\.grpc(\.(\d+))$"),
    ("envoy.response_code_class", None),
    ("envoy.response_code", None),
    ("envoy.http_conn_manager_prefix", None),
)
"""Envoy stats tags: a name with the rule that finds it, or the name of one of Envoy's own."""

KEPT_STATS = (
    r"cluster\.(?:[^/]+/[^/]+/[^/]+/(?:http|grpc)|xds|shadow_tap)\."
    r"(?:upstream_rq_(?:\dxx|completed|time|active|timeout|total|retry|retry_overflow|pending_overflow|rx_reset|tx_reset)"
    r"|upstream_cx_(?:active|total|connect_fail|connect_timeout)|membership_(?:healthy|total)"
    r"|grpc\.\d+|outlier_detection\.ejections_(?:active|enforced_total))"
    r"|gateway\.broken_answers.*"
    r"|http\.gateway\.downstream_(?:rq_.*|cx_active|cx_total)"
    r"|(?:server\.(?:live|uptime|memory_|concurrency|total_connections)|cluster_manager\.|listener_manager\.|control_plane\.).*"
)
"""RE2, for whole names: the statistics that Envoy keeps; all others are not even made, so a scrape stays small with many versions."""


def _selector(namespace: str, service: str, *more: str) -> str:
    return "{" + ",".join((f'namespace="{namespace}"', f'service="{service}"', *more)) + "}"


def _edge_label(edge_milliseconds: float) -> str:
    # Prometheus 3 stores `le` as a float ("250.0"), older ones as Envoy writes it ("250").
    return f'le=~"{edge_milliseconds:g}([.]0)?"'


def nearest_edge(threshold_milliseconds: float) -> float:
    """Return the smallest bucket edge that is not below a threshold, or the largest edge."""
    return next((edge for edge in LATENCY_EDGES_MILLISECONDS if edge >= threshold_milliseconds), 60000)


def requests_query(namespace: str, service: str) -> str:
    """Return PromQL for the requests so far. Labels: version, protocol, instance."""
    answered = _union(_request_selectors(namespace, service))
    # Before the first gRPC answer there is no such series, but the cluster is there and has had no request.
    there = f"0 * sum by (version, protocol, instance) ({HTTP_REQUESTS}{_selector(namespace, service)})"
    return f"sum by (version, protocol, instance) ({answered}) or {there}"


def errors_query(namespace: str, service: str) -> str:
    """Return PromQL for the errors so far, zero where there were none. Labels: version, protocol, instance."""
    errors = _union(_error_selectors(namespace, service))
    return f"sum by (version, protocol, instance) ({errors}) or 0 * ({requests_query(namespace, service)})"


def latency_buckets_query(namespace: str, service: str) -> str:
    """Return PromQL for the answers within each edge so far, cumulative. Labels: version, protocol, instance, le."""
    return f"sum by (version, protocol, instance, le) ({LATENCY}_bucket{_selector(namespace, service)})"


def in_flight_query(namespace: str, service: str) -> str:
    """Return PromQL for the requests in flight now, all Envoy processes together. Labels: version, protocol."""
    return f"sum by (version, protocol) ({IN_FLIGHT}{_selector(namespace, service)})"


def effective_weight_query(namespace: str, service: str) -> str:
    """Return PromQL for the percent of new requests that each version is given now. Labels: version, protocol."""
    return f"max by (version, protocol) ({EFFECTIVE_WEIGHT}{_selector(namespace, service)})"


def shadow_comparisons_query(namespace: str, service: str) -> str:
    """Return PromQL for the shadow comparisons so far. Labels: candidate, model, agreed, instance."""
    return f"sum by (candidate, model, agreed, instance) ({SHADOW_COMPARISONS}{_selector(namespace, service)})"


def shadow_requests_query(namespace: str, service: str) -> str:
    """Return PromQL for what became of the sampled requests so far. Labels: candidate, outcome, instance."""
    return f"sum by (candidate, outcome, instance) ({SHADOW_REQUESTS}{_selector(namespace, service)})"


def request_rate(namespace: str, service: str, window: str, by: Iterable[str] = ("version",)) -> str:
    """Return PromQL for requests a second over a window such as `1m`."""
    rates = _union(_per_second(selector, window) for selector in _request_selectors(namespace, service))
    return f"sum by ({', '.join(by)}) ({rates})"


def error_rate(namespace: str, service: str, window: str, by: Iterable[str] = ("version",)) -> str:
    """Return PromQL for errors a second over a window, zero where there were none."""
    labels = tuple(by)
    rates = _union(_per_second(selector, window) for selector in _error_selectors(namespace, service))
    return f"(sum by ({', '.join(labels)}) ({rates}) or 0 * {request_rate(namespace, service, window, labels)})"


def error_ratio(namespace: str, service: str, window: str, by: Iterable[str] = ("version",)) -> str:
    """Return PromQL for the share of the requests of a window that were errors; nothing where there were no requests."""
    labels = tuple(by)
    requests = request_rate(namespace, service, window, labels)
    return f"{error_rate(namespace, service, window, labels)} / ({requests} > 0)"


def slow_ratio(
    namespace: str, service: str, threshold_milliseconds: float, window: str, by: Iterable[str] = ("version",)
) -> str:
    """Return PromQL for the share of the answers of a window that took longer than a threshold, rounded up to a bucket edge."""
    labels = ", ".join(by)
    within = _selector(namespace, service, _edge_label(nearest_edge(threshold_milliseconds)))
    answers = _per_second(f"{LATENCY}_count{_selector(namespace, service)}", window)
    quick = _per_second(f"{LATENCY}_bucket{within}", window)
    return f"1 - sum by ({labels}) ({quick}) / (sum by ({labels}) ({answers}) > 0)"


def latency_quantile(
    namespace: str, service: str, quantile: float, window: str, by: Iterable[str] = ("version",)
) -> str:
    """Return PromQL for a latency quantile of a window, in milliseconds, for example 0.95."""
    labels = ", ".join((*by, "le"))
    buckets = f"sum by ({labels}) (rate({LATENCY}_bucket{_selector(namespace, service)}[{window}]))"
    return f"histogram_quantile({quantile:g}, {buckets})"


def _request_selectors(namespace: str, service: str) -> tuple[str, ...]:
    return (
        HTTP_REQUESTS + _selector(namespace, service, 'protocol="http"'),
        GRPC_ANSWERS + _selector(namespace, service, 'protocol="grpc"'),
        BROKEN_ANSWERS + _selector(namespace, service, 'protocol="grpc"'),
    )


def _error_selectors(namespace: str, service: str) -> tuple[str, ...]:
    statuses = "|".join(str(status) for status in ERROR_GRPC_STATUSES)
    return (
        HTTP_ANSWERS + _selector(namespace, service, 'protocol="http"', 'envoy_response_code_class="5"'),
        GRPC_ANSWERS + _selector(namespace, service, f'grpc_status=~"{statuses}"'),
        BROKEN_ANSWERS + _selector(namespace, service),
    )


def _per_second(selector: str, window: str) -> str:
    """Return PromQL for a counter's growth a second over a window, as it was counted.

    `rate()` takes the first value of a new series as where it began. Envoy makes a series with its first count, so a candidate
    that fails from its first request on, and is taken away seconds later, would seem to have failed much less or not at all.
    Here a series that was not there before the window began at zero, and one that has gone since (Envoy drops the counters of
    a version with its cluster) keeps what it had. A counter that was reset within the window counts what it had before.
    """
    last = f"max_over_time({selector}[{window}])"
    return f"(clamp_min({last} - ({selector} offset {window} or 0 * {last}), 0) / {_seconds(window)})"


def _seconds(window: str) -> int:
    return int(window[:-1]) * {"s": 1, "m": 60, "h": 3600}[window[-1]]


def _union(expressions: Iterable[str]) -> str:
    return " or ".join(expressions)

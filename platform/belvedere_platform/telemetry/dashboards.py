"""Grafana dashboards, made from the same PromQL that the judge reads: python -m belvedere_platform.telemetry.dashboards --write|--check DIR."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from belvedere_platform.telemetry import gateway_metrics as gateway

SCHEMA_VERSION = 39
WIDTH, HEIGHT, COLUMNS = 8, 8, 24
WINDOW = "1m"
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
NAMESPACE, SERVICE = "$namespace", "$service"


@dataclass(frozen=True, kw_only=True)
class Query:
    """PromQL, and what its series are called."""

    expr: str
    legend: str


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One picture of one figure over time."""

    title: str
    unit: str
    """As Grafana names units: ms, s, reqps, percentunit, percent, short."""
    queries: tuple[Query, ...]
    explains: str = ""


@dataclass(frozen=True, kw_only=True)
class Dashboard:
    """Panels that are looked at together."""

    name: str
    title: str
    panels: tuple[Panel, ...]
    variables: tuple[tuple[str, str], ...] = ()
    """Name, and the PromQL label_values(…) that offers its values."""


def panel(title: str, unit: str, expr: str, legend: str, *, explains: str = "") -> Panel:
    """Return a panel of one query."""
    return Panel(title=title, unit=unit, queries=(Query(expr=expr, legend=legend),), explains=explains)


def service_dashboard() -> Dashboard:
    """Return the dashboard of one ModelService: what its clients feel, and where a rollout stands."""
    return Dashboard(
        name="service",
        title="Belvedere / Service",
        variables=(
            ("namespace", f"label_values({gateway.EFFECTIVE_WEIGHT}, namespace)"),
            ("service", f'label_values({gateway.EFFECTIVE_WEIGHT}{{namespace="$namespace"}}, service)'),
        ),
        panels=(
            panel("Requests", "reqps", gateway.request_rate(NAMESPACE, SERVICE, WINDOW), "{{version}}"),
            panel(
                "Share of errors",
                "percentunit",
                gateway.error_ratio(NAMESPACE, SERVICE, WINDOW),
                "{{version}}",
                explains="Of the requests that reached the version or that the gateway gave up in its name.",
            ),
            _latency_panel(),
            panel(
                "Weight of each version",
                "percent",
                gateway.effective_weight_query(NAMESPACE, SERVICE),
                "{{version}} {{protocol}}",
                explains="What Envoy is told, which is 0 for a version without ready replicas.",
            ),
            panel(
                "Ready replicas",
                "short",
                f'max by (version, protocol) ({gateway.ROUTABLE_REPLICAS}{{namespace="$namespace",service="$service"}})',
                "{{version}} {{protocol}}",
            ),
            panel(
                "Requests in flight", "short", gateway.in_flight_query(NAMESPACE, SERVICE), "{{version}} {{protocol}}"
            ),
            *_shadow_panels(),
        ),
    )


def _latency_panel() -> Panel:
    """Return what half, most and nearly all requests of each version take."""
    quantiles = tuple(
        Query(
            expr=gateway.latency_quantile(NAMESPACE, SERVICE, quantile, WINDOW),
            legend=f"{{{{version}}}} p{100 * quantile:g}",
        )
        for quantile in (0.5, 0.95, 0.99)
    )
    return Panel(title="Latency", unit="ms", queries=quantiles)


def _shadow_panels() -> tuple[Panel, Panel]:
    """Return how far a candidate answers copies of requests as the active version does, and what became of the copies."""
    compared = f"increase({gateway.SHADOW_COMPARISONS}" + '{{namespace="$namespace",service="$service"{more}}}[5m])'
    agreed = compared.format(more=',agreed="true"')
    by = "sum by (candidate, model)"
    return (
        panel(
            "Shadow: answers that agree",
            "percentunit",
            f"{by} ({agreed}) / ({by} ({compared.format(more='')}) > 0)",
            "{{candidate}} {{model}}",
        ),
        panel(
            "Shadow: what became of the samples",
            "short",
            f'sum by (candidate, outcome) (increase({gateway.SHADOW_REQUESTS}{{namespace="$namespace",service="$service"}}[5m]))',
            "{{candidate}} {{outcome}}",
        ),
    )


def gateway_dashboard() -> Dashboard:
    """Return the dashboard of the gateway itself."""
    return Dashboard(
        name="gateway",
        title="Belvedere / Gateway",
        panels=(
            panel("Requests", "reqps", "sum by (instance) (rate(envoy_http_downstream_rq_total[1m]))", "{{instance}}"),
            panel("Open connections", "short", "sum by (instance) (envoy_http_downstream_cx_active)", "{{instance}}"),
            panel("Requests in flight", "short", "sum by (instance) (envoy_http_downstream_rq_active)", "{{instance}}"),
            panel(
                "Repeated requests",
                "reqps",
                "sum by (namespace, service, version) (rate(envoy_cluster_upstream_rq_retry[5m]))",
                "{{namespace}}/{{service}} {{version}}",
                explains="Only requests that reached no model are repeated.",
            ),
            panel(
                "Replicas left out",
                "short",
                "sum by (namespace, service, version) (envoy_cluster_outlier_detection_ejections_active)",
                "{{namespace}}/{{service}} {{version}}",
            ),
            panel(
                "Told by a control plane",
                "short",
                "min by (instance) (envoy_control_plane_connected_state)",
                "{{instance}}",
                explains="At 0 Envoy goes on with what it was told last.",
            ),
            panel(
                "Routes that cannot be used",
                "short",
                f"max by (namespace, name) ({gateway.REJECTED_ROUTES})",
                "{{namespace}}/{{name}}",
            ),
            panel("Memory", "bytes", "sum by (instance) (envoy_server_memory_allocated)", "{{instance}}"),
        ),
    )


def operator_dashboard() -> Dashboard:
    """Return the dashboard of the operator."""
    seconds = "sum by (controller, le) (rate(belvedere_reconcile_seconds_bucket[5m]))"
    return Dashboard(
        name="operator",
        title="Belvedere / Operator",
        panels=(
            panel("Keys that wait", "short", "max by (controller) (belvedere_queue_depth)", "{{controller}}"),
            panel(
                "Reconciles",
                "ops",
                "sum by (controller) (rate(belvedere_reconcile_seconds_count[5m]))",
                "{{controller}}",
            ),
            panel("Reconcile time, p99", "s", f"histogram_quantile(0.99, {seconds})", "{{controller}}"),
            panel(
                "Reconciles that failed",
                "ops",
                "sum by (controller, error) (rate(belvedere_reconcile_errors_total[5m]))",
                "{{controller}} {{error}}",
            ),
            panel(
                "Kinds listed anew",
                "ops",
                "sum by (kind) (rate(belvedere_reflector_lists_total[5m]))",
                "{{kind}}",
                explains="More than a few an hour: watches break.",
            ),
            panel(
                "Alerts heard",
                "short",
                "sum by (outcome) (increase(belvedere_alerts_heard_total[5m]))",
                "{{outcome}}",
            ),
        ),
    )


def training_dashboard() -> Dashboard:
    """Return the dashboard of TrainingRuns."""
    of_run = '{namespace="$namespace",run=~"$run"}'

    def figure(title: str, unit: str, name: str, legend: str = "{{run}}") -> Panel:
        return panel(title, unit, f"ray_belvedere_training_{name}{of_run}", legend)

    return Dashboard(
        name="training",
        title="Belvedere / Training",
        variables=(
            ("namespace", "label_values(ray_belvedere_training_loss, namespace)"),
            ("run", 'label_values(ray_belvedere_training_loss{namespace="$namespace"}, run)'),
        ),
        panels=(
            figure("Loss", "short", "loss"),
            figure("Pictures a second", "short", "images_per_second"),
            figure("Pairs seen", "short", "pairs"),
            figure("Recall", "percentunit", "recall", "{{run}} {{metric}}"),
        ),
    )


def dashboards() -> tuple[Dashboard, ...]:
    """Return all of them."""
    return service_dashboard(), gateway_dashboard(), operator_dashboard(), training_dashboard()


def grafana(dashboard: Dashboard) -> dict[str, Any]:
    """Return a dashboard as Grafana imports it."""
    source = {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"}
    return {
        "uid": f"belvedere-{dashboard.name}",
        "title": dashboard.title,
        "tags": ["belvedere"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [source, *(_variable(name, query) for name, query in dashboard.variables)]},
        "panels": [_panel(number, one) for number, one in enumerate(dashboard.panels)],
    }


def _variable(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": 1,
        # A label of one value each, but for runs, which are looked at side by side.
        "multi": name == "run",
        "includeAll": name == "run",
    }


def _panel(number: int, one: Panel) -> dict[str, Any]:
    across = COLUMNS // WIDTH
    place = {"x": number % across * WIDTH, "y": number // across * HEIGHT, "w": WIDTH, "h": HEIGHT}
    targets = [
        {"refId": chr(ord("A") + index), "datasource": _SOURCE, "expr": query.expr, "legendFormat": query.legend}
        for index, query in enumerate(one.queries)
    ]
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": one.title,
        "description": one.explains,
        "datasource": _SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": one.unit, "min": 0}, "overrides": []},
        "targets": targets,
    }


def files() -> dict[str, str]:
    """Return the text of each file by name."""
    return {f"{one.name}.json": json.dumps(grafana(one), indent=1, ensure_ascii=False) + "\n" for one in dashboards()}


def stale(directory: Path) -> Iterable[str]:
    """Give the names of files that are missing, too many or not as they should be."""
    wanted = files()
    for name in sorted({*wanted, *(path.name for path in directory.glob("*.json"))}):
        path = directory / name
        if name not in wanted or not path.is_file() or path.read_text() != wanted[name]:
            yield name


def main(arguments: list[str]) -> int:
    """Write the dashboards to a directory, or say which there are not as they should be."""
    verb, directory = arguments[0], Path(arguments[1])
    if verb == "--write":
        for name, text in files().items():
            (directory / name).write_text(text)
        return 0
    wrong = list(stale(directory))
    if wrong:
        print(f"{directory} has stale dashboards ({', '.join(wrong)}): run  make dashboards", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Dashboards and rules in the chart: Prometheus' own tool reads every expression, and each metric in them exists."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import yaml
from prometheus_client import REGISTRY, CollectorRegistry

from .conftest import CHART, FULL, S3, named, render

RULES = CHART / "files" / "rules" / "belvedere.yaml"
VARIABLES = {"$namespace": "default", "$service": "emoji", "$run": "run"}


def promtool(*words: str) -> str:
    done = subprocess.run(["promtool", *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def dashboards() -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((CHART / "files" / "dashboards").glob("*.json"))]


def expressions() -> list[str]:
    """Every PromQL of every panel, with values for Grafana's variables."""
    found = []
    for board in dashboards():
        for panel in board["panels"]:
            for target in panel["targets"]:
                expr = target["expr"]
                for name, value in VARIABLES.items():
                    expr = expr.replace(name, value)
                assert "$" not in expr, f"{board['title']}, {panel['title']}: a variable that nobody sets"
                found.append(expr)
    assert len(found) > 20
    return found


def test_promtool_reads_every_panel(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{number}", "expr": expr} for number, expr in enumerate(expressions())]
    file = tmp_path / "panels.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", str(file))


def test_rules_fire_when_something_is_wrong_and_only_then(tmp_path: Path) -> None:
    promtool("check", "rules", str(RULES))
    file = tmp_path / "tests.yaml"
    file.write_text((Path(__file__).parent / "rules_test.yaml").read_text().replace("RULES", str(RULES)))
    assert "SUCCESS" in promtool("test", "rules", str(file))


def test_every_metric_of_ours_in_dashboards_and_rules_exists() -> None:
    import belvedere_operators.alerts.webhook
    import belvedere_operators.runtime.controller
    import belvedere_operators.runtime.reflector  # noqa: F401
    from belvedere_serving.gateway.serve import ObservedState
    from belvedere_serving.gateway.shadow import ShadowMetrics
    from belvedere_serving.gateway.xds import Discovery

    own = CollectorRegistry()
    for make in (ObservedState, ShadowMetrics, Discovery):
        make(own)
    known: set[str] = set()
    for registry in (REGISTRY, own):
        for family in registry.collect():
            suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}.get(family.type, ("",))
            known |= {family.name + suffix for suffix in suffixes}
    rules = [rule["expr"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    used = set(re.findall(r"\bbelvedere_[a-z_]+", "\n".join((*expressions(), *rules))))
    assert used
    assert used <= known


def test_the_chart_carries_them_unchanged() -> None:
    manifests = render(FULL)
    for board in dashboards():
        name = board["uid"].removeprefix("belvedere-")
        found = named(manifests, "ConfigMap", f"belvedere-dashboard-{name}")
        assert json.loads(found["data"][f"belvedere-{name}.json"]) == board
        assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    rules = named(manifests, "PrometheusRule", "belvedere-rules")
    assert rules["spec"] == yaml.safe_load(RULES.read_text())
    assert rules["metadata"]["labels"]["release"] == "monitoring"


def test_nothing_of_the_prometheus_operator_is_made_unasked() -> None:
    assert not [one for one in render(S3) if one["apiVersion"].startswith("monitoring.coreos.com")]


def test_pod_monitors_ask_ports_that_are_there_and_keep_the_labels_of_models() -> None:
    manifests = render(FULL)
    ports = {
        port["name"]
        for one in manifests
        if one["kind"] == "Deployment"
        for container in one["spec"]["template"]["spec"]["containers"]
        for port in container["ports"]
    }
    monitors = [one for one in manifests if one["kind"] == "PodMonitor"]
    assert {one["metadata"]["name"] for one in monitors} == {
        "belvedere-operator",
        "belvedere-gateway",
        "belvedere-ray",
    }
    for one in monitors:
        for endpoint in one["spec"]["podMetricsEndpoints"]:
            assert endpoint["honorLabels"] is True
            assert endpoint["port"] in ports
    ray = named(manifests, "PodMonitor", "belvedere-ray")
    assert ray["spec"]["namespaceSelector"] == {"matchNames": ["team-a", "team-b"]}

"""The rules, by promtool: which alerts fire when, on series as Envoy and the gateway write them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from belvedere_operators.alerts.rules import (
    CANDIDATE_ERRORS,
    CANDIDATE_LATENCY,
    OVERLOAD,
    STABLE_ERRORS,
    WATCHDOG,
    Subject,
    rules_of,
)
from belvedere_platform.telemetry import gateway_metrics as metrics

pytestmark = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")

LABELS = 'namespace="shop",service="search"'
SUBJECT = Subject(namespace="shop", service="search", stable="v1", candidate="v2")


def traffic(
    version: str, *, requests: int, errors: int = 0, slow: int = 0, start: int = 0, seconds: int = 60
) -> list[dict[str, str]]:
    """Return the series of one version: so many requests a second, of which some fail and some take over 100 ms.

    They are there from the second `start` on, for so many seconds; a new series begins with its first count.
    """
    labels = f'{{{LABELS},version="{version}",protocol="http",instance="envoy:1"'
    within = requests - slow
    blank = f"_x{start} " if start else ""

    def count(step: int) -> str:
        first = step if start else 0
        return f"{blank}{first}+{step}x{seconds - 1}" + (" stale" if seconds < 60 else "")

    return [
        {"series": f"{metrics.HTTP_REQUESTS}{labels}}}", "values": count(requests)},
        {
            "series": f'{metrics.HTTP_ANSWERS}{labels},envoy_response_code_class="2"}}',
            "values": count(requests - errors),
        },
        {"series": f'{metrics.HTTP_ANSWERS}{labels},envoy_response_code_class="5"}}', "values": count(errors)},
        {"series": f"{metrics.LATENCY}_count{labels}}}", "values": count(requests)},
        {"series": f'{metrics.LATENCY}_bucket{labels},le="100"}}', "values": count(within)},
        {"series": f'{metrics.LATENCY}_bucket{labels},le="+Inf"}}', "values": count(requests)},
        {"series": f"{metrics.IN_FLIGHT}{labels}}}", "values": f"{blank}2+0x{seconds - 1}"},
    ]


def gauge(name: str, value: float, version: str = "v1") -> dict[str, str]:
    labels = f'{{{LABELS},version="{version}",protocol="http",instance="gateway:1"}}'
    return {"series": f"{name}{labels}", "values": f"{value:g}+0x60"}


@pytest.fixture
def firing(tmp_path: Path, spec):
    """Return a function that says which alerts fire at a second, given the series."""

    def ask(series: list[dict[str, str]], at_seconds: int, subject: Subject = SUBJECT) -> set[str]:
        group = {"name": "rules", "interval": "1s", "rules": rules_of(subject, spec)}
        (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [group]}))
        return _firing(tmp_path, series, at_seconds)

    return ask


def _firing(folder: Path, series: list[dict[str, str]], at_seconds: int) -> set[str]:
    """Return the alerts that promtool finds although none was expected."""
    names = (CANDIDATE_ERRORS, CANDIDATE_LATENCY, STABLE_ERRORS, OVERLOAD, WATCHDOG)
    expected = [{"eval_time": f"{at_seconds}s", "alertname": name, "exp_alerts": []} for name in names]
    test: dict[str, Any] = {
        "rule_files": ["rules.yml"],
        "evaluation_interval": "1s",
        "tests": [{"interval": "1s", "input_series": series, "alert_rule_test": expected}],
    }
    (folder / "test.yml").write_text(yaml.safe_dump(test))
    ran = subprocess.run(["promtool", "test", "rules", "test.yml"], cwd=folder, capture_output=True, text=True)
    said = ran.stdout + ran.stderr
    assert "got:" in said, said
    return set(re.findall(r"alertname: (\w+), time", said))


def test_promtool_accepts_the_rules(tmp_path, spec):
    group = {"name": "rules", "interval": "1s", "rules": rules_of(SUBJECT, spec)}
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [group]}))
    ran = subprocess.run(["promtool", "check", "rules", "rules.yml"], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_all_is_well(firing):
    series = [*traffic("v1", requests=18), *traffic("v2", requests=2)]
    assert firing(series, 30) == {WATCHDOG}


def test_a_failing_candidate_fires_within_ten_seconds_of_its_first_request(firing):
    series = [*traffic("v1", requests=18), *traffic("v2", requests=2, errors=1, start=20)]
    assert CANDIDATE_ERRORS not in firing(series, 20)
    assert firing(series, 30) == {WATCHDOG, CANDIDATE_ERRORS}


@pytest.mark.parametrize("fault", [{"errors": 4}, {"slow": 12}])
def test_a_candidate_that_is_gone_in_two_seconds_is_heard_of_afterwards(firing, fault):
    series = [*traffic("v1", requests=60), *traffic("v2", requests=12, start=20, seconds=2, **fault)]
    expected = CANDIDATE_ERRORS if "errors" in fault else CANDIDATE_LATENCY
    assert firing(series, 24) == {WATCHDOG, expected}
    assert firing(series, 50) == {WATCHDOG}


def test_a_slow_candidate_fires_within_ten_seconds_of_its_first_request(firing):
    series = [*traffic("v1", requests=18), *traffic("v2", requests=2, slow=2, start=20)]
    assert firing(series, 30) == {WATCHDOG, CANDIDATE_LATENCY}


def test_what_both_versions_suffer_is_not_the_candidates_fault(firing):
    series = [*traffic("v1", requests=18, errors=9, slow=17), *traffic("v2", requests=2, errors=1, slow=2)]
    assert firing(series, 30) == {WATCHDOG, STABLE_ERRORS}


def test_timeouts_of_the_stable_version_excuse_slow_answers_of_the_candidate(firing):
    series = [*traffic("v1", requests=18, errors=9), *traffic("v2", requests=2, slow=2)]
    assert firing(series, 30) == {WATCHDOG, STABLE_ERRORS}


def test_a_failing_stable_version_holds_and_accuses_nobody(firing):
    series = [*traffic("v1", requests=18, errors=9), *traffic("v2", requests=2)]
    assert firing(series, 30) == {WATCHDOG, STABLE_ERRORS}


def test_without_a_candidate_only_the_stable_version_is_watched(firing):
    series = traffic("v1", requests=18, errors=9)
    assert firing(series, 30, Subject(namespace="shop", service="search", stable="v1")) == {WATCHDOG, STABLE_ERRORS}


def test_a_first_single_error_fires_nothing(firing):
    blip = traffic("v2", requests=1)
    blip[2]["values"] = "0+0x29 1+0x30"
    assert firing([*traffic("v1", requests=18), *blip], 33) == {WATCHDOG}


@pytest.mark.parametrize(("in_flight", "replicas", "fires"), [(10.0, 2.0, True), (7.0, 2.0, False), (7.0, 1.0, True)])
def test_overload_is_in_flight_requests_by_replica(firing, in_flight, replicas, fires):
    series = [gauge(metrics.IN_FLIGHT, in_flight), gauge(metrics.ROUTABLE_REPLICAS, replicas)]
    assert (OVERLOAD in firing(series, 20)) is fires


def test_every_alert_says_what_may_be_done(spec):
    actions = {rule["alert"]: rule["labels"]["belvedere_action"] for rule in rules_of(SUBJECT, spec)}
    assert actions == {
        CANDIDATE_ERRORS: "abort",
        CANDIDATE_LATENCY: "abort",
        STABLE_ERRORS: "hold",
        OVERLOAD: "scaleOut",
        WATCHDOG: "heartbeat",
    }

"""The platform's manifests are deterministic, and the real tools accept the configuration in them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from belvedere_operators.controlplane.installation import Installation, open_installation
from belvedere_operators.manifests.platform import platform_manifests

TOOLS = f"{Path(sys.executable).parent}:{os.environ['PATH']}"


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    return open_installation(tmp_path, ports={}, artifacts_url=None, scrape_seconds=None)


def find(installation: Installation, kind: str, name: str) -> dict[str, Any]:
    return next(m for m in platform_manifests(installation) if (m["kind"], m["metadata"]["name"]) == (kind, name))


def check(tool: str, *words: str) -> str:
    program = shutil.which(tool, path=TOOLS)
    if program is None:
        pytest.skip(f"{tool} is not installed")
    done = subprocess.run([program, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_same_installation_same_manifests(installation: Installation) -> None:
    assert platform_manifests(installation) == platform_manifests(installation)


def test_prometheus_accepts_its_configuration(installation: Installation, tmp_path: Path) -> None:
    text = find(installation, "ConfigMap", "prometheus")["data"]["prometheus.yml"]
    (tmp_path / "prometheus.yml").write_text(text)
    check("promtool", "check", "config", str(tmp_path / "prometheus.yml"))
    config = yaml.safe_load(text)
    assert [job["job_name"] for job in config["scrape_configs"]] == ["envoy", "gateway", "operator", "ray"]
    assert all(job["honor_labels"] for job in config["scrape_configs"])


def test_alertmanager_accepts_its_configuration(installation: Installation, tmp_path: Path) -> None:
    text = find(installation, "ConfigMap", "alertmanager")["data"]["alertmanager.yml"]
    (tmp_path / "alertmanager.yml").write_text(text)
    assert "SUCCESS" in check("amtool", "check-config", str(tmp_path / "alertmanager.yml"))
    webhook = yaml.safe_load(text)["receivers"][0]["webhook_configs"][0]
    assert webhook["url"] == "http://127.0.0.1:8081/alerts"
    assert webhook["http_config"]["authorization"]["credentials_file"] == "secret/token"


def test_everything_listens_on_the_loopback_address_alone(installation: Installation) -> None:
    words = " ".join(
        word
        for manifest in platform_manifests(installation)
        if manifest["kind"] == "Deployment"
        for word in manifest["spec"]["template"]["spec"]["containers"][0]["command"]
    )
    assert "0.0.0.0" not in words
    ray = find(installation, "Deployment", "ray")["spec"]["template"]["spec"]["containers"][0]
    assert {"name": "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "value": "0"} in ray["env"]


def test_every_deployment_has_a_readiness_probe_on_a_port_of_its_own(installation: Installation) -> None:
    for manifest in platform_manifests(installation):
        if manifest["kind"] == "Deployment":
            container = manifest["spec"]["template"]["spec"]["containers"][0]
            names = {port["name"] for port in container["ports"]}
            assert container["readinessProbe"]["httpGet"]["port"] in names

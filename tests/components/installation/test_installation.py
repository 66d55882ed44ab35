"""A whole installation: the local Ray, Prometheus, Alertmanager, Envoy; killed and adopted; stopped without a trace."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from belvedere_operators.controlplane.installation import load_installation
from belvedere_operators.controlplane.ports import listening_ports
from belvedere_operators.executors.identity import Identity, find_instance, snapshot
from belvedere_platform.store import Manifest
from belvedere_platform.store.kinds import PROMETHEUS_RULE, RAY_JOB, RAY_SERVICE

from .conftest import Running, belvedere, chosen_ports, eventually, port_flags, ray_service

pytestmark = pytest.mark.slow


def ray_job(name: str, entrypoint: str, **spec: Any) -> Manifest:
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"entrypoint": entrypoint, "submissionMode": "HTTPMode", **spec},
    }


def ended(manifest: Manifest) -> bool:
    return manifest.get("status", {}).get("jobDeploymentStatus") in ("Complete", "Failed")


def served(manifest: Manifest) -> bool:
    status = manifest.get("status", {})
    return (
        status.get("serviceStatus") == "Running" and status["observedGeneration"] == manifest["metadata"]["generation"]
    )


def replicas(running: Running, name: str) -> dict[str, int]:
    """Return pid by replica id of the replicas that run."""
    details = running.get_json("ray-dashboard", "/api/serve/applications/")
    application = details["applications"].get(f"default.{name}", {"deployments": {}})
    return {
        replica["replica_id"]: replica["pid"]
        for deployment in application["deployments"].values()
        for replica in deployment["replicas"]
        if replica["state"] == "RUNNING"
    }


def answering(running: Running, name: str) -> set[int]:
    """Return the pids of the replicas that answer at the addresses that Serve names."""
    details = running.get_json("ray-dashboard", "/api/serve/applications/")
    ports = [
        target["port"]
        for group in details["target_groups"]
        if group["app_name"] == f"default.{name}" and group["protocol"] == "HTTP"
        for target in group["targets"]
    ]
    urls = [f"http://127.0.0.1:{port}/default.{name}" for port in ports]
    return {httpx.get(url, timeout=60, trust_env=False).json()["pid"] for url in urls}


def log_of(running: Running, name: str) -> Path:
    return running.installation.home / f"logs/default/rayjob/{name}/driver.log"


@pytest.mark.parametrize(
    ("name", "script", "status"), [("good", "echo done", "SUCCEEDED"), ("bad", "echo oh; exit 3", "FAILED")]
)
def test_ray_job_ends_and_its_log_is_kept(running: Running, name: str, script: str, status: str) -> None:
    running.apply(ray_job(name, script))
    seen = running.until(RAY_JOB, name, ended)
    assert seen["status"]["jobStatus"] == status
    assert seen["status"]["jobId"] == f"default-{name}-{seen['metadata']['uid'][:8]}"
    assert log_of(running, name).read_text().rstrip().splitlines()[-2:] != []
    assert ("done" if name == "good" else "oh") in log_of(running, name).read_text()
    assert not log_of(running, name).is_symlink()


def test_ray_job_gets_the_environment_of_the_installation(running: Running) -> None:
    running.apply(
        ray_job("environment", "echo $BELVEDERE_HOME $BELVEDERE_STORE $BELVEDERE_ARTIFACTS $BELVEDERE_INSTANCE")
    )
    running.until(RAY_JOB, "environment", ended)
    told = running.installation
    assert (
        f"{told.home} {told.store_url} {told.artifacts_url} {told.instance}"
        in log_of(running, "environment").read_text()
    )


def test_ray_job_is_suspended_resumed_and_deleted(running: Running) -> None:
    script = "echo begun; sleep 300"
    running.apply(ray_job("long", script, suspend=False))
    running.until(RAY_JOB, "long", lambda m: m.get("status", {}).get("jobStatus") == "RUNNING")
    eventually(lambda: "begun" in log_of(running, "long").read_text())
    running.apply(ray_job("long", script, suspend=True))
    running.until(RAY_JOB, "long", lambda m: m["status"].get("jobDeploymentStatus") == "Suspended")
    running.apply(ray_job("long", script, suspend=False))
    seen = running.until(RAY_JOB, "long", lambda m: m["status"].get("jobStatus") == "RUNNING")
    running.delete(RAY_JOB, "long")
    job = f"/api/jobs/{seen['status']['jobId']}"
    eventually(lambda: running.get_json("ray-dashboard", job)["status"] == "STOPPED")


def test_ray_services_share_one_serve_and_change_alone(running: Running) -> None:
    running.apply(ray_service(running, "first"))
    running.apply(ray_service(running, "second", word="two"))
    running.until(RAY_SERVICE, "first", served)
    running.until(RAY_SERVICE, "second", served)
    first, second = replicas(running, "first"), replicas(running, "second")
    assert (len(first), len(second)) == (1, 1)

    running.apply(ray_service(running, "first", replicas=2))
    seen = running.until(RAY_SERVICE, "first", lambda m: served(m) and m["status"]["numServeEndpoints"] == 2)
    grown = replicas(running, "first")
    assert first.items() < grown.items(), "the first replica went on"
    head = seen["status"]["activeServiceStatus"]["rayClusterStatus"]
    assert (head["head"]["serviceIP"], head["endpoints"]["dashboard"]) == (
        "127.0.0.1",
        str(running.installation.ports["ray-dashboard"]),
    )
    eventually(lambda: answering(running, "first") == set(grown.values()))

    broken = ray_service(running, "second")
    broken["spec"]["serveConfigV2"] = "applications: ["
    running.apply(broken)
    running.until(RAY_SERVICE, "second", lambda m: "is not YAML" in str(m["status"]["activeServiceStatus"]))
    assert replicas(running, "second") == second, "a config that is wrong replaces nothing"

    running.delete(RAY_SERVICE, "second")
    eventually(lambda: not replicas(running, "second"))
    assert replicas(running, "first") == grown


def test_killed_control_plane_comes_back_and_adopts(running: Running) -> None:
    running.apply(ray_job("through", f"while [ ! -e {running.modules}/go ]; do sleep 0.1; done; echo through"))
    running.until(RAY_JOB, "through", lambda m: m.get("status", {}).get("jobStatus") == "RUNNING")
    before, served_by = running.identities(), replicas(running, "first")
    operator = running.installation.operator_slot().observe().identity  # type: ignore[union-attr]
    for entry in snapshot().values():
        if entry.parent == operator.pid:
            entry.identity.send(signal.SIGKILL)
    eventually(lambda: running.installation.ports["operator"] not in listening_ports())
    (running.modules / "go").touch()
    belvedere("up", "--home", str(running.installation.home))
    after = running.identities()
    changed = {slot for slot in before if after[slot] != before[slot]}
    assert changed == {running.installation.operator_slot().directory.name}
    assert running.until(RAY_JOB, "through", ended)["status"]["jobStatus"] == "SUCCEEDED"
    assert log_of(running, "through").read_text().splitlines().count("through") == 1
    assert replicas(running, "first") == served_by


def test_second_up_changes_nothing(running: Running) -> None:
    before = running.identities()
    assert "runs already" in belvedere("up", "--home", str(running.installation.home)).stdout
    assert running.identities() == before
    refused = belvedere("up", "--home", str(running.installation.home), "--gateway-port", "1234", check=False)
    assert (refused.returncode, "belvedere down" in refused.stderr) == (4, True)


def test_every_target_is_scraped_and_the_alertmanager_is_known(running: Running) -> None:
    def up() -> dict[str, str]:
        targets = running.get_json("prometheus", "/api/v1/targets")["data"]["activeTargets"]
        return {target["labels"]["job"]: target["health"] for target in targets}

    eventually(lambda: up() == dict.fromkeys(("envoy", "gateway", "operator", "ray"), "up"))
    found = running.get_json("prometheus", "/api/v1/alertmanagers")["data"]["activeAlertmanagers"]
    assert [entry["url"] for entry in found] == [running.installation.url("alertmanager") + "/api/v2/alerts"]


def rule(expression: str) -> Manifest:
    group = {"name": "it", "rules": [{"record": "belvedere:it", "expr": expression}]}
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "it", "namespace": "default"},
        "spec": {"groups": [group]},
    }


def test_rule_is_loaded_and_a_wrong_one_replaces_nothing(running: Running) -> None:
    def loaded() -> list[str]:
        groups = running.get_json("prometheus", "/api/v1/rules")["data"]["groups"]
        return [rule["query"] for group in groups for rule in group["rules"] if group["name"] == "it"]

    def condition(manifest: Manifest) -> dict[str, Any]:
        entries: list[dict[str, Any]] = manifest.get("status", {}).get("conditions", [])
        return next((e for e in entries if e["observedGeneration"] == manifest["metadata"]["generation"]), {})

    running.apply(rule("vector(1)"))
    running.until(PROMETHEUS_RULE, "it", lambda m: condition(m).get("status") == "True")
    eventually(lambda: loaded() == ["vector(1)"])
    running.apply(rule("vector(("))
    seen = running.until(PROMETHEUS_RULE, "it", lambda m: condition(m).get("reason") == "RulesRefused")
    assert "parse error" in condition(seen)["message"]
    assert loaded() == ["vector(1)"]
    running.delete(PROMETHEUS_RULE, "it")
    eventually(lambda: loaded() == [])


def test_readiness_means_it(running: Running) -> None:
    said = running.get_json("operator", "/readyz")
    assert said["ready"]
    assert {"store", "control plane", "ray", "envoy", "gateway", "prometheus", "alertmanager"} == set(said["parts"])
    alerts = running.installation.url("operator") + "/alerts"
    assert httpx.post(alerts, json={}, timeout=60, trust_env=False).status_code == 401


def test_port_in_use_is_named_with_its_holder_and_nothing_is_started(tmp_path: Path) -> None:
    ports = chosen_ports()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", ports["prometheus"]))
        listener.listen()
        done = belvedere("up", "--home", str(tmp_path / "home"), *port_flags(ports), check=False)
    assert done.returncode == 5
    assert f"port {ports['prometheus']} (prometheus) is in use by process {os.getpid()}" in done.stderr
    assert "--port prometheus=PORT" in done.stderr
    assert done.stderr.count("is in use by") == 1
    assert not (tmp_path / "home").exists()


def test_interrupted_up_stops_what_it_started(tmp_path: Path) -> None:
    home = tmp_path / "home"
    words = [str(Path(sys.executable).parent / "belvedere"), "up", "--home", str(home), *port_flags(chosen_ports())]
    # A test run that a shell put into the background ignores Ctrl-C, and so would this.
    starting = subprocess.Popen(
        words,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        eventually(lambda: len(list((home / "processes").glob("*_deployment_*"))) >= 2)
    finally:
        starting.send_signal(signal.SIGINT)
        _, said = starting.communicate(timeout=120)
        if starting.returncode != 130:
            belvedere("down", "--home", str(home), check=False)
    assert starting.returncode == 130
    assert "interrupted: stopping what was started" in said
    installation = load_installation(home)
    assert installation is not None
    assert find_instance(installation.instance) == set()
    assert not installation.ray_directory.exists()


def test_down_leaves_nothing(running: Running) -> None:
    installation = running.installation
    everything = {entry.identity for entry in snapshot().values() if _belongs(entry.identity, installation.instance)}
    assert len(everything) > 20
    done = belvedere("down", "--home", str(installation.home))
    assert "stopped" in done.stdout
    assert find_instance(installation.instance) == set()
    assert {identity for identity in everything if identity.alive()} == set()
    assert listening_ports() & set(installation.ports.values()) == set()
    assert not installation.ray_directory.exists()
    assert not (installation.home / "processes").exists()
    assert belvedere("down", "--home", str(installation.home), "--purge").returncode == 0
    assert not installation.home.exists()


def _belongs(identity: Identity, instance: str) -> bool:
    """Whether a process or one above it carries the id; Ray's helpers overwrite their environment."""
    found, pid = find_instance(instance), identity.pid
    entries = snapshot()
    while pid in entries:
        if entries[pid].identity in found:
            return True
        pid = entries[pid].parent
    return False

"""The parts that Belvedere itself is made of on one machine: Ray, Envoy and its control plane, Prometheus, Alertmanager."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import yaml

from belvedere_operators.alerts.alertmanager import alertmanager_config
from belvedere_operators.manifests.rayservice import INGRESS_ENVIRONMENT, SLOT
from belvedere_platform.store import Manifest
from belvedere_platform.store.kinds import CONFIG_MAP, DEPLOYMENT, SECRET

if TYPE_CHECKING:
    from belvedere_operators.controlplane.installation import Installation

NAMESPACE = "belvedere-system"
MOST_REPLICAS = 10_000
LABELS = {"app.kubernetes.io/part-of": "belvedere", "app.kubernetes.io/managed-by": "belvedere"}
RAY_ENVIRONMENT: Mapping[str, str] = {
    # Ray calls it that because only there it is the default: every part listens on the loopback address alone.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    **INGRESS_ENVIRONMENT,
    "RAY_SERVE_DEFAULT_HTTP_HOST": "127.0.0.1",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",
    # Two logical CPUs for each real one would otherwise make every worker start a thread pool of its own.
    "OMP_NUM_THREADS": "1",
    # Ray gives its workers a low priority; here they are what the machine is for, replicas above all.
    "RAY_worker_niceness": "0",
    # Else Ray starts an idle worker for each logical CPU, just when the first job wants the real ones.
    "RAY_prestart_worker_first_driver": "0",
    "RAY_enable_worker_prestart": "0",
    # Nobody takes this one node away with notice; the watcher is one more process to start with every run.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}


def platform_manifests(installation: Installation) -> list[Manifest]:
    """Return all of them. The same installation gives the same manifests, so applying them again changes nothing."""
    return [
        _secret("alerts", {"token": installation.alerts_secret}),
        _config_map("prometheus", {"prometheus.yml": _yaml(prometheus_config(installation))}),
        _config_map("alertmanager", {"alertmanager.yml": _yaml(_alertmanager_config(installation))}),
        ray(installation),
        gateway(installation),
        envoy(installation),
        prometheus(installation),
        alertmanager(installation),
    ]


def ray(installation: Installation) -> Manifest:
    """Return the local Ray: one head node whose CPUs are logical, so that training and serving fit beside each other."""
    ports = installation.ports
    words = [
        "ray", "start", "--head", "--block", "--disable-usage-stats", "--no-monitor",
        "--include-log-monitor=false", "--node-ip-address=127.0.0.1", "--port=0",
        "--dashboard-host=127.0.0.1", f"--dashboard-port={ports['ray-dashboard']}",
        "--dashboard-agent-listen-port=0", "--min-worker-port=0", "--max-worker-port=0",
        f"--ray-client-server-port={ports['ray-client']}",
        f"--metrics-export-port={ports['ray-metrics']}",
        f"--num-cpus={installation.num_cpus}",
        # In a cluster each worker pod has one slot, so that it carries one replica; here all replicas are on one node.
        f"--resources={json.dumps({SLOT: MOST_REPLICAS})}",
        f"--object-store-memory={installation.object_store_mebibytes * 2**20}",
        f"--temp-dir={installation.ray_directory}",
    ]  # fmt: skip
    return _deployment(
        "ray",
        command=words,
        environment=RAY_ENVIRONMENT,
        ports={"dashboard": ports["ray-dashboard"]},
        ready=("/api/version", "dashboard"),
        grace_seconds=10,
    )


def gateway(installation: Installation) -> Manifest:
    """Return the control plane of Envoy."""
    ports = installation.ports
    words = [
        "belvedere", "gateway", "serve", f"--xds-port={ports['xds']}",
        f"--metrics-port={ports['gateway-metrics']}", f"--tap-port={ports['shadow-tap']}",
        "--memory=$(BELVEDERE_ROOT)/memory/routes.json",
    ]  # fmt: skip
    return _deployment(
        "gateway",
        command=words,
        ports={"metrics": ports["gateway-metrics"]},
        ready=("/healthz", "metrics"),
        claims={"gateway-memory": "/memory"},
    )


def envoy(installation: Installation) -> Manifest:
    """Return Envoy, the only part that clients talk to."""
    ports = installation.ports
    words = [
        "belvedere", "gateway", "envoy", f"--gateway-port={ports['gateway']}",
        f"--admin-port={ports['envoy-admin']}", f"--xds-port={ports['xds']}",
        "--output=$(BELVEDERE_ROOT)/etc/envoy/bootstrap.json",
    ]  # fmt: skip
    return _deployment(
        "envoy",
        command=words,
        ports={"gateway": ports["gateway"], "admin": ports["envoy-admin"]},
        ready=("/ready", "admin"),
        grace_seconds=15,
    )


def prometheus(installation: Installation) -> Manifest:
    """Return Prometheus."""
    words = [
        "prometheus", "--config.file=$(BELVEDERE_ROOT)/etc/prometheus/prometheus.yml",
        "--storage.tsdb.path=$(BELVEDERE_ROOT)/data", "--storage.tsdb.retention.time=7d",
        "--storage.tsdb.retention.size=2GB", "--web.enable-lifecycle",
        f"--web.listen-address=127.0.0.1:{installation.ports['prometheus']}", "--log.level=warn",
    ]  # fmt: skip
    return _deployment(
        "prometheus",
        command=words,
        ports={"web": installation.ports["prometheus"]},
        ready=("/-/ready", "web"),
        files={"configMap": {"name": "prometheus"}},
        mount="/etc/prometheus",
        claims={"prometheus": "/data"},
    )


def alertmanager(installation: Installation) -> Manifest:
    """Return Alertmanager, without a cluster of its own."""
    words = [
        alertmanager_program(), "--config.file=$(BELVEDERE_ROOT)/etc/alertmanager/alertmanager.yml",
        "--storage.path=$(BELVEDERE_ROOT)/data", "--cluster.listen-address=",
        f"--web.listen-address=127.0.0.1:{installation.ports['alertmanager']}", "--log.level=warn",
    ]  # fmt: skip
    manifest = _deployment(
        "alertmanager",
        command=words,
        ports={"web": installation.ports["alertmanager"]},
        ready=("/-/ready", "web"),
        files={"configMap": {"name": "alertmanager"}},
        mount="/etc/alertmanager",
        claims={"alertmanager": "/data"},
    )
    pod = manifest["spec"]["template"]["spec"]
    pod["volumes"].append({"name": "secret", "secret": {"secretName": "alerts"}})
    pod["containers"][0]["volumeMounts"].append({"name": "secret", "mountPath": "/etc/alertmanager/secret"})
    return manifest


def alertmanager_program() -> str:
    """Return what Alertmanager is called here: Debian puts its package's name before it."""
    return next((name for name in ("alertmanager", "prometheus-alertmanager") if shutil.which(name)), "alertmanager")


def prometheus_config(installation: Installation) -> dict[str, Any]:
    """Return what Prometheus scrapes, how often, and whom it tells of alerts."""
    ports, often = installation.ports, f"{installation.scrape_seconds:g}s"
    seldom = f"{2 * installation.scrape_seconds:g}s"

    def job(name: str, port: str, **fields: Any) -> dict[str, Any]:
        return {
            "job_name": name,
            # The labels namespace and service are the gateway's, not the scraper's.
            "honor_labels": True,
            "static_configs": [{"targets": [f"127.0.0.1:{ports[port]}"]}],
            **fields,
        }

    return {
        "global": {"scrape_interval": often, "scrape_timeout": often, "evaluation_interval": often},
        "rule_files": [f"{installation.rules_directory}/*.yaml"],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [f"127.0.0.1:{ports['alertmanager']}"]}]}]},
        "scrape_configs": [
            job("envoy", "envoy-admin", metrics_path="/stats/prometheus"),
            job("gateway", "gateway-metrics"),
            job("operator", "operator", scrape_interval=seldom, scrape_timeout=seldom),
            job("ray", "ray-metrics", scrape_interval=seldom, scrape_timeout=seldom),
        ],
    }


def _alertmanager_config(installation: Installation) -> dict[str, Any]:
    # Alertmanager reads a relative file name from the directory of its configuration.
    return alertmanager_config(webhook_url=f"{installation.url('operator')}/alerts", secret_file="secret/token")


def _deployment(
    name: str,
    *,
    command: list[str],
    ports: Mapping[str, int],
    ready: tuple[str, str],
    environment: Mapping[str, str] | None = None,
    files: Mapping[str, Any] | None = None,
    mount: str = "",
    claims: Mapping[str, str] | None = None,
    grace_seconds: int = 10,
) -> Manifest:
    volumes: list[dict[str, Any]] = [{"name": "files", **files}] if files else []
    mounts = [{"name": "files", "mountPath": mount}] if files else []
    for claim, path in (claims or {}).items():
        volumes.append({"name": claim, "persistentVolumeClaim": {"claimName": claim}})
        mounts.append({"name": claim, "mountPath": path})
    container: dict[str, Any] = {
        "name": "main",
        "image": "belvedere",
        "command": command,
        "env": [{"name": key, "value": value} for key, value in sorted((environment or {}).items())],
        "ports": [{"name": key, "containerPort": value} for key, value in ports.items()],
        "readinessProbe": {"httpGet": {"path": ready[0], "port": ready[1]}, "periodSeconds": 5, "timeoutSeconds": 2},
        "volumeMounts": mounts,
    }
    pod = {"containers": [container], "volumes": volumes, "terminationGracePeriodSeconds": grace_seconds}
    labels = {"app.kubernetes.io/name": name}
    return {
        "apiVersion": DEPLOYMENT.api_version,
        "kind": DEPLOYMENT.kind,
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {**LABELS, **labels}},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


def _config_map(name: str, data: Mapping[str, str]) -> Manifest:
    metadata = {"name": name, "namespace": NAMESPACE, "labels": dict(LABELS)}
    return {"apiVersion": CONFIG_MAP.api_version, "kind": CONFIG_MAP.kind, "metadata": metadata, "data": dict(data)}


def _secret(name: str, data: Mapping[str, str]) -> Manifest:
    return {
        "apiVersion": SECRET.api_version,
        "kind": SECRET.kind,
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": dict(LABELS)},
        "type": "Opaque",
        "data": {key: base64.b64encode(value.encode()).decode() for key, value in data.items()},
    }


def _yaml(fields: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(fields), sort_keys=False)

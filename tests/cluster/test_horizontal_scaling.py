"""The cluster's own autoscaler: it is made when it is asked for, and by what pods use a service has more replicas, and fewer again."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .cluster import Cluster
from .figures import Figures
from .load import Load
from .node import ROOT
from .release import Release, model_service

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

METRICS_SERVER = ROOT / "deploy" / "cluster" / "manifests" / "metrics-server.yaml"
METRICS = "v1beta1.metrics.k8s.io"
BUSY_REQUESTS_PER_SECOND = 100
AUTOSCALER = "horizontalpodautoscaler"


def scaled(release: Release, service: str, target_cpu_percent: int) -> dict[str, Any]:
    """Return the service as it is, with an autoscaler that says how many replicas there are."""
    asked = model_service(release.get("modelservice", service)["status"]["stable"]["version"])
    del asked["spec"]["scaling"]["minReplicas"]
    autoscaler = {"kind": "HorizontalPodAutoscaler", "targetCpuPercent": target_cpu_percent}
    asked["spec"]["scaling"]["autoscaler"] = autoscaler
    return asked


@pytest.fixture
def unscaled(release: Release, service: str) -> Iterator[str]:
    """The service, which has its own number of replicas again afterwards."""
    yield service
    release.apply(model_service(release.get("modelservice", service)["status"]["stable"]["version"]))
    release.wait(AUTOSCALER, f"{service}-replicas", "delete")
    release.wait_routable(service, 1)


@pytest.fixture
def metrics(cluster: Cluster) -> Iterator[None]:
    """What pods use, told by the cluster's metrics-server, or by ours on a bare node for which it was built; skips without."""
    found = cluster.kubectl("get", "apiservice", METRICS, "--ignore-not-found", "-o", "name")
    if found:
        yield
        return
    program = subprocess.run(
        [ROOT / "deploy/cluster/metrics_server.sh", "--where"], check=True, capture_output=True, text=True
    )
    if not (cluster.kubeconfig.parent / "config" / "plan.json").exists() or not Path(program.stdout.strip()).exists():
        pytest.skip("there is no metrics-server: make metrics-server")
    cluster.kubectl("apply", "--server-side", "-f", str(METRICS_SERVER))
    try:
        cluster.wait("apiservice", METRICS, "kube-system", "condition=Available")
        yield
    finally:
        # While it is named and does not answer, no namespace can be deleted.
        cluster.kubectl("delete", "-f", str(METRICS_SERVER), "--wait=true")


def test_an_autoscaler_is_made_changed_and_taken_away(release: Release, unscaled: str) -> None:
    name = f"{unscaled}-replicas"
    for percent in (90, 60):
        release.apply(scaled(release, unscaled, percent))
        target = f"jsonpath={{.spec.metrics[0].resource.target.averageUtilization}}={percent}"
        release.wait(AUTOSCALER, name, "create")
        release.wait(AUTOSCALER, name, target)


def test_load_scales_a_service_out_and_in(release: Release, unscaled: str, metrics: None, figures: Figures) -> None:
    release.apply(scaled(release, unscaled, 100))
    name = f"{unscaled}-replicas"
    release.wait(AUTOSCALER, name, "create")
    release.wait(AUTOSCALER, name, "condition=ScalingActive")
    release.wait(AUTOSCALER, name, "jsonpath={.status.currentReplicas}=1")
    with Load(release.address_on_a_node(), BUSY_REQUESTS_PER_SECOND):
        begun = time.monotonic()
        release.wait(AUTOSCALER, name, "jsonpath={.status.desiredReplicas}=2")
        decided = time.monotonic()
        release.wait_routable(unscaled, 2)
        note = (
            f"from {BUSY_REQUESTS_PER_SECOND} requests a second until two replicas are routed to; {{:.0f}} s to decide"
        )
        figures.note("autoscaler_out_seconds", time.monotonic() - begun, note.format(decided - begun))
    begun = time.monotonic()
    release.wait(AUTOSCALER, name, "jsonpath={.status.desiredReplicas}=1")
    release.wait_routable(unscaled, 1)
    figures.note(
        "autoscaler_in_seconds", time.monotonic() - begun, "from the last request until one replica is routed to"
    )

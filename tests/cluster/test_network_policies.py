"""Network policies as the cluster's network enforces them: who reaches a model's pods, and a tenant's."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from .cluster import PATIENCE_SECONDS, Cluster
from .release import Release
from .test_pods import pod

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

TEAM = Path(__file__).parents[2] / "deploy" / "tenancy" / "team.yaml"
DASHBOARD_PORT = 8265
PROMETHEUS = "/api/v1/namespaces/monitoring/services/prometheus-operated:web/proxy/api/v1/query?query="
# One that does not answer is refused or kept waiting, by the cluster's choice.
TRY = """
import socket, sys
for address in sys.argv[1:]:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=3).close()
        print(address)
    except OSError:
        pass
"""


def reached(cluster: Cluster, namespace: str, where: str, addresses: set[str]) -> set[str]:
    """Return those of the addresses to which a container of a namespace can connect."""
    words = ("--", "python", "-c", TRY, *sorted(addresses))
    return set(cluster.kubectl("exec", "-n", namespace, *where.split(), *words).split())


def start(cluster: Cluster, name: str, namespace: str) -> str:
    """Start a pod that listens and can be asked to connect; return where it listens."""
    listens = {"readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1}}
    cluster.apply(pod(name, "python", "-m", "http.server", "8080", container=listens), namespace=namespace)
    cluster.wait("pod", name, namespace, "condition=Ready")
    return f"{cluster.get('pod', name, namespace)['status']['podIP']}:8080"


def addresses_of_models(release: Release, service: str) -> tuple[set[str], set[str]]:
    """Return where the pods of a service listen: their metrics, and all else."""
    selector = ("-l", f"belvedere.dev/service={service}", "-n", release.namespace, "-o", "json")
    pods = json.loads(release.cluster.kubectl("get", "pods", *selector))["items"]
    slices = json.loads(release.cluster.kubectl("get", "endpointslices", *selector))["items"]
    metrics = {
        f"{each['status']['podIP']}:{port['containerPort']}"
        for each in pods
        for container in each["spec"]["containers"]
        for port in container.get("ports", ())
        if port.get("name") == "metrics"
    }
    replicas = {
        f"{address}:{port['port']}"
        for each in slices
        for endpoint in each["endpoints"]
        for address in endpoint["addresses"]
        for port in each["ports"]
    }
    heads = [each for each in pods if each["metadata"]["labels"].get("ray.io/node-type") == "head"]
    return metrics, replicas | {f"{each['status']['podIP']}:{DASHBOARD_PORT}" for each in heads}


def test_a_models_pods_answer_gateway_and_prometheus_and_no_stranger(
    release: Release, service: str, namespace: str
) -> None:
    metrics, others = addresses_of_models(release, service)
    assert metrics
    assert len(others) > 1
    gateway = release.get("service", "belvedere-gateway")["spec"]
    door = f"{gateway['clusterIP']}:{gateway['ports'][0]['port']}"
    start(release.cluster, "stranger", namespace)
    # Who has just begun may not be let in at once.
    wait_until(lambda: bool(reached(release.cluster, namespace, "stranger", {door})), "the stranger to be at the door")
    assert reached(release.cluster, namespace, "stranger", {*metrics, *others, door}) == {door}
    inside = "deployment/belvedere-gateway -c control-plane"
    wait_until(
        lambda: reached(release.cluster, release.namespace, inside, others) == others, "the gateway to be let in"
    )
    wait_until(lambda: scraped(release, metrics) == metrics, "Prometheus to have scraped the models")


def scraped(release: Release, addresses: set[str]) -> set[str]:
    """Return those of the addresses of which Prometheus got metrics."""
    wanted = "|".join(sorted(addresses)).replace(".", "[.]")
    query = f'up{{namespace="{release.namespace}",instance=~"{wanted}"}}==1'.replace('"', "%22").replace("|", "%7C")
    found = json.loads(release.cluster.kubectl("get", "--raw", PROMETHEUS + query))["data"]["result"]
    return {each["metric"]["instance"] for each in found}


@pytest.fixture
def teams(cluster: Cluster) -> Iterator[tuple[str, str]]:
    """The namespaces of two teams."""
    names = (f"team-{uuid.uuid4().hex[:6]}", f"team-{uuid.uuid4().hex[:6]}")
    for name in names:
        cluster.apply(*yaml.safe_load_all(TEAM.read_text().replace("team-a", name)))
    yield names
    cluster.kubectl("delete", "namespace", *names, f"--timeout={PATIENCE_SECONDS}s")


def test_a_teams_pods_answer_each_other_and_belvedere_and_no_other_team(
    cluster: Cluster, teams: tuple[str, str], namespace: str
) -> None:
    one, other = teams
    address = start(cluster, "model", one)
    for name, where in (("colleague", one), ("stranger", other), ("operator", namespace)):
        start(cluster, name, where)
    wait_until(lambda: not reached(cluster, other, "stranger", {address}), "the team's policy to be enforced")
    wait_until(lambda: bool(reached(cluster, one, "colleague", {address})), "the colleague to be let in")
    assert reached(cluster, namespace, "operator", {address}) == set()
    cluster.kubectl("label", "namespace", namespace, "belvedere.dev/system=true")
    wait_until(lambda: bool(reached(cluster, namespace, "operator", {address})), "the label to let Belvedere in")


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE_SECONDS} s for {what}"
        time.sleep(1)

"""Parts of a cluster that are replaced or fail under a service of two replicas: requests go on being answered, and all of it recovers.

How many requests failed, and for how long, are figures for `make bench-cluster`; a test fails when what has recovered does
not serve, and when serving was interrupted at all.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .cluster import PATIENCE_SECONDS
from .figures import Figures
from .load import REQUESTS_PER_SECOND, Answer, Load
from .node import start_program, stop_program
from .release import HELM_WAITS, Release

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

REPLICAS = 2
STEADY_SECONDS = 3
API_SERVER_DOWN_SECONDS = 60
ETCD_DOWN_SECONDS = 5
# Of all requests around a fault; a busy machine answers one late now and then, and that is no interruption.
FEW = 0.02


@pytest.fixture(scope="module")
def two(release: Release, service: str) -> str:
    """The service, with two replicas that are routable."""
    release.scale(service, REPLICAS)
    return service


class Watch:
    """Requests around a fault, and when the fault came and was over."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.begun = 0.0
        self.whole = 0.0

    def failed(self) -> list[Answer]:
        return sorted((each for each in self.answers if each.error is not None), key=lambda each: each.sent)

    def note(self, figures: Figures, name: str) -> None:
        """Note what was felt of the fault."""
        failed = self.failed()
        said = f"of {len(self.answers)} requests, {REQUESTS_PER_SECOND} a second to {REPLICAS} replicas"
        figures.note(f"{name}_failed_requests", len(failed), f"{said}; {failed[0].error}" if failed else said)
        outage = failed[-1].sent - failed[0].sent if failed else 0.0
        figures.note(f"{name}_outage_seconds", outage, "from the first to the last request that failed")
        figures.note(f"{name}_recovery_seconds", self.whole - self.begun, "until nothing of the fault is left")


@contextmanager
def watched(release: Release, figures: Figures, name: str) -> Iterator[Watch]:
    """Send requests around the block, which brings a fault and returns when all has recovered."""
    watch = Watch()
    with Load(release.address_on_a_node()) as load:
        time.sleep(STEADY_SECONDS)
        watch.begun = time.monotonic()
        yield watch
        watch.whole = time.monotonic()
        time.sleep(STEADY_SECONDS)
    watch.answers = load.answers
    watch.note(figures, name)
    before = [each for each in load.answers if each.sent < watch.begun - 1]
    after = [each for each in load.answers if each.sent > watch.whole]
    for calm in (before, after):
        assert calm
        assert_served(calm)


def assert_served(answers: list[Answer]) -> None:
    failed = [each for each in answers if each.error is not None]
    assert len(failed) <= max(1.0, FEW * len(answers)), failed[:3]


def assert_served_throughout(watch: Watch) -> None:
    assert_served(watch.answers)


def pods(release: Release, role: str) -> dict[str, str]:
    """Return the service's pods of a role: identity by name."""
    selector = f"belvedere.dev/service=shapes,belvedere.dev/role={role}"
    text = release.cluster.kubectl("get", "pods", "-n", release.namespace, "-l", selector, "-o", "json")
    return {each["metadata"]["name"]: each["metadata"]["uid"] for each in json.loads(text)["items"]}


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE_SECONDS} s for {what}"
        time.sleep(0.5)


def of_belvedere(release: Release) -> set[str]:
    """Return the identities of the operator's and the gateway's pods."""
    selector = "app.kubernetes.io/component in (operator, gateway)"
    names = ("-o", "jsonpath={.items[*].metadata.uid}")
    return set(release.cluster.kubectl("get", "pods", "-n", release.namespace, "-l", selector, *names).split())


def test_an_upgrade_replaces_operator_and_gateway_and_no_model(release: Release, two: str, figures: Figures) -> None:
    old, models = of_belvedere(release), starts(release)
    with watched(release, figures, "upgrade") as watch:
        # Of every pod, those of models too: what runs keeps what it was born with.
        release.chart("upgrade", "--wait", HELM_WAITS, "--set=pods.annotations.release=next")
        wait_until(lambda: not old & of_belvedere(release), "the old pods to end")
        acts(release, two)
    restarted = len(models.items() ^ starts(release).items())
    figures.note("upgrade_pods_restarted", restarted, f"of the {len(models)} pods of a service")
    assert_served_throughout(watch)
    assert restarted == 0


def starts(release: Release) -> dict[str, int]:
    """Return how often each of the service's pods was started anew, by its identity."""
    selector = "belvedere.dev/service=shapes"
    text = release.cluster.kubectl("get", "pods", "-n", release.namespace, "-l", selector, "-o", "json")
    return {
        each["metadata"]["uid"]: sum(one["restartCount"] for one in each["status"].get("containerStatuses", ()))
        for each in json.loads(text)["items"]
    }


def test_an_evicted_replica_is_replaced_and_nobody_notices(release: Release, two: str, figures: Figures) -> None:
    name = min(pods(release, "replica"))
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
    path = f"/api/v1/namespaces/{release.namespace}/pods/{name}/eviction"
    with watched(release, figures, "eviction") as watch:
        release.cluster.kubectl("create", "--raw", path, "-f", "-", given=json.dumps(eviction))
        wait_until(lambda: name not in pods(release, "replica"), f"{name} to go")
        release.wait_routable(two, REPLICAS)
    assert_served_throughout(watch)


def test_a_drained_node_gives_its_replicas_up_one_at_a_time(release: Release, two: str, figures: Figures) -> None:
    before = set(pods(release, "replica").values())
    node = json.loads(release.cluster.kubectl("get", "nodes", "-o", "json"))["items"][0]["metadata"]["name"]
    selector = f"--pod-selector=belvedere.dev/service={two},belvedere.dev/role=replica"
    drain = ("drain", node, selector, "--delete-emptydir-data", f"--timeout={PATIENCE_SECONDS}s")
    command = ["kubectl", f"--kubeconfig={release.cluster.kubeconfig}", *drain]
    with watched(release, figures, "drain") as watch:
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as draining:
            try:
                wait_until(lambda: not before <= set(pods(release, "replica").values()), "a replica to go")
            finally:
                # There is no other node: those that come must go where the others were.
                release.cluster.kubectl("uncordon", node)
            assert draining.wait(PATIENCE_SECONDS) == 0
        wait_until(lambda: not before & set(pods(release, "replica").values()), "every replica to be replaced")
        release.wait_routable(two, REPLICAS)
    assert_served_throughout(watch)


def test_a_killed_head_is_followed_by_one_that_knows_its_replicas(release: Release, two: str, figures: Figures) -> None:
    (head,), replicas, slices = pods(release, "head"), pods(release, "replica"), addresses_by_replica(release)
    with watched(release, figures, "head_killed") as watch:
        now = ("--grace-period=0", "--force")
        release.cluster.kubectl("delete", "pod", head, "-n", release.namespace, *now)
        wait_until(lambda: head_answers(release, head), "another head")
        release.wait_routable(two, REPLICAS)
    assert_served_throughout(watch)
    assert pods(release, "replica") == replicas
    assert addresses_by_replica(release) == slices


def head_answers(release: Release, lost: str) -> bool:
    """Return whether another head is there, and Serve runs on it."""
    found = pods(release, "head")
    if not found or lost in found:
        return False
    ready = release.get("pod", next(iter(found)))["status"].get("conditions", ())
    if not any(one["type"] == "Ready" and one["status"] == "True" for one in ready):
        return False
    path = f"/api/v1/namespaces/{release.namespace}/pods/{next(iter(found))}:8265/proxy/api/serve/applications/"
    command = ["kubectl", f"--kubeconfig={release.cluster.kubeconfig}", "get", "--raw", path]
    asked = subprocess.run(command, capture_output=True, text=True)
    if asked.returncode:
        return False  # it was ready a moment ago, and may have ended since
    applications = json.loads(asked.stdout)["applications"]
    return bool(applications) and all(one["status"] == "RUNNING" for one in applications.values())


def addresses_by_replica(release: Release) -> set[str]:
    """Return the names of the EndpointSlices, one a replica."""
    selector = "belvedere.dev/ray-service"
    return set(
        release.cluster.kubectl("get", "endpointslices", "-n", release.namespace, "-l", selector, "-o", "name").split()
    )


def acted_on(release: Release, service: str) -> bool:
    """Return whether the operator has seen what was last asked of a service."""
    found = release.get("modelservice", service)
    return bool(found["status"]["observedGeneration"] == found["metadata"]["generation"])


def test_serving_goes_on_without_the_api_server(release: Release, two: str, node: Path, figures: Figures) -> None:
    with watched(release, figures, "api_server_down") as watch:
        stop_program(node, "kube-apiserver")
        time.sleep(API_SERVER_DOWN_SECONDS)
        start_program(node, "kube-apiserver")
        back_and_acting(release, two, watch)
    assert_served_throughout(watch)


def test_serving_goes_on_while_etcd_restarts(release: Release, two: str, node: Path, figures: Figures) -> None:
    with watched(release, figures, "etcd_restart") as watch:
        stop_program(node, "etcd")
        time.sleep(ETCD_DOWN_SECONDS)
        start_program(node, "etcd")
        back_and_acting(release, two, watch)
    assert_served_throughout(watch)


def back_and_acting(release: Release, service: str, watch: Watch) -> None:
    """Return when the API server answers and the operator has acted on something asked of it; recovery begins now."""
    watch.begun = time.monotonic()
    wait_until(release.cluster.answers, "the API server to answer")
    acts(release, service)


def acts(release: Release, service: str) -> None:
    """Return when the operator has acted on something asked of it, and every replica can be reached."""
    seconds = release.get("modelservice", service)["spec"]["routing"]["timeoutSeconds"]
    patch = {"spec": {"routing": {"timeoutSeconds": seconds + 1}}}
    merge = ("--type=merge", f"--patch={json.dumps(patch)}", "-n", release.namespace)
    wait_until(lambda: release.cluster.takes("patch", "modelservice", service, *merge), "the change to be taken")
    wait_until(lambda: acted_on(release, service), "the operator to act")
    release.wait_routable(service, REPLICAS)

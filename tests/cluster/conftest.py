"""A real cluster for the tests of this folder: the one that BELVEDERE_TEST_KUBECONFIG names, else a bare node for this run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
BARE_NODE = [sys.executable, str(ROOT / "deploy" / "cluster" / "bare_node.py")]
PATIENCE_SECONDS = 240


def require_cluster_tests() -> None:
    """Skip unless the tests of a cluster were asked for: they take minutes."""
    if not os.environ.get("BELVEDERE_CLUSTER_TEST"):
        pytest.skip("takes minutes: make cluster-test")


def require_bare_node() -> None:
    """Skip where no bare node can be started."""
    require_cluster_tests()
    if os.geteuid() != 0:
        pytest.skip("a bare node needs root")
    if subprocess.run([*BARE_NODE, "ready"], stderr=subprocess.DEVNULL).returncode:
        pytest.skip("the node is not built: make cluster-up")


class Cluster:
    """kubectl on the cluster under test."""

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig

    def kubectl(self, *arguments: str, given: str | None = None) -> str:
        """Return what kubectl prints; fails the test with what it complains about."""
        done = subprocess.run(
            ["kubectl", f"--kubeconfig={self.kubeconfig}", *arguments], input=given, capture_output=True, text=True
        )
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}:\n{done.stdout}{done.stderr}"
        return done.stdout

    def get(self, kind: str, name: str, namespace: str) -> dict[str, Any]:
        """Return an object."""
        found: dict[str, Any] = json.loads(self.kubectl("get", kind, name, "-n", namespace, "-o", "json"))
        return found

    def apply(self, *manifests: Mapping[str, Any], namespace: str) -> None:
        """Apply objects to a namespace."""
        text = yaml.safe_dump_all([dict(manifest) for manifest in manifests])
        self.kubectl("apply", "--server-side", "-n", namespace, "-f", "-", given=text)

    def wait(self, kind: str, name: str, namespace: str, condition: str, seconds: int = PATIENCE_SECONDS) -> None:
        """Return when `kubectl wait --for=CONDITION` does; fails with what the cluster says of the namespace."""
        until = (f"--for={condition}", f"--timeout={seconds}s")
        done = subprocess.run(
            ["kubectl", f"--kubeconfig={self.kubeconfig}", "wait", kind, name, "-n", namespace, *until],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{kind}/{name} is not {condition}: {done.stderr}\n{self.describe(namespace)}"

    def describe(self, namespace: str) -> str:
        """Return what one wants to read when something in a namespace went wrong."""
        parts = [
            self.kubectl("get", "all,rayjobs,rayservices,rayclusters", "-n", namespace, "-o", "wide"),
            self.kubectl("get", "events", "-n", namespace, "--sort-by=.lastTimestamp"),
        ]
        return "\n".join(parts)[-8000:]


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The cluster under test; a bare node is ended and removed after the last test, or with this process."""
    require_cluster_tests()
    given = os.environ.get("BELVEDERE_TEST_KUBECONFIG")
    if given:
        yield Cluster(Path(given))
        return
    require_bare_node()
    directory = ROOT / "build" / f"cluster-test-{os.getpid()}"
    # It ends when its standard input does, so it does not outlive this process whatever becomes of that.
    with subprocess.Popen(
        [*BARE_NODE, "run", "--directory", str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        path = running.stdout.readline().strip()
        assert path, "the node did not start: its reason stands above"
        yield Cluster(Path(path))
        running.stdin.close()
        assert running.wait(PATIENCE_SECONDS) == 0


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A namespace of this test's own, in which pods must be as restricted as Kubernetes knows; deleted afterwards."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    cluster.kubectl("create", "namespace", name)
    cluster.kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=true", f"--timeout={PATIENCE_SECONDS}s")

"""A real cluster for the tests of this folder, and on it Belvedere, brought to a point of its story once for all tests.

The cluster is the one that BELVEDERE_TEST_KUBECONFIG names, else a bare node for this run. BELVEDERE_TEST_NAMESPACE names a
namespace that is kept: a test that is run again there goes on with what an earlier run left.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from .cluster import PATIENCE_SECONDS, Cluster, restricted_namespace
from .figures import Figures
from .node import BARE_NODE, ROOT
from .release import HELM_WAITS, Release, built, imported, model_service, redis, training_run


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
def node(cluster: Cluster) -> Path:
    """The directory of the bare node under test; skips on another cluster, whose programs are not ours to stop."""
    directory = cluster.kubeconfig.parent
    if not (directory / "config" / "plan.json").exists():
        pytest.skip("the cluster under test is no bare node")
    return directory


@pytest.fixture(scope="session")
def figures() -> Iterator[Figures]:
    """What is measured on the way, written to the file that BELVEDERE_TEST_FIGURES names."""
    measured = Figures()
    yield measured
    if path := os.environ.get("BELVEDERE_TEST_FIGURES"):
        measured.write(Path(path))


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A namespace of this test's own, in which pods must be as restricted as Kubernetes knows; deleted afterwards."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    cluster.apply(restricted_namespace(name))
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=true", f"--timeout={PATIENCE_SECONDS}s")


@pytest.fixture(scope="session")
def release(cluster: Cluster, figures: Figures) -> Iterator[Release]:
    """The chart, installed from nothing into a namespace in which pods must be as restricted as Kubernetes knows."""
    if shutil.which("helm") is None:
        pytest.skip("helm is not set up: deploy/setup/setup.sh --with-helm")
    kept = os.environ.get("BELVEDERE_TEST_NAMESPACE")
    namespace = kept or f"belvedere-{uuid.uuid4().hex[:6]}"
    cluster.apply(restricted_namespace(namespace))
    release = Release(cluster=cluster, namespace=namespace)
    release.apply(*redis())
    begun = time.monotonic()
    release.chart("upgrade", "--install", "--wait", HELM_WAITS)
    if not kept:
        figures.note("helm_install_seconds", time.monotonic() - begun, "helm install --wait, images on the node")
    yield release
    if not kept:
        release.helm("uninstall", "belvedere", "--ignore-not-found")
        cluster.kubectl("delete", "namespace", namespace, "--ignore-not-found", f"--timeout={PATIENCE_SECONDS}s")


@pytest.fixture(scope="session")
def data(release: Release) -> str:
    """A data set that was built by a Job of the cluster."""
    release.job("build-shapes", "belvedere", "data", "build", "shapes")
    return "shapes"


@pytest.fixture(scope="session")
def version(release: Release, data: str) -> str:
    """A version that was trained in Ray pods under KubeRay."""
    name = "shapes-v1"
    release.apply(training_run(name, data))
    release.wait("trainingrun", name, "jsonpath={.status.phase}=Succeeded")
    release.wait("modelversion", name, "condition=Ready")
    return name


@pytest.fixture(scope="session")
def engine(release: Release, version: str) -> str:
    """The version's engine, built by a Job."""
    return built(release, version)


@pytest.fixture(scope="session")
def service(release: Release, version: str, engine: str) -> str:
    """A service that is ready, of the version unless an earlier run left it at another."""
    if not release.names("modelservices"):
        release.apply(model_service(version))
    release.wait("modelservice", "shapes", "condition=Ready")
    return "shapes"


@pytest.fixture(scope="session")
def candidate(release: Release, version: str) -> str:
    """Another version, of the same artifact."""
    name = "shapes-v2"
    imported(release, f"models/{version}", name)
    return name


@pytest.fixture
def triton(node: Path) -> None:
    """Skips where the image of the models has no Triton: that of the bare node has the one that was set up here, if any."""
    plan = json.loads((node / "config" / "containers.json").read_text())
    if not any(Path(mount["source"], "ready").is_file() for mount in plan["mounts"] if mount["type"] == "bind"):
        pytest.skip("there is no Triton: make triton")

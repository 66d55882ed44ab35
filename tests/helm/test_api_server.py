"""A real API server takes the whole chart, and would let its pods into a namespace that enforces Pod Security "restricted"."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import FULL, S3, Manifest, pod_specs, render

NAMESPACES = ("belvedere-system", "team-a", "team-b")
# No CRD of these is installed in the API server that tests start.
UNKNOWN = ("AlertmanagerConfig",)


def kubectl(kubeconfig: Path, *words: str, given: list[Manifest] | None = None) -> subprocess.CompletedProcess[str]:
    text = None if given is None else yaml.safe_dump_all(given)
    return subprocess.run(
        ["kubectl", "--kubeconfig", str(kubeconfig), *words], input=text, capture_output=True, text=True, timeout=120
    )


def namespace(name: str) -> Manifest:
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


@pytest.fixture(scope="module")
def restricted(kubeconfig: Path) -> Iterator[Path]:
    """A cluster whose namespaces for the chart enforce the restricted standard."""
    given = [namespace(name) for name in NAMESPACES]
    # Made by a controller that the API server of the tests does not have; no pod is let in without.
    account = {"name": "default", "namespace": "belvedere-system"}
    given.append({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account})
    done = kubectl(kubeconfig, "apply", "--server-side", "-f", "-", given=given)
    assert done.returncode == 0, done.stderr
    yield kubeconfig
    kubectl(kubeconfig, "delete", "--wait=false", "namespace", *NAMESPACES)


@pytest.mark.parametrize("values", [S3, FULL], ids=["default", "full"])
def test_the_whole_chart_is_accepted(restricted: Path, values: dict[str, Any]) -> None:
    manifests = [one for one in render(values) if one["kind"] not in UNKNOWN]
    done = kubectl(
        restricted, "apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict",
        "-f", "-", given=manifests,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "the API server warns"
    assert done.stdout.count("serverside-applied") == len(manifests)


@pytest.mark.parametrize("values", [S3, FULL], ids=["default", "full"])
def test_every_pod_is_let_into_a_restricted_namespace(restricted: Path, values: dict[str, Any]) -> None:
    for number, spec in enumerate(pod_specs(render(values)).values()):
        # The chart's accounts are not there; they are not what is asked here.
        spec = {key: value for key, value in spec.items() if key != "serviceAccountName"}
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"pod-{number}", "namespace": "belvedere-system"},
            "spec": {**spec, "automountServiceAccountToken": False},
        }
        done = kubectl(restricted, "create", "--dry-run=server", "-f", "-", given=[pod])
        assert done.returncode == 0, done.stderr


def test_the_restricted_standard_is_really_asked(restricted: Path) -> None:
    spec = next(iter(pod_specs(render(S3)).values()))
    spec = {**spec, "securityContext": {}, "automountServiceAccountToken": False}
    spec.pop("serviceAccountName", None)
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "bad", "namespace": "belvedere-system"},
        "spec": spec,
    }
    done = kubectl(restricted, "create", "--dry-run=server", "-f", "-", given=[pod])
    assert 'violates PodSecurity "restricted' in done.stderr

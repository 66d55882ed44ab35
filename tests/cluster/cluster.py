"""kubectl on the cluster under test, and what pods must be like there."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

PATIENCE_SECONDS = 900
"""For all that is waited for. A machine that is busy takes several times as long, and only what never comes is wrong."""
RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
POD = {"runAsNonRoot": True, "runAsUser": 65532, "fsGroup": 65532, "seccompProfile": {"type": "RuntimeDefault"}}


class Cluster:
    """kubectl on the cluster under test."""

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig

    def kubectl(self, *arguments: str, given: str | None = None) -> str:
        """Return what kubectl prints; fails the test with what it complains about."""
        done = subprocess.run(
            ["kubectl", *arguments], input=given, capture_output=True, text=True, env=self._environment()
        )
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}:\n{done.stdout}{done.stderr}"
        return done.stdout

    def _environment(self) -> dict[str, str]:
        # Said by the environment: a plugin is looked for only when it is the first word.
        return {**os.environ, "KUBECONFIG": str(self.kubeconfig)}

    def takes(self, *arguments: str) -> bool:
        """Return whether kubectl succeeds: an API server that is just back refuses what it takes a moment later."""
        return subprocess.run(["kubectl", *arguments], capture_output=True, env=self._environment()).returncode == 0

    def answers(self) -> bool:
        """Return whether its API server serves."""
        return self.takes("get", "--raw", "/readyz")

    def get(self, kind: str, name: str, namespace: str) -> dict[str, Any]:
        """Return an object."""
        found: dict[str, Any] = json.loads(self.kubectl("get", kind, name, "-n", namespace, "-o", "json"))
        return found

    def apply(self, *manifests: Mapping[str, Any], namespace: str | None = None) -> None:
        """Apply objects, to a namespace unless they are the cluster's."""
        text = yaml.safe_dump_all([dict(manifest) for manifest in manifests])
        where = ("-n", namespace) if namespace else ()
        self.kubectl("apply", "--server-side", "--force-conflicts", *where, "-f", "-", given=text)

    def wait(self, kind: str, name: str, namespace: str, condition: str) -> None:
        """Return when `kubectl wait --for=CONDITION` does; fails with what the cluster says of the namespace."""
        until = (f"--for={condition}", f"--timeout={PATIENCE_SECONDS}s")
        done = subprocess.run(
            ["kubectl", f"--kubeconfig={self.kubeconfig}", "wait", kind, name, "-n", namespace, *until],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{kind}/{name} is not {condition}: {done.stderr}\n{self.describe(namespace)}"

    def describe(self, namespace: str) -> str:
        """Return what one wants to read when something in a namespace went wrong."""
        parts = [
            self._said("get", "all,rayjobs,rayservices,rayclusters", "-n", namespace, "-o", "wide"),
            self._said("get", "events", "-n", namespace, "--sort-by=.lastTimestamp"),
        ]
        return "\n".join(parts)[-8000:]

    def _said(self, *arguments: str) -> str:
        # What went wrong may be why this cannot be told either, and is not to be hidden by it.
        done = subprocess.run(["kubectl", *arguments], capture_output=True, text=True, env=self._environment())
        return done.stdout + done.stderr


def restricted_namespace(name: str) -> dict[str, Any]:
    """Return a namespace in which pods must be as restricted as Kubernetes knows."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}

"""kubectl on the cluster under test, and what pods must be like there."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

PATIENCE_SECONDS = 240
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

    def answers(self) -> bool:
        """Return whether its API server serves."""
        command = ["kubectl", f"--kubeconfig={self.kubeconfig}", "get", "--raw", "/readyz"]
        return subprocess.run(command, capture_output=True).returncode == 0

    def get(self, kind: str, name: str, namespace: str) -> dict[str, Any]:
        """Return an object."""
        found: dict[str, Any] = json.loads(self.kubectl("get", kind, name, "-n", namespace, "-o", "json"))
        return found

    def apply(self, *manifests: Mapping[str, Any], namespace: str | None = None) -> None:
        """Apply objects, to a namespace unless they are the cluster's."""
        text = yaml.safe_dump_all([dict(manifest) for manifest in manifests])
        where = ("-n", namespace) if namespace else ()
        self.kubectl("apply", "--server-side", "--force-conflicts", *where, "-f", "-", given=text)

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


def restricted_namespace(name: str) -> dict[str, Any]:
    """Return a namespace in which pods must be as restricted as Kubernetes knows."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}

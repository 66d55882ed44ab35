"""The chart, rendered by the real helm."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

# The resource definitions take the slow loader half a second each time.
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
CHART = Path(__file__).parent.parent.parent / "helm" / "belvedere"
S3 = {"artifacts": {"url": "s3://models/belvedere"}}
FULL: dict[str, Any] = {
    "artifacts": {
        "volume": {"csi": {"driver": "nfs.csi.k8s.io", "volumeAttributes": {"server": "nfs", "share": "/m"}}}
    },
    "watchNamespaces": ["team-a", "team-b"],
    "alerts": {"token": "0123456789abcdef", "alertmanagerConfig": {"enabled": True}},
    "monitoring": {
        "podMonitors": {"enabled": True, "labels": {"release": "monitoring"}},
        "rules": {"enabled": True, "labels": {"release": "monitoring"}},
        "dashboards": {"enabled": True, "annotations": {"grafana_folder": "Belvedere"}},
    },
    "networkPolicies": {"monitoringFrom": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}]},
    "pods": {
        "labels": {"team": "vision"},
        "annotations": {"owner": "vision"},
        "nodeSelector": {"pool": "cpu"},
        "tolerations": [{"key": "a", "operator": "Exists"}],
        "imagePullSecrets": [{"name": "registry"}],
        "priorityClassName": "system-cluster-critical",
        "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}],
        "envFrom": [{"secretRef": {"name": "s3"}}],
        "volumes": [{"name": "cache", "emptyDir": {}}],
        "volumeMounts": [{"name": "cache", "mountPath": "/var/cache/belvedere"}],
    },
    "operator": {"pod": {"env": [{"name": "B", "value": "3"}], "affinity": {"podAntiAffinity": {}}}},
    "gateway": {"service": {"type": "NodePort", "nodePort": 30080}},
    "models": {
        "serviceAccountName": "models",
        "accelerators": 8,
        "training": {"image": {"repository": "trainer-cuda"}, "pod": {"runtimeClassName": "nvidia"}},
    },
}
"""Every part switched on, and every kind of field given."""

Manifest = dict[str, Any]


class Refused(Exception):
    """Helm did not render; the text is what it said."""


@functools.cache
def rendered(values: str, options: tuple[str, ...]) -> str:
    """Return what helm writes for values, given as JSON."""
    helm = shutil.which("helm")
    if helm is None:
        pytest.skip("helm is not set up: deploy/setup/setup.sh --with-helm")
    command = [helm, "template", "belvedere", str(CHART), "--namespace", "belvedere-system", "--values", "-", *options]
    done = subprocess.run(command, input=values, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise Refused(done.stderr)
    return done.stdout


def render(values: Manifest, *options: str) -> list[Manifest]:
    """Return the objects that the chart makes of values."""
    text = rendered(json.dumps(values), options)
    return [found for found in yaml.load_all(text, Loader=LOADER) if found]


@pytest.fixture
def chart() -> Callable[..., list[Manifest]]:
    """Render the chart with values and options of helm."""
    return render


@pytest.fixture(params=[S3, FULL], ids=["default", "full"])
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    """The objects of the chart, with as little as possible set and with everything."""
    return render(request.param)


def pod_specs(manifests: list[Manifest]) -> dict[str, Manifest]:
    """Return the pod specs in objects, by kind and name."""
    found = {}
    for one in manifests:
        name = f"{one['kind']}/{one['metadata']['name']}"
        if one["kind"] == "Pod":
            found[name] = one["spec"]
        elif one["kind"] in ("Deployment", "Job"):
            found[name] = one["spec"]["template"]["spec"]
    assert found
    return found


def named(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    """Return the one object of a kind and name."""
    [found] = [one for one in manifests if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return found

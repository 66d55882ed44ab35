"""The end of the story: what is deleted leaves no object behind. It runs after whatever needs the service."""

from __future__ import annotations

import pytest

from .cluster import PATIENCE_SECONDS
from .release import Release

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

UNTIL = f"--timeout={PATIENCE_SECONDS}s"
OUR_KINDS = "trainingruns,modelversions,engines,modelservices"
CHILDREN = (
    "rayjobs,rayservices,rayclusters,jobs,deployments,pods,endpointslices,configmaps,prometheusrules,services,"
    "podmonitors,poddisruptionbudgets,persistentvolumeclaims,secrets,leases,roles,rolebindings,networkpolicies"
)


# What Helm does not know of: the operator made them, and another that is installed there may go on with them.
KEPT = {"secret/belvedere-alerts", "lease.coordination.k8s.io/belvedere-operator"}


def test_what_is_deleted_leaves_nothing(release: Release, service: str) -> None:
    for kind in OUR_KINDS.split(","):
        # Each after its children: Kubernetes no longer collects those of a kind whose definition has gone.
        foreground = ("--cascade=foreground", UNTIL)
        release.cluster.kubectl("delete", kind, "--all", "-n", release.namespace, *foreground)
    for kind in ("rolebinding", "role", "serviceaccount"):
        release.cluster.kubectl("delete", kind, "importer", "-n", release.namespace, "--ignore-not-found")
    release.cluster.kubectl("delete", "deployment,service,secret", "redis", "-n", release.namespace)
    release.cluster.kubectl("delete", "jobs", "--all", "-n", release.namespace, UNTIL)
    assert release.names(OUR_KINDS) == set()
    release.uninstall()
    for kind in ("pods", "rayclusters"):
        release.cluster.kubectl("wait", kind, "--all", "--for=delete", "-n", release.namespace, UNTIL)
    assert release.names(CHILDREN) == KEPT
    assert "belvedere.dev" not in release.cluster.kubectl("get", "customresourcedefinitions", "-o", "name")

"""A RayJob in a queue is one that Kueue takes: the rules of its webhook for RayJobs, as of v0.17.0, read from its source.

pkg/controller/jobs/rayjob/rayjob_webhook.go and pkg/controller/jobs/raycluster/common.go of sigs.k8s.io/kueue.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

from belvedere_operators.manifests.pods import PodSettings
from belvedere_operators.manifests.rayjob import QUEUE_LABEL, ray_job
from belvedere_platform.resources.training_run import TrainingRun

LONGEST_SUBDOMAIN = 253
MOST_WORKER_GROUPS = 7


def job(**spec: Any) -> Any:
    asked = {"model": "clip", "data": {"dataset": "emoji"}, "optimization": {"pairs": 1000}, **spec}
    metadata = {"name": "run", "namespace": "team", "uid": "u"}
    head = {"apiVersion": "belvedere.dev/v1alpha1", "kind": "TrainingRun", "metadata": metadata}
    run = TrainingRun.model_validate({**head, "spec": asked})
    given = {"attempt": 1, "data_digest": "sha256:" + "a" * 64, "parent_digest": None, "pods": PodSettings(image="i")}
    return ray_job(run.spec, metadata=metadata, **given)


@pytest.mark.parametrize(
    "workers",
    [{}, {"min": 1, "max": 8}, {"max": 2, "resources": {"gpu": 4}}],
    ids=["one", "elastic", "accelerators"],
)
def test_the_webhook_would_take_it(workers: dict[str, Any]) -> None:
    made = job(queue="research", workers=workers)
    spec, queue = made["spec"], made["metadata"]["labels"][QUEUE_LABEL]
    assert len(queue) <= LONGEST_SUBDOMAIN
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", queue)
    assert not spec.get("clusterSelector"), "a managed job must not use an existing cluster"
    assert spec["shutdownAfterJobFinishes"] is True, "the cluster would keep what the queue gave"
    cluster = spec["rayClusterSpec"]
    assert not cluster.get("enableInTreeAutoscaling", False), "only with workload slicing"
    names = [group["groupName"] for group in cluster["workerGroupSpecs"]]
    assert len(names) <= MOST_WORKER_GROUPS
    assert "head" not in names, "reserved for the head group"


def test_all_workers_are_asked_for_together() -> None:
    """Kueue admits a pod set of `replicas` x `numOfHosts` as a whole, and of a suspended job alone."""
    made = job(queue="research", workers={"min": 1, "max": 4})
    (group,) = made["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert (group["replicas"], group["numOfHosts"], made["spec"]["suspend"]) == (4, 1, True)
    assert QUEUE_LABEL not in job()["metadata"]["labels"]

"""How many accelerators there are, and what others leave of them: counted, or as the installation says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from belvedere_operators.controllers.context import Context
from belvedere_operators.manifests.ownership import MANAGED_BY
from belvedere_operators.manifests.raycluster import GPU
from belvedere_operators.manifests.rayjob import ACCELERATORS_ANNOTATION, accelerators_of
from belvedere_platform.resources.training_run import TrainingRun
from belvedere_platform.store import Manifest
from belvedere_platform.store.kinds import DEPLOYMENT, NODE, RAY_JOB, RAY_SERVICE

FINAL_JOB_STATUSES = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})


@dataclass(frozen=True, kw_only=True)
class Accelerators:
    """What the installation may use of them, and what other runs leave of it."""

    total: float
    free: float


async def accelerators_for(context: Context, run: TrainingRun) -> Accelerators | None:
    """Return the budget that a run must fit into; None when there is none, or when it asks for nothing."""
    settings, store = context.settings, context.store
    if not accelerators_of(run.spec) or (settings.accelerators is None and not settings.count_accelerators):
        return None
    held = sum(held_by_job(job) for job in (await store.list(RAY_JOB, labels=MANAGED_BY)).items)
    if settings.accelerators is not None:
        return Accelerators(total=settings.accelerators, free=settings.accelerators - held)
    # The number that a person gives is what training may have; of what nodes have, replicas have their share.
    for kind in (RAY_SERVICE, DEPLOYMENT):
        held += sum(held_by_server(one) for one in (await store.list(kind, labels=MANAGED_BY)).items)
    total = sum(offered_by_node(node) for node in (await store.list(NODE)).items)
    return Accelerators(total=total, free=total - held)


def offered_by_node(node: Manifest) -> float:
    """Return how many accelerators a node lets pods have: none while it is cordoned."""
    if node.get("spec", {}).get("unschedulable"):
        return 0.0
    return float(node.get("status", {}).get("allocatable", {}).get(GPU, 0))


def held_by_job(job: Manifest) -> float:
    """Return how many accelerators a RayJob holds: none before it may run and after it has ended."""
    status = job.get("status", {})
    ended = status.get("jobStatus") in FINAL_JOB_STATUSES or status.get("jobDeploymentStatus") in ("Complete", "Failed")
    if ended or job["spec"].get("suspend"):
        return 0.0
    return float(job["metadata"].get("annotations", {}).get(ACCELERATORS_ANNOTATION, 0))


def held_by_server(server: Manifest) -> float:
    """Return how many accelerators the replicas of a RayService or a Deployment ask for."""
    spec = server["spec"]
    groups = spec.get("rayClusterConfig", {}).get("workerGroupSpecs", [spec])
    return sum(float(group.get("replicas", 1)) * _of_pod(group.get("template", {})) for group in groups)


def _of_pod(template: Mapping[str, Any]) -> float:
    containers = template.get("spec", {}).get("containers", ())
    return sum(float(one.get("resources", {}).get("limits", {}).get(GPU, 0)) for one in containers)

"""The RayJob of one attempt of a TrainingRun: the same manifest for KubeRay and for the executor of one machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import yaml

from belvedere_operators.manifests.naming import LONGEST_RAY_JOB, child_name
from belvedere_operators.manifests.ownership import MANAGED_BY, owner_reference
from belvedere_operators.manifests.pods import PodSettings, env_list, pod_template
from belvedere_operators.manifests.raycluster import (
    GPU,
    RAY_ENVIRONMENT,
    RAY_VERSION,
    head_container,
    worker_container,
)
from belvedere_platform.resources.training_run import TrainingRunSpec, WorkerResources
from belvedere_platform.store import Manifest
from belvedere_platform.store.kinds import RAY_JOB, TRAINING_RUN

# Driver, controller and Ray's own services take 2 GiB; with no more than that Ray kills the job for want of memory.
DRIVER_MEMORY = "4Gi"
CONFIG_VARIABLE = "BELVEDERE_TRAINING_CONFIG"
RUN_LABEL = "belvedere.dev/training-run"
ATTEMPT_ANNOTATION = "belvedere.dev/attempt"
DATA_ANNOTATION = "belvedere.dev/data-digest"
ACCELERATORS_ANNOTATION = "belvedere.dev/accelerators"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
PARENT_ANNOTATION = "belvedere.dev/parent-digest"


def accelerators_of(spec: TrainingRunSpec) -> float:
    """Return how many accelerators a run asks for with all of its workers."""
    return spec.workers.max * spec.workers.resources.gpu


def ray_job_name(run: str, attempt: int) -> str:
    """Return the name of an attempt's RayJob."""
    return child_name(run, str(attempt), longest=LONGEST_RAY_JOB)


def training_config(
    spec: TrainingRunSpec,
    *,
    metadata: Mapping[str, Any],
    attempt: int,
    data_digest: str,
    parent_digest: str | None,
) -> dict[str, Any]:
    """Return what `belvedere train` reads: the spec, with names resolved to digests."""
    config = spec.model_dump(by_alias=True, exclude_none=True, mode="json", exclude={"pod", "queue"})
    config["dataDigest"] = data_digest
    if parent_digest is not None:
        config["parentDigest"] = parent_digest
    config["run"] = {
        "namespace": metadata["namespace"],
        "name": metadata["name"],
        "uid": metadata["uid"],
        "attempt": attempt,
    }
    return config


def ray_job(
    spec: TrainingRunSpec,
    *,
    metadata: Mapping[str, Any],
    attempt: int,
    data_digest: str,
    parent_digest: str | None,
    pods: PodSettings,
) -> Manifest:
    """Return the RayJob of an attempt."""
    config = training_config(
        spec, metadata=metadata, attempt=attempt, data_digest=data_digest, parent_digest=parent_digest
    )
    variables = {
        **pods.environment,
        CONFIG_VARIABLE: json.dumps(config, sort_keys=True, separators=(",", ":"), ensure_ascii=False),
    }
    labels = {RUN_LABEL: metadata["name"], **MANAGED_BY}
    return {
        "apiVersion": RAY_JOB.api_version,
        "kind": RAY_JOB.kind,
        "metadata": {
            "name": ray_job_name(metadata["name"], attempt),
            "namespace": metadata["namespace"],
            "labels": {**labels, **({QUEUE_LABEL: spec.queue} if spec.queue else {})},
            "annotations": _annotations(spec, attempt, data_digest, parent_digest),
            "ownerReferences": [
                owner_reference(
                    {"apiVersion": TRAINING_RUN.api_version, "kind": TRAINING_RUN.kind, "metadata": metadata}
                )
            ],
        },
        "spec": {
            "entrypoint": f"belvedere train --config-env {CONFIG_VARIABLE}",
            "runtimeEnvYAML": yaml.safe_dump({"env_vars": variables}, sort_keys=True, allow_unicode=True),
            "submissionMode": "HTTPMode",
            # Retries are the TrainingRun's, so that each has a name, a record and a resume point of its own.
            "backoffLimit": 0,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 60,
            # A job in a queue begins suspended, and from then on it is the queue's to let it run or not.
            "suspend": spec.suspend or spec.queue is not None,
            "rayClusterSpec": _cluster(spec, pods, labels),
        },
    }


def _annotations(spec: TrainingRunSpec, attempt: int, data_digest: str, parent_digest: str | None) -> dict[str, str]:
    """Return what the operator reads again of an attempt, should its own memory be lost."""
    annotations = {ATTEMPT_ANNOTATION: str(attempt), DATA_ANNOTATION: data_digest}
    if parent_digest is not None:
        annotations[PARENT_ANNOTATION] = parent_digest
    if accelerators_of(spec):
        annotations[ACCELERATORS_ANNOTATION] = f"{accelerators_of(spec):g}"
    return annotations


def _cluster(spec: TrainingRunSpec, pods: PodSettings, labels: Mapping[str, str]) -> dict[str, Any]:
    resources = spec.workers.resources
    start = {"num-cpus": f"{max(1, round(resources.cpu))}"}
    if resources.gpu:
        start["num-gpus"] = f"{resources.gpu:g}"

    def pod(container: Mapping[str, Any]) -> Manifest:
        return pod_template(
            {**container, "env": env_list({**pods.environment, **RAY_ENVIRONMENT})},
            duty="training",
            pods=pods,
            patch=spec.pod,
            labels=labels,
        )

    # The driver waits for its workers: where those are small, as on a test cluster, it needs no whole core either.
    driver = WorkerResources(cpu=min(1.0, resources.cpu), memory=DRIVER_MEMORY)
    return {
        "rayVersion": RAY_VERSION,
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},
            "template": pod(head_container("ray-head", asked(driver))),
        },
        "workerGroupSpecs": [
            {
                "groupName": "workers",
                "numOfHosts": 1,
                "replicas": spec.workers.max,
                "minReplicas": spec.workers.min,
                "maxReplicas": spec.workers.max,
                "rayStartParams": start,
                "template": pod(worker_container("ray-worker", asked(resources))),
            }
        ],
    }


def asked(resources: WorkerResources) -> dict[str, Any]:
    """Return the resources of a container: accelerators are asked for and limited alike, as Kubernetes demands."""
    requests = {"cpu": f"{resources.cpu:g}", "memory": resources.memory}
    if resources.gpu:
        requests[GPU] = f"{resources.gpu:g}"
    return {"requests": requests, "limits": dict(requests)}

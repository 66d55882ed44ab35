"""The RayJob of one attempt of a TrainingRun: the same manifest for KubeRay and for the executor of one machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import yaml

from belvedere_operators.manifests.naming import LONGEST_RAY_JOB, child_name
from belvedere_operators.manifests.ownership import MANAGED_BY, owner_reference
from belvedere_platform.resources.training_run import TrainingRunSpec, WorkerResources
from belvedere_platform.store import Manifest
from belvedere_platform.store.kinds import RAY_JOB, TRAINING_RUN

RAY_VERSION = "2.60.0"
CONFIG_VARIABLE = "BELVEDERE_TRAINING_CONFIG"
RUN_LABEL = "belvedere.dev/training-run"
ATTEMPT_ANNOTATION = "belvedere.dev/attempt"
DATA_ANNOTATION = "belvedere.dev/data-digest"
PARENT_ANNOTATION = "belvedere.dev/parent-digest"


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
    config = spec.model_dump(by_alias=True, exclude_none=True, mode="json")
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
    environment: Mapping[str, str],
    image: str,
) -> Manifest:
    """Return the RayJob of an attempt."""
    config = training_config(
        spec, metadata=metadata, attempt=attempt, data_digest=data_digest, parent_digest=parent_digest
    )
    variables = {
        **environment,
        CONFIG_VARIABLE: json.dumps(config, sort_keys=True, separators=(",", ":"), ensure_ascii=False),
    }
    annotations = {ATTEMPT_ANNOTATION: str(attempt), DATA_ANNOTATION: data_digest}
    if parent_digest is not None:
        annotations[PARENT_ANNOTATION] = parent_digest
    return {
        "apiVersion": RAY_JOB.api_version,
        "kind": RAY_JOB.kind,
        "metadata": {
            "name": ray_job_name(metadata["name"], attempt),
            "namespace": metadata["namespace"],
            "labels": {RUN_LABEL: metadata["name"], **MANAGED_BY},
            "annotations": annotations,
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
            "suspend": spec.suspend,
            "rayClusterSpec": _cluster(spec, environment, image),
        },
    }


def _cluster(spec: TrainingRunSpec, environment: Mapping[str, str], image: str) -> dict[str, Any]:
    resources = spec.workers.resources
    start = {"num-cpus": f"{max(1, round(resources.cpu))}"}
    if resources.gpu:
        start["num-gpus"] = f"{resources.gpu:g}"
    driver = WorkerResources(cpu=1, memory="2Gi")
    return {
        "rayVersion": RAY_VERSION,
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},
            "template": _pod("ray-head", driver, environment, image),
        },
        "workerGroupSpecs": [
            {
                "groupName": "workers",
                "replicas": spec.workers.max,
                "minReplicas": spec.workers.min,
                "maxReplicas": spec.workers.max,
                "rayStartParams": start,
                "template": _pod("ray-worker", resources, environment, image),
            }
        ],
    }


def _pod(name: str, resources: WorkerResources, environment: Mapping[str, str], image: str) -> dict[str, Any]:
    asked = {"cpu": f"{resources.cpu:g}", "memory": resources.memory}
    limits = dict(asked)
    if resources.gpu:
        limits["nvidia.com/gpu"] = asked["nvidia.com/gpu"] = f"{resources.gpu:g}"
    variables = {**environment, "RAY_AUTH_MODE": "disabled"}
    return {
        "spec": {
            "containers": [
                {
                    "name": name,
                    "image": image,
                    "env": [{"name": key, "value": value} for key, value in sorted(variables.items())],
                    "resources": {"requests": asked, "limits": limits},
                    "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
                }
            ],
            "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory"}}],
        }
    }

"""What the TrainingRun controller knows when it decides: read here, in one place, and frozen."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from belvedere_operators.controllers.context import Context
from belvedere_operators.controllers.reading import condition_is_true, find, find_standing
from belvedere_operators.controllers.trainingrun.accelerators import (
    Accelerators,
    accelerators_for,
)
from belvedere_operators.controllers.trainingrun.progress import ProgressBoard, Reading
from belvedere_operators.manifests.network import NetworkPeers
from belvedere_operators.manifests.pods import PodSettings
from belvedere_operators.manifests.rayjob import (
    ATTEMPT_ANNOTATION,
    DATA_ANNOTATION,
    PARENT_ANNOTATION,
    RUN_LABEL,
)
from belvedere_operators.runtime import Key, parse_timestamp
from belvedere_platform.artifacts import ArtifactNotFound, ArtifactStore
from belvedere_platform.errors import NotInstalled
from belvedere_platform.resources.training_run import TrainingRun
from belvedere_platform.store import Manifest
from belvedere_platform.store.kinds import MODEL_VERSION, RAY_JOB, TRAINING_RUN, WORKLOAD

JOB_UID_LABEL = "kueue.x-k8s.io/job-uid"
HOLDING = ("QuotaReserved", "Admitted")
"""Conditions of a workload that are false while it waits, in the order in which Kueue comes to them."""
SHORTEST_LOOK_SECONDS = 2.0
LOOKS_PER_SECOND = 50.0
"""How many runs are looked at in a second, all together."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One RayJob of the run, as its status says."""

    number: int
    name: str
    data_digest: str
    parent_digest: str | None
    suspended: bool
    job_status: str = ""
    deployment_status: str = ""
    message: str = ""
    uid: str = ""
    end_time: datetime | None = None

    @property
    def succeeded(self) -> bool:
        """Whether the entrypoint ended well."""
        return self.job_status == "SUCCEEDED"

    @property
    def failed(self) -> bool:
        """Whether it ended otherwise, or never could start. A job that was suspended has been stopped, not failed."""
        if self.suspended or self.deployment_status.startswith("Suspend"):
            return False
        return self.job_status in ("FAILED", "STOPPED") or (self.deployment_status == "Failed" and not self.succeeded)


@dataclass(frozen=True, kw_only=True)
class Parent:
    """The version that training starts from."""

    digest: str
    ready: bool


@dataclass(frozen=True, kw_only=True)
class Published:
    """A ModelVersion that has the name this run publishes under."""

    digest: str
    training_run: str | None


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The model artifact that the last attempt left."""

    digest: str
    metrics: Mapping[str, float]
    config_digest: str | None


@dataclass(frozen=True, kw_only=True)
class State:
    """Everything `decide` looks at."""

    run: TrainingRun
    now: datetime
    pods: PodSettings
    network_peers: NetworkPeers | None = None
    data_digest: str | None = None
    parent: Parent | None = None
    published: Published | None = None
    attempts: tuple[Attempt, ...] = ()
    trained: Trained | None = None
    reading: Reading | None = None
    accelerators: Accelerators | None = None
    """None when there is no budget."""
    held: str = ""
    """Why the queue holds the last attempt back, as Kueue says."""
    look_seconds: float = 2.0
    """How long until progress is asked for again."""

    @property
    def metadata(self) -> dict[str, Any]:
        """Return the run's metadata."""
        return self.run.metadata

    @property
    def version(self) -> str:
        """Return the name of the ModelVersion that the run publishes."""
        return self.run.spec.version or str(self.metadata["name"])

    @property
    def last(self) -> Attempt | None:
        """Return the newest attempt."""
        return self.attempts[-1] if self.attempts else None


def run_tag(metadata: Mapping[str, Any], attempt: int) -> str:
    """Return the tag under which an attempt leaves its model."""
    return f"runs/{metadata['namespace']}/{metadata['name']}/{attempt}"


async def gather(context: Context, board: ProgressBoard, key: Key) -> tuple[Manifest, State] | None:
    """Read everything about a run; None when the run is gone."""
    manifest = await find_standing(context.store, TRAINING_RUN, key)
    if manifest is None:
        return None
    run = TrainingRun.model_validate(manifest)
    attempts = tuple(sorted(await _attempts(context, key), key=lambda attempt: attempt.number))
    last = attempts[-1] if attempts else None
    finished = run.status is not None and run.status.phase == "Succeeded"
    trained = None
    if last is not None and last.succeeded and not finished:
        trained = await asyncio.to_thread(_trained, context.artifacts, run_tag(run.metadata, last.number))
    reading = None
    if last is not None and not finished and last.job_status == "RUNNING":
        reading = await board.read(key)
    # What a run starts from is looked up until it has started: the attempts carry it on.
    begins = last is None and not finished
    return manifest, State(
        run=run,
        now=context.clock(),
        pods=context.settings.pods,
        network_peers=context.settings.network_peers,
        data_digest=await asyncio.to_thread(_data_digest, context.artifacts, run.spec.data.dataset) if begins else None,
        parent=await _parent(context, run, key) if begins else None,
        published=await _published(context, run, key),
        attempts=attempts,
        trained=trained,
        reading=reading,
        accelerators=await accelerators_for(context, run) if begins else None,
        held=await _held(context, key, last.uid) if last is not None and waits_in_queue(run, last) else "",
        look_seconds=max(SHORTEST_LOOK_SECONDS, len(context.caches.of(TRAINING_RUN)) / LOOKS_PER_SECOND),
    )


def waits_in_queue(run: TrainingRun, attempt: Attempt) -> bool:
    """Return whether it is the queue that keeps an attempt from running."""
    return run.spec.queue is not None and attempt.suspended and not run.spec.suspend


async def _held(context: Context, key: Key, job_uid: str) -> str:
    # Not followed: there are as many as jobs of all kinds, and a run that waits looks again by itself.
    try:
        found = (await context.store.list(WORKLOAD, key.namespace, labels={JOB_UID_LABEL: job_uid})).items
    except NotInstalled:
        return ""
    conditions = [one for workload in found for one in (workload.get("status") or {}).get("conditions", ())]
    said = {one["type"]: one.get("message", "") for one in conditions if one["status"] == "False"}
    return next((str(said[type_]) for type_ in HOLDING if said.get(type_)), "")


async def _attempts(context: Context, key: Key) -> list[Attempt]:
    listing = await context.store.list(RAY_JOB, key.namespace, labels={RUN_LABEL: key.name})
    return [_attempt(manifest) for manifest in listing.items]


def _attempt(manifest: Manifest) -> Attempt:
    metadata, status = manifest["metadata"], manifest.get("status", {})
    annotations = metadata["annotations"]
    end_time = status.get("endTime")
    return Attempt(
        number=int(annotations[ATTEMPT_ANNOTATION]),
        name=metadata["name"],
        data_digest=annotations[DATA_ANNOTATION],
        parent_digest=annotations.get(PARENT_ANNOTATION),
        suspended=bool(manifest["spec"].get("suspend")),
        job_status=status.get("jobStatus") or "",
        deployment_status=status.get("jobDeploymentStatus") or "",
        message=status.get("message") or "",
        uid=metadata.get("uid", ""),
        end_time=parse_timestamp(end_time) if end_time else None,
    )


def _data_digest(artifacts: ArtifactStore, dataset: str) -> str | None:
    try:
        return artifacts.resolve(dataset if dataset.startswith("sha256:") else f"datasets/{dataset}").digest
    except ArtifactNotFound:
        return None


def _trained(artifacts: ArtifactStore, tag: str) -> Trained | None:
    try:
        digest = artifacts.resolve(tag).digest
    except ArtifactNotFound:
        return None
    config = artifacts.config(digest)
    return Trained(
        digest=digest,
        metrics={name: float(value) for name, value in config.get("metrics", {}).items()},
        config_digest=config.get("lineage", {}).get("configDigest"),
    )


async def _parent(context: Context, run: TrainingRun, key: Key) -> Parent | None:
    if run.spec.initialize_from is None:
        return None
    origin = Key(key.namespace, run.spec.initialize_from.model_version)
    manifest = await find(context.store, MODEL_VERSION, origin)
    if manifest is None:
        return None
    return Parent(digest=manifest["spec"]["digest"], ready=condition_is_true(manifest, "Ready"))


async def _published(context: Context, run: TrainingRun, key: Key) -> Published | None:
    manifest = await find(context.store, MODEL_VERSION, Key(key.namespace, run.spec.version or key.name))
    if manifest is None:
        return None
    spec = manifest["spec"]
    return Published(digest=spec["digest"], training_run=spec.get("lineage", {}).get("trainingRun"))

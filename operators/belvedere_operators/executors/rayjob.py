"""Run each RayJob on the local Ray: submitted once under an id of its own, adopted, stopped, its log kept."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from belvedere_operators.executors.pods import object_logs
from belvedere_operators.executors.process import read_json, write_atomically
from belvedere_operators.executors.ray_dashboard import RayDashboard
from belvedere_operators.executors.status import write_status
from belvedere_operators.executors.workload import Machine
from belvedere_operators.runtime import After, Controller, Key, timestamp
from belvedere_platform.errors import InvalidInput, Unavailable
from belvedere_platform.store import Manifest
from belvedere_platform.store.kinds import RAY_JOB

log = logging.getLogger(__name__)

MANAGER = "belvedere-executor-rayjob"
POLL_SECONDS = 1.0
ENDED = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})
Status = dict[str, Any]


def submission_id(manifest: Manifest) -> str:
    """Return the one id under which Ray knows a RayJob now. Each resumption has the next one: Ray never forgets at once."""
    metadata, status = manifest["metadata"], manifest.get("status", {})
    first = f"{metadata['namespace']}-{metadata['name']}-{metadata['uid'][:8]}"
    last: str = status.get("jobId") or ""
    if not last.startswith(first):
        return first
    if status.get("jobDeploymentStatus") != "Suspended" or manifest["spec"].get("suspend"):
        return last
    number = last.removeprefix(first).removeprefix("-")
    return f"{first}-{int(number or 1) + 1}"


def submission(manifest: Manifest) -> tuple[str, dict[str, Any]]:
    """Return the entry point of a RayJob and the further fields of its submission. Raises InvalidInput."""
    spec = manifest["spec"]
    if not spec.get("entrypoint"):
        raise InvalidInput("spec.entrypoint is empty: give the command that Ray runs")
    if spec.get("backoffLimit", 0) != 0:
        raise InvalidInput(f"spec.backoffLimit is {spec['backoffLimit']}; on one machine a RayJob runs once: use 0")
    try:
        runtime_env = yaml.safe_load(spec.get("runtimeEnvYAML") or "{}")
    except yaml.YAMLError as error:
        raise InvalidInput(f"spec.runtimeEnvYAML is not YAML: {error}") from error
    if not isinstance(runtime_env, dict):
        raise InvalidInput("spec.runtimeEnvYAML must be a mapping, for example `env_vars: {NAME: value}`")
    fields: dict[str, Any] = {"runtime_env": runtime_env, "metadata": dict(spec.get("metadata") or {})}
    for ours, theirs in (("entrypointNumCpus", "entrypoint_num_cpus"), ("entrypointNumGpus", "entrypoint_num_gpus")):
        if ours in spec:
            fields[theirs] = _number(spec, ours)
    if spec.get("entrypointResources"):
        try:
            fields["entrypoint_resources"] = json.loads(spec["entrypointResources"])
        except ValueError as error:
            raise InvalidInput(f"spec.entrypointResources is not JSON: {error}") from error
    return spec["entrypoint"], fields


def _number(spec: Mapping[str, Any], name: str) -> float:
    try:
        return float(spec[name])
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"spec.{name} is {spec[name]!r}; it must be a number") from error


def status_of(manifest: Manifest, job: Mapping[str, Any]) -> Status:
    """Return the status of a RayJob as KubeRay writes it, from what Ray knows."""
    state = job["status"]
    deployment = {"SUCCEEDED": "Complete", "STOPPED": "Complete", "FAILED": "Failed"}.get(state, "Running")
    return {
        "jobId": submission_id(manifest),
        "jobStatus": state,
        "jobDeploymentStatus": deployment,
        "message": job.get("message") or "",
        "reason": "AppFailed" if state == "FAILED" else None,
        "startTime": _moment(job.get("start_time")),
        "endTime": _moment(job.get("end_time")),
        "observedGeneration": manifest["metadata"].get("generation"),
    }


def _moment(milliseconds: int | None) -> str | None:
    return timestamp(datetime.fromtimestamp(milliseconds / 1000, UTC)) if milliseconds else None


class RayJobExecutor:
    """Joins the steps for one RayJob."""

    def __init__(self, machine: Machine, ray: RayDashboard, ray_directory: Path) -> None:
        self._machine = machine
        self._ray = ray
        self._ray_directory = ray_directory
        self._records = machine.home / "rayjobs"
        self._waiting: dict[Key, str] = {}

    def known_keys(self) -> set[Key]:
        """Return the keys of all RayJobs that were submitted and not yet forgotten."""
        return {Key(*record["key"]) for record in self._known().values()}

    async def reconcile(self, key: Key) -> After | None:
        """Bring one RayJob on. A Ray that does not answer is asked again."""
        manifest = self._machine.caches.of(RAY_JOB).get(key)
        if manifest is not None and manifest["metadata"].get("deletionTimestamp"):
            manifest = None
        wanted = submission_id(manifest) if manifest else None
        try:
            for identifier, record in self._known().items():
                if Key(*record["key"]) == key and identifier != wanted:
                    await self._ray.stop_job(identifier)
                    (self._records / f"{identifier}.json").unlink(missing_ok=True)
            if manifest is None or _ended(manifest):
                return None
            status = await self._advance(key, manifest)
        except Unavailable as error:
            if self._waiting.get(key) != str(error):
                self._waiting[key] = str(error)
                log.warning("RayJob %s waits: %s", key, error)
            if manifest is not None and not manifest.get("status", {}).get("jobId"):
                waiting = {"jobDeploymentStatus": "Initializing", "message": str(error)}
                await write_status(self._machine.store, manifest, waiting, manager=MANAGER)
            return After(POLL_SECONDS)
        self._waiting.pop(key, None)
        await write_status(self._machine.store, manifest, status, manager=MANAGER)
        return None if status["jobDeploymentStatus"] in ("Complete", "Failed", "Suspended") else After(POLL_SECONDS)

    async def _advance(self, key: Key, manifest: Manifest) -> Status:
        identifier = submission_id(manifest)
        job = await self._ray.job(identifier)
        before = manifest.get("status", {})
        if manifest["spec"].get("suspend"):
            return await self._suspend(manifest, job)
        if job is None and before.get("jobStatus") and before.get("jobDeploymentStatus") == "Running":
            return {
                **before,
                "jobStatus": "FAILED",
                "jobDeploymentStatus": "Failed",
                "reason": "AppFailed",
                "message": "the local Ray was started anew while the job ran, and the job ended with it",
                "endTime": timestamp(self._machine.clock()),
            }
        if job is None:
            return await self._submit(key, manifest, identifier)
        if job["status"] in ENDED:
            await self._keep_log(key, identifier)
        return status_of(manifest, job)

    async def _submit(self, key: Key, manifest: Manifest, identifier: str) -> Status:
        record = {"key": list(key)}
        self._records.mkdir(parents=True, exist_ok=True)
        write_atomically(self._records / f"{identifier}.json", json.dumps(record).encode())
        try:
            entrypoint, fields = submission(manifest)
            await self._ray.submit(identifier, entrypoint=entrypoint, fields=fields)
        except InvalidInput as error:
            return {
                "jobStatus": "FAILED",
                "jobDeploymentStatus": "Failed",
                "reason": "ValidationFailed",
                "message": str(error),
                "observedGeneration": manifest["metadata"].get("generation"),
            }
        log.info("submitted RayJob %s as %s", key, identifier)
        self._show_log(key, identifier)
        job = await self._ray.job(identifier)
        return status_of(manifest, job or {"status": "PENDING"})

    async def _suspend(self, manifest: Manifest, job: Mapping[str, Any] | None) -> Status:
        if job is not None and job["status"] not in ENDED:
            await self._ray.stop_job(submission_id(manifest))
            return {**status_of(manifest, job), "jobDeploymentStatus": "Suspending"}
        if job is not None and job["status"] != "STOPPED":
            await self._keep_log(
                Key(manifest["metadata"]["namespace"], manifest["metadata"]["name"]), job["submission_id"]
            )
            return status_of(manifest, job)
        return {
            "jobId": submission_id(manifest) if job is not None else None,
            "jobDeploymentStatus": "Suspended",
            "message": "spec.suspend is true",
            "observedGeneration": manifest["metadata"].get("generation"),
        }

    def _log(self, key: Key) -> Path:
        return object_logs(self._machine.home, RAY_JOB.kind, key) / "driver.log"

    def _show_log(self, key: Key, identifier: str) -> None:
        """While the job runs its log is Ray's own file."""
        path = self._log(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        # Resolved now, because the next Ray has another session.
        session = (self._ray_directory / "session_latest").resolve()
        path.symlink_to(session / "logs" / f"job-driver-{identifier}.log")

    async def _keep_log(self, key: Key, identifier: str) -> None:
        """Take the log over from Ray, whose files go when it does."""
        path = self._log(key)
        if path.exists() and not path.is_symlink():
            return
        text = await self._ray.job_logs(identifier)
        path.parent.mkdir(parents=True, exist_ok=True)
        await asyncio.to_thread(write_atomically, path, text.encode())

    def _known(self) -> dict[str, dict[str, Any]]:
        found = {path.stem: read_json(path) for path in sorted(self._records.glob("*.json"))}
        return {identifier: record for identifier, record in found.items() if record is not None}


def _ended(manifest: Manifest) -> bool:
    return manifest.get("status", {}).get("jobDeploymentStatus") in ("Complete", "Failed")


def ray_job_executor(machine: Machine, ray: RayDashboard, ray_directory: Path) -> Controller:
    """Return the executor of RayJobs."""
    executor = RayJobExecutor(machine, ray, ray_directory)
    controller = Controller(
        name="executor-rayjob",
        kind=RAY_JOB,
        reconcile=executor.reconcile,
        caches=machine.caches,
        clock=machine.clock,
        workers=4,
    )
    for key in executor.known_keys():
        controller.queue.add(key)
    return controller

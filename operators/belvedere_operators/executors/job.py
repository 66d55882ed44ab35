"""Run each Job to its end: again after a failure up to its backoff limit, never again once it is complete or failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from belvedere_operators.executors.pods import ContainerState, PodName, PodRunner, PodState
from belvedere_operators.executors.process import Empty, Exited
from belvedere_operators.executors.status import ConditionFields, conditions_after, write_status
from belvedere_operators.executors.workload import Machine, plan_of, workload_controller
from belvedere_operators.runtime import After, Clock, Controller, Key, parse_timestamp, timestamp
from belvedere_platform.errors import InvalidInput, NotFound
from belvedere_platform.store import Manifest
from belvedere_platform.store.kinds import JOB

MANAGER = "belvedere-executor-job"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a Job's pod says of the Job."""

    succeeded: bool = False
    failed_attempts: int = 0
    active: bool = False
    ready: bool = False
    message: str = ""


def job_executor(machine: Machine) -> Controller:
    """Return the executor of Jobs."""
    runner = machine.pods()

    async def reconcile(key: Key) -> After | None:
        manifest = machine.caches.of(JOB).get(key)
        name = PodName(key=key, kind=JOB.kind)
        if manifest is None or manifest["metadata"].get("deletionTimestamp"):
            await runner.stop(name)
            return None
        if end_of(manifest) is not None:
            return await _remove_finished(machine, manifest)
        if manifest["spec"].get("suspend"):
            await runner.stop(name)
            await _write(machine, manifest, Outcome(), (("Suspended", True, "JobSuspended", "spec.suspend is true"),))
            return None
        return await _run(machine, runner, name, manifest)

    return workload_controller(machine, runner, name="executor-job", kind=JOB, reconcile=reconcile)


async def _run(machine: Machine, runner: PodRunner, name: PodName, manifest: Manifest) -> After | None:
    try:
        check_supported(manifest)
        plan = plan_of(machine, runner, name, manifest)
        owner = manifest["metadata"]["uid"]
        state = await runner.ensure(name, plan, owner=owner, policy="Never")
        outcome = outcome_of(state, num_containers=len(plan.containers))
        verdict = verdict_of(manifest, outcome, machine.clock)
        if verdict is None and not outcome.active and not outcome.succeeded:
            state = await runner.ensure(name, plan, owner=owner, policy="OnFailure")
            outcome = outcome_of(state, num_containers=len(plan.containers))
    except (InvalidInput, NotFound) as error:
        await _write(machine, manifest, Outcome(), (("Progressing", False, "ContainerConfigError", str(error)),))
        return None
    if verdict is not None and outcome.active:
        await runner.restart(name, grace_seconds=plan.grace_seconds)
    await _write(machine, manifest, outcome, (verdict,) if verdict else ())
    if verdict is not None:
        return None
    waits = [w for w in (state.wait_seconds, _seconds_to_deadline(manifest, machine.clock)) if w is not None]
    return After(max(0.05, min(waits))) if waits else None


def check_supported(manifest: Manifest) -> None:
    """Raise InvalidInput for a Job that needs more than one pod at a time."""
    for field in ("parallelism", "completions"):
        if manifest["spec"].get(field, 1) != 1:
            raise InvalidInput(f"spec.{field} is {manifest['spec'][field]}; on one machine a Job runs one pod: use 1")


def outcome_of(state: PodState, *, num_containers: int) -> Outcome:
    """Return what the containers of a pod say of the Job."""
    every: Sequence[ContainerState] = (*state.initial, *state.containers)
    exits = [c.observation for c in every if isinstance(c.observation, Exited)]
    failed = [e for e in exits if e.code != 0]
    done = len(state.containers) == num_containers and len(exits) == len(every) and not failed
    attempts = max((c.observation.attempt.number for c in every if not isinstance(c.observation, Empty)), default=1)
    return Outcome(
        succeeded=done,
        failed_attempts=attempts if failed else attempts - 1,
        active=not failed and not done,
        ready=state.ready,
        message=state.failure,
    )


def verdict_of(manifest: Manifest, outcome: Outcome, clock: Clock) -> ConditionFields | None:
    """Return the condition that ends the Job, None while it goes on."""
    if outcome.succeeded:
        return ("Complete", True, "CompletionsReached", "the container exited with 0")
    limit = manifest["spec"].get("backoffLimit", 6)
    if outcome.failed_attempts > limit:
        return (
            "Failed",
            True,
            "BackoffLimitExceeded",
            f"{outcome.message}; failed {outcome.failed_attempts} times and spec.backoffLimit is {limit}",
        )
    left = _seconds_to_deadline(manifest, clock)
    if left is not None and left <= 0:
        deadline = manifest["spec"]["activeDeadlineSeconds"]
        return ("Failed", True, "DeadlineExceeded", f"it ran longer than spec.activeDeadlineSeconds, {deadline} s")
    return None


def _seconds_to_deadline(manifest: Manifest, clock: Clock) -> float | None:
    deadline = manifest["spec"].get("activeDeadlineSeconds")
    started = manifest.get("status", {}).get("startTime")
    if deadline is None:
        return None
    return float(deadline) - ((clock() - parse_timestamp(started)).total_seconds() if started else 0.0)


def end_of(manifest: Manifest) -> str | None:
    """Return `Complete` or `Failed` when the Job has ended."""
    for condition in manifest.get("status", {}).get("conditions", ()):
        if condition["type"] in ("Complete", "Failed") and condition["status"] == "True":
            return str(condition["type"])
    return None


async def _remove_finished(machine: Machine, manifest: Manifest) -> After | None:
    keep = manifest["spec"].get("ttlSecondsAfterFinished")
    if keep is None:
        return None
    metadata = manifest["metadata"]
    ended = parse_timestamp(manifest["status"]["completionTime"])
    left = keep - (machine.clock() - ended).total_seconds()
    if left > 0:
        return After(left)
    await machine.store.delete(
        JOB, metadata["name"], metadata["namespace"], resource_version=metadata["resourceVersion"]
    )
    return None


async def _write(machine: Machine, manifest: Manifest, outcome: Outcome, conditions: Sequence[ConditionFields]) -> None:
    now = machine.clock()
    ended = any(type_ in ("Complete", "Failed") for type_, _, _, _ in conditions)
    before = manifest.get("status", {})
    suspended = any(type_ == "Suspended" for type_, _, _, _ in conditions)
    status: dict[str, Any] = {
        "startTime": None if suspended else before.get("startTime") or timestamp(now),
        "completionTime": timestamp(now) if ended else None,
        "active": 0 if ended or suspended else 1,
        "ready": int(outcome.ready and not ended),
        "succeeded": int(outcome.succeeded),
        "failed": outcome.failed_attempts,
        "conditions": conditions_after(manifest, conditions, now=now),
    }
    await write_status(machine.store, manifest, status, manager=MANAGER)

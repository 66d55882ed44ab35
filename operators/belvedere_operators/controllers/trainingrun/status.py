"""Say in a run's status, its conditions and its Events where it stands. Pure."""

from __future__ import annotations

from typing import Literal

from belvedere_operators.controllers.status import Happening
from belvedere_operators.controllers.trainingrun.outcome import Outcome
from belvedere_operators.controllers.trainingrun.state import State
from belvedere_operators.manifests.rayjob import ray_job_name
from belvedere_operators.runtime import set_condition, timestamp
from belvedere_platform.resources.base import Condition
from belvedere_platform.resources.training_run import TrainingRunStatus


def status_of(state: State, outcome: Outcome) -> TrainingRunStatus:
    before = state.run.status or TrainingRunStatus()
    progress = before.progress
    if state.reading is not None and state.reading.progress is not None:
        progress = state.reading.progress
    attempt = outcome.attempt if outcome.attempt is not None else before.attempt
    final = outcome.phase in ("Succeeded", "Failed")
    now = timestamp(state.now)
    published = outcome.phase == "Succeeded"
    trained = outcome.trained
    return TrainingRunStatus(
        observed_generation=state.metadata.get("generation"),
        conditions=_conditions(state, outcome, before.conditions),
        phase=outcome.phase,
        attempt=attempt,
        job=ray_job_name(state.metadata["name"], attempt) if attempt is not None else None,
        progress=progress,
        gates=outcome.gates or before.gates,
        model_version=state.version if published else None,
        digest=trained.digest if trained is not None else before.digest,
        start_time=before.start_time or (now if attempt is not None else None),
        completion_time=(before.completion_time or now) if final else None,
    )


def _conditions(state: State, outcome: Outcome, before: tuple[Condition, ...]) -> tuple[Condition, ...]:
    generation = state.metadata.get("generation")

    def put(
        conditions: tuple[Condition, ...],
        type_: str,
        status: Literal["True", "False", "Unknown"],
        reason: str,
        message: str,
    ) -> tuple[Condition, ...]:
        return set_condition(
            conditions, type_=type_, status=status, reason=reason, message=message, generation=generation, now=state.now
        )

    refused = outcome.refused
    conditions = put(
        before,
        "Accepted",
        "False" if refused else "True",
        refused.reason if refused else "Accepted",
        refused.message if refused else "the references are there",
    )
    last = state.last
    if outcome.phase in ("Succeeded", "Failed"):
        # What has ended waits for nothing and reports no more.
        conditions = tuple(one for one in conditions if one.type not in ("CapacityAvailable", "ProgressKnown"))
    elif outcome.phase == "Running":
        conditions = put(conditions, "CapacityAvailable", "True", "Fits", "the workers have started")
    elif outcome.waits_for_capacity or (last is not None and outcome.phase == "Pending" and not last.failed):
        conditions = put(conditions, "CapacityAvailable", "False", "WaitingForCapacity", outcome.message)
    if state.reading is not None and outcome.phase not in ("Succeeded", "Failed"):
        conditions = put(conditions, "ProgressKnown", *_progress_condition(state))
    return put(conditions, "Ready", "True" if outcome.ready else "False", outcome.reason, outcome.message)


def _progress_condition(state: State) -> tuple[Literal["True", "False", "Unknown"], str, str]:
    assert state.reading is not None
    if state.reading.failure is not None:
        return "Unknown", "MetricsUnavailable", state.reading.failure
    if state.reading.progress is None:
        return "False", "NoSeriesYet", "the workers have not reported yet"
    return "True", "Reported", "the workers report"


def happenings_of(state: State, status: TrainingRunStatus, outcome: Outcome) -> tuple[Happening, ...]:
    before = state.run.status or TrainingRunStatus()
    found: list[Happening] = []
    if status.attempt is not None and status.attempt != before.attempt:
        found.append(
            Happening(
                type="Normal", reason="AttemptStarted", message=f"attempt {status.attempt} runs as RayJob {status.job}"
            )
        )
    last = state.last
    if last is not None and last.failed and before.phase == "Running":
        found.append(
            Happening(type="Warning", reason="AttemptFailed", message=f"attempt {last.number} failed: {last.message}")
        )
    if outcome.reason == "Queued" and before.phase == "Running":
        told = "the queue took its workers back; it resumes from its checkpoint when they are admitted again"
        found.append(Happening(type="Normal", reason="Preempted", message=f"attempt {status.attempt}: {told}"))
    if status.phase != before.phase and status.phase in ("Succeeded", "Failed"):
        found.append(
            Happening(type="Normal" if outcome.ready else "Warning", reason=outcome.reason, message=outcome.message)
        )
    return tuple(found)

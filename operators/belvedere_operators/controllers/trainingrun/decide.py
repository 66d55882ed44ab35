"""Decide what a TrainingRun's state calls for: an attempt, a retry, a ModelVersion, or nothing. Pure: no clock, no store."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta

from belvedere_operators.controllers.status import Happening
from belvedere_operators.controllers.trainingrun.outcome import Outcome
from belvedere_operators.controllers.trainingrun.state import Attempt, State, Trained, run_tag
from belvedere_operators.controllers.trainingrun.status import happenings_of, status_of
from belvedere_operators.manifests.network import training_policy
from belvedere_operators.manifests.rayjob import accelerators_of, ray_job
from belvedere_operators.runtime import Failure, first_failure
from belvedere_platform.resources.training_run import GateResult, TrainingRunStatus
from belvedere_platform.store import Manifest
from belvedere_platform.store.kinds import MODEL_VERSION, TRAINING_RUN

LOOK_AGAIN_SECONDS = 10.0
RETRY_BASE_SECONDS = 5.0
RETRY_CAP_SECONDS = 300.0


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What to write, and when to look again."""

    status: TrainingRunStatus
    children: tuple[Manifest, ...] = ()
    surplus: tuple[str, ...] = ()
    """Names of RayJobs to delete."""
    tags: tuple[tuple[str, str], ...] = ()
    happenings: tuple[Happening, ...] = ()
    after_seconds: float | None = None


def decide(state: State) -> Decision:
    """Return what the state calls for."""
    outcome = _outcome(state)
    status = status_of(state, outcome)
    return Decision(
        status=status,
        children=outcome.children,
        surplus=outcome.surplus,
        tags=outcome.tags,
        happenings=happenings_of(state, status, outcome),
        after_seconds=outcome.after_seconds,
    )


def version_is_free(state: State) -> Failure | None:
    """Refuse to train for a name that is taken: a ModelVersion never changes."""
    if state.published is None:
        return None
    named = "spec.version is" if state.run.spec.version else "spec.version is not set, so the version is named"
    return Failure(
        reason="VersionExists",
        message=f"{named} {state.version}, which exists with {state.published.digest}; a ModelVersion is "
        "immutable: choose another name or delete that one",
    )


def dataset_is_there(state: State) -> Failure | None:
    """Ask for the data set."""
    if state.data_digest is not None:
        return None
    dataset = state.run.spec.data.dataset
    return Failure(
        reason="DatasetNotFound",
        message=f"spec.data.dataset is {dataset}, and the artifact store has no datasets/{dataset}; "
        "`belvedere artifact list` shows what it has",
    )


def parent_is_ready(state: State) -> Failure | None:
    """Ask for the version that training starts from."""
    origin = state.run.spec.initialize_from
    if origin is None:
        return None
    if state.parent is None:
        return Failure(
            reason="ParentNotFound",
            message=f"spec.initializeFrom.modelVersion is {origin.model_version}, which does not exist",
        )
    if not state.parent.ready:
        return Failure(
            reason="ParentNotReady",
            message=f"spec.initializeFrom.modelVersion is {origin.model_version}, which is not Ready",
        )
    return None


def accelerators_can_suffice(state: State) -> Failure | None:
    """Refuse a run that asks for more accelerators than there ever are."""
    wanted = accelerators_of(state.run.spec)
    if state.accelerators is None or wanted <= state.accelerators.total:
        return None
    workers = state.run.spec.workers
    return Failure(
        reason="ExceedsAccelerators",
        message=f"spec.workers asks for {workers.max} x {workers.resources.gpu:g} = {wanted:g} accelerators, and the budget "
        f"has {state.accelerators.total:g}: lower workers.max or workers.resources.gpu",
    )


ACCEPTED = (accelerators_can_suffice, version_is_free, dataset_is_there, parent_is_ready)


def _outcome(state: State) -> Outcome:
    before = state.run.status
    if before is not None and before.phase == "Succeeded":
        # Done is done: a RayJob that was cleaned up later must not start the training again.
        return Outcome(phase="Succeeded", reason="Published", message=f"published as {state.version}", ready=True)
    last = state.last
    if last is None:
        return _first_attempt(state)
    if last.succeeded:
        return _after_success(state, last)
    if last.failed:
        return _after_failure(state, last, last.message or f"the job ended as {last.job_status or 'Failed'}")
    return _while_running(state, last)


def _first_attempt(state: State) -> Outcome:
    refused = first_failure(ACCEPTED, state)
    if refused is not None:
        return Outcome(
            phase="Pending",
            reason="Pending",
            message=refused.message,
            refused=refused,
            after_seconds=LOOK_AGAIN_SECONDS,
        )
    spec, wanted = state.run.spec, accelerators_of(state.run.spec)
    if spec.suspend and spec.queue is not None:
        # The queue alone may let a job of its run, so one that shall not run is not there.
        return Outcome(phase="Suspended", reason="Suspended", message="spec.suspend is true")
    if state.accelerators is not None and not spec.suspend and wanted > state.accelerators.free:
        return Outcome(
            phase="Pending",
            reason="Pending",
            message=f"{wanted:g} accelerators are asked for, and {state.accelerators.free:g} of "
            f"{state.accelerators.total:g} are free",
            waits_for_capacity=True,
            after_seconds=LOOK_AGAIN_SECONDS,
        )
    assert state.data_digest is not None
    started = state.run.status.attempt if state.run.status is not None else None
    attempt = Attempt(
        # A RayJob that someone deleted is made again under its own name, not under the next.
        number=started or 1,
        name="",
        data_digest=state.data_digest,
        parent_digest=state.parent.digest if state.parent is not None else None,
        suspended=state.run.spec.suspend,
    )
    return _launch(state, attempt, _waits(attempt.number))


def _waits(number: int, why: str = "") -> str:
    """Return the same sentence before and after the job is there: one status for both."""
    return f"attempt {number} waits: {why or 'not started yet'}"


def _launch(state: State, attempt: Attempt, message: str) -> Outcome:
    suspended = state.run.spec.suspend
    if not suspended and state.run.spec.queue is not None:
        message += f", queue {state.run.spec.queue} lets it run"
    return Outcome(
        phase="Suspended" if suspended else "Pending",
        reason="Suspended" if suspended else "Pending",
        message="spec.suspend is true" if suspended else message,
        attempt=attempt.number,
        waits_for_capacity=not suspended,
        children=(*_guard(state), _job(state, attempt)),
        after_seconds=state.look_seconds,
    )


def _while_running(state: State, last: Attempt) -> Outcome:
    if state.run.spec.queue is not None and (last.suspended or state.run.spec.suspend):
        return _in_queue(state, last, state.run.spec.queue)
    if last.suspended != state.run.spec.suspend:
        return _launch(state, last, f"attempt {last.number} goes on")
    if last.suspended:
        return Outcome(phase="Suspended", reason="Suspended", message="spec.suspend is true", attempt=last.number)
    running = last.job_status == "RUNNING"
    return Outcome(
        phase="Running" if running else "Pending",
        reason="Training" if running else "Pending",
        message=f"attempt {last.number} is training" if running else _waits(last.number, last.message),
        attempt=last.number,
        after_seconds=state.look_seconds,
    )


def _in_queue(state: State, last: Attempt, queue: str) -> Outcome:
    if state.run.spec.suspend:
        return Outcome(
            phase="Suspended",
            reason="Suspended",
            message="spec.suspend is true",
            attempt=last.number,
            surplus=(last.name,),
        )
    why = f": {state.held}" if state.held else ""
    return Outcome(
        phase="Pending",
        reason="Queued",
        message=f"attempt {last.number} waits for queue {queue} to admit all of its workers{why}",
        attempt=last.number,
        waits_for_capacity=True,
        after_seconds=LOOK_AGAIN_SECONDS,
    )


def _after_failure(state: State, last: Attempt, why: str) -> Outcome:
    resume = state.run.spec.resume
    allowed = resume.max_failures if resume.policy == "FromCheckpoint" else 0
    if last.number > allowed:
        return Outcome(
            phase="Failed",
            reason="JobFailed",
            message=f"attempt {last.number} failed and spec.resume allows {allowed} failures: {why}",
            attempt=last.number,
        )
    wait = min(RETRY_CAP_SECONDS, RETRY_BASE_SECONDS * 2.0 ** (last.number - 1))
    due = (last.end_time or state.now) + timedelta(seconds=wait)
    if last.end_time is not None and state.now < due:
        return Outcome(
            phase="Pending",
            reason="Pending",
            message=f"attempt {last.number} failed, the next resumes from its checkpoint in {wait:.0f} s: {why}",
            attempt=last.number,
            after_seconds=max(0.1, (due - state.now).total_seconds()),
        )
    following = replace(last, number=last.number + 1, suspended=state.run.spec.suspend)
    return _launch(state, following, f"attempt {following.number} resumes after: {why}")


def _after_success(state: State, last: Attempt) -> Outcome:
    if state.trained is None:
        tag = run_tag(state.metadata, last.number)
        return _after_failure(state, last, f"the job succeeded but left no artifact tagged {tag}")
    gates = tuple(
        GateResult(
            metric=gate.metric,
            minimum=gate.minimum,
            value=(value := state.trained.metrics.get(gate.metric)),
            passed=value is not None and value >= gate.minimum,
        )
        for gate in state.run.spec.evaluation.gates
    )
    missed = [gate for gate in gates if not gate.passed]
    if missed:
        return Outcome(
            phase="Failed",
            reason="GateFailed",
            message="; ".join(_gate_sentence(gate, state.trained) for gate in missed),
            attempt=last.number,
            trained=state.trained,
            gates=gates,
        )
    if state.published is not None and state.published.digest != state.trained.digest:
        return Outcome(
            phase="Failed",
            reason="VersionExists",
            message=f"trained {state.trained.digest}, but the name {state.version} was taken meanwhile",
            refused=version_is_free(state),
            attempt=last.number,
            trained=state.trained,
            gates=gates,
        )
    return _publish(state, last, state.trained, gates)


def _gate_sentence(gate: GateResult, trained: Trained) -> str:
    if gate.value is None:
        return f"{gate.metric} was not measured; the metrics are {', '.join(sorted(trained.metrics)) or 'none'}"
    return f"{gate.metric} is {gate.value:.4g}, its minimum is {gate.minimum:.4g}"


def _publish(state: State, last: Attempt, trained: Trained, gates: tuple[GateResult, ...]) -> Outcome:
    return Outcome(
        phase="Succeeded",
        reason="Published",
        message=f"published as {state.version}",
        ready=True,
        attempt=last.number,
        trained=trained,
        gates=gates,
        children=(model_version(state, last, trained),),
        tags=((trained.digest, f"models/{state.version}"),),
    )


def model_version(state: State, last: Attempt, trained: Trained) -> Manifest:
    """Return the ModelVersion that a run publishes. It outlives the run, so nothing owns it."""
    spec = state.run.spec
    lineage = {
        "trainingRun": state.metadata["name"],
        "dataDigest": last.data_digest,
        "configDigest": trained.config_digest,
        "parent": spec.initialize_from.model_version if spec.initialize_from is not None else None,
    }
    return {
        "apiVersion": MODEL_VERSION.api_version,
        "kind": MODEL_VERSION.kind,
        "metadata": {
            "name": state.version,
            "namespace": state.metadata["namespace"],
            "labels": {"belvedere.dev/version": state.version, "app.kubernetes.io/managed-by": "belvedere"},
        },
        "spec": {
            "model": spec.model,
            "digest": trained.digest,
            "lineage": {key: value for key, value in lineage.items() if value is not None},
            "evaluation": {"passed": True},
            "metrics": dict(sorted(trained.metrics.items())),
        },
    }


def _guard(state: State) -> tuple[Manifest, ...]:
    """Return what stands before the pods do: who may reach them."""
    if state.network_peers is None:
        return ()
    owner = {"apiVersion": TRAINING_RUN.api_version, "kind": TRAINING_RUN.kind, "metadata": state.metadata}
    return (training_policy(owner, state.network_peers),)


def _job(state: State, attempt: Attempt) -> Manifest:
    return ray_job(
        state.run.spec,
        metadata=state.metadata,
        attempt=attempt.number,
        data_digest=attempt.data_digest,
        parent_digest=attempt.parent_digest,
        pods=state.pods,
    )

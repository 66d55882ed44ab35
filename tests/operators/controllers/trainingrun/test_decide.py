"""What a run's state calls for, as a table and as rules that hold for every state."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from belvedere_operators.controllers.trainingrun.accelerators import Accelerators, held_by_server, offered_by_node
from belvedere_operators.controllers.trainingrun.decide import Decision, decide
from belvedere_operators.controllers.trainingrun.state import Attempt, Parent, Published, State, Trained
from belvedere_operators.manifests.network import NetworkPeers
from belvedere_operators.manifests.pods import PodSettings
from belvedere_platform.resources.training_run import TrainingRun, TrainingRunStatus

NOW = datetime(2026, 1, 1, tzinfo=UTC)
DATA, MODEL, OTHER = ("sha256:" + digit * 64 for digit in "dab")
SPEC: dict[str, Any] = {
    "model": "clip",
    "data": {"dataset": "emoji"},
    "optimization": {"pairs": 10},
    "evaluation": {"gates": [{"metric": "r1", "minimum": 0.5}]},
    "resume": {"maxFailures": 2},
}


def state(*, spec: dict[str, Any] | None = None, status: TrainingRunStatus | None = None, **changes: Any) -> State:
    """A run whose data is there and that has not started."""
    metadata = {"name": "v1", "namespace": "default", "uid": "u", "generation": 3}
    run = TrainingRun.model_validate(
        {
            "apiVersion": "belvedere.dev/v1alpha1",
            "kind": "TrainingRun",
            "metadata": metadata,
            "spec": {**SPEC, **(spec or {})},
        }
    )
    run = run.model_copy(update={"status": status})
    return State(**{"run": run, "now": NOW, "pods": PodSettings(image="i"), "data_digest": DATA, **changes})


def attempt(number: int = 1, **changes: Any) -> Attempt:
    return replace(
        Attempt(number=number, name=f"v1-{number}", data_digest=DATA, parent_digest=None, suspended=False), **changes
    )


GOOD = Trained(digest=MODEL, metrics={"r1": 0.6}, config_digest=None)
BAD = Trained(digest=MODEL, metrics={"r1": 0.4}, config_digest=None)
LONG_AGO = NOW - timedelta(hours=1)
TWO = {"workers": {"max": 2, "resources": {"gpu": 1}}}
ORIGIN = {"initializeFrom": {"modelVersion": "v0"}}

TABLE: list[tuple[str, State, str, str, list[str]]] = [
    ("fresh", state(), "Pending", "Pending", ["v1-1"]),
    ("no data", state(data_digest=None), "Pending", "Pending", []),
    ("no parent", state(spec=ORIGIN), "Pending", "Pending", []),
    ("parent not ready", state(spec=ORIGIN, parent=Parent(digest=OTHER, ready=False)), "Pending", "Pending", []),
    ("parent ready", state(spec=ORIGIN, parent=Parent(digest=OTHER, ready=True)), "Pending", "Pending", ["v1-1"]),
    ("name taken", state(published=Published(digest=OTHER, training_run=None)), "Pending", "Pending", []),
    ("suspended from the start", state(spec={"suspend": True}), "Suspended", "Suspended", ["v1-1"]),
    ("waiting", state(attempts=(attempt(deployment_status="Initializing"),)), "Pending", "Pending", []),
    ("running", state(attempts=(attempt(job_status="RUNNING"),)), "Running", "Training", []),
    ("to suspend", state(spec={"suspend": True}, attempts=(attempt(job_status="RUNNING"),)), "Suspended", "Suspended", ["v1-1"]),
    ("suspended", state(spec={"suspend": True}, attempts=(attempt(suspended=True, job_status="STOPPED"),)), "Suspended", "Suspended", []),
    ("to resume", state(attempts=(attempt(suspended=True, deployment_status="Suspended"),)), "Pending", "Pending", ["v1-1"]),
    ("just failed", state(attempts=(attempt(job_status="FAILED", end_time=NOW),)), "Pending", "Pending", []),
    ("failed", state(attempts=(attempt(job_status="FAILED", end_time=LONG_AGO),)), "Pending", "Pending", ["v1-2"]),
    ("never started", state(attempts=(attempt(deployment_status="Failed", end_time=LONG_AGO),)), "Pending", "Pending", ["v1-2"]),
    ("failed too often", state(attempts=(attempt(3, job_status="FAILED", end_time=LONG_AGO),)), "Failed", "JobFailed", []),
    ("no resume", state(spec={"resume": {"policy": "Never"}}, attempts=(attempt(job_status="STOPPED"),)), "Failed", "JobFailed", []),
    ("good", state(attempts=(attempt(job_status="SUCCEEDED"),), trained=GOOD), "Succeeded", "Published", ["v1"]),
    ("bad", state(attempts=(attempt(job_status="SUCCEEDED"),), trained=BAD), "Failed", "GateFailed", []),
    ("published, status lost", state(attempts=(attempt(job_status="SUCCEEDED"),), trained=GOOD, published=Published(digest=MODEL, training_run="v1")), "Succeeded", "Published", ["v1"]),
    ("taken meanwhile", state(attempts=(attempt(job_status="SUCCEEDED"),), trained=GOOD, published=Published(digest=OTHER, training_run=None)), "Failed", "VersionExists", []),
    ("done", state(status=TrainingRunStatus(phase="Succeeded")), "Succeeded", "Published", []),
    ("queued", state(spec={"queue": "q"}), "Pending", "Pending", ["v1-1"]),
    ("held by the queue", state(spec={"queue": "q"}, attempts=(attempt(suspended=True),)), "Pending", "Queued", []),
    ("admitted", state(spec={"queue": "q"}, attempts=(attempt(job_status="RUNNING"),)), "Running", "Training", []),
    ("queued, suspended", state(spec={"queue": "q", "suspend": True}), "Suspended", "Suspended", []),
    ("queued, to suspend", state(spec={"queue": "q", "suspend": True}, attempts=(attempt(job_status="RUNNING"),)), "Suspended", "Suspended", []),
    ("accelerators never suffice", state(spec=TWO, accelerators=Accelerators(total=1, free=1)), "Pending", "Pending", []),
    ("accelerators are taken", state(spec=TWO, accelerators=Accelerators(total=2, free=1)), "Pending", "Pending", []),
    ("accelerators are free", state(spec=TWO, accelerators=Accelerators(total=2, free=2)), "Pending", "Pending", ["v1-1"]),
    ("job deleted", state(status=TrainingRunStatus(phase="Running", attempt=2)), "Pending", "Pending", ["v1-2"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("given_state", "phase", "reason", "children"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_decisions(given_state: State, phase: str, reason: str, children: list[str]) -> None:
    decision = decide(given_state)
    ready = next(one for one in decision.status.conditions if one.type == "Ready")
    assert (decision.status.phase, ready.reason) == (phase, reason)
    assert [child["metadata"]["name"] for child in decision.children] == children
    assert ready.status == ("True" if phase == "Succeeded" else "False")
    assert ready.observed_generation == decision.status.observed_generation == 3


def condition(decision: Decision, type_: str) -> tuple[str, str, str]:
    found = next(one for one in decision.status.conditions if one.type == type_)
    return found.status, found.reason, found.message


def test_what_can_never_fit_is_refused_and_what_does_not_fit_now_waits() -> None:
    never = decide(state(spec=TWO, accelerators=Accelerators(total=1, free=1)))
    status, reason, message = condition(never, "Accepted")
    assert (status, reason) == ("False", "ExceedsAccelerators")
    assert message.startswith("spec.workers asks for 2 x 1 = 2 accelerators, and the budget has 1")
    later = decide(state(spec=TWO, accelerators=Accelerators(total=2, free=1)))
    assert condition(later, "Accepted")[0] == "True"
    assert condition(later, "CapacityAvailable") == (
        "False", "WaitingForCapacity", "2 accelerators are asked for, and 1 of 2 are free",
    )  # fmt: skip


def test_a_run_in_a_queue_says_what_the_queue_says() -> None:
    waiting = state(spec={"queue": "q"}, attempts=(attempt(suspended=True),), held="couldn't assign flavors")
    (ready,) = (one for one in decide(waiting).status.conditions if one.type == "Ready")
    assert ready.message == "attempt 1 waits for queue q to admit all of its workers: couldn't assign flavors"


def test_a_run_in_a_queue_is_suspended_by_taking_its_job_away_and_preempted_by_the_queue() -> None:
    running = attempt(job_status="RUNNING")
    taken = decide(state(spec={"queue": "q", "suspend": True}, attempts=(running,)))
    assert taken.surplus == ("v1-1",)
    before = TrainingRunStatus(phase="Running", attempt=1)
    preempted = decide(state(spec={"queue": "q"}, status=before, attempts=(replace(running, suspended=True),)))
    assert preempted.surplus == ()
    assert [one.reason for one in preempted.happenings] == ["Preempted"]
    assert condition(preempted, "CapacityAvailable")[:2] == ("False", "WaitingForCapacity")


JOB_STATUSES = st.sampled_from(["", "PENDING", "RUNNING", "SUCCEEDED", "FAILED", "STOPPED"])
DEPLOYMENTS = st.sampled_from(["", "Initializing", "Running", "Complete", "Failed", "Suspending", "Suspended"])
ATTEMPTS = st.builds(
    attempt,
    number=st.integers(1, 5),
    job_status=JOB_STATUSES,
    deployment_status=DEPLOYMENTS,
    suspended=st.booleans(),
    end_time=st.sampled_from([None, NOW, LONG_AGO]),
)
STATES = st.builds(
    state,
    spec=st.fixed_dictionaries(
        {"suspend": st.booleans(), "resume": st.fixed_dictionaries({"maxFailures": st.integers(0, 4)})}
    ),
    attempts=st.lists(ATTEMPTS, max_size=1).map(tuple),
    trained=st.sampled_from([None, GOOD, BAD]),
    published=st.sampled_from(
        [None, Published(digest=MODEL, training_run="v1"), Published(digest=OTHER, training_run=None)]
    ),
    data_digest=st.sampled_from([None, DATA]),
    status=st.sampled_from([None, TrainingRunStatus(phase="Running", attempt=1)]),
)


@given(STATES)
def test_rules_that_hold_for_every_state(given_state: State) -> None:
    decision = decide(given_state)
    assert decide(given_state) == decision
    assert len(decision.children) <= 1
    for child in decision.children:
        if child["kind"] == "RayJob":
            number = int(child["metadata"]["annotations"]["belvedere.dev/attempt"])
            last = given_state.last.number if given_state.last else 0
            assert number <= max(last, given_state.run.spec.resume.max_failures + 1, 1)
            assert given_state.data_digest is not None or given_state.attempts
        else:
            assert given_state.trained == GOOD
            assert given_state.published is None or given_state.published.digest == MODEL
    if decision.status.phase == "Succeeded":
        assert all(gate.passed for gate in decision.status.gates)
        assert decision.tags == ((MODEL, "models/v1"),)
    # Looking at the outcome again at once calls for the same outcome: nothing swings to and fro.
    settled = replace(given_state, run=given_state.run.model_copy(update={"status": decision.status}))
    again = decide(settled).status
    assert (again.phase, again.attempt) == (decision.status.phase, decision.status.attempt)


def test_the_pods_of_a_run_are_guarded_before_they_are_there() -> None:
    decision = decide(replace(state(), network_peers=NetworkPeers()))
    assert [child["kind"] for child in decision.children] == ["NetworkPolicy", "RayJob"]


GPU = {"resources": {"limits": {"nvidia.com/gpu": "2"}}}
TEMPLATE = {"spec": {"containers": [GPU, {}]}}


@pytest.mark.parametrize(
    ("node", "offered"),
    [
        ({"status": {"allocatable": {"nvidia.com/gpu": "8", "cpu": "4"}}}, 8),
        ({"status": {"allocatable": {"nvidia.com/gpu": "8"}}, "spec": {"unschedulable": True}}, 0),
        ({"status": {"allocatable": {"cpu": "4"}}}, 0),
        ({}, 0),
    ],
    ids=["has", "cordoned", "has none", "new"],
)
def test_a_node_offers_what_pods_may_have(node: dict[str, Any], offered: float) -> None:
    assert offered_by_node(node) == offered


def test_replicas_hold_what_their_pods_ask_for() -> None:
    groups = [{"replicas": 3, "template": TEMPLATE}, {"replicas": 1, "template": {"spec": {"containers": [{}]}}}]
    assert held_by_server({"spec": {"rayClusterConfig": {"workerGroupSpecs": groups}}}) == 6
    assert held_by_server({"spec": {"replicas": 2, "template": TEMPLATE}}) == 4
    assert held_by_server({"spec": {"template": TEMPLATE}}) == 2
    assert held_by_server({"spec": {}}) == 0

"""Keep the processes of each Deployment running, and say how many are ready."""

from __future__ import annotations

from typing import Any

from belvedere_operators.executors.pods import PodName, PodRunner, PodState
from belvedere_operators.executors.ports import asks_for_ports, pod_ports
from belvedere_operators.executors.slices import ReplicaAddress, ReplicaSlices
from belvedere_operators.executors.status import conditions_after, write_status
from belvedere_operators.executors.workload import Machine, plan_of, workload_controller
from belvedere_operators.runtime import After, Controller, Key
from belvedere_platform.errors import CorruptData, InvalidInput, NotFound
from belvedere_platform.store import Manifest
from belvedere_platform.store.kinds import DEPLOYMENT

MANAGER = "belvedere-executor-deployment"
RETRY_SECONDS = 5.0
"""After a problem that no change of an object may end: a full disk, a program that is installed meanwhile."""


def deployment_executor(machine: Machine) -> Controller:
    """Return the executor of Deployments."""
    runner = machine.pods()
    replicas = ReplicaSlices(machine.store)

    async def reconcile(key: Key) -> After | None:
        manifest = machine.caches.of(DEPLOYMENT).get(key)
        if manifest is None or manifest["metadata"].get("deletionTimestamp"):
            await _stop(runner, key, keep=0)
            return None
        if asks_for_ports(manifest["spec"]["template"]):
            # Before a process is told to go: nobody shall be sent to it any more.
            await replicas.keep(key, manifest["spec"].get("replicas", 1))
        states, problem = await _run(machine, runner, key, manifest)
        if asks_for_ports(manifest["spec"]["template"]):
            await replicas.write(key, manifest, _addresses(machine, runner, key, manifest, states))
        status = deployment_status(manifest, states, problem, machine)
        await write_status(machine.store, manifest, status, manager=MANAGER)
        if problem:
            return After(RETRY_SECONDS)
        waits = [state.wait_seconds for state in states if state.wait_seconds is not None]
        return After(max(0.05, min(waits))) if waits else None

    return workload_controller(machine, runner, name="executor-deployment", kind=DEPLOYMENT, reconcile=reconcile)


async def _run(machine: Machine, runner: PodRunner, key: Key, manifest: Manifest) -> tuple[list[PodState], str]:
    """Run the replicas asked for. A pod template that cannot be run leaves what runs as it is."""
    replicas = manifest["spec"].get("replicas", 1)
    await _stop(runner, key, keep=replicas)
    states = []
    for ordinal in range(replicas):
        name = PodName(key=key, kind=DEPLOYMENT.kind, ordinal=ordinal)
        try:
            plan = plan_of(machine, runner, name, manifest)
            states.append(await runner.ensure(name, plan, owner=manifest["metadata"]["uid"], policy="Always"))
        except (InvalidInput, NotFound, CorruptData) as error:
            return states, str(error)
    return states, ""


def _addresses(
    machine: Machine, runner: PodRunner, key: Key, manifest: Manifest, states: list[PodState]
) -> list[ReplicaAddress]:
    template, found = manifest["spec"]["template"], []
    for ordinal, state in enumerate(states):
        place = runner.place(PodName(key=key, kind=DEPLOYMENT.kind, ordinal=ordinal), manifest["metadata"]["uid"])
        found.append(ReplicaAddress(ports=pod_ports(template, place.directory, running=True), ready=state.ready))
    return found


async def _stop(runner: PodRunner, key: Key, *, keep: int) -> None:
    for name in sorted(runner.names(DEPLOYMENT.kind), key=lambda pod: pod.ordinal):
        if name.key == key and name.ordinal >= keep:
            await runner.stop(name)


def deployment_status(manifest: Manifest, states: list[PodState], problem: str, machine: Machine) -> dict[str, Any]:
    """Return the status as the deployment controller of a cluster writes it."""
    wanted = manifest["spec"].get("replicas", 1)
    ready = sum(state.ready for state in states)
    message = problem or next((state.failure for state in states if state.failure), "")
    enough = ready >= wanted and not problem
    conditions = (
        ("Available", enough, "MinimumReplicasAvailable" if enough else "MinimumReplicasUnavailable", message),
        (
            "Progressing",
            not problem,
            "ContainerConfigError" if problem else "NewReplicaSetAvailable" if enough else "ReplicaSetUpdated",
            message,
        ),
    )
    return {
        "observedGeneration": manifest["metadata"].get("generation", 1),
        "replicas": len(states),
        "updatedReplicas": len(states),
        "readyReplicas": ready,
        "availableReplicas": ready,
        "unavailableReplicas": max(0, wanted - ready),
        "conditions": conditions_after(manifest, conditions, now=machine.clock()),
    }

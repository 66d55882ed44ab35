"""Keep the processes of one pod as its plan says: files written, initial containers first, each started once, adopted, stopped."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import signal
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from belvedere_operators.executors.identity import Identity, wait_gone
from belvedere_operators.executors.probe import failure_of
from belvedere_operators.executors.process import (
    Command,
    Empty,
    Exited,
    Observation,
    Running,
    Slot,
    read_tail,
    write_atomically,
)
from belvedere_operators.executors.template import ContainerPlan, PodPlace, PodPlan
from belvedere_operators.runtime import Clock, Key

log = logging.getLogger(__name__)

# Kubernetes waits 10 s to 5 min and forgets after 10 min; one machine with one user in front of it is less patient.
FIRST_BACKOFF_SECONDS = 1.0
LONGEST_BACKOFF_SECONDS = 60.0
STEADY_SECONDS = 60.0
RestartPolicy = Literal["Always", "OnFailure", "Never"]
_FIELD = "_"  # between the fields of a slot's name: no Kubernetes name may contain it


@dataclass(frozen=True, kw_only=True)
class PodName:
    """One pod of one object."""

    key: Key
    kind: str
    ordinal: int = 0

    def slot(self, container: str) -> str:
        """Return the name of the slot of a container."""
        return _FIELD.join((self.key.namespace, self.kind.lower(), self.key.name, str(self.ordinal), container))

    @property
    def pod(self) -> str:
        """Return the name of the pod."""
        return f"{self.key.name}-{self.ordinal}"


@dataclass(frozen=True, kw_only=True)
class ContainerState:
    """What is true of one container now. `failure` says why it is not ready."""

    name: str
    observation: Observation
    ready: bool = False
    failure: str = ""
    wait_seconds: float | None = None
    """When to look again, though nothing happens."""


@dataclass(frozen=True, kw_only=True)
class PodState:
    """What is true of one pod now."""

    initial: tuple[ContainerState, ...]
    containers: tuple[ContainerState, ...]

    @property
    def ready(self) -> bool:
        """Whether every container is."""
        return bool(self.containers) and all(container.ready for container in self.containers)

    @property
    def failure(self) -> str:
        """Why the pod is not ready."""
        return next((c.failure for c in (*self.initial, *self.containers) if not c.ready and c.failure), "")

    @property
    def wait_seconds(self) -> float | None:
        """When to look again."""
        waits = [c.wait_seconds for c in (*self.initial, *self.containers) if c.wait_seconds is not None]
        return min(waits) if waits else None


def backoff_seconds(failures: int) -> float:
    """Return how long to wait after so many failures in a row."""
    return min(LONGEST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2.0 ** min(failures, 16)) if failures else 0.0


def failures_after(exited: Exited) -> int:
    """Return how many attempts in a row have ended too soon, this one included."""
    return 1 if exited.ended_at - exited.attempt.started_at >= STEADY_SECONDS else exited.attempt.failures + 1


def describe_exit(exited: Exited) -> str:
    """Return how a container ended and the last thing it said."""
    code = f"exited with {exited.code}" if exited.code is not None else "was killed"
    said = read_tail(Path(exited.attempt.log), 1)[:300]
    return f"{code} (attempt {exited.attempt.number})" + (f": {said}" if said else "")


@dataclass(kw_only=True)
class PodRunner:
    """Runs pods below a home directory."""

    home: Path
    instance: str
    environment: Mapping[str, str]
    clock: Clock
    changed: Callable[[PodName], None] = lambda name: None
    """Called when a process of a pod has ended."""
    _watches: dict[Identity, asyncio.Task[None]] = field(default_factory=dict)

    def place(self, name: PodName, uid: str) -> PodPlace:
        """Return where a pod runs."""
        return PodPlace(
            namespace=name.key.namespace,
            name=name.pod,
            uid=uid,
            directory=self.home / "pods" / name.key.namespace / f"{name.kind.lower()}{_FIELD}{name.pod}",
            claims=self.home / "volumes" / name.key.namespace,
            environment=self.environment,
        )

    def names(self, kind: str) -> set[PodName]:
        """Return the pods of a kind that have left a trace on disk."""
        found = set()
        for path in (self.home / "processes").glob(f"*{_FIELD}{kind.lower()}{_FIELD}*"):
            namespace, of_kind, name, ordinal, _ = path.name.split(_FIELD)
            if of_kind == kind.lower():
                found.add(PodName(key=Key(namespace, name), kind=kind, ordinal=int(ordinal)))
        return found

    async def ensure(self, name: PodName, plan: PodPlan, *, owner: str, policy: RestartPolicy) -> PodState:
        """Bring a pod as near to its plan as can be done now. `policy` says which containers that have ended start again."""
        await self._stop_outdated(name, plan, owner)
        initial: list[ContainerState] = []
        for container in plan.initial:
            again: RestartPolicy = "Never" if policy == "Never" else "OnFailure"
            state = await self._advance(name, container, plan, owner=owner, policy=again)
            initial.append(state)
            if not _succeeded(state.observation):
                return PodState(initial=tuple(initial), containers=())
        states = [
            await self._advance(name, container, plan, owner=owner, policy=policy) for container in plan.containers
        ]
        return PodState(initial=tuple(initial), containers=tuple(states))

    async def stop(self, name: PodName, *, grace_seconds: float = 10.0) -> None:
        """Stop a pod and remove what was kept of it, except for its logs."""
        slots = self._slots(name)
        async with asyncio.TaskGroup() as group:
            for slot in slots:
                group.create_task(slot.stop(grace_seconds=grace_seconds))
        for slot in slots:
            slot.forget()
        shutil.rmtree(self.place(name, "").directory, ignore_errors=True)

    async def restart(self, name: PodName, *, grace_seconds: float = 10.0) -> None:
        """Stop the processes of a pod but keep its record, so that the next `ensure` counts a further attempt."""
        for slot in self._slots(name):
            await slot.stop(grace_seconds=grace_seconds)

    def observe(self, name: PodName, containers: Iterable[str]) -> dict[str, Observation]:
        """Return what is known of the containers of a pod."""
        return {container: self._slot(name, container).observe() for container in containers}

    def runs(self, name: PodName) -> bool:
        """Whether a process of a pod runs."""
        return any(isinstance(slot.observe(), Running) for slot in self._slots(name))

    async def close(self) -> None:
        """Stop watching. The processes go on."""
        for task in self._watches.values():
            task.cancel()
        await asyncio.gather(*self._watches.values(), return_exceptions=True)

    def _slot(self, name: PodName, container: str) -> Slot:
        return Slot(self.home / "processes" / name.slot(container), instance=self.instance)

    def _slots(self, name: PodName) -> list[Slot]:
        pattern = name.slot("*")
        return [Slot(path, instance=self.instance) for path in sorted((self.home / "processes").glob(pattern))]

    async def _stop_outdated(self, name: PodName, plan: PodPlan, owner: str) -> None:
        """Stop what runs from another plan, or for an earlier object of the same name."""
        for slot in self._slots(name):
            observation = slot.observe()
            if isinstance(observation, Empty):
                continue
            attempt = observation.attempt
            if attempt.owner != owner or attempt.fingerprint != plan.fingerprint:
                log.info("stopping %s: its pod template or its owner has changed", slot.directory.name)
                await slot.stop(grace_seconds=plan.grace_seconds)
                slot.forget()

    async def _advance(
        self, name: PodName, plan: ContainerPlan, pod: PodPlan, *, owner: str, policy: RestartPolicy
    ) -> ContainerState:
        slot = self._slot(name, plan.name)
        observation = slot.observe()
        rewritten = await asyncio.to_thread(write_files, plan)
        if isinstance(observation, Running):
            if rewritten:
                log.info("configuration of %s has changed: SIGHUP", slot.directory.name)
                slot.send(signal.SIGHUP)
            self._watch(name, observation.identity)
            return await self._state(plan, observation)
        if isinstance(observation, Exited):
            if _succeeded(observation) and policy != "Always":
                return ContainerState(name=plan.name, observation=observation)
            failures = failures_after(observation)
            due = observation.ended_at + backoff_seconds(failures) - self.clock().timestamp()
            if policy == "Never" or due > 0:
                failure, wait = f"{plan.name} {describe_exit(observation)}", None
                if policy != "Never":
                    failure, wait = f"{failure}; starting it again in {due:.0f} s", due
                return ContainerState(name=plan.name, observation=observation, failure=failure, wait_seconds=wait)
            await slot.sweep()
        else:
            failures = 0
        command = Command(
            arguments=plan.arguments,
            environment=plan.environment,
            directory=plan.directory,
            log=self._log(name, plan.name),
            fingerprint=pod.fingerprint,
            owner=owner,
            failures=failures,
        )
        started = await asyncio.to_thread(slot.start, command, now=self.clock().timestamp())
        log.info("started %s", slot.directory.name)
        if isinstance(started, Running):
            self._watch(name, started.identity)
        return await self._state(plan, started)

    def _log(self, name: PodName, container: str) -> Path:
        return object_logs(self.home, name.kind, name.key) / f"{name.ordinal}-{container}.log"

    async def _state(self, plan: ContainerPlan, observation: Observation) -> ContainerState:
        state = ContainerState(name=plan.name, observation=observation)
        if not isinstance(observation, Running):
            # It ended within the milliseconds since its start: look again at once.
            return replace(state, failure=f"{plan.name} ended at once", wait_seconds=0.0)
        if plan.probe is None:
            return replace(state, ready=True)
        failure = await failure_of(plan.probe)
        if failure is None:
            return replace(state, ready=True, wait_seconds=plan.probe.period_seconds)
        return replace(
            state,
            failure=f"{plan.name} is not ready: {failure}",
            wait_seconds=min(0.5, plan.probe.period_seconds),
        )

    def _watch(self, name: PodName, identity: Identity) -> None:
        """See to it that the end of a process is noticed when it happens."""
        if identity in self._watches:
            return

        async def watch() -> None:
            try:
                await wait_gone(identity)
                self.changed(name)
            finally:
                self._watches.pop(identity, None)

        self._watches[identity] = asyncio.get_running_loop().create_task(watch())


def object_logs(home: Path, kind: str, key: Key) -> Path:
    """Return the directory that holds the logs of an object's processes."""
    return home / "logs" / key.namespace / kind.lower() / key.name


def write_files(plan: ContainerPlan) -> bool:
    """Write what a container mounts, where it differs. Return whether a file that was there has changed."""
    plan.root.mkdir(parents=True, exist_ok=True)
    for mounted in plan.directories:
        mounted.target.mkdir(parents=True, exist_ok=True)
        mounted.path.parent.mkdir(parents=True, exist_ok=True)
        if not mounted.path.is_symlink():
            with contextlib.suppress(FileNotFoundError):
                mounted.path.rmdir()
            mounted.path.symlink_to(mounted.target)
    changed = False
    wanted = {file.path for file in plan.files}
    for directory in plan.projected:
        directory.mkdir(parents=True, exist_ok=True)
        for path in directory.iterdir():
            if path not in wanted and path.is_file() and not path.is_symlink():
                path.unlink()
                changed = True
    for file in plan.files:
        try:
            if file.path.read_bytes() == file.content:
                continue
            changed = True
        except FileNotFoundError:
            file.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file.path, file.content, file.mode)
    return changed


def _succeeded(observation: Observation) -> bool:
    return isinstance(observation, Exited) and observation.code == 0

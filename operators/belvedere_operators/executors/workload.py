"""What the executors of Deployments and Jobs have in common: their pods, and which object to look at when something changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from belvedere_operators.executors.pods import PodName, PodRunner
from belvedere_operators.executors.ports import pod_ports, port_environment
from belvedere_operators.executors.template import PodPlan, Sources, plan_pod, references
from belvedere_operators.runtime import Caches, Clock, Controller, Key, Watched, key_of
from belvedere_operators.runtime.controller import KeysOf, Reconcile
from belvedere_platform.store import Kind, Manifest, ObjectStore
from belvedere_platform.store.kinds import CONFIG_MAP, SECRET


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The machine on which the executors act, and the installation they act for."""

    store: ObjectStore
    caches: Caches
    clock: Clock
    home: Path
    instance: str
    environment: Mapping[str, str]
    """What every process gets."""

    def pods(self) -> PodRunner:
        """Return a runner of pods."""
        return PodRunner(home=self.home, instance=self.instance, environment=self.environment, clock=self.clock)


def plan_of(machine: Machine, runner: PodRunner, name: PodName, manifest: Manifest) -> PodPlan:
    """Return what a pod of an object runs, from the ConfigMaps and Secrets as they are now."""
    namespace = name.key.namespace
    sources = Sources(
        config_maps={m["metadata"]["name"]: m for m in machine.caches.of(CONFIG_MAP).list(namespace)},
        secrets={m["metadata"]["name"]: m for m in machine.caches.of(SECRET).list(namespace)},
    )
    template = manifest["spec"]["template"]
    place = runner.place(name, manifest["metadata"]["uid"])
    ports = pod_ports(template, place.directory, running=runner.runs(name))
    place = replace(place, ports=ports, fixed=port_environment(ports))
    return plan_pod(template, place=place, sources=sources)


def users_of(machine: Machine, kind: Kind, source: str) -> KeysOf:
    """Map a ConfigMap or Secret to the objects whose pod template reads it."""

    def keys(manifest: Manifest) -> Iterable[Key]:
        wanted = (source, manifest["metadata"]["name"])
        for workload in machine.caches.of(kind).list(manifest["metadata"].get("namespace", "")):
            if wanted in references(workload["spec"]["template"]):
                yield key_of(workload)

    return keys


def workload_controller(
    machine: Machine, runner: PodRunner, *, name: str, kind: Kind, reconcile: Reconcile
) -> Controller:
    """Return a controller that also looks when a process ends, a ConfigMap changes, or a pod has no object any more."""
    controller = Controller(
        name=name,
        kind=kind,
        reconcile=reconcile,
        caches=machine.caches,
        clock=machine.clock,
        watched=(
            Watched(kind=CONFIG_MAP, keys=users_of(machine, kind, "ConfigMap")),
            Watched(kind=SECRET, keys=users_of(machine, kind, "Secret")),
        ),
        workers=8,
    )
    runner.changed = lambda pod: controller.queue.add(pod.key)
    for pod in runner.names(kind.kind):
        controller.queue.add(pod.key)
    return controller

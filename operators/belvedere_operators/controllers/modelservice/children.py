"""The children that a ModelService shall have, from the journal: pure, the same journal gives the same bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from belvedere_operators.alerts.rules import longest_window_seconds
from belvedere_operators.controllers.context import Settings
from belvedere_operators.controllers.modelservice.gather import engine_name
from belvedere_operators.controllers.modelservice.journal import Journal
from belvedere_operators.controllers.modelservice.obstacles import capacity_obstacle
from belvedere_operators.controllers.modelservice.replicas import desired_replicas
from belvedere_operators.controllers.modelservice.state import State
from belvedere_operators.manifests.autoscaler import autoscaler
from belvedere_operators.manifests.disruption import disruption_budget
from belvedere_operators.manifests.gateway import gateway_route
from belvedere_operators.manifests.network import network_policy
from belvedere_operators.manifests.ownership import MANAGED_BY, VERSION_LABEL, owner_reference
from belvedere_operators.manifests.prometheusrule import prometheus_rule
from belvedere_operators.manifests.rayservice import ray_service
from belvedere_operators.manifests.triton import triton_deployment, triton_service
from belvedere_platform.store import Manifest
from belvedere_platform.store.kinds import ENGINE


@dataclass(frozen=True, kw_only=True)
class Children:
    """What to write, in this order, and what to delete after it."""

    route: Manifest | None
    engines: tuple[Manifest, ...]
    servers: tuple[Manifest, ...]
    rule: Manifest | None
    guards: tuple[Manifest, ...]
    surplus: tuple[Manifest, ...]


def children(state: State, journal: Journal, settings: Settings) -> Children:
    """Return what shall exist. Servers that are not wanted any more come last, when the route no longer names them."""
    desired = desired_replicas(state, journal)
    waiting = _waits_for_capacity(state, journal)
    guards = _guards(state, journal, desired, settings) if journal.stable is not None else ()
    kept = {_identity(one) for one in guards}
    return Children(
        route=_route(state, journal),
        engines=tuple(
            _engine(state, version)
            for version in desired
            if version not in journal.engines and version not in state.engines and version in state.version_manifests
        ),
        servers=tuple(
            manifest
            for version, replicas in sorted(desired.items())
            if version in journal.engines and version != waiting
            for manifest in _servers(state, journal, version, replicas, settings)
        ),
        rule=_rule(state, journal),
        guards=guards,
        surplus=(
            *(found for version, found in sorted(state.servers.items()) if version not in desired),
            *(found for found in state.guards if _identity(found) not in kept),
        ),
    )


def _guards(state: State, journal: Journal, desired: Mapping[str, int], settings: Settings) -> tuple[Manifest, ...]:
    """Return what stands beside the servers: who reaches them, how many must stay, who scales them."""
    peers = settings.network_peers
    scaler = autoscaler(state.manifest, state.spec, prometheus_url=settings.prometheus_url)
    made = (
        network_policy(state.manifest, peers) if peers is not None else None,
        _budget(state, journal, desired),
        scaler if state.missing_kind is None else None,
    )
    return tuple(one for one in made if one is not None)


def _identity(manifest: Manifest) -> tuple[str, str]:
    return manifest["kind"], manifest["metadata"]["name"]


def _servers(state: State, journal: Journal, version: str, replicas: int, settings: Settings) -> tuple[Manifest, ...]:
    """Return what serves a version, by the backend."""
    build = triton_deployment if state.spec.backend == "triton" else ray_service
    server = build(
        state.manifest,
        state.spec,
        version=version,
        engine_digest=journal.engines[version],
        replicas=replicas,
        pods=settings.pods,
        running=state.servers.get(version),
    )
    return (server, triton_service(state.manifest, version)) if state.spec.backend == "triton" else (server,)


def weights(journal: Journal) -> dict[str, int]:
    """Return the percent of requests for each version that gets any, the stable one first."""
    if journal.stable is None:
        return {}
    active = journal.active
    if active is None or active.weight == 0:
        return {journal.stable: 100}
    shares = {journal.stable: 100 - active.weight, active.candidate: active.weight}
    return {version: share for version, share in shares.items() if share > 0}


def _route(state: State, journal: Journal) -> Manifest | None:
    if journal.stable is None or not journal.served:
        return None
    active = journal.active
    shadowed = active is not None and state.routable.get(active.candidate, 0) > 0
    shadow = (journal.stable, active.candidate) if active is not None and shadowed else None
    return gateway_route(state.manifest, state.spec, weights=weights(journal), shadow=shadow)


def _rule(state: State, journal: Journal) -> Manifest | None:
    if journal.stable is None:
        return None
    return prometheus_rule(state.manifest, state.spec, stable=journal.stable, candidate=_watched(state, journal))


def _budget(state: State, journal: Journal, desired: Mapping[str, int]) -> Manifest | None:
    if journal.stable is None or journal.stable not in desired:
        return None
    return disruption_budget(state.manifest, state.spec, stable=journal.stable, replicas=desired[journal.stable])


def _watched(state: State, journal: Journal) -> str | None:
    """Return the version that alerts shall watch beside the stable one.

    A candidate that the judge has aborted is watched a little longer: its alert is a second opinion for the record.
    """
    last = journal.rollout
    if last is None or last.phase == "Promoted" or last.candidate == journal.stable:
        return None
    if last.active or state.now - (last.completed or last.started) < longest_window_seconds(state.spec):
        return last.candidate
    return None


def _waits_for_capacity(state: State, journal: Journal) -> str | None:
    """Return the candidate when its replicas would not fit and none runs yet: half a rollout helps nobody."""
    active = journal.active
    if active is None or active.candidate in state.servers:
        return None
    return active.candidate if capacity_obstacle(state, journal, active) is not None else None


def _engine(state: State, version: str) -> Manifest:
    policy = state.spec.engine
    return {
        "apiVersion": ENGINE.api_version,
        "kind": ENGINE.kind,
        "metadata": {
            "name": engine_name(version, state.spec),
            "namespace": state.namespace,
            "labels": {VERSION_LABEL: version, **MANAGED_BY},
            "ownerReferences": [owner_reference(state.version_manifests[version])],
        },
        "spec": {
            "modelVersion": version,
            "target": policy.target.model_dump(by_alias=True, mode="json"),
            "parity": policy.parity.model_dump(by_alias=True, mode="json"),
            **_built_where_it_runs(state),
        },
    }


def _built_where_it_runs(state: State) -> dict[str, Any]:
    """Return what places the build of a GPU engine on nodes like those of its replicas: it is made for one kind of GPU."""
    if state.spec.engine.target.device != "gpu":
        return {}
    placed = state.spec.pod.model_dump(by_alias=True, mode="json", include={"node_selector", "tolerations"})
    return {"pod": {name: value for name, value in placed.items() if value}}

"""The configuration of all Envoys as one immutable value, and the way from one to the next that never points at nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from belvedere_serving.gateway.clusters import TAP_CLUSTER, assignments, clusters, tap_cluster
from belvedere_serving.gateway.messages import endpoint_pb2, pack
from belvedere_serving.gateway.routes import ROUTES, route_configuration
from belvedere_serving.gateway.weights import effective_weights
from belvedere_serving.gateway.world import PROTOCOLS, World

CLUSTERS = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
ENDPOINTS = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
LISTENERS = "type.googleapis.com/envoy.config.listener.v3.Listener"
TYPE_OF_ROUTES = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"

Resources = Mapping[str, Any]
"""Packed resources by name."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one version is given, as Envoy is told."""

    namespace: str
    service: str
    version: str
    protocol: str
    weight: int
    replicas: int


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Everything that all Envoys are told alike; the listener is each Envoy's own."""

    clusters: Resources = field(default_factory=dict)
    endpoints: Resources = field(default_factory=dict)
    routes: Resources = field(default_factory=dict)

    def of_type(self, type_url: str) -> Resources:
        """Return the resources of one xDS type."""
        return {CLUSTERS: self.clusters, ENDPOINTS: self.endpoints, TYPE_OF_ROUTES: self.routes}[type_url]


def build_snapshot(world: World, *, tap_address: str, tap_port: int) -> Snapshot:
    """Return the configuration for a state of the world. The same world gives the same bytes."""
    all_clusters: dict[str, Any] = {TAP_CLUSTER: pack(tap_cluster(tap_address, tap_port))}
    all_endpoints: dict[str, Any] = {}
    for key in sorted(world.routes):
        route = world.routes[key]
        all_clusters |= {name: pack(cluster) for name, cluster in clusters(world, route).items()}
        all_endpoints |= {name: pack(assignment) for name, assignment in assignments(world, route).items()}
    return Snapshot(clusters=all_clusters, endpoints=all_endpoints, routes={ROUTES: pack(route_configuration(world))})


def version_of(resources: Resources) -> str:
    """Return a version that depends on the contents alone, so that a restarted control plane gives the same one."""
    digest = hashlib.sha256()
    for name in sorted(resources):
        content = hashlib.sha256(resources[name].value).digest()
        digest.update(f"{len(name)}:{name}".encode() + content)
    return digest.hexdigest()[:16]


def joined(clusters: Resources, endpoints: Resources, target: Snapshot) -> Snapshot:
    """Return what Envoy, which has these clusters and replicas, must have before its routes become the target's: make before break.

    What is new comes beside what is there, and a cluster about to lose its last replica keeps it. When the routes have changed,
    the target alone is right: what is no longer used goes.
    """
    kept = _emptied(endpoints, target.endpoints)
    return Snapshot(
        clusters={**clusters, **target.clusters, **_only(clusters, kept)},
        endpoints={**target.endpoints, **_only(endpoints, kept)},
        routes=target.routes,
    )


def with_replicas(endpoints: Resources) -> Resources:
    """Return the clusters' replicas without those that have none."""
    return {name: packed for name, packed in endpoints.items() if _has_replicas(packed)}


def fed_by_discovery(clusters: Resources) -> frozenset[str]:
    """Return the names of the clusters whose replicas Envoy must ask for: all but the tap."""
    return frozenset(clusters) - {TAP_CLUSTER}


def _emptied(previous: Resources, target: Resources) -> set[str]:
    """Return the names of the clusters that have replicas and shall have none."""
    return {
        name
        for name, packed in previous.items()
        if name not in target or (not _has_replicas(target[name]) and _has_replicas(packed))
    }


def _only(resources: Resources, names: set[str]) -> Resources:
    return {name: resources[name] for name in sorted(names) if name in resources}


def _has_replicas(packed: Any) -> bool:
    assignment = endpoint_pb2.ClusterLoadAssignment()
    packed.Unpack(assignment)
    return any(locality.lb_endpoints for locality in assignment.endpoints)


def shares(world: World) -> Iterable[Share]:
    """Yield what each version is given, for both protocols: the observed state of the gateway."""
    for (namespace, service), route in sorted(world.routes.items()):
        for protocol in PROTOCOLS:
            weights = effective_weights(world, route, protocol)
            for version in route.versions:
                key = (namespace, service, version.version)
                yield Share(
                    namespace=namespace,
                    service=service,
                    version=version.version,
                    protocol=protocol,
                    weight=weights.get(version.version, 0),
                    replicas=len(world.routable(key, protocol)),
                )

"""Decide which EndpointSlices a RayService should have. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from belvedere_operators.controllers.endpoints.replicas import Replica
from belvedere_platform.store import Manifest
from belvedere_platform.store.kinds import ENDPOINT_SLICE

SERVICE_LABEL = "belvedere.dev/service"
VERSION_LABEL = "belvedere.dev/version"
RAY_SERVICE_LABEL = "belvedere.dev/ray-service"
REPLICA_ANNOTATION = "belvedere.dev/replica"
PREFIX_ANNOTATION = "belvedere.dev/http-path-prefix"
CONTROLLER_ANNOTATION = "belvedere.dev/serve-controller"
OWN_ANNOTATIONS = frozenset({REPLICA_ANNOTATION, PREFIX_ANNOTATION, CONTROLLER_ANNOTATION})


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Slices to write and names of slices to remove."""

    apply: tuple[Manifest, ...] = ()
    remove: tuple[str, ...] = ()
    num_ready: int = 0
    """How many replicas can be reached."""

    @property
    def changes(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.apply or self.remove)


def slice_name(ray_service: str, replica_id: str) -> str:
    """Return the name of a replica's EndpointSlice."""
    return f"{ray_service}-{hashlib.sha256(replica_id.encode()).hexdigest()[:10]}"


def decide(
    ray_service: Manifest, replicas: Iterable[Replica], existing: Iterable[Manifest], controller: str = ""
) -> Decision:
    """Return what must change so that each replica that can be reached has one slice, as the Serve controller names them.

    A Ray head that was killed is followed by one whose controller knows of no replica, while those of its predecessor still
    answer, for about a minute: they stay until the new controller has one to take their place. One that knows them, from a
    Redis, asks each first; until it has heard they stay as they were.
    """
    metadata, replicas = ray_service["metadata"], list(replicas)
    before = {one["metadata"]["name"]: one for one in existing}
    wanted: dict[str, Manifest] = {}
    kept: set[str] = set()
    for replica in replicas:
        name = slice_name(metadata["name"], replica.replica_id)
        if replica.recovering and name in before:
            kept.add(name)
            continue
        ports = _ports(replica, before.get(name))
        if ports:
            wanted[name] = endpoint_slice(metadata, name, replica, ports, controller)
    changed = tuple(one for name, one in sorted(wanted.items()) if not _same(one, before.get(name)))
    num_ready = sum(replica.ready for replica in replicas)
    gone = set(before) - set(wanted) - kept
    if num_ready == 0 and replicas_asked(ray_service):
        gone -= {name for name in gone if _outlived_its_controller(before[name], controller)}
    return Decision(apply=changed, remove=tuple(sorted(gone)), num_ready=num_ready)


def _outlived_its_controller(endpoint: Manifest, controller: str) -> bool:
    annotations: Mapping[str, str] = endpoint["metadata"].get("annotations", {})
    return annotations.get(CONTROLLER_ANNOTATION, controller) != controller


def replicas_asked(ray_service: Manifest) -> int:
    """Return how many replicas a RayService shall have: each has a worker of its own."""
    groups = ray_service["spec"].get("rayClusterConfig", {}).get("workerGroupSpecs", ())
    return sum(int(group.get("replicas", 0)) for group in groups)


def is_ready(slice_: Manifest) -> bool:
    """Return whether new requests may go to the replica of a slice."""
    return any(one.get("conditions", {}).get("ready") for one in slice_.get("endpoints") or ())


def _ports(replica: Replica, before: Manifest | None) -> list[dict[str, Any]]:
    given = {"http": replica.http_port, "grpc": replica.grpc_port}
    if replica.terminating and before is not None:
        # Serve stops naming the ports of a replica that drains, but it listens until its requests are answered.
        given |= {port["name"]: port["port"] for port in before["ports"] if given.get(port["name"]) is None}
    return [{"name": name, "port": port, "protocol": "TCP"} for name, port in given.items() if port is not None]


def endpoint_slice(
    metadata: Mapping[str, Any], name: str, replica: Replica, ports: list[dict[str, Any]], controller: str = ""
) -> Manifest:
    """Return the EndpointSlice of one replica."""
    labels = {key: value for key, value in metadata.get("labels", {}).items() if key.startswith("belvedere.dev/")}
    annotations = {REPLICA_ANNOTATION: replica.replica_id}
    if replica.path_prefix != "/":
        annotations[PREFIX_ANNOTATION] = replica.path_prefix
    if controller:
        annotations[CONTROLLER_ANNOTATION] = controller
    return {
        "apiVersion": ENDPOINT_SLICE.api_version,
        "kind": ENDPOINT_SLICE.kind,
        "metadata": {
            "name": name,
            "namespace": metadata["namespace"],
            "labels": {
                **labels,
                RAY_SERVICE_LABEL: metadata["name"],
                "app.kubernetes.io/managed-by": "belvedere",
                "endpointslice.kubernetes.io/managed-by": "belvedere.dev",
            },
            "annotations": annotations,
            "ownerReferences": [
                {"apiVersion": "ray.io/v1", "kind": "RayService", "name": metadata["name"], "uid": metadata["uid"]}
            ],
        },
        "addressType": "IPv6" if ":" in replica.address else "IPv4",
        "endpoints": [
            {
                "addresses": [replica.address],
                "conditions": {
                    "ready": replica.ready,
                    "serving": replica.ready or replica.terminating,
                    "terminating": replica.terminating,
                },
            }
        ],
        "ports": ports,
    }


def _same(wanted: Manifest, before: Manifest | None) -> bool:
    if before is None:
        return False
    metadata, had = wanted["metadata"], before["metadata"]
    # Others may leave their own: on a cluster each applied object carries the digest of what it was applied as.
    annotations = had.get("annotations", {})
    return (
        all(wanted[field] == before.get(field) for field in ("addressType", "endpoints", "ports"))
        and metadata["labels"] == had.get("labels")
        and metadata["annotations"] == {name: value for name, value in annotations.items() if name in OWN_ANNOTATIONS}
    )

"""EndpointSlices for the pods of a Deployment that have ports of their own: what a cluster writes for its Service."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from belvedere_operators.manifests.ownership import MANAGED_BY, owner_reference
from belvedere_operators.runtime import Key
from belvedere_platform.errors import NotFound
from belvedere_platform.ports import LOOPBACK
from belvedere_platform.store import Manifest, ObjectStore
from belvedere_platform.store.kinds import DEPLOYMENT, ENDPOINT_SLICE

MANAGER = "belvedere-executor-endpoints"
DEPLOYMENT_LABEL = "belvedere.dev/deployment"
_ORDINAL = "belvedere.dev/ordinal"


@dataclass(frozen=True, kw_only=True)
class ReplicaAddress:
    """Where a pod listens, and whether it takes requests."""

    ports: Mapping[str, int]
    ready: bool


class ReplicaSlices:
    """The slices of Deployments, one a pod."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    async def keep(self, key: Key, replicas: int) -> None:
        """Remove the slices of the pods beyond so many."""
        for name, ordinal in (await self._existing(key)).items():
            if ordinal >= replicas:
                try:
                    await self._store.delete(ENDPOINT_SLICE, name, key.namespace)
                except NotFound:
                    continue

    async def write(self, key: Key, deployment: Manifest, addresses: Sequence[ReplicaAddress]) -> None:
        """Write the slices of the pods there are, where they differ. Owner references remove them with the Deployment."""
        for ordinal, address in enumerate(addresses):
            wanted = endpoint_slice(deployment, ordinal, address)
            try:
                before = await self._store.get(ENDPOINT_SLICE, wanted["metadata"]["name"], key.namespace)
            except NotFound:
                before = {}
            if any(wanted[part] != before.get(part) for part in ("endpoints", "ports")):
                await self._store.apply(wanted, field_manager=MANAGER)

    async def _existing(self, key: Key) -> dict[str, int]:
        listing = await self._store.list(ENDPOINT_SLICE, key.namespace, labels={DEPLOYMENT_LABEL: key.name})
        return {one["metadata"]["name"]: int(one["metadata"]["labels"][_ORDINAL]) for one in listing.items}


def endpoint_slice(deployment: Manifest, ordinal: int, address: ReplicaAddress) -> dict[str, Any]:
    """Return the slice of one pod, with the labels of its template that are ours."""
    metadata = deployment["metadata"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    return {
        "apiVersion": ENDPOINT_SLICE.api_version,
        "kind": ENDPOINT_SLICE.kind,
        "metadata": {
            "name": f"{metadata['name']}-{ordinal}",
            "namespace": metadata["namespace"],
            "labels": {**labels, **MANAGED_BY, DEPLOYMENT_LABEL: metadata["name"], _ORDINAL: f"{ordinal}"},
            "ownerReferences": [
                owner_reference({"apiVersion": DEPLOYMENT.api_version, "kind": DEPLOYMENT.kind, "metadata": metadata})
            ],
        },
        "addressType": "IPv4",
        "endpoints": [
            {
                "addresses": [LOOPBACK],
                "conditions": {"ready": address.ready, "serving": address.ready, "terminating": False},
            }
        ],
        "ports": [
            {"name": name, "port": address.ports[name], "protocol": "TCP"}
            for name in ("http", "grpc")
            if name in address.ports
        ],
    }

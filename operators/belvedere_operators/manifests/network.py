"""The NetworkPolicy of a ModelService's pods: Ray's dashboard starts whatever it is told to, so few may reach it. Pure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from belvedere_operators.manifests.installation_file import read_installation_file
from belvedere_operators.manifests.ownership import SERVICE_LABEL, child_metadata, service_labels
from belvedere_operators.manifests.raycluster import DASHBOARD_PORT
from belvedere_platform.resources.base import Part
from belvedere_platform.store import Manifest
from belvedere_platform.store.kinds import NETWORK_POLICY

Peers = tuple[dict[str, Any], ...]
"""NetworkPolicyPeers, as Kubernetes has them; none is nobody."""


class NetworkPeers(Part):
    """Who is who in an installation."""

    gateway: Peers = ()
    """Who sends requests to replicas."""
    operator: Peers = ()
    """Who asks the dashboards for replicas."""
    kuberay: Peers = ()
    """Who makes the Ray clusters and tells them what to serve."""
    monitoring: Peers = ()
    """Who scrapes metrics."""


def read_network_peers(path: Path) -> NetworkPeers:
    """Return the peers in a YAML file. Raises InvalidInput that names the field."""
    return read_installation_file(path, NetworkPeers, what="network peers")


def network_policy(owner: Manifest, peers: NetworkPeers) -> Manifest:
    """Return the policy: the pods of one service reach each other, and of all others only the peers reach them."""
    service = owner["metadata"]["name"]
    own = {"podSelector": {"matchLabels": {SERVICE_LABEL: service}}}
    rules = (
        _from((own, *peers.gateway, *peers.kuberay)),
        _from(peers.operator, DASHBOARD_PORT),
        # By name, since Ray and Triton have their metrics on different ports.
        _from(peers.monitoring, "metrics"),
    )
    return {
        "apiVersion": NETWORK_POLICY.api_version,
        "kind": NETWORK_POLICY.kind,
        "metadata": child_metadata(owner, f"{service}-replicas", service_labels(service)),
        "spec": {
            "podSelector": own["podSelector"],
            "policyTypes": ["Ingress"],
            "ingress": [rule for rule in rules if rule is not None],
        },
    }


def _from(peers: Peers, port: int | str | None = None) -> dict[str, Any] | None:
    # A rule without peers would let everybody in.
    if not peers:
        return None
    ports = {"ports": [{"port": port, "protocol": "TCP"}]} if port is not None else {}
    return {"from": [dict(peer) for peer in peers], **ports}

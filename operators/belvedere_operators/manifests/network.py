"""NetworkPolicies of pods that serve and train: Ray's dashboard starts whatever it is told to, so few may reach it. Pure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from belvedere_operators.manifests.installation_file import read_installation_file
from belvedere_operators.manifests.ownership import MANAGED_BY, SERVICE_LABEL, child_metadata, service_labels
from belvedere_operators.manifests.raycluster import DASHBOARD_PORT
from belvedere_operators.manifests.rayjob import RUN_LABEL
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
    """Return the policy of a service: its pods reach each other, and of all others only the peers reach them."""
    service = owner["metadata"]["name"]
    metadata = child_metadata(owner, f"{service}-replicas", service_labels(service))
    return _policy(metadata, {SERVICE_LABEL: service}, peers, callers=peers.gateway, askers=peers.operator)


def training_policy(owner: Manifest, peers: NetworkPeers) -> Manifest:
    """Return the policy of a run: its pods answer nobody's requests, and the operator asks Prometheus about them."""
    run = owner["metadata"]["name"]
    metadata = child_metadata(owner, f"{run}-training", {RUN_LABEL: run, **MANAGED_BY})
    return _policy(metadata, {RUN_LABEL: run}, peers, callers=(), askers=())


def _policy(
    metadata: Manifest, labels: dict[str, str], peers: NetworkPeers, *, callers: Peers, askers: Peers
) -> Manifest:
    own = {"podSelector": {"matchLabels": labels}}
    rules = (
        _from((own, *callers, *peers.kuberay)),
        _from(askers, DASHBOARD_PORT),
        # By name, since Ray and Triton have their metrics on different ports.
        _from(peers.monitoring, "metrics"),
    )
    return {
        "apiVersion": NETWORK_POLICY.api_version,
        "kind": NETWORK_POLICY.kind,
        "metadata": metadata,
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

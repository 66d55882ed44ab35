"""Read Ray Serve's own account of its replicas (GET /api/serve/applications/). Pure; the fields are those of ray.serve.schema 2.60."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

# A replica in one of these states has been told to go; it still answers what it holds until it has drained.
_LEAVING = frozenset({"STOPPING", "STOPPED"})
_SERVING = frozenset({"RUNNING", "PENDING_MIGRATION"})


@dataclass(frozen=True, kw_only=True)
class Replica:
    """One ingress replica. Without a port it cannot be reached that way, or not any more."""

    replica_id: str
    address: str
    application: str
    state: str
    path_prefix: str = "/"
    http_port: int | None = None
    grpc_port: int | None = None

    @property
    def ready(self) -> bool:
        """Whether new requests may go there."""
        return self.state in _SERVING and self.http_port is not None

    @property
    def recovering(self) -> bool:
        """Whether a Serve controller that was started anew knows it, and asks it whether it is well."""
        return self.state == "RECOVERING"

    @property
    def terminating(self) -> bool:
        """Whether it drains."""
        return self.state in _LEAVING


def replicas_of(details: Mapping[str, Any], applications: Iterable[str]) -> list[Replica]:
    """Return the ingress replicas of the applications named. HTTP and gRPC targets of one replica share its actor's name."""
    wanted = set(applications)
    ports, loopback = _ports(details, wanted), _loopback(details)
    found: list[Replica] = []
    for name in sorted(wanted & set(details.get("applications", {}))):
        application = details["applications"][name]
        for replica in _ingress_replicas(application, set(ports)):
            http, grpc, prefix = ports.get(replica["actor_name"], (None, None, application.get("route_prefix") or "/"))
            found.append(
                Replica(
                    replica_id=replica["replica_id"],
                    address=loopback or replica["node_ip"],
                    application=name,
                    state=replica["state"],
                    path_prefix=prefix,
                    http_port=http,
                    grpc_port=grpc,
                )
            )
    return sorted(found, key=lambda replica: replica.replica_id)


def controller_of(details: Mapping[str, Any]) -> str:
    """Return which Serve controller gives the account; empty while a head has none yet."""
    return str((details.get("controller_info") or {}).get("actor_id") or "")


def _loopback(details: Mapping[str, Any]) -> str | None:
    """Return the address of replicas that listen on loopback only; Ray names the machine's outer address even then."""
    host = str(details.get("http_options", {}).get("host") or "")
    return host if host.startswith("127.") or host == "::1" else None


def _ports(details: Mapping[str, Any], applications: set[str]) -> dict[str, tuple[int | None, int | None, str]]:
    ports: dict[str, tuple[int | None, int | None, str]] = {}
    for group in details.get("target_groups", ()):
        # Groups without an application are Serve's own proxies: direct ingress is off, or nothing runs yet.
        if group.get("app_name") not in applications:
            continue
        for target in group["targets"]:
            http, grpc, _ = ports.get(target["name"], (None, None, ""))
            if group["protocol"] == "HTTP":
                http = target["port"]
            else:
                grpc = target["port"]
            ports[target["name"]] = (http, grpc, group["route_prefix"])
    return ports


def _ingress_replicas(application: Mapping[str, Any], addressed: set[str]) -> Iterable[Mapping[str, Any]]:
    deployments = application.get("deployments", {})
    ingress = application.get("deployment_topology", {}) or {}
    name = ingress.get("ingress_deployment")
    for deployment in deployments.values():
        is_ingress = deployment["name"] == name if name else len(deployments) == 1
        for replica in deployment.get("replicas", ()):
            placed = replica.get("node_ip") and replica.get("actor_name")
            if placed and (is_ingress or replica["actor_name"] in addressed):
                yield replica

"""What the gateway knows: the routes of services and the replicas of versions, read from stored objects."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from pydantic import ValidationError

from belvedere_platform.errors import InvalidInput
from belvedere_platform.resources.gateway_route import GatewayRoute
from belvedere_platform.store.protocol import Manifest

SERVICE_LABEL = "belvedere.dev/service"
VERSION_LABEL = "belvedere.dev/version"
PREFIX_ANNOTATION = "belvedere.dev/http-path-prefix"
ROUTE_KEY = "route.json"
PROTOCOLS = ("http", "grpc")
_PREFIX = re.compile(r"(/[A-Za-z0-9._~-]+)+")

ServiceKey = tuple[str, str]
"""Namespace and service."""
VersionKey = tuple[str, str, str]
"""Namespace, service and version."""


@dataclass(frozen=True, kw_only=True, order=True)
class Replica:
    """One model server process that takes new requests. A port is None when it does not speak that protocol."""

    address: str
    http_port: int | None = None
    grpc_port: int | None = None
    http_path_prefix: str = ""

    def port(self, protocol: str) -> int | None:
        """Return the port for `http` or `grpc`."""
        return self.http_port if protocol == "http" else self.grpc_port


@dataclass(frozen=True, kw_only=True)
class World:
    """Everything a snapshot is made from."""

    routes: Mapping[ServiceKey, GatewayRoute] = field(default_factory=dict)
    replicas: Mapping[VersionKey, tuple[Replica, ...]] = field(default_factory=dict)

    def routable(self, key: VersionKey, protocol: str) -> tuple[Replica, ...]:
        """Return the replicas of a version that take new requests of a protocol, in a fixed order."""
        return tuple(r for r in self.replicas.get(key, ()) if r.port(protocol) is not None)


def read_route(config_map: Manifest) -> GatewayRoute:
    """Return the route in a ConfigMap. Raises InvalidInput that names the ConfigMap and the field."""
    metadata = config_map["metadata"]
    where = f"ConfigMap {metadata['namespace']}/{metadata['name']}, key {ROUTE_KEY}"
    try:
        route = GatewayRoute.model_validate_json((config_map.get("data") or {})[ROUTE_KEY])
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field_name = ".".join(str(part) for part in first["loc"]) or "the document"
        raise InvalidInput(
            f"{where}: {field_name}: {first['msg']}, got {json.dumps(first['input'], default=str)[:200]}"
        ) from error
    _check_route(route, where, metadata)
    return route


def _check_route(route: GatewayRoute, where: str, metadata: Manifest) -> None:
    if route.namespace != metadata["namespace"]:
        raise InvalidInput(f"{where}: namespace is '{route.namespace}'; it must be the ConfigMap's own namespace")
    label = (metadata.get("labels") or {}).get(SERVICE_LABEL)
    if route.service != label:
        raise InvalidInput(f"{where}: service is '{route.service}'; it must be the label {SERVICE_LABEL}, '{label}'")
    total = sum(version.weight for version in route.versions)
    if total != 100:
        raise InvalidInput(f"{where}: the weights of versions add up to {total}; they must add up to 100")
    names = [version.version for version in route.versions]
    if len(set(names)) != len(names):
        raise InvalidInput(f"{where}: versions {names} names one version twice; give each version once")


def read_replicas(slice_: Manifest) -> tuple[tuple[VersionKey, Replica], ...]:
    """Return the replicas of an EndpointSlice that take new requests. Raises InvalidInput.

    Ours have one each; those that a cluster writes for a Service have as many as there are pods.
    """
    metadata = slice_["metadata"]
    where = f"EndpointSlice {metadata['namespace']}/{metadata['name']}"
    labels = metadata.get("labels") or {}
    if not labels.get(SERVICE_LABEL) or not labels.get(VERSION_LABEL):
        raise InvalidInput(f"{where}: labels must name {SERVICE_LABEL} and {VERSION_LABEL}, got {sorted(labels)}")
    endpoints = [one for one in slice_.get("endpoints") or [] if _takes_requests(one.get("conditions") or {})]
    if not endpoints:
        return ()
    ports = {port.get("name"): port.get("port") for port in slice_.get("ports") or []}
    prefix = (metadata.get("annotations") or {}).get(PREFIX_ANNOTATION, "").rstrip("/")
    if prefix and not _PREFIX.fullmatch(prefix):
        raise InvalidInput(f"{where}: annotation {PREFIX_ANNOTATION} is '{prefix}'; it must be a path such as /name")
    addresses = [address for one in endpoints for address in (one.get("addresses") or [None])[:1]]
    if None in addresses or not (ports.get("http") or ports.get("grpc")):
        raise InvalidInput(f"{where}: needs an address and a port named http or grpc, got {addresses} and {ports}")
    if names := [address for address in addresses if not _is_ip_address(address)]:
        # Envoy refuses names here, and with them the replicas of all services.
        raise InvalidInput(f"{where}: addresses must be IP addresses, got {names}")
    key = (metadata["namespace"], labels[SERVICE_LABEL], labels[VERSION_LABEL])
    http, grpc = ports.get("http"), ports.get("grpc")
    return tuple(
        (key, Replica(address=str(address), http_port=http, grpc_port=grpc, http_path_prefix=prefix))
        for address in addresses
    )


def _is_ip_address(address: object) -> bool:
    try:
        ipaddress.ip_address(str(address))
    except ValueError:
        return False
    return True


def _takes_requests(conditions: Mapping[str, bool | None]) -> bool:
    # As Kubernetes has it: an unknown readiness counts as ready, and what is terminating takes nothing new.
    return conditions.get("ready") is not False and not conditions.get("terminating")


def gather_replicas(found: Iterable[tuple[VersionKey, Replica]]) -> dict[VersionKey, tuple[Replica, ...]]:
    """Return replicas by version, each address once, in a fixed order."""
    by_version: dict[VersionKey, dict[tuple[str, int | None, int | None], Replica]] = {}
    for key, replica in sorted(found):
        by_version.setdefault(key, {})[(replica.address, replica.http_port, replica.grpc_port)] = replica
    return {key: tuple(sorted(replicas.values())) for key, replicas in by_version.items()}

"""Envoy's configuration messages, written as dicts in Envoy's own field names and checked against its types."""

from __future__ import annotations

from typing import Any, TypeVar

# Imported for their types: a dict that names a type by "@type" can only be read when its module is loaded.
from envoy.config.bootstrap.v3 import bootstrap_pb2
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from envoy.extensions.access_loggers.stats.v3 import stats_pb2 as stats_log_pb2
from envoy.extensions.filters.http.ext_proc.v3 import ext_proc_pb2
from envoy.extensions.filters.http.grpc_stats.v3 import config_pb2 as grpc_stats_pb2
from envoy.extensions.filters.http.lua.v3 import lua_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.http.upstream_codec.v3 import upstream_codec_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2 as manager_pb2
from envoy.extensions.load_balancing_policies.least_request.v3 import least_request_pb2
from envoy.extensions.load_balancing_policies.round_robin.v3 import round_robin_pb2
from envoy.extensions.resource_monitors.downstream_connections.v3 import downstream_connections_pb2
from envoy.extensions.retry.host.previous_hosts.v3 import previous_hosts_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2
from envoy.service.discovery.v3 import ads_pb2_grpc as ads_grpc
from envoy.service.discovery.v3 import discovery_pb2
from envoy.service.ext_proc.v3 import external_processor_pb2_grpc as ext_proc_grpc
from google.protobuf import any_pb2, json_format

__all__ = [
    "EXTENSIONS",
    "ads_grpc",
    "bootstrap_pb2",
    "build",
    "cluster_pb2",
    "discovery_pb2",
    "downstream_connections_pb2",
    "endpoint_pb2",
    "ext_proc_grpc",
    "ext_proc_pb2",
    "grpc_stats_pb2",
    "http_protocol_options_pb2",
    "least_request_pb2",
    "listener_pb2",
    "lua_pb2",
    "manager_pb2",
    "pack",
    "previous_hosts_pb2",
    "round_robin_pb2",
    "route_pb2",
    "router_pb2",
    "stats_log_pb2",
    "typed",
    "upstream_codec_pb2",
]

EXTENSIONS = "envoy.extensions"
_TYPES = "type.googleapis.com/"
_M = TypeVar("_M")


def build(kind: type[_M], fields: dict[str, Any]) -> _M:
    """Return a message of a kind with these fields. Raises ParseError for a field or value that the kind does not have."""
    return json_format.ParseDict(fields, kind())  # type: ignore[no-any-return]


def typed(type_name: str, **fields: Any) -> dict[str, Any]:
    """Return the fields of a message inside an Any, by the full name of its type."""
    return {"@type": _TYPES + type_name, **fields}


def pack(message: Any) -> Any:
    """Return the message in an Any, serialized so that equal messages have equal bytes."""
    return any_pb2.Any(
        type_url=_TYPES + message.DESCRIPTOR.full_name, value=message.SerializeToString(deterministic=True)
    )

"""The upstream side: two Envoy clusters a version, their replicas, and how failures of a replica are contained."""

from __future__ import annotations

from typing import Any

from belvedere_platform.resources.gateway_route import GatewayRoute
from belvedere_serving.gateway.messages import EXTENSIONS, build, cluster_pb2, endpoint_pb2, typed
from belvedere_serving.gateway.world import PROTOCOLS, World
from belvedere_serving.server.door import TOO_BUSY
from belvedere_serving.server.grpc_door import PUSHBACK

TAP_CLUSTER = "shadow_tap"
VERSION_METADATA = "belvedere"
VERSION_LABELS = ("namespace", "service", "version", "protocol")
"""Keys of a cluster's metadata: whose it is, for what is counted outside the cluster."""
_HTTP_OPTIONS = f"{EXTENSIONS}.upstreams.http.v3.HttpProtocolOptions"
_CONNECT_TIMEOUT = "1s"
# Below the five seconds after which common Python servers close an idle connection: else a request can meet a closing one.
_HTTP_IDLE_TIMEOUT = "4s"
_MAX_REQUESTS = 4096
_CANCELLED, _RESOURCE_EXHAUSTED = 1, 8
"""Numbers of gRPC's statuses."""


def cluster_name(namespace: str, service: str, version: str, protocol: str) -> str:
    """Return the name of a version's cluster; the tag rules of the metrics read it."""
    return f"{namespace}/{service}/{version}/{protocol}"


def clusters(world: World, route: GatewayRoute) -> dict[str, Any]:
    """Return the clusters of a service by name. A version without replicas has its clusters too, ready for them."""
    return {
        name: _version_cluster(name, protocol, route, _http_prefix(world, key))
        for version in route.versions
        for protocol in PROTOCOLS
        for key in [(route.namespace, route.service, version.version)]
        for name in [cluster_name(*key, protocol)]
    }


def assignments(world: World, route: GatewayRoute) -> dict[str, Any]:
    """Return the replicas of each cluster of a service by the cluster's name."""
    found = {}
    for version in route.versions:
        key = (route.namespace, route.service, version.version)
        for protocol in PROTOCOLS:
            name = cluster_name(*key, protocol)
            replicas = [(r.address, r.port(protocol)) for r in world.routable(key, protocol)]
            found[name] = build(
                endpoint_pb2.ClusterLoadAssignment,
                {
                    "cluster_name": name,
                    "endpoints": [{"lb_endpoints": [_endpoint(*replica) for replica in replicas]}] if replicas else [],
                },
            )
    return found


def no_replicas(cluster: str) -> Any:
    """Return the word that a cluster has no replicas."""
    return build(endpoint_pb2.ClusterLoadAssignment, {"cluster_name": cluster})


def tap_cluster(address: str, port: int) -> Any:
    """Return the cluster of the shadow tap."""
    return build(
        cluster_pb2.Cluster,
        {
            "name": TAP_CLUSTER,
            "type": "STATIC",
            "connect_timeout": _CONNECT_TIMEOUT,
            "load_assignment": {
                "cluster_name": TAP_CLUSTER,
                "endpoints": [{"lb_endpoints": [_endpoint(address, port)]}],
            },
            "typed_extension_protocol_options": {_HTTP_OPTIONS: _http2_options()},
        },
    )


def _endpoint(address: str, port: int | None) -> dict[str, Any]:
    return {"endpoint": {"address": {"socket_address": {"address": address, "port_value": port}}}}


def _http_prefix(world: World, key: tuple[str, str, str]) -> str:
    # The replicas of one version belong to one application, so they share its prefix.
    return next((replica.http_path_prefix for replica in world.routable(key, "http")), "")


def _version_cluster(name: str, protocol: str, route: GatewayRoute, prefix: str) -> Any:
    options = _http1_options(prefix) if protocol == "http" else _http2_options(_refusal_filter(), _codec_filter())
    return build(
        cluster_pb2.Cluster,
        {
            "name": name,
            "type": "EDS",
            "eds_cluster_config": {"eds_config": {"ads": {}, "resource_api_version": "V3"}},
            "metadata": {
                "filter_metadata": {VERSION_METADATA: dict(zip(VERSION_LABELS, name.split("/"), strict=True))}
            },
            "connect_timeout": _CONNECT_TIMEOUT,
            "load_balancing_policy": {"policies": [{"typed_extension_config": _least_request()}]},
            "circuit_breakers": {"thresholds": [_limits(route)]},
            "outlier_detection": _outlier_detection(),
            "typed_extension_protocol_options": {_HTTP_OPTIONS: options},
        },
    )


def _least_request() -> dict[str, Any]:
    # Two random choices queue behind a slow replica where a full scan does not; with few replicas the scan costs nothing.
    policy = f"{EXTENSIONS}.load_balancing_policies.least_request.v3.LeastRequest"
    return {
        "name": "envoy.load_balancing_policies.least_request",
        "typed_config": typed(policy, selection_method="FULL_SCAN"),
    }


def _limits(route: GatewayRoute) -> dict[str, Any]:
    return {
        "max_connections": _MAX_REQUESTS,
        "max_pending_requests": _MAX_REQUESTS,
        "max_requests": _MAX_REQUESTS,
        "retry_budget": {
            "budget_percent": {"value": route.routing.retries.budget_percent},
            "min_retry_concurrency": 3,
        },
    }


def _outlier_detection() -> dict[str, Any]:
    # At most half of the replicas, so never the last. What a version's last replica answers stays that version's answer:
    # its errors must be seen as its own, not be moved to another version.
    # A replica that cannot be reached goes at the first failure: with nothing in flight it looks the least busy of all, so
    # the full scan would choose it again and again, for the repetition of the very request that just failed on it too.
    return {
        "split_external_local_origin_errors": True,
        "consecutive_local_origin_failure": 1,
        "enforcing_consecutive_local_origin_failure": 100,
        "enforcing_local_origin_success_rate": 0,
        "consecutive_5xx": 5,
        "consecutive_gateway_failure": 5,
        "enforcing_consecutive_gateway_failure": 100,
        "enforcing_success_rate": 0,
        "interval": "1s",
        "base_ejection_time": "5s",
        "max_ejection_time": "30s",
        "max_ejection_percent": 50,
    }


def _http2_options(*filters: dict[str, Any]) -> dict[str, Any]:
    return typed(
        _HTTP_OPTIONS,
        explicit_http_config={"http2_protocol_options": {}},
        **({"http_filters": filters} if filters else {}),
    )


def _http1_options(prefix: str) -> dict[str, Any]:
    filters = [_prefix_filter(prefix), _codec_filter()] if prefix else []
    return typed(
        _HTTP_OPTIONS,
        common_http_protocol_options={"idle_timeout": _HTTP_IDLE_TIMEOUT},
        explicit_http_config={"http_protocol_options": {}},
        **({"http_filters": filters} if filters else {}),
    )


def _prefix_filter(prefix: str) -> dict[str, Any]:
    # A weighted cluster has no path rewrite of its own, so the cluster puts the prefix before the path. A repeated attempt
    # meets the headers that the first one left, hence the comparison. The prefix holds no character special in Lua strings.
    return _lua_filter(
        f'local prefix = "{prefix}"\n'
        "function envoy_on_request(handle)\n"
        '  local path = handle:headers():get(":path")\n'
        '  if path:sub(1, #prefix + 1) ~= prefix .. "/" then handle:headers():replace(":path", prefix .. path) end\n'
        "end\n"
    )


def _refusal_filter() -> dict[str, Any]:
    # Where too many calls wait in a server's gRPC itself, it ends those that come, and knows no other status for it than
    # CANCELLED, which says that the client gave up and which nobody repeats. A call whose answer has begun is left alone.
    return _lua_filter(
        "function envoy_on_response(handle)\n"
        "  local headers = handle:headers()\n"
        f'  if headers:get("grpc-status") ~= "{_CANCELLED}" then return end\n'
        f'  headers:replace("grpc-status", "{_RESOURCE_EXHAUSTED}")\n'
        f'  headers:replace("grpc-message", "{TOO_BUSY}")\n'
        f'  headers:replace("{PUSHBACK}", "1000")\n'
        "end\n"
    )


def _lua_filter(source: str) -> dict[str, Any]:
    lua = f"{EXTENSIONS}.filters.http.lua.v3.Lua"
    return {
        "name": "envoy.filters.http.lua",
        "typed_config": typed(lua, default_source_code={"inline_string": source}),
    }


def _codec_filter() -> dict[str, Any]:
    codec = f"{EXTENSIONS}.filters.http.upstream_codec.v3.UpstreamCodec"
    return {"name": "envoy.filters.http.upstream_codec", "typed_config": typed(codec)}

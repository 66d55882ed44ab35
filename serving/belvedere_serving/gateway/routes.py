"""The downstream side: which request belongs to which service, and which version answers it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from belvedere_platform.resources.gateway_route import GatewayRoute
from belvedere_serving.gateway.clusters import cluster_name
from belvedere_serving.gateway.messages import EXTENSIONS, build, route_pb2, typed
from belvedere_serving.gateway.weights import effective_weights
from belvedere_serving.gateway.world import PROTOCOLS, World

ROUTES = "gateway"
SERVICE_HEADER = "belvedere-service"
VERSION_HEADER = "belvedere-version"
TAP_FILTER = "envoy.filters.http.ext_proc"
TAP_KEYS = ("belvedere-namespace", "belvedere-service", "belvedere-protocol")
"""Metadata of a call to the tap: whose request this is."""
_MILLION = 1_000_000
_NO_SERVICE = (
    f"no service is named by this request: send the header {SERVICE_HEADER}: NAMESPACE/NAME, use the path "
    "/services/NAMESPACE/NAME or a host that a ModelService lists in spec.routing.hosts, or make one the default"
)

Match = dict[str, Any]


def route_configuration(world: World) -> Any:
    """Return the one route table. The header decides first, then the host, the path, and the default service at last."""
    services = [world.routes[key] for key in sorted(world.routes)]
    routes: list[dict[str, Any]] = []
    for route in services:
        name = f"{route.namespace}/{route.service}"
        routes += _service_routes(world, route, "header", {"prefix": "/", "headers": [_header(SERVICE_HEADER, name)]})
    unknown = {"prefix": "/", "headers": [{"name": SERVICE_HEADER, "present_match": True}]}
    routes.append(_direct(unknown, 404, f"the header {SERVICE_HEADER} names no service of this gateway"))
    for host, route in sorted(host_owners(services).items()):
        routes += _service_routes(world, route, f"host:{host}", {"prefix": "/", "headers": [_host_header(host)]})
    for route in services:
        match = {"path_separated_prefix": f"/services/{route.namespace}/{route.service}"}
        routes += _service_routes(world, route, "path", match, strip=True)
    routes.append(_direct({"path_separated_prefix": "/services"}, 404, "the path names no service of this gateway"))
    default = default_owner(services)
    if default is not None:
        routes += _service_routes(world, default, "default", {"prefix": "/"})
    else:
        routes.append(_direct({"prefix": "/"}, 404, _NO_SERVICE))
    table = {
        "name": ROUTES,
        "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}],
        "validate_clusters": False,
    }
    return build(route_pb2.RouteConfiguration, table)


def host_owners(services: Iterable[GatewayRoute]) -> dict[str, GatewayRoute]:
    """Return which service each host belongs to; of several that claim one, the first by namespace and name."""
    owners: dict[str, GatewayRoute] = {}
    for route in services:
        for host in route.routing.hosts:
            owners.setdefault(host.lower(), route)
    return owners


def default_owner(services: Iterable[GatewayRoute]) -> GatewayRoute | None:
    """Return the default service; of several, the first by namespace and name."""
    return next((route for route in services if route.routing.default), None)


def claim_conflicts(services: Iterable[GatewayRoute]) -> list[str]:
    """Return a sentence for each host and each default that a service claims but another has."""
    ordered = sorted(services, key=lambda route: (route.namespace, route.service))
    owners, default = host_owners(ordered), default_owner(ordered)
    sentences = []
    for route in ordered:
        name = f"{route.namespace}/{route.service}"
        for host in route.routing.hosts:
            owner = owners[host.lower()]
            if owner is not route:
                sentences.append(f"routing.hosts of {name}: '{host}' belongs to {owner.namespace}/{owner.service}")
        if route.routing.default and default is not None and default is not route:
            sentences.append(f"routing.default of {name}: {default.namespace}/{default.service} is the default already")
    return sentences


def _header(name: str, value: str) -> Match:
    return {"name": name, "string_match": {"exact": value}}


def _host_header(host: str) -> Match:
    pattern = re.escape(host) if not host.startswith("*.") else r"[^.]+" + re.escape(host[1:])
    return {"name": ":authority", "string_match": {"safe_regex": {"regex": rf"(?i){pattern}(:\d+)?"}}}


def _service_routes(
    world: World, route: GatewayRoute, selector: str, match: Match, *, strip: bool = False
) -> Iterator[dict[str, Any]]:
    # gRPC is the narrower match, so it goes first.
    for protocol in reversed(PROTOCOLS):
        own = {**match, "grpc": {}} if protocol == "grpc" else match
        weights = effective_weights(world, route, protocol)
        name = f"{route.namespace}/{route.service}/{protocol}/{selector}"
        if not weights:
            sentence = f"service {route.namespace}/{route.service} has no ready replica"
            yield {"name": name, **_direct(own, 503, sentence)}
            continue
        action = _action(route, protocol, strip)
        if samples_shadow(world, route, weights):
            assert route.shadow is not None
            # Out of a million and not of a hundred: Envoy draws one number for this and for the choice among the weights,
            # which looks at its last two digits, so that a coarser draw would sample by version.
            share = {"numerator": round(route.shadow.percent / 100 * _MILLION), "denominator": "MILLION"}
            sampled = {**own, "runtime_fraction": {"default_value": share}}
            tapped = {"weighted_clusters": {"clusters": _shares(route, protocol, weights, route.shadow.stable)}}
            yield {"name": f"{name}/shadow", "match": sampled, "route": {**action, **tapped}}
        yield {
            "name": name,
            "match": own,
            "route": {**action, "weighted_clusters": {"clusters": _shares(route, protocol, weights, None)}},
        }


def samples_shadow(world: World, route: GatewayRoute, weights: Mapping[str, int]) -> bool:
    """Whether requests of the stable version are sampled: both sides must be there."""
    if route.shadow is None or route.shadow.stable not in weights:
        return False
    return bool(world.replicas.get((route.namespace, route.service, route.shadow.candidate)))


def _shares(route: GatewayRoute, protocol: str, weights: Mapping[str, int], tapped: str | None) -> list[dict[str, Any]]:
    shares = []
    for version, weight in sorted(weights.items()):
        share: dict[str, Any] = {
            "name": cluster_name(route.namespace, route.service, version, protocol),
            "weight": weight,
            "response_headers_to_add": [
                {"header": {"key": VERSION_HEADER, "value": version}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
            ],
        }
        if version == tapped:
            share["typed_per_filter_config"] = {TAP_FILTER: _tap_on(route, protocol)}
        shares.append(share)
    return shares


def _tap_on(route: GatewayRoute, protocol: str) -> dict[str, Any]:
    values = (route.namespace, route.service, protocol)
    told = [{"key": key, "value": value} for key, value in zip(TAP_KEYS, values, strict=True)]
    settings = typed(
        f"{EXTENSIONS}.filters.http.ext_proc.v3.ExtProcPerRoute", overrides={"grpc_initial_metadata": told}
    )
    return typed("envoy.config.route.v3.FilterConfig", config=settings)


def _action(route: GatewayRoute, protocol: str, strip: bool) -> dict[str, Any]:
    routing = route.routing
    action: dict[str, Any] = _deadline(routing.timeout_seconds, protocol)
    if strip:
        prefix = re.escape(f"/services/{route.namespace}/{route.service}")
        action["regex_rewrite"] = {"pattern": {"regex": rf"^{prefix}/?"}, "substitution": "/"}
    if routing.retries.attempts:
        previous = f"{EXTENSIONS}.retry.host.previous_hosts.v3.PreviousHostsPredicate"
        action["retry_policy"] = {
            # Only what certainly never reached a model: inference is work, and repeating it would hide a version's failures.
            "retry_on": "connect-failure,refused-stream,reset-before-request",
            "num_retries": routing.retries.attempts,
            # A repetition goes elsewhere once the replica that failed is out of the choice, which its first failure sees to, by
            # way of two other threads. The wait is drawn from zero up, so a single one is too short now and then.
            "retry_back_off": {"base_interval": "0.050s", "max_interval": "0.500s"},
            "retry_host_predicate": [
                {"name": "envoy.retry_host_predicates.previous_hosts", "typed_config": typed(previous)}
            ],
            "host_selection_retry_max_attempts": 3,
        }
    return action


def _deadline(timeout_seconds: float, protocol: str) -> dict[str, Any]:
    limit = f"{timeout_seconds:g}s"
    if protocol == "http":
        return {"timeout": limit}
    # A client's own deadline ends the call here, a little before the client does, so that it counts as the version's failure
    # and not as a client that went away. This setting replaces `timeout`.
    return {
        "max_stream_duration": {
            "max_stream_duration": limit,
            "grpc_timeout_header_max": limit,
            "grpc_timeout_header_offset": "0.005s",
        }
    }


def _direct(match: Match, status: int, sentence: str) -> dict[str, Any]:
    return {"match": match, "direct_response": {"status": status, "body": {"inline_string": sentence}}}

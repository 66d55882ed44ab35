"""The part of Envoy's admin interface that others may reach: metrics and readiness, not the switches beside them."""

from __future__ import annotations

from typing import Any

from belvedere_serving.gateway.messages import EXTENSIONS, typed

STATS = "stats"
ADMIN_CLUSTER = "admin"
OPEN_PATHS = ("/ready", "/stats/prometheus")
_MANAGER = f"{EXTENSIONS}.filters.network.http_connection_manager.v3.HttpConnectionManager"


def stats_listener(address: str, port: int) -> dict[str, Any]:
    """Return a listener that hands the open paths to the admin interface and answers 404 to all others."""
    routes = [{"match": {"path": path}, "route": {"cluster": ADMIN_CLUSTER}} for path in OPEN_PATHS]
    closed = {"match": {"prefix": "/"}, "direct_response": {"status": 404}}
    router = {
        "name": "envoy.filters.http.router",
        "typed_config": typed(f"{EXTENSIONS}.filters.http.router.v3.Router", suppress_envoy_headers=True),
    }
    manager = typed(
        _MANAGER,
        stat_prefix=STATS,
        route_config={"virtual_hosts": [{"name": STATS, "domains": ["*"], "routes": [*routes, closed]}]},
        http_filters=[router],
    )
    return {
        "name": STATS,
        "address": {"socket_address": {"address": address, "port_value": port}},
        # Prometheus and the kubelet must get in when clients have used up all connections: above all then.
        "ignore_global_conn_limit": True,
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }


def admin_cluster(address: str, port: int) -> dict[str, Any]:
    """Return the cluster of Envoy's own admin interface."""
    endpoint = {"address": {"socket_address": {"address": address, "port_value": port}}}
    return {
        "name": ADMIN_CLUSTER,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": ADMIN_CLUSTER, "endpoints": [{"lb_endpoints": [{"endpoint": endpoint}]}]},
    }

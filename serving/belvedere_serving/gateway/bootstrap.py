"""What Envoy is started with: where its control plane is, how it counts, and nothing that changes while it runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf import json_format

from belvedere_platform.telemetry.gateway_metrics import KEPT_STATS, LATENCY_EDGES_MILLISECONDS, TAG_RULES
from belvedere_serving.gateway.messages import EXTENSIONS, bootstrap_pb2, build, typed
from belvedere_serving.gateway.stats import admin_cluster, stats_listener
from belvedere_serving.gateway.xds import ADDRESS_KEY, PORT_KEY

XDS_CLUSTER = "xds"
_MAX_CLIENT_CONNECTIONS = 20_000


@dataclass(frozen=True, kw_only=True)
class EnvoySettings:
    """Addresses and ports of one Envoy."""

    node_id: str
    gateway_port: int
    admin_port: int
    xds_port: int
    gateway_address: str = "127.0.0.1"
    admin_address: str = "127.0.0.1"
    xds_address: str = "127.0.0.1"
    stats_port: int | None = None
    """Where metrics and readiness can be asked from elsewhere, and nothing else of the admin interface; nowhere when None."""
    stats_address: str = "127.0.0.1"


def bootstrap(settings: EnvoySettings) -> str:
    """Return Envoy's bootstrap as JSON."""
    message = build(
        bootstrap_pb2.Bootstrap,
        {
            "node": {
                "id": settings.node_id,
                "cluster": "belvedere-gateway",
                "metadata": {ADDRESS_KEY: settings.gateway_address, PORT_KEY: settings.gateway_port},
            },
            "admin": {"address": _socket(settings.admin_address, settings.admin_port)},
            "dynamic_resources": _dynamic_resources(),
            "static_resources": _static_resources(settings),
            "stats_config": _stats(),
            # Histograms are brought up to date this often; the judge looks every few seconds.
            "stats_flush_interval": "1s",
            "overload_manager": _overload(),
        },
    )
    fields: Mapping[str, Any] = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return json.dumps(fields, indent=2, sort_keys=True) + "\n"


def _socket(address: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": address, "port_value": port}}


def _dynamic_resources() -> dict[str, Any]:
    over_ads = {"ads": {}, "resource_api_version": "V3"}
    return {
        "lds_config": over_ads,
        "cds_config": over_ads,
        "ads_config": {
            "api_type": "GRPC",
            "transport_api_version": "V3",
            # By default up to 30 s pass before Envoy looks again for a control plane that went away.
            "grpc_services": [
                {
                    "envoy_grpc": {
                        "cluster_name": XDS_CLUSTER,
                        "retry_policy": {"retry_back_off": {"base_interval": "0.25s", "max_interval": "2s"}},
                    }
                }
            ],
        },
    }


def _static_resources(settings: EnvoySettings) -> dict[str, Any]:
    if settings.stats_port is None:
        return {"clusters": [_xds_cluster(settings)]}
    listener = stats_listener(settings.stats_address, settings.stats_port)
    cluster = admin_cluster(settings.admin_address, settings.admin_port)
    return {"clusters": [_xds_cluster(settings), cluster], "listeners": [listener]}


def _xds_cluster(settings: EnvoySettings) -> dict[str, Any]:
    options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    # A control plane that vanished without closing is noticed by the keepalive, and looked for again.
    http2 = {"connection_keepalive": {"interval": "10s", "timeout": "5s"}}
    return {
        "name": XDS_CLUSTER,
        "type": "STRICT_DNS",
        "connect_timeout": "1s",
        "typed_extension_protocol_options": {
            options: typed(options, explicit_http_config={"http2_protocol_options": http2})
        },
        "load_assignment": {
            "cluster_name": XDS_CLUSTER,
            "endpoints": [
                {"lb_endpoints": [{"endpoint": {"address": _socket(settings.xds_address, settings.xds_port)}}]}
            ],
        },
    }


def _stats() -> dict[str, Any]:
    tags = [{"tag_name": name, **({"regex": regex} if regex else {})} for name, regex in TAG_RULES]
    return {
        "use_all_default_tags": False,
        "stats_tags": tags,
        "stats_matcher": {"inclusion_list": {"patterns": [{"safe_regex": {"regex": KEPT_STATS}}]}},
        "histogram_bucket_settings": [
            {"match": {"suffix": "upstream_rq_time"}, "buckets": list(LATENCY_EDGES_MILLISECONDS)}
        ],
    }


def _overload() -> dict[str, Any]:
    monitor = f"{EXTENSIONS}.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig"
    name = "envoy.resource_monitors.global_downstream_max_connections"
    config = typed(monitor, max_active_downstream_connections=_MAX_CLIENT_CONNECTIONS)
    return {"resource_monitors": [{"name": name, "typed_config": config}]}

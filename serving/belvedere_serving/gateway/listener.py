"""The one listener: every protocol on one port, errors as the V2 protocol has them, the shadow tap switched off by default."""

from __future__ import annotations

from typing import Any

from belvedere_platform.telemetry.gateway_metrics import BROKEN_ANSWERS_STAT
from belvedere_serving.gateway.clusters import TAP_CLUSTER, VERSION_LABELS, VERSION_METADATA
from belvedere_serving.gateway.messages import EXTENSIONS, build, listener_pb2, typed
from belvedere_serving.gateway.routes import ROUTES, TAP_FILTER

LISTENER = "gateway"
_HTTP = f"{EXTENSIONS}.filters.http"
_BROKEN_FLAGS = ("UC", "UR", "UPE", "UT", "UMSDR")
"""Envoy's flags for an answer ended by its version: connection closed, stream reset, protocol error, out of time."""
_MANAGER = f"{EXTENSIONS}.filters.network.http_connection_manager.v3.HttpConnectionManager"


def gateway_listener(address: str, port: int) -> Any:
    """Return the listener of one Envoy."""
    return build(
        listener_pb2.Listener,
        {
            "name": LISTENER,
            "address": {"socket_address": {"address": address, "port_value": port}},
            "filter_chains": [
                {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": _manager()}]}
            ],
        },
    )


def _manager() -> dict[str, Any]:
    return typed(
        _MANAGER,
        stat_prefix=LISTENER,
        codec_type="AUTO",
        rds={"route_config_name": ROUTES, "config_source": {"ads": {}, "resource_api_version": "V3"}},
        # Clients from outside must not steer timeouts and retries by x-envoy-* headers: with the remote address in use
        # and no internal range given, Envoy removes these headers from every request.
        use_remote_address=True,
        generate_request_id=False,
        normalize_path=True,
        merge_slashes=True,
        stream_idle_timeout="300s",
        request_headers_timeout="30s",
        common_http_protocol_options={"idle_timeout": "3600s"},
        http2_protocol_options={"max_concurrent_streams": 1024},
        local_reply_config=_local_replies(),
        access_log=[_count_of_broken_answers()],
        http_filters=[_grpc_stats(), _tap(), _router()],
    )


def _local_replies() -> dict[str, Any]:
    # What Envoy itself answers over HTTP has the body of a V2 error; over gRPC the sentence travels as the status message.
    not_grpc = {
        "header": {
            "name": "content-type",
            "string_match": {"prefix": "application/grpc"},
            "invert_match": True,
            "treat_missing_header_as_empty": True,
        }
    }
    body = {"json_format": {"error": "%LOCAL_REPLY_BODY%"}, "content_type": "application/json"}
    return {"mappers": [{"filter": {"header_filter": not_grpc}, "body_format_override": body}]}


def _count_of_broken_answers() -> dict[str, Any]:
    """Count the answers that began well and broke off: Envoy's counters of a cluster go by the first line of an answer.

    Nothing is written: this logger only counts. Which version it was, the metadata of the cluster says.
    """
    broken = {"response_flag_filter": {"flags": list(_BROKEN_FLAGS)}}
    # 5xx counts already, and so does the status that Envoy gives a gRPC call in the version's name.
    good_so_far = {
        "status_code_filter": {
            "comparison": {"op": "LE", "value": {"default_value": 499, "runtime_key": "belvedere.broken_answers"}}
        }
    }
    not_answered_by_envoy = {"grpc_status_filter": {"statuses": ["UNAVAILABLE", "DEADLINE_EXCEEDED"], "exclude": True}}
    tags = [
        {"name": label, "value_format": f"%METADATA(CLUSTER:{VERSION_METADATA}:{label})%"} for label in VERSION_LABELS
    ]
    counter = {"stat": {"name": BROKEN_ANSWERS_STAT, "tags": tags}, "value_fixed": 1}
    return {
        "name": "envoy.access_loggers.stats",
        "filter": {"and_filter": {"filters": [broken, good_so_far, not_answered_by_envoy]}},
        "typed_config": typed(f"{EXTENSIONS}.access_loggers.stats.v3.Config", stat_prefix=LISTENER, counters=[counter]),
    }


def _grpc_stats() -> dict[str, Any]:
    return {
        "name": "envoy.filters.http.grpc_stats",
        "typed_config": typed(f"{_HTTP}.grpc_stats.v3.FilterConfig", stats_for_all_methods=False),
    }


def _tap() -> dict[str, Any]:
    # Observing only: Envoy sends copies and waits for nothing. Without failure_mode_allow a dead tap would fail the
    # sampled requests, and the default of 5 s before a finished call is closed would hold every pair back that long.
    processor = typed(
        f"{_HTTP}.ext_proc.v3.ExternalProcessor",
        grpc_service={"envoy_grpc": {"cluster_name": TAP_CLUSTER}, "timeout": "5s"},
        observability_mode=True,
        failure_mode_allow=True,
        deferred_close_timeout="1s",
        processing_mode={
            "request_header_mode": "SEND",
            "response_header_mode": "SEND",
            "request_body_mode": "STREAMED",
            "response_body_mode": "STREAMED",
            "request_trailer_mode": "SKIP",
            "response_trailer_mode": "SEND",
        },
    )
    return {"name": TAP_FILTER, "typed_config": processor, "disabled": True}


def _router() -> dict[str, Any]:
    return {
        "name": "envoy.filters.http.router",
        "typed_config": typed(f"{_HTTP}.router.v3.Router", suppress_envoy_headers=True),
    }

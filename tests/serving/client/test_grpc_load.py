"""The load client over gRPC counts what a server answers, and tells it how long it has."""

from __future__ import annotations

from typing import Any

import grpc

from belvedere_platform.protocol import EMBED_TEXT
from belvedere_platform.protocol.grpc_messages import SERVICE, parse_infer_request
from belvedere_serving.client.grpc_load import closed_loop, messages, open_loop
from belvedere_serving.client.load import TOLD

GIVEN = messages(EMBED_TEXT, [b"red", b"blue"])


async def test_answers_are_counted_by_status_and_the_server_is_told_the_deadline() -> None:
    told, number = set(), 0

    async def infer(raw: bytes, context: Any) -> bytes:
        nonlocal number
        assert parse_infer_request(raw).model_name == EMBED_TEXT
        told.add(dict(context.invocation_metadata()).get(TOLD))
        number += 1
        if number % 3 == 0:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "no")
        return b""

    server = grpc.aio.server()
    methods = {"ModelInfer": grpc.unary_unary_rpc_method_handler(infer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    outcome = await closed_loop(address, GIVEN, clients=3, seconds=0.3)
    assert set(outcome.statuses) == {"OK", "RESOURCE_EXHAUSTED"}
    assert len(outcome.latencies) == outcome.statuses["OK"] > len(outcome.refused) > 0
    assert told == {None}
    outcome = await open_loop(address, GIVEN, rate=300, seconds=0.1, deadline_seconds=1)
    assert 25 <= sum(outcome.statuses.values()) <= 35
    assert told == {None, "1000"}
    await server.stop(None)

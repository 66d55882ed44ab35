"""What a replica refuses reaches a client as a refusal, also where gRPC itself ended the call before the replica's code saw it."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as pb_grpc

from belvedere_platform.telemetry import gateway_metrics as metrics
from belvedere_serving.server.grpc_door import PUSHBACK

pytestmark = pytest.mark.slow


async def test_a_call_that_grpc_ended_in_its_own_queue_is_refused_and_told_when_to_come_again(
    gateway: Any, servers: Any, route: Any
) -> None:
    code, server = grpc.StatusCode, await servers("v1")
    await gateway.put(route({"v1": 100}), server)
    async with grpc.aio.insecure_channel(gateway.address) as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        for given, told, again in (
            (code.CANCELLED, code.RESOURCE_EXHAUSTED, "1000"),
            (code.RESOURCE_EXHAUSTED, code.RESOURCE_EXHAUSTED, None),
            (code.INVALID_ARGUMENT, code.INVALID_ARGUMENT, None),
        ):
            server.faults.grpc_status = given
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.ModelInfer(pb.ModelInferRequest(model_name="embed_text"), timeout=20)
            assert caught.value.code() == told
            assert dict(caught.value.trailing_metadata() or ()).get(PUSHBACK) == again
    assert await gateway.value(metrics.GRPC_ANSWERS, version="v1", grpc_status="8") == 2
    assert await gateway.value(metrics.GRPC_ANSWERS, version="v1", grpc_status="1") == 0

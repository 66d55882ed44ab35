"""Each of some hundred malformed requests gets a V2 error, and the server goes on. The benchmark sends ten thousand."""

from __future__ import annotations

import asyncio
import json
import random
import urllib.error
import urllib.request

import grpc

from belvedere_serving.server.service import InferenceService
from malformed import malformed_grpc, malformed_http

NUM_HTTP, NUM_GRPC = 300, 200


def send(url: str, number: int) -> tuple[int, str]:
    """Send one request and return the status and the error."""
    made = malformed_http(random.Random(number))
    request = urllib.request.Request(url + made.path, made.body, made.headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, ""
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())["error"]


async def test_every_malformed_request_over_http_gets_a_v2_error(ports: tuple[int, int]) -> None:
    def ask() -> dict[int, int]:
        seen: dict[int, int] = {}
        for number in range(NUM_HTTP):
            status, error = send(f"http://127.0.0.1:{ports[0]}", number)
            assert status in (200, 400, 404), (number, status, error)
            assert error or status == 200
            seen[status] = seen.get(status, 0) + 1
        return seen

    seen = await asyncio.to_thread(ask)
    assert seen[400] > NUM_HTTP / 2


async def test_every_malformed_message_over_grpc_gets_a_v2_error(
    ports: tuple[int, int], a_service: InferenceService
) -> None:
    chooser, codes = random.Random(3), set()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{ports[1]}") as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for _ in range(NUM_GRPC):
            try:
                await infer(malformed_grpc(chooser), timeout=60)
            except grpc.aio.AioRpcError as error:
                codes.add(error.code())
    assert codes == {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND}
    assert a_service.ready

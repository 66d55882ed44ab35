"""Sends ModelInfer over gRPC, closed or open loop, and says how the calls were answered: what `load` is over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc

from belvedere_platform.protocol import INPUT_OF, InferRequest, Tensor
from belvedere_platform.protocol.grpc_messages import SERVICE, render_infer_request
from belvedere_serving.client.load import PATIENCE_SECONDS, TOLD, Outcome, at_a_rate

CONNECTIONS = 8
"""One alone is read by one thread of the server, and a gateway has several."""
_OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)


def messages(model: str, elements: Sequence[bytes]) -> list[bytes]:
    """Return serialized requests of one input each."""
    inputs = [(Tensor.of_bytes(INPUT_OF[model], [element]),) for element in elements]
    return [render_infer_request(InferRequest(model_name=model, inputs=one)).SerializeToString() for one in inputs]


async def closed_loop(address: str, given: Sequence[bytes], *, clients: int, seconds: float) -> Outcome:
    """Let so many clients send one request after the other."""
    outcome, turn = Outcome(), itertools.cycle(given)
    async with _methods(address) as methods:
        begin = time.perf_counter()
        end = begin + seconds

        async def client(infer: Any) -> None:
            while time.perf_counter() < end:
                await _send(infer, next(turn), outcome)

        await asyncio.gather(*(client(methods[number % CONNECTIONS]) for number in range(clients)))
        outcome.seconds = time.perf_counter() - begin
    return outcome


async def open_loop(
    address: str, given: Sequence[bytes], *, rate: float, seconds: float, deadline_seconds: float
) -> Outcome:
    """Send at a rate whatever comes back, each request with a deadline that the server is told as the gateway tells it."""
    outcome = Outcome()
    async with _methods(address) as methods:
        turn, way = itertools.cycle(given), itertools.cycle(methods)
        await at_a_rate(
            lambda: _send(next(way), next(turn), outcome, deadline_seconds), outcome, rate=rate, seconds=seconds
        )
    return outcome


@contextlib.asynccontextmanager
async def _methods(address: str) -> AsyncIterator[list[Any]]:
    async with contextlib.AsyncExitStack() as stack:
        channels = [grpc.aio.insecure_channel(address, options=_OWN_CONNECTION) for _ in range(CONNECTIONS)]
        for channel in channels:
            await stack.enter_async_context(channel)
        yield [channel.unary_unary(f"/{SERVICE}/ModelInfer") for channel in channels]


async def _send(infer: Any, message: bytes, outcome: Outcome, deadline_seconds: float | None = None) -> None:
    """Send a request, wait for its answer, and note how it was answered."""
    told = () if deadline_seconds is None else ((TOLD, f"{1000 * deadline_seconds:.0f}"),)
    started = time.perf_counter()
    try:
        await infer(message, timeout=deadline_seconds or PATIENCE_SECONDS, metadata=told)
        status = "OK"
    except grpc.aio.AioRpcError as error:
        status = error.code().name
    outcome.statuses[status] += 1
    (outcome.latencies if status == "OK" else outcome.refused).append(time.perf_counter() - started)

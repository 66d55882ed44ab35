"""ModelStreamInfer: many requests over one stream, each with its answers as they come, errors in the stream as Triton has them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from tritonclient.grpc import service_pb2 as pb

from belvedere_platform.protocol import BYTES, WANTS_EMPTY_FINAL, InferRequest, InferResponse, V2Error
from belvedere_platform.protocol.grpc_messages import parse_message, read_infer_request, render_infer_response
from belvedere_serving.server.service import InferenceService

MAX_AT_ONCE = 16
"""Requests of one stream that are answered at the same time; the next is read when one of them is done."""


@dataclass(frozen=True)
class Serialized:
    """An answer as bytes. Ray Serve calls SerializeToString on what a method returns."""

    content: bytes

    def SerializeToString(self) -> bytes:
        """Return the bytes."""
        return self.content


async def answer_stream(
    service: InferenceService,
    requests: AsyncIterator[bytes],
    *,
    timeout_seconds: float | None,
    carrier: Mapping[str, str],
) -> AsyncGenerator[Serialized]:
    """Return the answers to a stream of requests. Whoever stops listening stops all that it asked for."""
    # One place: an answer that the client does not read yet holds up the text that it belongs to, not the server's memory.
    answers: asyncio.Queue[Serialized | None] = asyncio.Queue(1)
    places = asyncio.Semaphore(MAX_AT_ONCE)

    async def answer_one(raw: bytes) -> None:
        try:
            await _answer_one(service, raw, answers, timeout_seconds=timeout_seconds, carrier=carrier)
        finally:
            places.release()

    async def read_all() -> None:
        async with asyncio.TaskGroup() as group:
            async for raw in requests:
                await places.acquire()
                group.create_task(answer_one(raw))
        await answers.put(None)

    reading = asyncio.create_task(read_all(), name="stream")
    try:
        while (answer := await _next(answers, reading)) is not None:
            yield answer
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


async def _next(answers: asyncio.Queue[Serialized | None], reading: asyncio.Task[None]) -> Serialized | None:
    """Return the next answer; None when there is none any more, also because the client has gone."""
    getting = asyncio.ensure_future(answers.get())
    try:
        await asyncio.wait((getting, reading), return_when=asyncio.FIRST_COMPLETED)
        return getting.result() if getting.done() else None if answers.empty() else await getting
    finally:
        getting.cancel()


async def _answer_one(
    service: InferenceService,
    raw: bytes,
    answers: asyncio.Queue[Serialized | None],
    *,
    timeout_seconds: float | None,
    carrier: Mapping[str, str],
) -> None:
    asked: list[InferRequest] = []
    identity = ""

    def read() -> InferRequest:
        asked.append(read_infer_request(message))
        return asked[0]

    try:
        message = parse_message(pb.ModelInferRequest, raw)
        identity = message.id
        stream = service.stream(read, "grpc", timeout_seconds=timeout_seconds, carrier=carrier)
        async with contextlib.aclosing(stream) as found:
            async for response in found:
                if rendered := _rendered(asked[0], response):
                    await answers.put(Serialized(rendered.SerializeToString()))
    except V2Error as error:
        failed = pb.ModelStreamInferResponse(error_message=error.message[:1024])
        failed.infer_response.id = identity
        await answers.put(Serialized(failed.SerializeToString()))


def _rendered(request: InferRequest, response: InferResponse) -> Any:
    """Return the message of an answer; None where it has nothing but that it is the last, and the client wants no such."""
    message = render_infer_response(response)
    text = response.outputs[0]
    if response.final and text.datatype == BYTES and not any(text.array.tolist()):
        if not request.parameters.get(WANTS_EMPTY_FINAL, False):
            return None
        del message.outputs[:], message.raw_output_contents[:]
    return pb.ModelStreamInferResponse(infer_response=message)

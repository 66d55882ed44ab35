"""Texts in parts through a real Envoy: each part arrives when it is written, and who goes away stops the writing."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from typing import Any

import aiohttp
import numpy as np
import pytest
from PIL import Image
from tritonclient.grpc import aio as triton_grpc

from belvedere_serving.gateway.world import Replica
from belvedere_serving.server import bare
from tiny_writer import writing_service

pytestmark = pytest.mark.slow
ENDLESS = {"seed": 4, "temperature": 10.0}


@dataclass(kw_only=True)
class Server:
    """A model server that takes a step of writing when it is told to."""

    version: str
    replica: Replica
    steps: threading.Semaphore
    free_again: asyncio.Event


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    service = writing_service()
    writer: Any = service.model("caption").writer  # type: ignore[attr-defined]
    generator, steps, free_again = writer._generator, threading.Semaphore(0), asyncio.Event()
    compute, cancel = generator.compute, generator.cancel
    free = writer.num_free_blocks

    def told(plan: Any) -> Any:
        assert steps.acquire(timeout=60)
        return compute(plan)

    def watched(writing: Any) -> None:
        cancel(writing)
        if writer.num_free_blocks == free:
            free_again.set()

    generator.compute, generator.cancel = told, watched
    async with bare.serving(service) as (http, grpc):
        yield Server(
            version="v1",
            replica=Replica(address="127.0.0.1", http_port=http, grpc_port=grpc),
            steps=steps,
            free_again=free_again,
        )
        steps.release(1000)


@pytest.fixture
def picture() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (20, 20), (200, 30, 30)).save(out, "PNG")
    return out.getvalue()


async def test_events_arrive_one_by_one(gateway: Any, route: Any, server: Server, picture: bytes) -> None:
    await gateway.put(route({"v1": 100}), server)
    url = f"http://{gateway.address}/v2/models/caption/generate_stream"
    body = {"IMAGE": base64.b64encode(picture).decode(), **ENDLESS}
    async with aiohttp.ClientSession() as session:
        # The next word is written only when the part before it has come: held back by anyone, it would wait for ever.
        answer = await stepping(session.post(url, json=body), server)
        assert (answer.status, answer.headers["belvedere-version"]) == (200, "v1")
        for _ in range(3):
            event = json.loads((await stepping(answer.content.readuntil(b"\n\n"), server)).removeprefix(b"data: "))
            assert event["triton_final_response"] is False
        answer.close()
        await stepping(server.free_again.wait(), server)


async def stepping(coming: Coroutine[Any, Any, Any], server: Server) -> Any:
    """Return what comes after some step: a word of half a character, or a mark, shows nothing yet.

    Who waits for the news that a reader left needs more than one step too: it passes Envoy, and may come a step late.
    """
    waiting = asyncio.ensure_future(coming)
    for number in range(30):
        server.steps.release()
        # Most come with the first steps. On a busy machine what they bring is slow to come, and the text is not endless.
        if (await asyncio.wait((waiting,), timeout=0.3 if number < 4 else 2))[0]:
            return waiting.result()
    raise AssertionError("30 words were written, and what should come did not")


async def test_a_grpc_stream_that_is_left_frees_its_blocks(
    gateway: Any, route: Any, server: Server, picture: bytes
) -> None:
    await gateway.put(route({"v1": 100}), server)
    given = triton_grpc.InferInput("IMAGE", [1], "BYTES")
    given.set_data_from_numpy(np.array([picture], dtype=object))

    async def asked() -> AsyncIterator[dict[str, Any]]:
        yield {"model_name": "caption", "inputs": [given], "parameters": ENDLESS}
        await asyncio.Event().wait()

    client = triton_grpc.InferenceServerClient(gateway.address)
    server.steps.release(6)
    stream = client.stream_infer(asked())
    result, error = await asyncio.wait_for(anext(aiter(stream)), 60)
    assert error is None
    assert not result.get_response().parameters["triton_final_response"].bool_param
    stream.cancel()
    await stepping(server.free_again.wait(), server)
    await client.close()

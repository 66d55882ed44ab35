"""Whoever leaves, is late or meets a failure leaves nothing behind: no blocks, no text that is written for nobody."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest
from tritonclient.utils import InferenceServerException

from belvedere_serving.server import service
from head_requests import Client, data_url, post, tensor, writer


@pytest.fixture
def all_free(made: service.InferenceService) -> asyncio.Event:
    """Set when a text has been forgotten and nobody has a block or waits for words."""
    pool, done = writer(made), asyncio.Event()
    free, cancel = pool.num_free_blocks, pool._generator.cancel

    def watched(writing: Any) -> None:
        cancel(writing)
        if pool.num_free_blocks == free and not pool._streams:
            done.set()

    pool._generator.cancel = watched
    return done


# Drawn so wildly, a text hardly ever ends by itself.
ENDLESS = {"seed": 4, "temperature": 10.0}


@pytest.mark.parametrize("how", ["generate", "infer"])
async def test_a_client_that_does_not_wait_for_the_whole_text_frees_its_blocks(
    url: str, picture: bytes, made: service.InferenceService, all_free: asyncio.Event, recorded: Any, how: str
) -> None:
    begun, held = asyncio.Event(), threading.Event()
    generator, loop = writer(made)._generator, asyncio.get_running_loop()
    compute = generator.compute

    def first_waits(plan: Any) -> Any:
        loop.call_soon_threadsafe(begun.set)
        assert held.wait(60)
        return compute(plan)

    generator.compute = first_waits
    body: dict[str, Any] = {"IMAGE": data_url(picture), **ENDLESS}
    if how == "infer":
        data = [base64.b64encode(picture).decode()]
        image = {"name": "IMAGE", "datatype": "BYTES", "shape": [1], "data": data}
        body = {"inputs": [{**image, "parameters": {"content_type": "base64"}}], "parameters": ENDLESS}
    async with aiohttp.ClientSession() as session:
        asking = asyncio.create_task(session.post(f"{url}/v2/models/caption/{how}", json=body))
        await asyncio.wait_for(begun.wait(), 60)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await asyncio.wait_for(recorded.counted.wait(), 60)
    assert recorded.requests == [("caption", "http", "CANCELLED")]
    held.set()
    await asyncio.wait_for(all_free.wait(), 60)


async def test_a_client_that_leaves_an_event_stream_frees_its_blocks(
    url: str, picture: bytes, all_free: asyncio.Event, recorded: Any
) -> None:
    body = {"IMAGE": data_url(picture), **ENDLESS}
    stream = f"{url}/v2/models/caption/generate_stream"
    async with aiohttp.ClientSession() as session, session.post(stream, json=body) as answer:
        await answer.content.readuntil(b"\n\n")
        answer.close()
    async with asyncio.timeout(60):
        await all_free.wait()
        await recorded.counted.wait()
    assert ("caption", "http", "CANCELLED") in recorded.requests


async def test_a_client_that_leaves_a_grpc_stream_frees_its_blocks(
    ports: tuple[int, int], picture: bytes, all_free: asyncio.Event
) -> None:
    async def asked() -> AsyncIterator[dict[str, Any]]:
        yield {"model_name": "caption", "inputs": [tensor("IMAGE", [picture])], "parameters": ENDLESS}
        await asyncio.Event().wait()

    async with contextlib.aclosing(Client(ports[1])) as client:
        stream = client.stream_infer(asked())
        await anext(aiter(stream))
        stream.cancel()
        async with asyncio.timeout(60):
            await all_free.wait()


async def test_a_late_text_ends_with_its_deadline(
    made: service.InferenceService, ports: tuple[int, int], picture: bytes
) -> None:
    pool = writer(made)
    free = pool.num_free_blocks
    async with contextlib.aclosing(Client(ports[1])) as client:
        with pytest.raises(InferenceServerException, match=r"not finished in time|time was up|did not answer in time"):
            await client.infer("caption", [tensor("IMAGE", [picture])], timeout=1)
    assert pool.num_free_blocks == free


async def test_a_decoder_that_fails_fails_its_texts_only(
    made: service.InferenceService, url: str, picture: bytes, expected: Callable[..., str]
) -> None:
    generator = writer(made)._generator
    compute = generator.compute

    def broken(plan: Any) -> Any:
        generator.compute = compute
        raise RuntimeError("no memory")

    generator.compute = broken
    status, answer = await post(f"{url}/v2/models/caption/generate", {"IMAGE": data_url(picture)})
    assert (status, answer["error"]) == (500, "the decoder failed: no memory")
    _, answer = await post(f"{url}/v2/models/caption/generate", {"IMAGE": data_url(picture)})
    assert answer["TEXT"] == expected(picture)

"""Asking the candidate: a replica that goes while it is asked is one that did not answer, and the next is asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from belvedere_platform.errors import Unavailable
from belvedere_platform.protocol import grpc_messages
from belvedere_serving.gateway.candidate import CandidateClient
from belvedere_serving.gateway.comparison import INFER_METHOD, Replay
from belvedere_serving.gateway.world import Replica

REPLAY = Replay(path=INFER_METHOD, headers={}, body=b"")


@asynccontextmanager
async def silent_replica() -> AsyncIterator[tuple[Replica, asyncio.Event]]:
    """A replica that takes requests and answers none, and what is set when it has one."""
    asked = asyncio.Event()

    async def never(request: bytes, context: Any) -> bytes:
        asked.set()
        await asyncio.Event().wait()
        return b""

    server = grpc.aio.server()
    method = {"ModelInfer": grpc.unary_unary_rpc_method_handler(never)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(grpc_messages.SERVICE, method),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield Replica(address="127.0.0.1", grpc_port=port), asked
    finally:
        await server.stop(None)


async def test_a_replica_that_goes_while_it_is_asked_has_not_answered() -> None:
    client = CandidateClient()
    async with silent_replica() as (replica, asked):
        asking = asyncio.create_task(client.ask(replica, "grpc", REPLAY, 300))
        await asked.wait()
        await client.keep_only(())
        # Cancelled, it would end whoever asks: one of the tap's few workers, without a word.
        with pytest.raises(Unavailable, match="is gone"):
            await asking
    await client.close()


async def test_whoever_asks_can_be_cancelled() -> None:
    client = CandidateClient()
    async with silent_replica() as (replica, asked):
        asking = asyncio.create_task(client.ask(replica, "grpc", REPLAY, 300))
        await asked.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
    await client.close()

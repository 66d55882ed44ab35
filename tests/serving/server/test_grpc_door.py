"""The door of a gRPC server: who is refused before his message is read, who before it is parsed, and how he is told."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from belvedere_platform.protocol import EMBED_TEXT, InferRequest, Tensor
from belvedere_platform.protocol.grpc_messages import SERVICE, render_infer_request
from belvedere_serving.server.admission import CROWD, TURN_SECONDS, Turns
from belvedere_serving.server.grpc_door import PUSHBACK, WAITING, DooredMethods, GrpcDoor, model_of
from belvedere_serving.server.service import InferenceService

INFER, READY = f"/{SERVICE}/ModelInfer", f"/{SERVICE}/ServerReady"
A_REQUEST = render_infer_request(
    InferRequest(model_name=EMBED_TEXT, inputs=(Tensor.of_bytes("TEXT", [b"red"]),))
).SerializeToString()


class Host:
    """Lets so many in, and counts whom it does not."""

    def __init__(self, most: int) -> None:
        self.most, self.refused = most, []  # type: ignore[var-annotated]

    def retry_after(self, model: str, timeout_seconds: float | None, inside: int) -> int | None:
        return 7 if inside >= self.most else None

    def count_refused(self, model: str, protocol: str, number: int = 1) -> None:
        self.refused += [(model, protocol)] * number


def crowded() -> Turns:
    turns = Turns()
    turns.seconds = 2 * TURN_SECONDS
    turns.look = lambda: None  # type: ignore[method-assign]
    return turns


async def test_while_turns_are_long_no_more_than_a_crowd_is_read() -> None:
    answering, entered = asyncio.Event(), asyncio.Semaphore(0)

    async def waits(request: bytes, context: Any) -> bytes:
        entered.release()
        await answering.wait()
        return request

    async def at_once(request: bytes, context: Any) -> bytes:
        return b"ready"

    methods = {"ModelInfer": grpc.unary_unary_rpc_method_handler(waits)}
    methods["ServerReady"] = grpc.unary_unary_rpc_method_handler(at_once)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((DooredMethods(SERVICE, methods, ("ModelInfer",), crowded()),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        infer, ready = channel.unary_unary(INFER), channel.unary_unary(READY)
        inside = [asyncio.ensure_future(infer(b"%d" % number)) for number in range(CROWD)]
        for _ in inside:
            await entered.acquire()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await infer(b"one too many")
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert dict(refused.value.trailing_metadata() or ())[PUSHBACK] == "1000"
        assert await ready(b"") == b"ready"
        answering.set()
        assert await asyncio.gather(*inside) == [b"%d" % number for number in range(CROWD)]
        assert await infer(b"again") == b"again"
    await server.stop(None)


def test_a_host_says_who_is_too_many_for_a_model() -> None:
    host = Host(most=1)
    door = GrpcDoor(host)
    with door.entered("a"):
        assert door.retry_after("a", 1.0) == 7
        assert door.retry_after("b", 1.0) is None
    assert door.retry_after("a", 1.0) is None
    assert host.refused == [("a", "grpc")]


async def test_what_cannot_be_in_time_is_refused_before_it_is_parsed(
    a_service: InferenceService, ports: tuple[int, int], recorded: Any
) -> None:
    batcher: Any = a_service.model(EMBED_TEXT).batcher  # type: ignore[attr-defined]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{ports[1]}") as channel:
        infer = channel.unary_unary(INFER)
        with batcher.admitted(260), pytest.raises(grpc.aio.AioRpcError) as refused:
            await infer(A_REQUEST[:-1])  # no message at all, but for its beginning
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert dict(refused.value.trailing_metadata() or ())[PUSHBACK] == "1000"
        assert recorded.requests == [(EMBED_TEXT, "grpc", "RESOURCE_EXHAUSTED")]
        assert pb.ModelInferResponse.FromString(await infer(A_REQUEST)).model_name == EMBED_TEXT


@given(raw=st.binary(max_size=300))
def test_any_bytes_name_a_model_or_none(raw: bytes) -> None:
    assert isinstance(model_of(raw), str)


@pytest.mark.parametrize("name", ["", "m", "embed_image", "x" * 127])
def test_a_model_is_found_without_parsing(name: str) -> None:
    assert model_of(pb.ModelInferRequest(model_name=name, id="1").SerializeToString()) == name


async def test_calls_that_wait_in_grpcs_own_queue_are_bounded() -> None:
    """The loop stands still while they come, as it seems to when it has more to do than it can: then gRPC itself ends the surplus."""
    (_, from_here), (_, none_beyond) = WAITING

    async def at_once(request: bytes, context: Any) -> bytes:
        return request

    server = grpc.aio.server(options=WAITING)
    methods = {"ModelInfer": grpc.unary_unary_rpc_method_handler(at_once)}
    server.add_generic_rpc_handlers((DooredMethods(SERVICE, methods, ("ModelInfer",)),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    ended = threading.Semaphore(0)
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        calls = [channel.unary_unary(INFER).future(b"x") for _ in range(3 * none_beyond)]
        for call in calls:
            call.add_done_callback(lambda _: ended.release())
        for _ in range(2 * none_beyond - 2):
            ended.acquire()  # and the loop waits with it
        codes = Counter(await asyncio.to_thread(lambda: [call.code() for call in calls]))
    await server.stop(None)
    # One or two are the loop's already.
    assert from_here <= codes[grpc.StatusCode.OK] <= none_beyond + 2
    assert set(codes) == {grpc.StatusCode.OK, grpc.StatusCode.CANCELLED}

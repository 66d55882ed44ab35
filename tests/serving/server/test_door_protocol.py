"""The door in front of the parser: whom it answers, that it finds where requests end as the parser does, and that connections stay open."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st

from belvedere_platform.protocol import EMBED_TEXT
from belvedere_serving.client.load import Lines, Outcome, bodies
from belvedere_serving.server.door import Door, middlewares
from belvedere_serving.server.door_protocol import DoorProtocol, door_of, plain_head
from belvedere_serving.server.service import InferenceService

REFUSED, OK = b"HTTP/1.1 429", b"HTTP/1.1 200"
Message = Any


class Host:
    """Lets nobody in, or everybody."""

    def __init__(self) -> None:
        self.open, self.refused = False, 0

    def retry_after(self, model: str, timeout_seconds: float | None, inside: int) -> int | None:
        return None if self.open else 3

    def count_refused(self, model: str, protocol: str, number: int = 1) -> None:
        self.refused += number


class Inside:
    """An application that reads its requests whole and says how long they were."""

    def __init__(self) -> None:
        self.sizes: asyncio.Queue[int] = asyncio.Queue()

    async def __call__(self, scope: Message, receive: Any, send: Callable[[Message], Awaitable[None]]) -> None:
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            size, more = size + len(message["body"]), message["more_body"]
        self.sizes.put_nowait(size)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})


class Wire(asyncio.Transport):
    """What the server writes, without a socket."""

    def __init__(self) -> None:
        super().__init__()
        self.written, self.closed = b"", False

    def write(self, data: Any) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
def app() -> Inside:
    return Inside()


def connected(app: Inside, host: Host) -> tuple[DoorProtocol, Wire]:
    door = Door(app)
    door.introduce(host)
    config = uvicorn.Config(door, lifespan="off", log_config=None, ws="none")
    protocol, wire = DoorProtocol(config, uvicorn.server.ServerState(), {}), Wire()
    protocol.connection_made(wire)
    return protocol, wire


def a_request(size: int = 5, *lines: bytes, path: bytes = b"/v2/models/m/infer") -> bytes:
    head = [b"POST %b HTTP/1.1" % path, b"Host: x", b"Content-Length: %d" % size, *lines]
    return b"\r\n".join([*head, b"", b"#" * size])


async def test_a_refusal_is_one_write_and_the_connection_stays_open(app: Inside, host: Host) -> None:
    protocol, wire = connected(app, host)
    protocol.data_received(a_request() + a_request(700))
    assert wire.written.count(REFUSED) == 2
    assert b"\r\nretry-after: 3\r\n" in wire.written
    assert (wire.closed, app.sizes.empty(), host.refused) == (False, True, 2)
    host.open = True
    protocol.data_received(a_request(9))
    assert await app.sizes.get() == 9
    protocol.data_received(a_request(0))
    assert await app.sizes.get() == 0
    await asyncio.sleep(0)
    assert wire.written.count(OK) == 2
    protocol.connection_lost(None)


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=6),
    cuts=st.lists(st.integers(1, 400), max_size=12),
    heads=st.lists(
        st.sampled_from([(), (b"Connection: keep-alive",), (b"X: y",), (b"Expect: 100-continue",)]),
        min_size=6,
        max_size=6,
    ),
)
def test_any_pieces_of_any_requests_get_one_answer_each(
    sizes: list[int], cuts: list[int], heads: list[tuple[bytes, ...]]
) -> None:
    """Bodies are of `#`, so that one that is taken for a head is no request at all."""

    async def check() -> None:
        app, host = Inside(), Host()
        protocol, wire = connected(app, host)
        data = b"".join(a_request(size, *lines) for size, lines in zip(sizes, heads, strict=False))
        ends = sorted({min(cut, len(data)) for cut in cuts} | {len(data)})
        for start, end in zip([0, *ends], ends, strict=False):
            protocol.data_received(data[start:end])
            await asyncio.sleep(0)
        for _ in range(20 * len(sizes)):
            await asyncio.sleep(0)
        assert wire.written.count(REFUSED) == len(sizes)
        assert b"HTTP/1.1 400" not in wire.written
        protocol.connection_lost(None)

    asyncio.run(check())


@pytest.mark.parametrize(
    ("headers", "size"),
    [
        (b"\r\nhost: x\r\ncontent-length: 12", 12),
        (b"\r\ncontent-length:0\r\nconnection: keep-alive", 0),
        (b"\r\nhost: x", None),
        (b"\r\ncontent-length: 1\r\ncontent-length: 1", None),
        (b"\r\ncontent-length:\r\ncontent-length: 1", None),
        (b"\r\ncontent-length: +1", None),
        (b"\r\ncontent-length: 1\r\ntransfer-encoding: chunked", None),
        (b"\r\ncontent-length: 1\r\nexpect: 100-continue", None),
        (b"\r\ncontent-length: 1\r\nconnection: close", None),
        (b"\r\ncontent-length: 1\r\nconnection: keep-alive\r\nconnection: upgrade", None),
        (b"\r\ncontent-length: 1\r\nupgrade: h2c", None),
        (b"\r\ncontent-length: " + b"9" * 16, None),
    ],
)
def test_only_one_plain_length_says_where_a_request_ends(headers: bytes, size: int | None) -> None:
    assert plain_head(headers) == (None if size is None else (size, None))


@pytest.mark.parametrize(
    ("headers", "told"),
    [
        (b"\r\ncontent-length: 1\r\nx-envoy-expected-rq-timeout-ms: 250 ", b"250"),
        (b"\r\nx-envoy-expected-rq-timeout-ms:1\r\ncontent-length: 1\r\nx-envoy-expected-rq-timeout-ms: 2", b"1"),
        (b"\r\ncontent-length: 1\r\nx-envoy-expected-rq-timeout-ms-2: 3", None),
    ],
)
def test_a_head_tells_its_deadline(headers: bytes, told: bytes | None) -> None:
    assert plain_head(headers) == (1, told)


@pytest.mark.parametrize(
    "head",
    [
        b"POST /v2/models/m/infer HTTP/1.1\r\nContent-Length: 1\r\n  folded\r\n\r\n#",
        b"POST /v2/models/m/infer HTTP/1.1\r\nA: b\nContent-Length: 1\r\n\r\n#",
        b"POST /v2/models/m/infer HTTP/1.1\r\nContent-Length : 1\r\n\r\n#",
    ],
)
async def test_a_head_that_is_not_plain_is_the_parsers(app: Inside, host: Host, head: bytes) -> None:
    protocol, wire = connected(app, host)
    protocol.data_received(head)
    assert wire.written.startswith(b"HTTP/1.1 400")
    assert wire.closed
    protocol.connection_lost(None)


@pytest.mark.parametrize("pieces", [(a_request(), a_request()), (a_request(700)[:-600], b"#" * 300)])
async def test_who_is_only_refused_is_hung_up_on_some_time_after_he_was_last_heard(
    app: Inside, host: Host, pieces: tuple[bytes, bytes]
) -> None:
    now = 100.0
    protocol, wire = connected(app, host)
    delays: list[float] = []

    class Loop:
        def time(self) -> float:
            return now

        def call_later(self, seconds: float, call: Any) -> Any:
            delays.append(seconds)
            return asyncio.TimerHandle(now + seconds, call, (), asyncio.get_running_loop())

    protocol.loop = Loop()  # type: ignore[assignment]
    protocol.data_received(pieces[0])
    now = 104.0
    protocol.data_received(pieces[1])
    now = 105.0
    protocol.timeout_keep_alive_handler()
    assert (delays, wire.closed) == ([5, 4.0], False)
    now = 109.0
    protocol.timeout_keep_alive_handler()
    assert wire.closed


async def test_a_client_of_the_server_keeps_its_connection_while_it_is_refused(
    a_service: InferenceService, ports: tuple[int, int], recorded: Any
) -> None:
    lines, outcome = Lines(f"http://127.0.0.1:{ports[0]}"), Outcome()
    short, long = (lines.encoded(bodies(EMBED_TEXT, [text])[0]) for text in (b"red", b"red" * 200_000))
    await lines.send(short, outcome)
    batcher: Any = a_service.model(EMBED_TEXT).batcher  # type: ignore[attr-defined]
    with batcher.admitted(260):
        for request in (short, long, short):
            await lines.send(request, outcome)
            assert lines.num_open == 1
    await lines.send(short, outcome)
    lines.close()
    assert outcome.statuses == {"200": 2, "429": 3}
    assert recorded.dropped == [(EMBED_TEXT, "busy")] * 3


def test_a_door_is_found_behind_what_uvicorn_puts_before_it(app: Inside) -> None:
    door = Door(app)
    assert door_of(uvicorn.middleware.proxy_headers.ProxyHeadersMiddleware(door)) is door
    assert door_of(app) is None


def test_ray_makes_its_servers_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(uvicorn.config.HTTP_PROTOCOLS, "auto", uvicorn.config.HTTP_PROTOCOLS["auto"])
    middlewares()
    config = uvicorn.Config(Door(Inside()), log_config=None)
    config.load()
    assert config.http_protocol_class is DoorProtocol

"""The load client counts what a server answers, and survives one that hangs up or talks nonsense."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from belvedere_serving.client.load import IDLE_SECONDS, Lines, Outcome, bodies, closed_loop, open_loop

GIVEN = bodies("embed_text", [b"red", b"blue"])
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
Answer = Callable[[asyncio.StreamWriter, int], Awaitable[None]]


@asynccontextmanager
async def a_server(answer: Answer) -> AsyncIterator[str]:
    """Read whole requests and answer them, counted from 0."""
    number = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal number
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                assert head.startswith(b"POST /prefix/v2/models/embed_text/infer HTTP/1.1\r\n")
                length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                assert len(await reader.readexactly(length)) == length
                number += 1
                await answer(writer, number - 1)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/prefix"
    finally:
        server.close()


async def test_answers_are_counted_by_status() -> None:
    asked = itertools.count()

    async def answer(writer: asyncio.StreamWriter, _: int) -> None:
        # Of all that are asked, not of each connection's own: a busy machine may not come to a third of those.
        if next(asked) % 3 == 2:
            writer.write(b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\nRetry-After: 1\r\n\r\n")
        else:
            for part in (OK[:7], OK[7:40], OK[40:]):
                writer.write(part)
                await asyncio.sleep(0)

    async with a_server(answer) as url:
        outcome = await closed_loop(url, GIVEN, clients=3, seconds=0.3)
        assert set(outcome.statuses) == {"200", "429"}
        assert len(outcome.latencies) == outcome.statuses["200"] > outcome.statuses["429"] == len(outcome.refused)
        outcome = await open_loop(url, GIVEN, rate=300, seconds=0.1, deadline_seconds=1)
        assert 25 <= sum(outcome.statuses.values()) <= 35


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (b"", "ConnectionResetError"),
        (OK[:-1], "ConnectionResetError"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "ValueError"),
        (OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), "200"),
    ],
)
async def test_a_server_that_hangs_up_is_called_again(said: bytes, status: str) -> None:
    async def answer(writer: asyncio.StreamWriter, number: int) -> None:
        writer.write(said)
        writer.close()

    async with a_server(answer) as url:
        for _ in range(50):
            outcome = await closed_loop(url, GIVEN, clients=2, seconds=0.3)
            assert set(outcome.statuses) <= {status}
            # More often than there are clients; on a busy machine it takes more than one try.
            if outcome.statuses[status] > 2:
                return
    raise AssertionError(f"it was never called again: {outcome.statuses}")


async def test_a_connection_that_the_server_has_closed_meanwhile_is_not_used_again() -> None:
    """Servers close connections that were idle for some seconds. To take one of those is no failure of the server's."""
    gone = asyncio.Semaphore(0)

    async def answer(writer: asyncio.StreamWriter, number: int) -> None:
        writer.write(OK)
        writer.close()
        await writer.wait_closed()
        gone.release()

    async with a_server(answer) as url:
        lines, outcome = Lines(url), Outcome()
        request = lines.encoded(GIVEN[0])
        for _ in range(3):
            await lines.send(request, outcome)
            await gone.acquire()
            while lines.num_open:  # noqa: ASYNC110 - the server's end has closed; the loop has yet to hear of it
                await asyncio.sleep(0)
        lines.close()
    assert outcome.statuses == {"200": 3}


async def test_a_connection_that_the_server_is_about_to_close_is_not_used_again() -> None:
    """Else a request meets a connection that is being closed, and nobody knows whether it was read."""
    now, connections = 0.0, set()

    async def answer(writer: asyncio.StreamWriter, number: int) -> None:
        connections.add(writer)
        writer.write(OK)

    async with a_server(answer) as url:
        lines, outcome = Lines(url, clock=lambda: now), Outcome()
        request = lines.encoded(GIVEN[0])
        for later, known in ((0.0, 1), (IDLE_SECONDS - 0.1, 1), (2 * IDLE_SECONDS, 2)):
            now = later
            await lines.send(request, outcome)
            assert (len(connections), lines.num_open) == (known, 1)
        lines.close()
    assert outcome.statuses == {"200": 3}

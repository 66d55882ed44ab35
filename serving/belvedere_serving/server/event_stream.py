"""Answers over HTTP that come in parts: server-sent events, ended when the client goes."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, MutableMapping
from typing import Any, TypeVar

from belvedere_platform.protocol import Reason, V2Error

Answered = TypeVar("Answered")
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
_HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]


def event(data: object) -> bytes:
    """Return one event. WHATWG HTML, section 9.2.5."""
    return b"data: " + (data if isinstance(data, bytes) else json.dumps(data, ensure_ascii=False).encode()) + b"\n\n"


class EventStream:
    """Events that are yet to come."""

    def __init__(self, events: AsyncGenerator[bytes], failed: Callable[[V2Error], bytes]) -> None:
        """`failed`: the event of an error after the beginning, when the status has been sent long ago."""
        self._events = events
        self._failed = failed
        self._first = b""

    async def begin(self) -> EventStream:
        """Wait for the first event, so that what is wrong with a request is still said by the status. Raises V2Error."""
        self._first = await anext(self._events)
        return self

    async def send(self, receive: Receive, send: Send) -> None:
        """Send all events, or stop when the client has gone."""
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        sending = asyncio.create_task(self._pump(send), name="events")
        leaving = asyncio.create_task(_gone(receive), name="client")
        try:
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            for task in (sending, leaving):
                task.cancel()
            await asyncio.gather(sending, leaving, return_exceptions=True)
            await self._events.aclose()

    async def _pump(self, send: Send) -> None:
        await send({"type": "http.response.body", "body": self._first, "more_body": True})
        try:
            async with contextlib.aclosing(self._events) as events:
                async for one in events:
                    await send({"type": "http.response.body", "body": one, "more_body": True})
        except V2Error as error:
            await send({"type": "http.response.body", "body": self._failed(error), "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def while_listening(answering: Coroutine[Any, Any, Answered], receive: Receive) -> Answered:
    """Return an answer, unless the client goes first: then nobody works on it any more."""
    working = asyncio.create_task(answering)
    leaving = asyncio.create_task(_gone(receive), name="client")
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise V2Error(Reason.CANCELLED, "the client has gone")
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)

"""The outermost part of an HTTP server: what cannot be answered in time is refused before anything is done for it.

In front of our own server it is put by hand, in front of Ray Serve's by `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`: what Ray
does for a request, and reading it, costs more than to refuse it.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Protocol

from belvedere_platform.protocol import Reason
from belvedere_platform.protocol.http_messages import error_body
from belvedere_serving.server.admission import Turns

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

DOOR = "belvedere.door"
"""In the scope of a request: the door that it came through."""
ARRIVED = "belvedere.arrived"
"""In the scope of a request: when it came, by the event loop's clock. Through Ray it has many turns of the loop to wait for."""
DEADLINE_HEADER = b"x-envoy-expected-rq-timeout-ms"
_WORK = ("/infer", "/generate", "/generate_stream")
_OPENAI_WORK = ("/v1/embeddings", "/v1/chat/completions")
_DOORED = _WORK + _OPENAI_WORK
HOLD_SHARE, HOLD_SECONDS = 0.04, 0.04
"""For what part of the time that is given, and how long at most, a door stays closed that has been found so.

Those who come in then come in together, which is cheaper for the event loop than one after the other between those it refuses.
"""
_LONGEST_KEPT = 256
"""The targets of requests are kept by what they ask for, unless they are longer: clients choose them."""
TOO_BUSY = "the server is too busy; try again later"


class Host(Protocol):
    """Who is behind a door and knows what is going on there."""

    def retry_after(self, model: str, timeout_seconds: float | None, inside: int) -> int | None:
        """Return after how many seconds to come again, where one more request beside so many could not be answered in time."""
        ...

    def count_refused(self, model: str, protocol: str, number: int = 1) -> None:
        """Count requests that were refused before they were read."""
        ...


@dataclass(kw_only=True, slots=True)
class _Closed:
    """A model that lets nobody in who gives it the same time: for some milliseconds, or until half of those inside have gone."""

    told: bytes | None
    retry_after_seconds: int
    inside: int
    num_refused: int = 1


class Door:
    """An application behind a door. Questions about state and health always pass, and so does all in an idle server."""

    def __init__(self, app: App, *, turns: Turns | None = None, begun: Callable[[], None] = lambda: None) -> None:
        """`begun`: called once, when the first request has reached who is inside."""
        self._app = app
        self._begun = begun
        self._turns = turns or Turns()
        self._inside: dict[str, int] = {}
        self._num_inside = 0
        self._host: Host | None = None
        self._closed: dict[str, _Closed] = {}

    def introduce(self, host: Host) -> None:
        """Learn who is inside. Ray makes its doors itself, so the host finds his by the first request that comes through it."""
        if self._host is None:
            self._begun()
        self._host = host

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Refuse a request for work that could not be answered in time; pass on any other."""
        if scope["type"] != "http" or scope["method"] != "POST" or not scope["path"].endswith(_DOORED):
            await self._app(scope, receive, send)
            return
        model = model_of(scope["path"])
        told = next((value for name, value in scope["headers"] if name == DEADLINE_HEADER), None)
        if (seconds := self._retry_after(model, told)) is not None:
            for message in refusal(scope["path"], seconds):
                await send(message)
            return
        scope[DOOR], scope[ARRIVED] = self, asyncio.get_running_loop().time()
        self._num_inside += 1
        self._inside[model] = self._inside.get(model, 0) + 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._num_inside -= 1
            self._inside[model] -= 1
            if not self._inside[model]:
                del self._inside[model]

    def refused(self, target: bytes, told: bytes | None) -> bytes | None:
        """Return the whole answer to a POST that is not let in, None for one that may come in. `told`: its deadline's header.

        For a server that has read no more than this, and has no task for the request: nothing is cheaper to it.
        """
        work = _work_of(target) if len(target) <= _LONGEST_KEPT else None
        if work is None:
            return None
        model, openai = work
        seconds = self._retry_after(model, told)
        return None if seconds is None else _on_the_line(openai, seconds)

    def _retry_after(self, model: str, told: bytes | None) -> int | None:
        closed = self._closed.get(model)
        inside = self._inside.get(model, 0)
        if closed is not None and closed.told == told and 2 * inside > closed.inside:
            closed.num_refused += 1
            return closed.retry_after_seconds
        self._turns.look()
        seconds = 1 if self._turns.too_long(self._num_inside) else None
        if seconds is None and self._host is not None:
            seconds = self._host.retry_after(model, timeout_of(told), inside)
        if seconds is not None and closed is None and inside:
            self._close(model, _Closed(told=told, retry_after_seconds=seconds, inside=inside))
        elif seconds is not None and self._host is not None:
            self._host.count_refused(model, "http")
        return seconds

    def _close(self, model: str, closed: _Closed) -> None:
        """Answer all that ask the same within the next milliseconds as the one that was just refused: the queue is hardly shorter by then.

        To look at each by itself, and to count it, would cost as much as to refuse it.
        """
        self._closed[model] = closed
        hold = HOLD_SHARE * (timeout_of(closed.told) or HOLD_SECONDS / HOLD_SHARE)
        asyncio.get_running_loop().call_later(min(hold, HOLD_SECONDS), self._open, model)

    def _open(self, model: str) -> None:
        closed = self._closed.pop(model)
        if self._host is not None:
            self._host.count_refused(model, "http", closed.num_refused)


def send_at_once() -> None:
    """Turn Nagle's algorithm off in every TCP socket of this process; connections that a listening one accepts have it from there.

    asyncio does so only where a socket was made with TCP's name, and Ray makes its own without: the head of an answer and its
    body, written one after the other, then wait 40 ms for each other.
    """
    for number in map(int, os.listdir("/dev/fd")):
        try:
            if not stat.S_ISSOCK(os.fstat(number).st_mode):
                continue
            copy = os.dup(number)
        except OSError:
            continue  # closed meanwhile, as the one that listed them was
        with socket.socket(fileno=copy) as one:
            if one.family in (socket.AF_INET, socket.AF_INET6) and one.type == socket.SOCK_STREAM:
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def middlewares() -> list[Any]:
    """Return what Ray Serve puts in front of its HTTP servers; they are made after this, and by then have their protocol from us.

    Ray lets nobody choose it, but takes what uvicorn finds by the name of its default.
    """
    from starlette.middleware import Middleware
    from uvicorn.config import HTTP_PROTOCOLS

    HTTP_PROTOCOLS["auto"] = "belvedere_serving.server.door_protocol:DoorProtocol"
    return [Middleware(Door, begun=send_at_once)]


def model_of(path: str) -> str:
    """Return the model that a path names, empty where the body names it."""
    _, _, rest = path.rpartition("/v2/models/")
    return rest.partition("/")[0] if not path.endswith(_OPENAI_WORK) else ""


@lru_cache(maxsize=256)
def _work_of(target: bytes) -> tuple[str, bool] | None:
    """Return the model that a request's target names, and whether it is read as OpenAI's clients do; None where it is no work."""
    path = target.partition(b"?")[0].decode("ascii")
    return (model_of(path), path.endswith(_OPENAI_WORK)) if path.endswith(_DOORED) else None


def timeout_of(header: bytes | None) -> float | None:
    """Return the seconds that the gateway still waits, if it says so."""
    if header is None or not header.isdigit() or len(header) > 12 or int(header) == 0:
        return None
    return int(header) / 1000


def time_left(scope: Message, headers: Mapping[bytes, bytes]) -> float | None:
    """Return the seconds that the gateway still waits for this request, if it says so."""
    seconds = timeout_of(headers.get(DEADLINE_HEADER))
    if seconds is None or ARRIVED not in scope:
        return seconds
    arrived: float = scope[ARRIVED]
    return max(0.0, seconds - (asyncio.get_running_loop().time() - arrived))


def refusal(path: str, retry_after_seconds: int) -> tuple[Message, Message]:
    """Return the answer to a request that is not let in, as its client reads it."""
    content, headers = _refusal(path.endswith(_OPENAI_WORK), retry_after_seconds)
    start = {"type": "http.response.start", "status": _STATUS, "headers": headers}
    return start, {"type": "http.response.body", "body": content}


def _refusal(openai: bool, retry_after_seconds: int) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    content = _OPENAI if openai else _V2
    return content, [
        (b"content-type", b"application/json"),
        (b"retry-after", b"%d" % retry_after_seconds),
        (b"content-length", b"%d" % len(content)),
    ]


@lru_cache(maxsize=256)
def _on_the_line(openai: bool, retry_after_seconds: int) -> bytes:
    content, headers = _refusal(openai, retry_after_seconds)
    head = b"".join(b"%b: %b\r\n" % header for header in headers)
    return b"HTTP/1.1 %d %b\r\n%b\r\n%b" % (_STATUS, HTTPStatus(_STATUS).phrase.encode(), head, content)


_STATUS = Reason.RESOURCE_EXHAUSTED.http_status

_V2 = error_body(TOO_BUSY)
_OPENAI = json.dumps(
    {"error": {"message": TOO_BUSY, "type": "rate_limit_error", "param": None, "code": "resource_exhausted"}}
).encode()

"""The door of an HTTP server: who is refused before he is read, how he is told, and who always passes."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from uvicorn.config import HTTP_PROTOCOLS

from belvedere_platform.protocol import EMBED_TEXT
from belvedere_serving.server.admission import CROWD, TURN_SECONDS, Turns
from belvedere_serving.server.door import ARRIVED, DEADLINE_HEADER, Door, middlewares, model_of, send_at_once, time_left
from belvedere_serving.server.http_app import V2HttpApp
from belvedere_serving.server.service import InferenceService

INFER = f"/v2/models/{EMBED_TEXT}/infer"
Message = Any


class Inside:
    """An application that keeps its requests until it is told to answer; those with a host introduce him."""

    def __init__(self, host: Any = None) -> None:
        self.host, self.entered, self.answering = host, asyncio.Semaphore(0), asyncio.Event()

    async def __call__(self, scope: Message, receive: Any, send: Callable[[Message], Awaitable[None]]) -> None:
        self.entered.release()
        if self.host is not None:
            scope["belvedere.door"].introduce(self.host)
        await self.answering.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


class Host:
    """Lets so many in, and counts whom it does not."""

    def __init__(self, most: int) -> None:
        self.most, self.asked, self.refused = most, [], []  # type: ignore[var-annotated]
        self.counted = asyncio.Event()

    def retry_after(self, model: str, timeout_seconds: float | None, inside: int) -> int | None:
        self.asked.append((model, timeout_seconds, inside))
        return 7 if inside >= self.most else None

    def count_refused(self, model: str, protocol: str, number: int = 1) -> None:
        self.refused += [(model, protocol)] * number
        self.counted.set()


async def ask(door: Door, path: str = INFER, method: str = "POST", milliseconds: int | None = None) -> list[Message]:
    sent: list[Message] = []

    async def receive() -> Message:
        raise AssertionError("a request was read that is refused")

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"host", b"x"), *([(DEADLINE_HEADER, b"%d" % milliseconds)] if milliseconds else [])]
    await door({"type": "http", "method": method, "path": path, "root_path": "", "headers": headers}, receive, send)
    return sent


async def started(app: Inside, *asks: asyncio.Task[list[Message]]) -> None:
    for _ in asks:
        await app.entered.acquire()


def crowded() -> Turns:
    turns = Turns()
    turns.seconds = 2 * TURN_SECONDS
    turns.look = lambda: None  # type: ignore[method-assign]
    return turns


async def test_while_turns_are_long_no_more_than_a_crowd_is_let_in() -> None:
    app = Inside()
    door = Door(app, turns=crowded())
    inside = [asyncio.create_task(ask(door)) for _ in range(CROWD)]
    await started(app, *inside)
    start, body = await ask(door)
    assert (start["status"], dict(start["headers"])[b"retry-after"]) == (429, b"1")
    assert json.loads(body["body"])["error"] == "the server is too busy; try again later"
    app.answering.set()
    assert {answer[0]["status"] for answer in await asyncio.gather(*inside)} == {200}
    assert (await ask(door))[0]["status"] == 200


async def test_the_host_says_who_would_come_in_vain() -> None:
    host = Host(most=2)
    app = Inside(host)
    door = Door(app)
    inside = [asyncio.create_task(ask(door, milliseconds=500)) for _ in range(2)]
    await started(app, *inside)
    start, _ = await ask(door, milliseconds=500)
    assert (start["status"], dict(start["headers"])[b"retry-after"]) == (429, b"7")
    assert host.asked[-1] == (EMBED_TEXT, 0.5, 2)
    await host.counted.wait()  # when the door opens again
    assert host.refused == [(EMBED_TEXT, "http")]
    app.answering.set()
    await asyncio.gather(*inside)
    assert (await ask(door))[0]["status"] == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v2/health/ready"), ("GET", INFER), ("POST", "/v2/repository/index"), ("GET", "/-/healthz")],
)
async def test_questions_about_the_server_always_pass(method: str, path: str) -> None:
    app = Inside()
    door = Door(app, turns=crowded())
    inside = [asyncio.create_task(ask(door)) for _ in range(CROWD)]
    await started(app, *inside)
    app.answering.set()
    assert (await ask(door, path, method))[0]["status"] == 200
    await asyncio.gather(*inside)


@pytest.mark.parametrize("path", ["/v1/embeddings", "/prefix/v1/chat/completions"])
async def test_openai_clients_are_told_in_their_way(path: str) -> None:
    app = Inside()
    door = Door(app, turns=crowded())
    inside = [asyncio.create_task(ask(door)) for _ in range(CROWD)]
    await started(app, *inside)
    start, body = await ask(door, path)
    assert (start["status"], json.loads(body["body"])["error"]["type"]) == (429, "rate_limit_error")
    app.answering.set()
    await asyncio.gather(*inside)


@pytest.mark.parametrize(
    ("path", "model"),
    [
        (INFER, EMBED_TEXT),
        ("/default.emoji-v1/v2/models/caption/versions/v1/generate", "caption"),
        ("/v1/embeddings", ""),
        ("/infer", ""),
    ],
)
def test_the_model_is_read_from_the_path(path: str, model: str) -> None:
    assert model_of(path) == model


async def test_the_way_from_the_door_counts_against_the_time_that_is_left() -> None:
    headers, now = {DEADLINE_HEADER: b"500"}, asyncio.get_running_loop().time()
    assert time_left({}, headers) == 0.5
    assert time_left({ARRIVED: now}, {}) is None
    assert (time_left({ARRIVED: now - 0.2}, headers) or 1) <= 0.3
    assert time_left({ARRIVED: now - 2}, headers) == 0


async def test_a_service_behind_the_door_is_asked_from_its_second_request_on(
    a_service: InferenceService, recorded: Any
) -> None:
    """A door is made before anybody knows who is behind it; full queues are then known there."""
    door = Door(V2HttpApp(a_service))
    assert (await ask(door, "/v2/models/none/infer/versions/infer"))[0]["status"] == 404
    batcher: Any = a_service.model(EMBED_TEXT).batcher  # type: ignore[attr-defined]
    with batcher.admitted(260):
        start, _ = await ask(door)
    assert start["status"] == 429
    assert recorded.dropped == [(EMBED_TEXT, "busy")]
    assert recorded.requests[-1] == (EMBED_TEXT, "http", "RESOURCE_EXHAUSTED")
    with batcher.admitted(1):
        batcher.running.observe(1, 30)
        assert (await ask(door, milliseconds=1000))[0]["status"] == 429


def test_ray_is_given_one_door(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(HTTP_PROTOCOLS, "auto", HTTP_PROTOCOLS["auto"])
    (made,) = middlewares()
    assert made.cls is Door
    # Its sockets are Ray's: it turns Nagle's algorithm off itself.
    assert made.kwargs == {"begun": send_at_once}


async def test_for_some_milliseconds_all_get_the_answer_of_the_first_that_is_refused() -> None:
    host = Host(most=1)
    app = Inside(host)
    door = Door(app)
    inside = asyncio.create_task(ask(door, milliseconds=500))
    await started(app, inside)
    answers = [await ask(door, milliseconds=500) for _ in range(5)]
    assert {answer[0]["status"] for answer in answers} == {429}
    assert [asked[1:] for asked in host.asked] == [(0.5, 1)]
    # Who gives it another time gets an answer of his own.
    assert (await ask(door, milliseconds=600))[0]["status"] == 429
    assert host.asked[-1][1:] == (0.6, 1)
    await host.counted.wait()
    # The hold is over some time after the one with another time, who was counted at once.
    while len(host.refused) < 6:
        host.counted.clear()
        await host.counted.wait()
    assert host.refused == [(EMBED_TEXT, "http")] * 6
    app.answering.set()
    await inside


async def test_a_server_that_is_idle_again_lets_in_also_while_its_door_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("belvedere_serving.server.door.HOLD_SECONDS", 600)
    host = Host(most=1)
    app = Inside(host)
    door = Door(app)
    inside = asyncio.create_task(ask(door))
    await started(app, inside)
    assert (await ask(door))[0]["status"] == 429
    app.answering.set()
    await inside
    assert (await ask(door))[0]["status"] == 200
    assert host.refused == []


async def test_what_has_to_be_done_at_first_is_done_once() -> None:
    app, done = Inside(Host(most=9)), []
    door = Door(app, begun=lambda: done.append(1))
    app.answering.set()
    assert done == []
    assert [(await ask(door))[0]["status"] for _ in range(3)] == [200] * 3
    assert done == [1]


def test_answers_are_sent_at_once_also_where_somebody_else_made_the_sockets() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with socket.create_connection(listener.getsockname()), listener.accept()[0] as before:
            assert not before.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            send_at_once()
            assert before.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        with socket.create_connection(listener.getsockname()), listener.accept()[0] as after:
            assert after.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

"""V2 over HTTP as an ASGI application. It answers below any prefix that the server in front of it puts into `root_path`."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from pydantic import BaseModel

from belvedere_platform.protocol import Reason, V2Error, invalid
from belvedere_platform.protocol.http_messages import (
    HEADER_LENGTH,
    error_body,
    parse_infer_request,
    render_infer_response,
)
from belvedere_serving.server import chat_api, describe, generate_api, openai_api
from belvedere_serving.server.door import DOOR, time_left
from belvedere_serving.server.event_stream import EventStream, while_listening
from belvedere_serving.server.service import InferenceService
from belvedere_serving.server.timing import SERVER_TIMING
from belvedere_serving.server.tracing import CARRIED

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = dict[bytes, bytes]

MAX_BODY_BYTES = 64 << 20
_JSON = (b"content-type", b"application/json")
_OCTETS = (b"content-type", b"application/octet-stream")


class Answer:
    """An HTTP answer."""

    def __init__(self, body: bytes = b"", status: int = 200, headers: Iterable[tuple[bytes, bytes]] = (_JSON,)) -> None:
        self.body = body
        self.status = status
        self.headers = [*headers, (b"content-length", str(len(body)).encode())]


class V2HttpApp:
    """The V2 endpoints of a service."""

    def __init__(self, service: InferenceService, *, max_body_bytes: int = MAX_BODY_BYTES) -> None:
        self._service = service
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request, or follow the server's lifespan."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError(f"V2 is not spoken over {scope['type']}")
        if DOOR in scope:
            scope[DOOR].introduce(self._service)
        try:
            answer = await self._answer(scope, receive)
        except V2Error as error:
            answer = failed(error)
        if isinstance(answer, EventStream):
            await answer.send(receive, send)
            return
        await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
        await send({"type": "http.response.body", "body": answer.body})

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                await self._service.close()
                await send({"type": "lifespan.shutdown.complete"})
                return
            await send({"type": "lifespan.startup.complete"})

    async def _answer(self, scope: Message, receive: Receive) -> Answer | EventStream:
        path, method = relative_path(scope), scope["method"]
        match [part for part in path.split("/") if part]:
            case ["v2", "models", name, "infer"]:
                version = ""
            case ["v2", "models", name, "versions", version, "infer"]:
                pass
            case ["v1", "embeddings"]:
                return await self._embeddings(scope, receive) if method == "POST" else not_allowed(method, "POST")
            case ["v1", "chat", "completions"]:
                return await self._chat(scope, receive) if method == "POST" else not_allowed(method, "POST")
            case ["v2", "models", name, "generate" | "generate_stream" as how]:
                return await self._generate(name, "", how, scope, receive)
            case ["v2", "models", name, "versions", version, "generate" | "generate_stream" as how]:
                return await self._generate(name, version, how, scope, receive)
            case ["v2", "repository", "index"]:
                return (
                    data_answer(self._service.repository_index()) if method == "POST" else not_allowed(method, "POST")
                )
            case ["v2", "systemsharedmemory" | "cudasharedmemory", *_, "register" | "unregister"]:
                raise describe.no_shared_memory()
            case parts:
                found = self._look(parts, path)
                return found if method in ("GET", "HEAD") else not_allowed(method, "GET")
        if method != "POST":
            return not_allowed(method, "POST")
        return await self._infer(name, version, scope, receive)

    def _look(self, parts: list[str], path: str) -> Answer:
        match parts:
            case ["v1", "models"]:
                return data_answer(openai_api.models(self._service))
            case ["v2"]:
                return json_answer(self._service.server_metadata())
            case ["v2", "health", "live"]:
                return data_answer({"live": True})
            case ["v2", "health", "ready"]:
                return self._ready({"ready": True})
            case ["v2", "models", "stats"]:
                return data_answer(self._service.model_statistics())
            case ["v2", "models", name] | ["v2", "models", name, "versions", _] as found:
                return json_answer(self._service.model_metadata(name, found[4] if len(found) > 4 else ""))
            case ["v2", "models", name, "config"] | ["v2", "models", name, "versions", _, "config"] as found:
                return data_answer(self._service.model_config(name, found[4] if len(found) > 5 else ""))
            case ["v2", "models", name, "stats"] | ["v2", "models", name, "versions", _, "stats"] as found:
                return data_answer(self._service.model_statistics(name, found[4] if len(found) > 5 else ""))
            case ["v2", "systemsharedmemory" | "cudasharedmemory", "status"]:
                return data_answer([])
            case ["v2", "models", name, "ready"] | ["v2", "models", name, "versions", _, "ready"] as found:
                self._service.model(name, found[4] if len(found) > 4 else "")
                return self._ready({"name": name, "ready": True})
        raise V2Error(Reason.NOT_FOUND, f"there is nothing at '{path[:128]}'; V2 paths begin with /v2")

    def _ready(self, said: dict[str, Any]) -> Answer:
        """Return what KServe's clients read; Triton's look at the status alone."""
        if not self._service.ready:
            raise V2Error(Reason.UNAVAILABLE, "the server is stopping", retry_after_seconds=1)
        return data_answer(said)

    async def _infer(self, name: str, version: str, scope: Message, receive: Receive) -> Answer:
        headers: Headers = dict(scope["headers"])
        body = await self._body(headers, receive)
        length = headers.get(HEADER_LENGTH.encode())
        answering = self._service.infer(
            lambda: parse_infer_request(name, version, body, None if length is None else length.decode("latin-1")),
            render_infer_response,
            "http",
            **_told(scope, headers),
        )
        # A text takes long enough for its client to go; watching costs more than a tower's whole run.
        writes = self._service.has(name) and self._service.model(name).decoupled
        (content, header_length), timing = await (while_listening(answering, receive) if writes else answering)
        told = (SERVER_TIMING.encode(), timing.header().encode())
        if header_length is None:
            return Answer(content, headers=(_JSON, told))
        return Answer(content, headers=(_OCTETS, (HEADER_LENGTH.encode(), str(header_length).encode()), told))

    async def _embeddings(self, scope: Message, receive: Receive) -> Answer:
        """Answer OpenAI's clients, also what is wrong in the way that they read."""
        headers: Headers = dict(scope["headers"])
        try:
            body = await self._body(headers, receive)
            content, timing = await openai_api.embeddings(self._service, body, **_told(scope, headers))
        except V2Error as error:
            return failed(error, openai_api.error_body(error))
        return Answer(content, headers=(_JSON, (SERVER_TIMING.encode(), timing.header().encode())))

    async def _chat(self, scope: Message, receive: Receive) -> Answer | EventStream:
        """Answer OpenAI's clients, also what is wrong in the way that they read."""
        headers: Headers = dict(scope["headers"])
        try:
            body = await self._body(headers, receive)
            asked, answers = chat_api.completions(self._service, body, **_told(scope, headers))
            if asked.stream:
                return await while_listening(chat_api.stream(asked, answers).begin(), receive)
            return Answer(await while_listening(chat_api.whole(asked, answers), receive))
        except V2Error as error:
            return failed(error, openai_api.error_body(error))

    async def _generate(
        self, name: str, version: str, how: str, scope: Message, receive: Receive
    ) -> Answer | EventStream:
        if scope["method"] != "POST":
            return not_allowed(scope["method"], "POST")
        headers: Headers = dict(scope["headers"])
        body = await self._body(headers, receive)
        options = _told(scope, headers)
        if how == "generate_stream":
            events = generate_api.generate_stream(self._service, name, version, body, **options)
            return await while_listening(events.begin(), receive)
        whole = generate_api.generate(self._service, name, version, body, **options)
        content, timing = await while_listening(whole, receive)
        return Answer(content, headers=(_JSON, (SERVER_TIMING.encode(), timing.header().encode())))

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        chunks: list[bytes] = []
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise asyncio.CancelledError
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            if size > self._max_body_bytes:
                raise invalid(f"the body is larger than {self._max_body_bytes} bytes")
            more = message.get("more_body", False)
        encoding = headers.get(b"content-encoding", b"identity")
        return inflated(b"".join(chunks), encoding.decode("latin-1").lower(), self._max_body_bytes)


def _told(scope: Message, headers: Headers) -> dict[str, Any]:
    """Return what the client says beside its request: how long it waits, and the trace that the request belongs to."""
    carrier = {name: headers[name.encode()].decode("latin-1") for name in CARRIED if name.encode() in headers}
    return {"timeout_seconds": time_left(scope, headers), "carrier": carrier}


def relative_path(scope: Message) -> str:
    """Return the path below the prefix that this application is mounted at."""
    path, root = str(scope["path"]), str(scope.get("root_path", "")).rstrip("/")
    return path[len(root) :] if root and path.startswith(f"{root}/") else path


def inflated(body: bytes, encoding: str, limit: int) -> bytes:
    """Return a body as it was before compression; no more than `limit` bytes are ever inflated."""
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "deflate"):
        raise invalid(f"content-encoding '{encoding[:32]}' is not known; it is identity, gzip or deflate")
    inflator = zlib.decompressobj(zlib.MAX_WBITS | 32)
    try:
        inflated_body = inflator.decompress(body, limit + 1)
    except zlib.error as error:
        raise invalid(f"the body is not {encoding}: {error}") from error
    if len(inflated_body) > limit or not inflator.eof:
        raise invalid(f"the body is cut off, or larger than {limit} bytes when inflated")
    return inflated_body


def json_answer(content: BaseModel) -> Answer:
    """Return content as JSON."""
    return Answer(content.model_dump_json().encode())


def data_answer(content: object) -> Answer:
    """Return plain data as JSON."""
    return Answer(json.dumps(content).encode())


def not_allowed(method: str, allowed: str) -> Answer:
    """Return the answer to a wrong method."""
    body = error_body(f"method {method[:16]} is not allowed here; use {allowed}")
    return Answer(body, 405, (_JSON, (b"allow", allowed.encode())))


def failed(error: V2Error, body: bytes | None = None) -> Answer:
    """Return the answer to a failed request; its body is V2's unless another is given."""
    headers = [_JSON]
    if error.retry_after_seconds is not None:
        headers.append((b"retry-after", str(error.retry_after_seconds).encode()))
    return Answer(body or error_body(error.message), error.reason.http_status, headers)

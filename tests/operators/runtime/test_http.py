"""The transport under httpx, against a real server: answers are whole, and failures are httpx's own."""

from __future__ import annotations

import asyncio
import gzip
import socket
from collections.abc import AsyncIterator

import httpx
import pytest
from aiohttp import web

from belvedere_operators.runtime.http import AiohttpTransport


async def _echo(request: web.Request) -> web.Response:
    body = await request.text()
    text = f"{request.method} {request.path_qs} {request.headers['Accept']} {body}"
    return web.Response(body=gzip.compress(text.encode()), headers={"Content-Encoding": "gzip", "X-Seen": "yes"})


async def _silence(request: web.Request) -> web.Response:
    await asyncio.Event().wait()
    raise AssertionError


async def _broken(request: web.Request) -> web.StreamResponse:
    answer = web.StreamResponse(headers={"Content-Length": "100"})
    await answer.prepare(request)
    await answer.write(b"a")
    assert request.transport is not None
    request.transport.close()
    return answer


@pytest.fixture
async def url() -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_route("*", "/echo", _echo)
    app.router.add_get("/silence", _silence)
    app.router.add_get("/broken", _broken)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=AiohttpTransport(), trust_env=False) as made:
        yield made


async def test_requests_and_answers_are_whole(url: str, client: httpx.AsyncClient) -> None:
    accept = {"Accept": "text/plain"}
    got = await client.get(f"{url}/echo", params={"a": "1 2/é"}, headers=accept)
    assert (got.status_code, got.headers["X-Seen"]) == (200, "yes")
    assert got.text == "GET /echo?a=1+2%2F%C3%A9 text/plain "
    posted = await client.post(f"{url}/echo", data={"query": "sum(a)"}, headers=accept)
    assert posted.text == "POST /echo text/plain query=sum%28a%29"
    assert (await client.get(f"{url}/absent")).status_code == 404


async def test_failures_are_those_that_httpx_has(url: str, client: httpx.AsyncClient) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(httpx.ConnectError):
            await client.get(f"http://127.0.0.1:{taken.getsockname()[1]}/")
    with pytest.raises(httpx.ReadTimeout):
        await client.get(f"{url}/silence", timeout=httpx.Timeout(60, read=0.05))
    with pytest.raises(httpx.RemoteProtocolError):
        await client.get(f"{url}/broken")

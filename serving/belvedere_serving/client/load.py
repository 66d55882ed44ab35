"""Sends V2 requests over HTTP, closed or open loop, and says how they were answered."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import aiohttp
import numpy as np

from belvedere_platform.protocol import INPUT_OF, InferRequest, Tensor
from belvedere_platform.protocol.http_messages import HEADER_LENGTH, render_infer_request


@dataclass(frozen=True)
class Body:
    """A request that is ready to send."""

    path: str
    content: bytes
    headers: dict[str, str]


@dataclass
class Outcome:
    """What came back in a run."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    """Of the answers with status 200."""
    refused: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)

    @property
    def per_second(self) -> float:
        """Return the answers with status 200 a second."""
        return len(self.latencies) / self.seconds

    def percentile(self, share: float) -> float:
        """Return a latency in milliseconds."""
        return float(np.percentile(self.latencies, share)) * 1000 if self.latencies else float("inf")


def bodies(model: str, elements: Sequence[bytes]) -> list[Body]:
    """Return requests of one input each."""
    made = []
    for element in elements:
        request = InferRequest(model_name=model, inputs=(Tensor.of_bytes(INPUT_OF[model], [element]),))
        content, length = render_infer_request(request)
        headers = {HEADER_LENGTH: str(length), "Content-Type": "application/octet-stream"}
        made.append(Body(f"/v2/models/{model}/infer", content, headers))
    return made


async def closed_loop(url: str, given: Sequence[Body], *, clients: int, seconds: float) -> Outcome:
    """Let so many clients send one request after the other."""
    outcome, turn = Outcome(), itertools.cycle(given)
    end = time.perf_counter() + seconds

    async def client(session: aiohttp.ClientSession) -> None:
        while time.perf_counter() < end:
            await _send(session, url, next(turn), outcome)

    begin = time.perf_counter()
    async with _session() as session:
        await asyncio.gather(*(client(session) for _ in range(clients)))
    outcome.seconds = time.perf_counter() - begin
    return outcome


async def open_loop(
    url: str, given: Sequence[Body], *, rate: float, seconds: float, deadline_seconds: float, most_in_flight: int = 2000
) -> Outcome:
    """Send at a rate whatever comes back, each request with a deadline that the server is told."""
    outcome, turn = Outcome(), itertools.cycle(given)
    told = {"x-envoy-expected-rq-timeout-ms": str(round(1000 * deadline_seconds))}
    running: set[asyncio.Task[None]] = set()
    begin = due = time.perf_counter()
    async with _session() as session:
        while due - begin < seconds:
            due += 1 / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            if len(running) >= most_in_flight:
                outcome.statuses["not sent"] += 1
                continue
            task = asyncio.create_task(_send(session, url, next(turn), outcome, told))
            running.add(task)
            task.add_done_callback(running.discard)
        await asyncio.gather(*running)
    outcome.seconds = time.perf_counter() - begin
    return outcome


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=30), auto_decompress=False
    )


async def _send(
    session: aiohttp.ClientSession, url: str, body: Body, outcome: Outcome, more: dict[str, str] | None = None
) -> None:
    started = time.perf_counter()
    try:
        async with session.post(url + body.path, data=body.content, headers={**body.headers, **(more or {})}) as answer:
            await answer.read()
            status = str(answer.status)
    except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
        status = type(error).__name__
    taken = time.perf_counter() - started
    outcome.statuses[status] += 1
    (outcome.latencies if status == "200" else outcome.refused).append(taken)

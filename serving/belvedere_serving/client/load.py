"""Sends V2 requests over HTTP, closed or open loop, and says how they were answered.

It speaks just enough HTTP/1.1 for that: it shares the machine with what it measures, and a whole client costs as much
for a request as a small model.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from belvedere_platform.protocol import INPUT_OF, InferRequest, Tensor
from belvedere_platform.protocol.http_messages import HEADER_LENGTH, render_infer_request

PATIENCE_SECONDS = 30.0
TOLD = "x-envoy-expected-rq-timeout-ms"
"""How the gateway tells a server the time that it has."""
IDLE_SECONDS = 4.0
"""How long a connection may have been idle to be used again: below the five seconds after which Python's servers close one."""


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
    """Of the good answers: status 200, over gRPC OK."""
    refused: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)

    @property
    def per_second(self) -> float:
        """Return the good answers a second."""
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
    outcome, lines = Outcome(), Lines(url)
    turn = itertools.cycle([lines.encoded(body) for body in given])
    begin = time.perf_counter()
    end = begin + seconds

    async def client() -> None:
        while time.perf_counter() < end:
            await lines.send(next(turn), outcome)

    try:
        await asyncio.gather(*(client() for _ in range(clients)))
    finally:
        lines.close()
    outcome.seconds = time.perf_counter() - begin
    return outcome


async def open_loop(
    url: str, given: Sequence[Body], *, rate: float, seconds: float, deadline_seconds: float, most_in_flight: int = 2000
) -> Outcome:
    """Send at a rate whatever comes back, each request with a deadline that the server is told."""
    outcome, lines = Outcome(), Lines(url)
    told = {TOLD: str(round(1000 * deadline_seconds))}
    turn = itertools.cycle([lines.encoded(body, told) for body in given])
    try:
        await at_a_rate(
            lambda: lines.send(next(turn), outcome), outcome, rate=rate, seconds=seconds, most_in_flight=most_in_flight
        )
    finally:
        lines.close()
    return outcome


async def at_a_rate(
    send: Callable[[], Coroutine[Any, Any, None]],
    outcome: Outcome,
    *,
    rate: float,
    seconds: float,
    most_in_flight: int = 2000,
) -> None:
    """Send for so long without waiting for answers, then wait for them; what would be too many at once is not sent."""
    running: set[asyncio.Task[None]] = set()
    begin = due = time.perf_counter()
    while due - begin < seconds:
        due += 1 / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        if len(running) >= most_in_flight:
            outcome.statuses["not sent"] += 1
            continue
        task = asyncio.create_task(send())
        running.add(task)
        task.add_done_callback(running.discard)
    outcome.seconds = time.perf_counter() - begin
    await asyncio.gather(*running)


class Lines:
    """Connections to one server; a request takes one that is free, or a new one."""

    def __init__(self, url: str, *, clock: Callable[[], float] = time.perf_counter) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._host, self._port, self._prefix = parts.hostname, parts.port or 80, parts.path.rstrip("/")
        self._clock = clock
        self._free: list[tuple[_Line, float]] = []
        self._all: set[_Line] = set()

    @property
    def num_open(self) -> int:
        """Return how many connections are open."""
        return len([line for line in self._all if line.is_open])

    def encoded(self, body: Body, more: dict[str, str] | None = None) -> bytes:
        """Return a request as it goes over the line."""
        headers = {"Host": f"{self._host}:{self._port}", "Content-Length": str(len(body.content)), **body.headers}
        head = "".join(f"{name}: {value}\r\n" for name, value in {**headers, **(more or {})}.items())
        return f"POST {self._prefix}{body.path} HTTP/1.1\r\n{head}\r\n".encode() + body.content

    async def send(self, request: bytes, outcome: Outcome) -> None:
        """Send a request, wait for its answer, and note how it was answered."""
        started = time.perf_counter()
        line: _Line | None = None
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                line = self._idle() or await self._connect()
                status = await line.ask(request)
            if line.is_open:
                self._free.append((line, self._clock()))
        except (OSError, TimeoutError, ValueError) as error:
            status = type(error).__name__
            if line is not None:
                line.close()
                self._all.discard(line)
        taken = time.perf_counter() - started
        outcome.statuses[status] += 1
        (outcome.latencies if status == "200" else outcome.refused).append(taken)

    def _idle(self) -> _Line | None:
        """Return a connection that is idle and will not be closed just now. What was used last is used first."""
        while self._free:
            line, since = self._free.pop()
            if line.is_open and self._clock() - since < IDLE_SECONDS:
                return line
            line.close()
            self._all.discard(line)
        return None

    async def _connect(self) -> _Line:
        _, line = await asyncio.get_running_loop().create_connection(_Line, self._host, self._port)
        self._all.add(line)
        return line

    def close(self) -> None:
        """Hang up everywhere."""
        for line in self._all:
            line.close()


class _Line(asyncio.Protocol):
    """A connection that has one request under way at most. Answers must say how long they are."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._answer: asyncio.Future[str] | None = None
        self.is_open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport, self.is_open = transport, True

    def connection_lost(self, error: Exception | None) -> None:
        self.is_open = False
        self._fail(error or ConnectionResetError("the server hung up"))

    async def ask(self, request: bytes) -> str:
        """Return the status of the answer to a request. Raises OSError, and ValueError for what is no answer."""
        assert self._transport is not None
        if not self.is_open:
            raise ConnectionResetError("the server hung up")
        self._received.clear()
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def data_received(self, data: bytes) -> None:
        self._received += data
        head_end = self._received.find(b"\r\n\r\n")
        if head_end < 0 or self._answer is None or self._answer.done():
            return
        head = bytes(self._received[:head_end]).lower()
        length = head.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0].strip()
        if not length.isdigit():
            self._fail(ValueError(f"an answer without its length: {head[:80]!r}"))
            self.close()
        elif len(self._received) >= head_end + 4 + int(length):
            if b"\r\nconnection: close" in head:
                self.close()
            self._answer.set_result(head[9:12].decode("latin-1"))

    def _fail(self, error: Exception) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)

    def close(self) -> None:
        """Hang up."""
        self.is_open = False
        if self._transport is not None:
            self._transport.close()

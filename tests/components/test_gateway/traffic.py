"""Clients that keep asking a gateway, and waiting for what cannot be awaited."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import numpy as np
import tritonclient.grpc
import tritonclient.grpc.aio
from tritonclient.utils import InferenceServerException


async def eventually(check: Callable[[], Any], what: str, timeout_seconds: float = 60) -> None:
    """Ask until the answer is true. Only for states of another process, which cannot be awaited."""
    deadline = asyncio.get_running_loop().time() + timeout_seconds
    while not await check():
        assert asyncio.get_running_loop().time() < deadline, f"waited {timeout_seconds} s for {what}"
        await asyncio.sleep(0.02)


@dataclass(kw_only=True)
class Load:
    """Clients that ask one after another until told to stop, over HTTP and gRPC alternately."""

    address: str
    answers: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By outcome ("ok" or the error) and version."""
    latencies: list[float] = field(default_factory=list)
    stopping: bool = False
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    @property
    def num_answers(self) -> int:
        return sum(self.answers.values())

    @property
    def errors(self) -> dict[tuple[str, str], int]:
        return {key: count for key, count in self.answers.items() if key[0] != "ok"}

    def start(self, num_clients: int = 4, protocols: tuple[str, ...] = ("http", "grpc")) -> None:
        for number in range(num_clients):
            work = self._http() if protocols[number % len(protocols)] == "http" else self._grpc()
            self.tasks.append(asyncio.create_task(work))

    async def more(self, num_answers: int) -> None:
        wanted = self.num_answers + num_answers
        await eventually(lambda: _now(self.num_answers >= wanted), f"{num_answers} more answers", 60)

    async def only(self, version: str, num_answers: int = 20) -> None:
        """Wait until so many answers in a row are of one version: Envoy's threads hear of a change one after the other."""

        async def settled() -> bool:
            others = self.num_answers - self.answers["ok", version]
            await self.more(num_answers)
            return self.num_answers - self.answers["ok", version] == others

        await eventually(settled, f"none but {version} to answer")

    async def stop(self) -> None:
        self.stopping = True
        await asyncio.gather(*self.tasks)

    async def _http(self) -> None:
        url = f"http://{self.address}/v2/models/embed_text/infer"
        async with aiohttp.ClientSession() as session:
            while not self.stopping:
                started = time.perf_counter()
                try:
                    async with session.post(url, json=HTTP_BODY) as answer:
                        outcome = "ok" if answer.status == 200 else f"{answer.status} {await answer.text()}"
                        version = (await answer.json()).get("model_version", "")
                except aiohttp.ClientError as error:
                    outcome, version = repr(error), ""
                self.note(outcome, version, started)

    async def _grpc(self) -> None:
        async with tritonclient.grpc.aio.InferenceServerClient(self.address) as client:
            while not self.stopping:
                started = time.perf_counter()
                try:
                    result = await client.infer("embed_text", text_inputs(tritonclient.grpc))
                    outcome, version = "ok", result.get_response().model_version
                except InferenceServerException as error:
                    outcome, version = str(error), ""
                self.note(outcome, version, started)

    def note(self, outcome: str, version: str, started: float) -> None:
        self.answers[outcome, version] += 1
        self.latencies.append(time.perf_counter() - started)


HTTP_BODY = {"inputs": [{"name": "TEXT", "datatype": "BYTES", "shape": [2], "data": ["cat", "狗"]}]}


def text_inputs(library: Any) -> list[Any]:
    """Two texts, as a tritonclient library sends them."""
    tensor = library.InferInput("TEXT", [2], "BYTES")
    tensor.set_data_from_numpy(np.array([b"cat", "狗".encode()], dtype=object))
    return [tensor]


async def _now(value: bool) -> bool:
    return value

"""How tests ask the heads of a server, and what they look at in it."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import numpy as np
from tritonclient.grpc import aio as triton_grpc

from belvedere_serving.server import service
from belvedere_serving.server.heads import WritingModel


def tensor(name: str, values: list[bytes]) -> triton_grpc.InferInput:
    made = triton_grpc.InferInput(name, [len(values)], "BYTES")
    made.set_data_from_numpy(np.array(values, dtype=object))
    return made


async def post(url: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    async with aiohttp.ClientSession() as session, session.post(url, json=body) as answer:
        return answer.status, await answer.json()


def data_url(picture: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(picture).decode()


def writer(made: service.InferenceService) -> Any:
    model = made.model("caption")
    assert isinstance(model, WritingModel)
    return model.writer


class Client(triton_grpc.InferenceServerClient):
    def __init__(self, port: int) -> None:
        super().__init__(f"127.0.0.1:{port}")

    async def aclose(self) -> None:
        await self.close()

    async def stream(self, *requests: dict[str, Any]) -> list[Any]:
        async def asked() -> AsyncIterator[dict[str, Any]]:
            for request in requests:
                yield request

        return [(result, error) async for result, error in self.stream_infer(asked())]

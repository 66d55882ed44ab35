"""A service over a tiny engine, and that service behind real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from belvedere_serving.server import bare, engine_cache, service
from belvedere_serving.server.config import ServerConfig
from belvedere_serving.server.metrics import NoMetrics


class Recorded(NoMetrics):
    """Remembers what was counted."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, str]] = []
        self.dropped: list[tuple[str, str]] = []
        self.batches: list[int] = []
        self.queue_lengths: dict[str, int] = {}
        self.counted = asyncio.Event()

    def count_request(self, model: str, protocol: str, code: str, number: int = 1) -> None:
        self.requests += [(model, protocol, code)] * number
        self.counted.set()

    def count_dropped(self, model: str, why: str, number: int = 1) -> None:
        self.dropped += [(model, why)] * number

    def set_queue_length(self, model: str, length: int) -> None:
        self.queue_lengths[model] = length

    def observe_batch(self, model: str, size: int) -> None:
        self.batches.append(size)


@pytest.fixture(scope="session")
def engine_folder(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(tiny.write(tmp_path_factory.mktemp("engine")))


@pytest.fixture
def recorded() -> Recorded:
    return Recorded()


@pytest.fixture
def a_config() -> Callable[..., ServerConfig]:
    def make(**changes: Any) -> ServerConfig:
        arguments = {
            "service": "emoji",
            "namespace": "default",
            "model": "tiny",
            "version": "tiny-v1",
            "engineDigest": "sha256:" + "0" * 64,
            "artifacts": "file:///nowhere",
            "maxBatchSize": 4,
        }
        return ServerConfig.parse({**arguments, **changes})

    return make


@pytest.fixture
async def a_service(
    engine_folder: Path, a_config: Callable[..., ServerConfig], recorded: Recorded
) -> AsyncIterator[service.InferenceService]:
    engine = engine_cache.load(engine_folder, threads=1)
    made = service.assemble(engine, a_config(), recorded)
    yield made
    await made.close()


@pytest.fixture
async def ports(a_service: service.InferenceService) -> AsyncIterator[tuple[int, int]]:
    async with bare.serving(a_service) as bound:
        yield bound

"""A server whose engine has heads, small enough for torch to write each text without any cache beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from belvedere_serving.engines.preprocess import ImagePreprocessor, ImageRecipe, TextPreprocessor, TextRecipe
from belvedere_serving.generation.generator import write_alone
from belvedere_serving.server import bare, engine_cache, service
from belvedere_serving.server.config import ServerConfig
from tiny_writer import EDGE, TorchHeads


@pytest.fixture(scope="module")
def heads() -> TorchHeads:
    return TorchHeads()


@pytest.fixture(scope="module")
def engine(heads: TorchHeads, engine_folder: Path) -> engine_cache.LoadedEngine:
    return dataclasses.replace(
        engine_cache.load(engine_folder, threads=1),
        text=TextPreprocessor(heads.tokenizer.to_str(), TextRecipe(context_length=40)),
        image=ImagePreprocessor(ImageRecipe(size=EDGE, mean=(0.5,) * 3, std=(0.5,) * 3)),  # type: ignore[arg-type]
        heads=heads,  # type: ignore[arg-type]
    )


@pytest.fixture
async def made(
    engine: engine_cache.LoadedEngine, a_config: Callable[..., ServerConfig], recorded: Any
) -> AsyncIterator[service.InferenceService]:
    made = service.assemble(engine, a_config(), recorded)
    yield made
    await made.close()


@pytest.fixture
async def ports(made: service.InferenceService) -> AsyncIterator[tuple[int, int]]:
    async with bare.serving(made) as bound:
        yield bound


@pytest.fixture
def url(ports: tuple[int, int]) -> str:
    return f"http://127.0.0.1:{ports[0]}"


@pytest.fixture
def picture(tiny: ModuleType) -> bytes:
    return bytes(tiny.picture())


@pytest.fixture
def expected(heads: TorchHeads, engine: engine_cache.LoadedEngine) -> Callable[..., str]:
    """The text of a picture, and perhaps of a question, without cache, batch or server."""

    def make(picture: bytes, question: str | None = None, most: int = 99) -> str:
        state = heads.picture(heads.encode(engine.image([picture])))[0]
        prompt = [1] if question is None else engine.text.ids(0, question.encode())[:-1]
        words = write_alone(heads, state, prompt, min(most, 40 - len(prompt)))
        return engine.text.words(words).strip()

    return make

"""OpenAI's own client gets embeddings of texts and pictures, and errors that it understands."""

from __future__ import annotations

import asyncio
import base64
from types import ModuleType

import numpy as np
import openai
import pytest


@pytest.fixture
async def client(ports: tuple[int, int]) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{ports[0]}/v1", api_key="none", max_retries=0)


async def test_texts_are_embedded(client: openai.AsyncOpenAI, tiny: ModuleType) -> None:
    async with client:
        # The client asks for base64 unless told otherwise.
        answer = await client.embeddings.create(model="tiny", input=["red apple", "blue"])
        plain = await client.embeddings.create(model="tiny-v1", input="red apple", encoding_format="float")
    np.testing.assert_allclose(answer.data[0].embedding, tiny.expected_text(["red", "apple"]), atol=1e-6)
    np.testing.assert_allclose(plain.data[0].embedding, answer.data[0].embedding, atol=1e-6)
    assert [one.index for one in answer.data] == [0, 1]
    assert (answer.model, answer.usage.prompt_tokens) == ("tiny", 5)


async def test_a_data_url_is_embedded_as_a_picture(
    client: openai.AsyncOpenAI, ports: tuple[int, int], tiny: ModuleType
) -> None:
    from conformance import Target, infer

    url = "data:image/png;base64," + base64.b64encode(tiny.picture()).decode()
    async with client:
        answer = await client.embeddings.create(model="tiny", input=[url])
    target = Target(
        http=f"127.0.0.1:{ports[0]}", grpc="", version="tiny-v1", dimension=4, picture=b"", breaking_text=b""
    )
    v2 = await asyncio.to_thread(infer, target, "http", "embed_image", "IMAGE", [tiny.picture()])
    np.testing.assert_allclose(answer.data[0].embedding, v2.as_numpy("EMBEDDING")[0], atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "kind", "words"),
    [
        ({"model": "gpt", "input": "red"}, openai.NotFoundError, "this is tiny or tiny-v1"),
        ({"model": "tiny", "input": []}, openai.BadRequestError, "0 inputs sent"),
        ({"model": "tiny", "input": [1, 2]}, openai.BadRequestError, "input"),
        ({"model": "tiny", "input": "red", "dimensions": 3}, openai.BadRequestError, "this model has 4"),
        ({"model": "tiny", "input": ["red", "data:image/png;base64,AA"]}, openai.BadRequestError, "two requests"),
        ({"model": "tiny", "input": "data:image/png;base64,@"}, openai.BadRequestError, "not base64"),
        ({"model": "tiny", "input": "data:image/png,x"}, openai.BadRequestError, "with base64"),
        ({"model": "tiny", "input": "a broken apple"}, openai.InternalServerError, "failed on this input"),
    ],
)
async def test_errors_are_those_of_the_client(
    client: openai.AsyncOpenAI, fields: dict[str, object], kind: type[Exception], words: str
) -> None:
    async with client:
        with pytest.raises(kind, match=words):
            await client.embeddings.create(**fields)  # type: ignore[arg-type]


async def test_the_model_is_listed_by_both_its_names(client: openai.AsyncOpenAI) -> None:
    async with client:
        assert [model.id async for model in client.models.list()] == ["tiny", "tiny-v1"]

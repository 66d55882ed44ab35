"""OpenAI's own client asks about a picture, reads along, and is told what is wrong."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import openai
import pytest

from belvedere_serving.server import service
from head_requests import data_url


@pytest.fixture
async def client(ports: tuple[int, int]) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{ports[0]}/v1", api_key="none", max_retries=0) as made:
        yield made


def message(picture: bytes, question: str | None = None) -> Any:
    content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": data_url(picture)}}]
    if question:
        content.insert(0, {"type": "text", "text": question})
    return [{"role": "user", "content": content}]


async def test_openais_client_asks_about_a_picture(
    client: openai.AsyncOpenAI, picture: bytes, expected: Callable[..., str]
) -> None:
    answer = await client.chat.completions.create(model="tiny", messages=message(picture, "a red"))
    assert answer.choices[0].message.content == expected(picture, "a red")
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 1
    short = await client.chat.completions.create(model="tiny", messages=message(picture), max_completion_tokens=2)
    assert short.usage is not None
    assert (short.choices[0].finish_reason, short.usage.completion_tokens) == ("length", 2)


async def test_openais_client_reads_along(
    client: openai.AsyncOpenAI, picture: bytes, expected: Callable[..., str]
) -> None:
    stream = await client.chat.completions.create(
        model="tiny-v1", messages=message(picture), stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == expected(picture)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason is not None for chunk in chunks[:-1]][-1]
    assert chunks[-1].usage is not None


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"model": "gpt"}, openai.NotFoundError, "this is tiny or tiny-v1"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]},
            openai.BadRequestError,
            "0 pictures sent",
        ),
        ({"messages": [{"role": "system", "content": []}]}, openai.BadRequestError, "send one message of the user"),
        ({"temperature": 3}, openai.BadRequestError, "temperature"),
        ({"tools": []}, openai.BadRequestError, "tools"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://a.b/c.png"}}]}
                ]
            },
            openai.BadRequestError,
            "addresses are not fetched from here; send the picture itself",
        ),
    ],
)
async def test_openais_client_is_told_what_is_wrong(
    client: openai.AsyncOpenAI, picture: bytes, stream: bool, changes: Any, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        await client.chat.completions.create(
            **{"model": "tiny", "messages": message(picture), "stream": stream, **changes}
        )


async def test_a_question_belongs_to_the_trace_of_its_client(
    made: service.InferenceService, client: openai.AsyncOpenAI, picture: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    carried: list[dict[str, str]] = []
    monkeypatch.setattr(made._tracing, "record", lambda name, carrier, *rest, **more: carried.append(dict(carrier)))
    told = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    await client.chat.completions.create(model="tiny", messages=message(picture), max_tokens=2, extra_headers=told)
    assert carried == [told]

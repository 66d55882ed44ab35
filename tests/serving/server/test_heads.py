"""match, caption and answer over every protocol: the same words as written alone, in parts or whole, and nothing left behind."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import json
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import aiohttp
import numpy as np
import openai
import pytest
from tritonclient.grpc import aio as triton_grpc
from tritonclient.utils import InferenceServerException

from belvedere_serving.engines.preprocess import ImagePreprocessor, ImageRecipe, TextPreprocessor, TextRecipe
from belvedere_serving.generation.generator import write_alone
from belvedere_serving.server import bare, engine_cache, service
from belvedere_serving.server.config import ServerConfig
from belvedere_serving.server.heads import WritingModel
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


async def test_heads_are_listed_and_say_what_they_take(made: service.InferenceService) -> None:
    names = [one["name"] for one in made.repository_index()]
    assert names == ["embed_text", "embed_image", "match", "explain", "caption", "answer"]
    metadata = made.model_metadata("answer")
    assert [one.name for one in metadata.inputs] == ["IMAGE", "TEXT"]
    assert metadata.outputs[0].datatype == "BYTES"
    assert made.model_config("caption")["model_transaction_policy"] == {"decoupled": True}
    assert "model_transaction_policy" not in made.model_config("match")


async def test_a_model_without_heads_offers_none(a_service: service.InferenceService) -> None:
    assert [one["name"] for one in a_service.repository_index()] == ["embed_text", "embed_image"]


async def test_whole_texts_over_grpc(ports: tuple[int, int], tiny: ModuleType, expected: Callable[..., str]) -> None:
    pictures = [tiny.picture(colour) for colour in ((200, 30, 30), (20, 30, 200), (0, 99, 0))]
    async with contextlib.aclosing(_Client(ports[1])) as client:
        captions = await client.infer("caption", [tensor("IMAGE", pictures)])
        questions = [b"a red circle", b"what colour is it?", b"a"]
        answers = await client.infer("answer", [tensor("TEXT", questions), tensor("IMAGE", pictures)])
    assert [one.decode() for one in captions.as_numpy("TEXT")] == [expected(one) for one in pictures]
    texts = [expected(one, question.decode()) for one, question in zip(pictures, questions, strict=True)]
    assert [one.decode() for one in answers.as_numpy("TEXT")] == texts


async def test_scores_are_those_of_the_head(
    ports: tuple[int, int], heads: TorchHeads, engine: engine_cache.LoadedEngine, tiny: ModuleType
) -> None:
    pictures, texts = [tiny.picture(), tiny.picture((0, 0, 0))], [b"a blue square", b"a red circle"]
    async with contextlib.aclosing(_Client(ports[1])) as client:
        scores = await client.infer("match", [tensor("IMAGE", pictures), tensor("TEXT", texts)])
    wanted = heads.match(heads.encode(engine.image(pictures)), engine.text(texts))
    np.testing.assert_allclose(scores.as_numpy("SCORE"), wanted, atol=1e-6)


async def test_an_explanation_says_how_much_the_match_falls_without_each_part(
    ports: tuple[int, int], heads: TorchHeads, engine: engine_cache.LoadedEngine, picture: bytes
) -> None:
    async with contextlib.aclosing(_Client(ports[1])) as client:
        given = [tensor("IMAGE", [picture]), tensor("TEXT", [b"a red circle"])]
        found = (await client.infer("explain", given)).as_numpy("ATTRIBUTION")
    pixels, tokens = engine.image([picture]), engine.text([b"a red circle"])
    without = pixels.copy()
    without[:, :, 2:4, 6:8] = engine.image.blank()[:, :, 2:4, 6:8]
    score, less = (heads.match(heads.encode(one), tokens)[0] for one in (pixels, without))
    assert found.shape == (1, 8, 8)
    assert found[0, 1, 3] == pytest.approx(score - less, abs=1e-6)
    # The corner of the picture is white as it is: hiding it changes nothing.
    assert found[0, 0, 0] == pytest.approx(0, abs=1e-6)


class _Client(triton_grpc.InferenceServerClient):
    def __init__(self, port: int) -> None:
        super().__init__(f"127.0.0.1:{port}")

    async def aclose(self) -> None:
        await self.close()

    async def stream(self, *requests: dict[str, Any]) -> list[Any]:
        async def asked() -> AsyncIterator[dict[str, Any]]:
            for request in requests:
                yield request

        return [(result, error) async for result, error in self.stream_infer(asked())]


async def test_a_stream_gives_the_text_in_parts_and_says_which_is_the_last(
    ports: tuple[int, int], picture: bytes, expected: Callable[..., str]
) -> None:
    request = {"model_name": "caption", "inputs": [tensor("IMAGE", [picture])], "request_id": "7"}
    async with contextlib.aclosing(_Client(ports[1])) as client:
        flagged = await client.stream({**request, "enable_empty_final_response": True})
        plain = await client.stream(request)
    assert all(error is None for _, error in flagged + plain)
    messages = [result.get_response() for result, _ in flagged]
    finals = [message.parameters["triton_final_response"].bool_param for message in messages]
    assert finals == [False] * (len(finals) - 1) + [True]
    assert {message.id for message in messages} == {"7"}
    for results in (flagged, plain):
        parts = [result.as_numpy("TEXT") for result, _ in results]
        assert b"".join(part[0] for part in parts if part is not None).decode() == expected(picture)
    assert len(plain) > 2


async def test_requests_of_one_stream_are_answered_beside_each_other(
    ports: tuple[int, int], picture: bytes, expected: Callable[..., str]
) -> None:
    requests = [
        {"model_name": "caption", "inputs": [tensor("IMAGE", [picture])], "request_id": "0"},
        {"model_name": "nothing", "inputs": [tensor("IMAGE", [picture])], "request_id": "1"},
        {"model_name": "match", "inputs": [tensor("IMAGE", [picture]), tensor("TEXT", [b"a"])], "request_id": "2"},
        {"model_name": "caption", "inputs": [tensor("IMAGE", [picture] * 2)], "request_id": "3"},
    ]
    async with contextlib.aclosing(_Client(ports[1])) as client:
        answers = await client.stream(*requests)
    errors = sorted(str(error) for _, error in answers if error is not None)
    assert len(errors) == 2
    assert "2 inputs sent; over a stream a request" in errors[0]
    assert "there is no model 'nothing'" in errors[1]
    found: dict[str, list[Any]] = {}
    for result, error in answers:
        if error is None:
            found.setdefault(result.get_response().id, []).append(result)
    assert b"".join(one.as_numpy("TEXT")[0] for one in found["0"]).decode() == expected(picture)
    assert found["2"][0].as_numpy("SCORE").shape == (1,)


async def test_generate_and_its_events(url: str, picture: bytes, expected: Callable[..., str]) -> None:
    body = {"IMAGE": data_url(picture), "TEXT": "a red", "max_tokens": 6, "id": "x"}
    status, answer = await post(f"{url}/v2/models/answer/generate", body)
    assert status == 200
    assert answer == {
        "id": "x",
        "model_name": "answer",
        "model_version": "tiny-v1",
        "TEXT": expected(picture, "a red", 6),
    }
    stream = f"{url}/v2/models/answer/generate_stream"
    async with aiohttp.ClientSession() as session, session.post(stream, json=body) as streamed:
        assert streamed.headers["content-type"].startswith("text/event-stream")
        lines = (await streamed.read()).split(b"\n\n")
    events = [json.loads(line.removeprefix(b"data: ")) for line in lines if line]
    assert "".join(event["TEXT"] for event in events) == answer["TEXT"]
    assert [event["triton_final_response"] for event in events] == [False] * (len(events) - 1) + [True]
    status, score = await post(f"{url}/v2/models/match/generate", {"IMAGE": data_url(picture), "TEXT": "a red"})
    assert 0 < score["SCORE"] < 1


async def test_a_server_may_say_how_long_texts_become(
    engine: engine_cache.LoadedEngine,
    a_config: Callable[..., ServerConfig],
    recorded: Any,
    picture: bytes,
    expected: Callable[..., str],
) -> None:
    made = service.assemble(engine, a_config(maxNewTokens=3), recorded)
    async with bare.serving(made) as bound:
        for asked in ({}, {"max_tokens": 6}, {"max_tokens": 2}):
            body = {"IMAGE": data_url(picture), "TEXT": "a red", **asked}
            _, answer = await post(f"http://127.0.0.1:{bound[0]}/v2/models/answer/generate", body)
            assert answer["TEXT"] == expected(picture, "a red", min(3, asked.get("max_tokens", 3)))
    await made.close()


@pytest.mark.parametrize(
    ("model", "changes", "words"),
    [
        ("caption", {"IMAGE": "https://example.org/cat.png"}, "addresses are not fetched from here"),
        ("caption", {"IMAGE": "@"}, "not base64"),
        ("caption", {"IMAGE": 3}, "it must be one string"),
        ("caption", {"IMAGE": "aGVsbG8="}, "is none of PNG"),
        ("caption", {"temperature": -1}, "parameters.temperature"),
        ("caption", {"top_p": 0}, "parameters.top_p"),
        ("caption", {"max_tokens": 0}, "parameters.max_tokens"),
        ("caption", {"seed": 0.5}, "parameters.seed"),
        ("answer", {}, "takes 2 inputs, 'IMAGE' and 'TEXT'"),
        ("answer", {"TEXT": "a red circle " * 20}, "ask in fewer words"),
    ],
)
@pytest.mark.parametrize("how", ["generate", "generate_stream"])
async def test_what_is_wrong_is_named(
    url: str, picture: bytes, how: str, model: str, changes: dict[str, Any], words: str
) -> None:
    status, answer = await post(f"{url}/v2/models/{model}/{how}", {"IMAGE": data_url(picture), **changes})
    assert status == 400
    assert words in answer["error"]


async def test_drawn_texts_repeat_with_their_seed(url: str, picture: bytes) -> None:
    async def drawn(seed: int) -> str:
        body = {"IMAGE": data_url(picture), "temperature": 1.5, "top_p": 0.95, "seed": seed}
        return str((await post(f"{url}/v2/models/caption/generate", body))[1]["TEXT"])

    first, again, *others = await asyncio.gather(drawn(1), drawn(1), *(drawn(seed) for seed in range(2, 6)))
    assert first == again
    assert len({first, *others}) > 1


async def test_one_picture_is_looked_at_once_by_all_heads(
    url: str, made: service.InferenceService, picture: bytes
) -> None:
    body = {"IMAGE": data_url(picture), "TEXT": "a red"}
    await asyncio.gather(
        post(f"{url}/v2/models/match/generate", body),
        post(f"{url}/v2/models/answer/generate", body),
        *(post(f"{url}/v2/models/caption/generate", {"IMAGE": body["IMAGE"]}) for _ in range(3)),
    )
    model = made.model("caption")
    assert isinstance(model, WritingModel)
    assert model.pictures.cache.num_made == 2  # its features, and what they leave for the decoder


@pytest.fixture
def all_free(made: service.InferenceService) -> asyncio.Event:
    """Set when a text has been forgotten and nobody has a block or waits for words."""
    pool, done = writer(made), asyncio.Event()
    free, cancel = pool.num_free_blocks, pool._generator.cancel

    def watched(writing: Any) -> None:
        cancel(writing)
        if pool.num_free_blocks == free and not pool._streams:
            done.set()

    pool._generator.cancel = watched
    return done


# Drawn so wildly, a text hardly ever ends by itself.
ENDLESS = {"seed": 4, "temperature": 10.0}


@pytest.mark.parametrize("how", ["generate", "infer"])
async def test_a_client_that_does_not_wait_for_the_whole_text_frees_its_blocks(
    url: str, picture: bytes, made: service.InferenceService, all_free: asyncio.Event, recorded: Any, how: str
) -> None:
    begun, held = asyncio.Event(), threading.Event()
    generator, loop = writer(made)._generator, asyncio.get_running_loop()
    compute = generator.compute

    def first_waits(plan: Any) -> Any:
        loop.call_soon_threadsafe(begun.set)
        assert held.wait(60)
        return compute(plan)

    generator.compute = first_waits
    body: dict[str, Any] = {"IMAGE": data_url(picture), **ENDLESS}
    if how == "infer":
        data = [base64.b64encode(picture).decode()]
        image = {"name": "IMAGE", "datatype": "BYTES", "shape": [1], "data": data}
        body = {"inputs": [{**image, "parameters": {"content_type": "base64"}}], "parameters": ENDLESS}
    async with aiohttp.ClientSession() as session:
        asking = asyncio.create_task(session.post(f"{url}/v2/models/caption/{how}", json=body))
        await asyncio.wait_for(begun.wait(), 20)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await asyncio.wait_for(recorded.counted.wait(), 20)
    assert recorded.requests == [("caption", "http", "CANCELLED")]
    held.set()
    await asyncio.wait_for(all_free.wait(), 20)


async def test_a_client_that_leaves_an_event_stream_frees_its_blocks(
    url: str, picture: bytes, all_free: asyncio.Event, recorded: Any
) -> None:
    body = {"IMAGE": data_url(picture), **ENDLESS}
    stream = f"{url}/v2/models/caption/generate_stream"
    async with aiohttp.ClientSession() as session, session.post(stream, json=body) as answer:
        await answer.content.readuntil(b"\n\n")
        answer.close()
    async with asyncio.timeout(20):
        await all_free.wait()
    assert ("caption", "http", "CANCELLED") in recorded.requests


async def test_a_client_that_leaves_a_grpc_stream_frees_its_blocks(
    ports: tuple[int, int], picture: bytes, all_free: asyncio.Event
) -> None:
    async def asked() -> AsyncIterator[dict[str, Any]]:
        yield {"model_name": "caption", "inputs": [tensor("IMAGE", [picture])], "parameters": ENDLESS}
        await asyncio.Event().wait()

    async with contextlib.aclosing(_Client(ports[1])) as client:
        stream = client.stream_infer(asked())
        await anext(aiter(stream))
        stream.cancel()
        async with asyncio.timeout(20):
            await all_free.wait()


async def test_a_late_text_ends_with_its_deadline(
    made: service.InferenceService, ports: tuple[int, int], picture: bytes
) -> None:
    pool = writer(made)
    free = pool.num_free_blocks
    async with contextlib.aclosing(_Client(ports[1])) as client:
        with pytest.raises(InferenceServerException, match=r"not finished in time|time was up|did not answer in time"):
            await client.infer("caption", [tensor("IMAGE", [picture])], timeout=1)
    assert pool.num_free_blocks == free


async def test_a_decoder_that_fails_fails_its_texts_only(
    made: service.InferenceService, url: str, picture: bytes, expected: Callable[..., str]
) -> None:
    generator = writer(made)._generator
    compute = generator.compute

    def broken(plan: Any) -> Any:
        generator.compute = compute
        raise RuntimeError("no memory")

    generator.compute = broken
    status, answer = await post(f"{url}/v2/models/caption/generate", {"IMAGE": data_url(picture)})
    assert (status, answer["error"]) == (500, "the decoder failed: no memory")
    _, answer = await post(f"{url}/v2/models/caption/generate", {"IMAGE": data_url(picture)})
    assert answer["TEXT"] == expected(picture)


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

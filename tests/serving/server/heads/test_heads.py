"""match, caption and answer over every protocol: the same words as written alone, in parts or whole, and nothing left behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from types import ModuleType
from typing import Any

import aiohttp
import numpy as np
import pytest

from belvedere_serving.server import bare, engine_cache, service
from belvedere_serving.server.config import ServerConfig
from belvedere_serving.server.heads import WritingModel
from head_requests import Client, data_url, post, tensor
from tiny_writer import TorchHeads


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
    async with contextlib.aclosing(Client(ports[1])) as client:
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
    async with contextlib.aclosing(Client(ports[1])) as client:
        scores = await client.infer("match", [tensor("IMAGE", pictures), tensor("TEXT", texts)])
    wanted = heads.match(heads.encode(engine.image(pictures)), engine.text(texts))
    np.testing.assert_allclose(scores.as_numpy("SCORE"), wanted, atol=1e-6)


async def test_an_explanation_says_how_much_the_match_falls_without_each_part(
    ports: tuple[int, int], heads: TorchHeads, engine: engine_cache.LoadedEngine, picture: bytes
) -> None:
    async with contextlib.aclosing(Client(ports[1])) as client:
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


async def test_a_stream_gives_the_text_in_parts_and_says_which_is_the_last(
    ports: tuple[int, int], picture: bytes, expected: Callable[..., str]
) -> None:
    request = {"model_name": "caption", "inputs": [tensor("IMAGE", [picture])], "request_id": "7"}
    async with contextlib.aclosing(Client(ports[1])) as client:
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
    async with contextlib.aclosing(Client(ports[1])) as client:
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

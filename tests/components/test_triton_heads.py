"""The heads in the real Triton: scores whole, texts in parts over a stream, whole over `generate`, errors in their own request."""

from __future__ import annotations

import asyncio
import base64
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

from belvedere_platform.protocol import IMAGE, TEXT, InferRequest, Tensor
from belvedere_serving.engines.heads import torch_heads
from belvedere_serving.generation.decoder import Heads
from belvedere_serving.server.config import ModelOptions
from belvedere_serving.triton.head_runner import load_head
from belvedere_serving.triton.options import RepositoryOptions
from belvedere_serving.triton.repository import write_heads
from belvedere_training.model.export_heads import export_heads
from tiny_writer import EDGE, TorchHeads
from triton_process import TritonProcess, find_or_skip, start_triton

pytestmark = pytest.mark.slow
QUESTIONS = [b"what colour is it?", b"a blue square", b"a red circle on the left"]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the files of an engine that its heads need."""
    find_or_skip()
    folder, made = tmp_path_factory.mktemp("engine"), TorchHeads(layers=(0, 1))
    for name, content in export_heads(made.model, made.tokenizer).items():
        (folder / name).write_bytes(content)
    torch_heads(folder, Heads.read(folder))
    recipe = {"image": {"size": EDGE, "mean": [0.5] * 3, "std": [0.5] * 3}, "text": {"contextLength": 40}}
    (folder / "preprocess.json").write_text(json.dumps(recipe))
    (folder / "tokenizer.json").write_text(made.tokenizer.to_str(), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def triton(engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonProcess]:
    folder = tmp_path_factory.mktemp("triton")
    write_heads(engine, folder / "repository", RepositoryOptions(version="writer-v3", max_batch_size=4))
    with start_triton(folder / "repository", folder) as running:
        yield running


@pytest.fixture(scope="module")
def picture(engine: Path) -> bytes:
    import io

    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (EDGE, EDGE), (200, 30, 30)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def expected(engine: Path, picture: bytes) -> dict[tuple[str, bytes], Any]:
    """Return what the same head answers in this process."""
    found: dict[tuple[str, bytes], Any] = {}
    for name in ("match", "explain", "caption", "answer"):
        head = load_head(engine, name, ModelOptions(version="writer-v3"))
        for question in QUESTIONS[: 1 if name == "caption" else 3]:
            inputs = [Tensor.of_bytes(IMAGE, [picture])]
            if name != "caption":
                inputs.append(Tensor.of_bytes(TEXT, [question]))
            found[name, question] = head.infer(InferRequest(model_name=name, inputs=tuple(inputs))).outputs[0].array
        head.close()
    return found


def given(name: str, elements: list[bytes]) -> triton_grpc.InferInput:
    tensor = triton_grpc.InferInput(name, [len(elements)], "BYTES")
    tensor.set_data_from_numpy(np.array(elements, np.object_))
    return tensor


def inputs_of(name: str, picture: bytes, question: bytes) -> list[triton_grpc.InferInput]:
    return [given(IMAGE, [picture]), *([] if name == "caption" else [given(TEXT, [question])])]


def test_scores_and_explanations_are_those_of_our_server(
    triton: TritonProcess, picture: bytes, expected: dict[tuple[str, bytes], Any]
) -> None:
    client = triton_grpc.InferenceServerClient(f"127.0.0.1:{triton.grpc_port}")
    try:
        for question in QUESTIONS:
            for name, output in (("match", "SCORE"), ("explain", "ATTRIBUTION")):
                got = client.infer(name, inputs_of(name, picture, question)).as_numpy(output)
                np.testing.assert_allclose(got, expected[name, question], atol=1e-5)
        pairs = [given(IMAGE, [picture] * 3), given(TEXT, QUESTIONS)]
        scores = client.infer("match", pairs).as_numpy("SCORE")
        np.testing.assert_allclose(scores, [expected["match", one][0] for one in QUESTIONS], atol=1e-5)
        with pytest.raises(InferenceServerException, match="is none of PNG"):
            client.infer("match", inputs_of("match", b"no picture", b"text"))
        with pytest.raises(InferenceServerException, match="decoupled"):
            client.infer("caption", inputs_of("caption", picture, b""))
    finally:
        client.close()


async def test_texts_come_in_parts_beside_each_other_and_errors_alone(
    triton: TritonProcess, picture: bytes, expected: dict[tuple[str, bytes], Any]
) -> None:
    wanted = {f"{name}-{place}": (name, question) for place, question in enumerate(QUESTIONS) for name in ("answer",)}
    wanted["caption-0"] = ("caption", QUESTIONS[0])

    async def requests() -> Any:
        for identity, (name, question) in wanted.items():
            yield {
                "model_name": name,
                "inputs": inputs_of(name, picture, question),
                "request_id": identity,
                "enable_empty_final_response": True,
            }
        yield {"model_name": "caption", "inputs": inputs_of("caption", b"no picture", b""), "request_id": "wrong"}

    texts: dict[str, list[bytes]] = {identity: [] for identity in wanted}
    errors, ended = [], set[str]()
    async with triton_aio.InferenceServerClient(f"127.0.0.1:{triton.grpc_port}") as client, asyncio.timeout(60):
        async for answer, error in client.stream_infer(requests()):
            if error is not None:
                errors.append(str(error))
            else:
                response = answer.get_response()
                if (text := answer.as_numpy(TEXT)) is not None:
                    texts[response.id].append(text[0])
                if response.parameters["triton_final_response"].bool_param:
                    ended.add(response.id)
            if len(ended) == len(wanted) and errors:
                break
    assert {identity: b"".join(parts) for identity, parts in texts.items()} == {
        identity: expected[key][0] for identity, key in wanted.items()
    }
    assert len(errors) == 1
    assert "is none of PNG" in errors[0]
    assert any(len(parts) > 1 for parts in texts.values())


def test_generate_gives_a_whole_text_and_its_stream_the_parts(
    triton: TritonProcess, picture: bytes, expected: dict[tuple[str, bytes], Any]
) -> None:
    url = f"http://127.0.0.1:{triton.http_port}/v2/models/caption"
    body = {IMAGE: f"data:image/png;base64,{base64.b64encode(picture).decode()}"}
    whole = json.loads(_post(f"{url}/generate", {**body, "whole": True}))
    assert whole[TEXT].encode() == expected["caption", QUESTIONS[0]][0]
    events = [line[6:] for line in _post(f"{url}/generate_stream", body).splitlines() if line.startswith("data: ")]
    parts = [json.loads(event).get(TEXT, "") for event in events]
    assert len(parts) > 1
    assert "".join(parts) == whole[TEXT]


def _post(url: str, body: dict[str, Any]) -> str:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        pytest.fail(f"{url} answered {error.code}: {error.read().decode()[:500]}")

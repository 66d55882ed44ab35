"""Unmodified Triton clients get embeddings and proper errors, over HTTP and over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from tritonclient import grpc as triton_grpc
from tritonclient import http as triton_http
from tritonclient.utils import InferenceServerException

Ask = Callable[..., Any]


def ask(protocol: str, port: int, model: str, name: str, values: list[bytes], **options: Any) -> Any:
    """Infer once with the blocking client of a protocol."""
    library = triton_http if protocol == "http" else triton_grpc
    client = library.InferenceServerClient(f"127.0.0.1:{port}")
    try:
        tensor = library.InferInput(name, [len(values)], options.pop("datatype", "BYTES"))
        tensor.set_data_from_numpy(np.array(values, dtype=object))
        answer = client.infer(model, [tensor], **options)
        return answer, answer.as_numpy("EMBEDDING")
    finally:
        client.close()


@pytest.fixture(params=["http", "grpc"])
def protocol(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def port(protocol: str, ports: tuple[int, int]) -> int:
    return ports[protocol == "grpc"]


async def test_texts_are_embedded(protocol: str, port: int, tiny: ModuleType) -> None:
    answer, vectors = await asyncio.to_thread(ask, protocol, port, "embed_text", "TEXT", [b"red apple", b"blue"])
    np.testing.assert_allclose(vectors[0], tiny.expected_text(["red", "apple"]), atol=1e-6)
    np.testing.assert_allclose(vectors[1], tiny.expected_text(["blue"]), atol=1e-6)
    described = answer.get_response()
    version = described["model_version"] if isinstance(described, dict) else described.model_version
    assert version == "tiny-v1"


async def test_pictures_are_embedded_in_any_format(protocol: str, port: int, tiny: ModuleType) -> None:
    kinds = [tiny.picture(kind=kind) for kind in ("PNG", "WEBP", "JPEG")]
    _, vectors = await asyncio.to_thread(ask, protocol, port, "embed_image", "IMAGE", kinds)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > 0.9


async def test_more_inputs_than_a_batch_come_back_in_order(protocol: str, port: int, tiny: ModuleType) -> None:
    words = [["red"], ["green"], ["blue"], ["apple"], ["red", "blue"], ["green", "apple"]]
    texts = [" ".join(text).encode() for text in words]
    _, vectors = await asyncio.to_thread(ask, protocol, port, "embed_text", "TEXT", texts)
    np.testing.assert_allclose(vectors, [tiny.expected_text(text) for text in words], atol=1e-6)


@pytest.mark.parametrize(
    ("model", "name", "values", "options", "codes", "words"),
    [
        ("embed_text", "TEXT", [b"\xff\xfe"], {}, ("400", "INVALID_ARGUMENT"), "not UTF-8"),
        ("embed_text", "TEXT", [b"a broken apple"], {}, ("500", "INTERNAL"), "failed on this input"),
        ("embed_text", "TEXT", [b"x"] * 17, {}, ("400", "INVALID_ARGUMENT"), "1 to 16"),
        ("embed_text", "IMAGE", [b"x"], {}, ("400", "INVALID_ARGUMENT"), "takes one input, 'TEXT'"),
        ("embed_image", "IMAGE", [b"GIF89a"], {}, ("400", "INVALID_ARGUMENT"), "none of PNG, JPEG, WEBP"),
        ("embed_image", "IMAGE", [b"\x89PNG\r\n\x1a\n??"], {}, ("400", "INVALID_ARGUMENT"), "cannot be decoded"),
        ("embed_sound", "TEXT", [b"x"], {}, ("404", "NOT_FOUND"), "there is no model 'embed_sound'"),
        ("embed_text", "TEXT", [b"x"], {"model_version": "v9"}, ("404", "NOT_FOUND"), "has no version 'v9'"),
    ],
)
async def test_an_error_has_the_right_code(
    protocol: str,
    port: int,
    model: str,
    name: str,
    values: list[bytes],
    options: dict[str, Any],
    codes: tuple[str, str],
    words: str,
) -> None:
    with pytest.raises(InferenceServerException, match=words) as caught:
        await asyncio.to_thread(ask, protocol, port, model, name, values, **options)
    code = codes[0] if protocol == "http" else f"StatusCode.{codes[1]}"
    assert caught.value.status() == code


def look(protocol: str, port: int) -> dict[str, Any]:
    """Ask everything there is to ask but inference."""
    if protocol == "http":
        client: Any = triton_http.InferenceServerClient(f"127.0.0.1:{port}")
        extra: dict[str, Any] = {}
    else:
        client, extra = triton_grpc.InferenceServerClient(f"127.0.0.1:{port}"), {"as_json": True}
    try:
        return {
            "live": client.is_server_live(),
            "ready": client.is_server_ready(),
            "model": client.is_model_ready("embed_text"),
            "version": client.is_model_ready("embed_text", "tiny-v1"),
            "server": client.get_server_metadata(**extra)["name"],
            "metadata": client.get_model_metadata("embed_image", **extra),
        }
    finally:
        client.close()


async def test_server_and_models_describe_themselves(protocol: str, port: int) -> None:
    seen = await asyncio.to_thread(look, protocol, port)
    assert [seen[key] for key in ("live", "ready", "model", "version", "server")] == [
        True,
        True,
        True,
        True,
        "belvedere",
    ]
    metadata = seen["metadata"]
    assert metadata["versions"] == ["tiny-v1"]
    assert metadata["inputs"][0]["name"] == "IMAGE"
    assert [int(size) for size in metadata["outputs"][0]["shape"]] == [-1, 4]


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
async def test_a_compressed_request_is_inflated(ports: tuple[int, int], algorithm: str) -> None:
    ask_http = asyncio.to_thread(
        ask, "http", ports[0], "embed_text", "TEXT", [b"red"], request_compression_algorithm=algorithm
    )
    _, vectors = await ask_http
    assert vectors.shape == (1, 4)

"""A request is a span with its stages below, in the trace that its client began."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from tritonclient.grpc import aio as triton_grpc
from tritonclient.http import aio as triton_http

from belvedere_platform.protocol import EMBED_TEXT, TEXT, InferRequest, Tensor, V2Error
from belvedere_serving.server import bare, engine_cache, service
from belvedere_serving.server.config import ServerConfig
from belvedere_serving.server.metrics import NoMetrics
from belvedere_serving.server.tracing import FILE_VARIABLE, Tracing, tracing_of

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def request(text: bytes) -> InferRequest:
    return InferRequest(model_name=EMBED_TEXT, inputs=(Tensor.of_bytes(TEXT, [text]),))


async def test_a_request_belongs_to_the_trace_of_its_client(
    engine_folder: Path, a_config: Callable[..., ServerConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "spans.jsonl"
    monkeypatch.setenv(FILE_VARIABLE, str(file))
    made = service.assemble(engine_cache.load(engine_folder, threads=1), a_config(), NoMetrics())
    carrier = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    try:
        await made.infer(lambda: request(b"red"), lambda _, answer: b"", "http", carrier=carrier)
        with pytest.raises(V2Error):
            await made.infer(lambda: request(b"\xff"), lambda _, answer: b"", "http")
    finally:
        await made.close()
    spans = [json.loads(line) for line in file.read_text().splitlines()]
    whole, broken = [span for span in spans if span["name"] == "infer embed_text"]
    assert (whole["context"]["trace_id"], whole["parent_id"]) == (f"0x{TRACE}", f"0x{PARENT}")
    assert whole["attributes"]["belvedere.version"] == "tiny-v1"
    stages = [span["name"] for span in spans if span["parent_id"] == whole["context"]["span_id"]]
    assert stages == ["pre", "queue", "model", "post"]
    assert broken["status"]["status_code"] == "ERROR"
    assert broken["parent_id"] is None


@pytest.mark.parametrize("way", ["http", "grpc", "openai"])
async def test_every_protocol_passes_the_trace_on(
    engine_folder: Path,
    a_config: Callable[..., ServerConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
) -> None:
    file = tmp_path / "spans.jsonl"
    monkeypatch.setenv(FILE_VARIABLE, str(file))
    made = service.assemble(engine_cache.load(engine_folder, threads=1), a_config(), NoMetrics())
    async with bare.serving(made) as (http, grpc):
        await ASK[way](f"127.0.0.1:{grpc if way == 'grpc' else http}", {"traceparent": f"00-{TRACE}-{PARENT}-01"})
    await made.close()
    (whole,) = [span for span in map(json.loads, file.read_text().splitlines()) if span["name"] == "infer embed_text"]
    assert (whole["context"]["trace_id"], whole["parent_id"]) == (f"0x{TRACE}", f"0x{PARENT}")


async def ask_triton(library: Any, address: str, headers: dict[str, str]) -> None:
    client = library.InferenceServerClient(address)
    given = library.InferInput(TEXT, [1], "BYTES")
    given.set_data_from_numpy(np.array([b"red"], object))
    try:
        await client.infer(EMBED_TEXT, [given], headers=headers)
    finally:
        await client.close()


async def ask_openai(address: str, headers: dict[str, str]) -> None:
    async with openai.AsyncOpenAI(base_url=f"http://{address}/v1", api_key="none", max_retries=0) as client:
        await client.embeddings.create(model="tiny", input="red", extra_headers=headers)


ASK = {"http": partial(ask_triton, triton_http), "grpc": partial(ask_triton, triton_grpc), "openai": ask_openai}


def test_without_being_asked_nothing_is_traced() -> None:
    assert vars(tracing_of({}, resource={}))["_tracer"] is None
    assert vars(Tracing())["_tracer"] is None

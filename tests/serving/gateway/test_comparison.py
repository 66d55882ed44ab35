"""Exchanges as they go over the wire, and how far two answers are apart."""

from __future__ import annotations

import gzip
import struct
from typing import Any

import numpy as np
import pytest
from envoy.service.ext_proc.v3 import external_processor_pb2 as ext_proc
from hypothesis import given, settings
from hypothesis import strategies as st

from belvedere_platform.protocol import InferRequest, InferResponse, Tensor, grpc_messages, http_messages
from belvedere_serving.gateway import comparison
from belvedere_serving.gateway.comparison import Exchange, Recording, Unreadable, cosines, replay_of, stable_answer


def answer(rows: Any, name: str = "EMBEDDING") -> InferResponse:
    tensor = Tensor(name, "FP32", np.array(rows, dtype=np.float32))
    return InferResponse(model_name="embed_text", model_version="v1", outputs=(tensor,))


def exchange(**fields: Any) -> Exchange:
    return Exchange(
        **{
            "namespace": "default",
            "service": "emoji",
            "protocol": "http",
            "path": "/v2/models/embed_text/infer",
            "request_headers": {},
            "request_body": b"",
            "status": 200,
            "response_headers": {},
            "response_body": b"",
            **fields,
        }
    )


def framed(message: bytes, *, compressed: bool = False) -> bytes:
    body = gzip.compress(message) if compressed else message
    return struct.pack(">BI", compressed, len(body)) + body


@pytest.mark.parametrize(
    ("stable", "candidate", "expected"),
    [
        ([[1, 0], [0, 1]], [[2, 0], [1, 0]], [1, 0]),
        ([[1, 0]], [[-1, 0]], [-1]),
        ([[1, 0]], [[0, 0]], [-1]),
        ([[1, 0]], [[float("nan"), 0]], [-1]),
        ([[1, 0], [1, 0]], [[1, 0]], [-1, -1]),
        ([[1, 0]], [[1, 0, 0]], [-1]),
    ],
)
def test_cosines_of_each_pair(stable: Any, candidate: Any, expected: list[float]) -> None:
    assert cosines(answer(stable), answer(candidate)) == pytest.approx(expected)


def test_an_answer_without_embedding_is_unreadable() -> None:
    with pytest.raises(Unreadable, match="no two-dimensional EMBEDDING"):
        cosines(answer([[1]], name="SCORE"), answer([[1]]))


@pytest.mark.parametrize(
    ("path", "replayed"),
    [
        ("/v2/models/embed_text/infer", "/v2/models/embed_text/infer"),
        ("/v2/models/embed_text/versions/v1/infer", "/v2/models/embed_text/infer"),
        ("/services/default/emoji/v2/models/embed_image/infer?x=1", "/v2/models/embed_image/infer"),
    ],
)
def test_a_replay_asks_the_same_of_any_version(path: str, replayed: str) -> None:
    headers = {"content-type": "a", "inference-header-content-length": "3", "authorization": "secret", "host": "x"}
    found = replay_of(exchange(path=path, request_headers=headers, request_body=b"abc"))
    assert (found.path, found.body) == (replayed, b"abc")
    assert found.headers == {"content-type": "a", "inference-header-content-length": "3"}
    assert exchange(path=path).is_inference


@pytest.mark.parametrize("path", ["/v2/health/ready", "/v2/models/embed_text", "/v2/models/a/b/infer"])
def test_other_requests_are_not_compared(path: str) -> None:
    assert not exchange(path=path).is_inference


@pytest.mark.parametrize("compressed", [False, True])
def test_grpc_messages_are_taken_out_of_their_frames(compressed: bool) -> None:
    question = InferRequest(model_name="embed_text", model_version="v1", inputs=(Tensor.of_bytes("TEXT", [b"cat"]),))
    sent = grpc_messages.render_infer_request(question).SerializeToString()
    got = grpc_messages.render_infer_response(answer([[1, 0]])).SerializeToString()
    encoding = {"grpc-encoding": "gzip"}
    found = exchange(
        protocol="grpc",
        path=comparison.INFER_METHOD,
        request_headers=encoding,
        request_body=framed(sent, compressed=compressed),
        response_headers=encoding,
        response_body=framed(got, compressed=compressed),
    )
    assert found.is_inference
    assert grpc_messages.parse_infer_request(replay_of(found).body).model_version == ""
    assert stable_answer(found).outputs[0].array.tolist() == [[1, 0]]


def test_a_compressed_binary_http_answer_is_read() -> None:
    request = InferRequest(model_name="m", inputs=(), parameters={"binary_data_output": True})
    body, length = http_messages.render_infer_response(request, answer([[1, 0]]))
    headers = {"inference-header-content-length": str(length), "content-encoding": "gzip"}
    found = exchange(response_headers=headers, response_body=gzip.compress(body))
    assert stable_answer(found).outputs[0].array.tolist() == [[1, 0]]


@settings(deadline=None)
@given(body=st.binary(max_size=64), protocol=st.sampled_from(["http", "grpc"]), encoding=st.sampled_from(["", "gzip"]))
def test_whatever_the_bytes_only_unreadable_is_raised(body: bytes, protocol: str, encoding: str) -> None:
    headers = {"content-encoding": encoding, "grpc-encoding": encoding}
    found = exchange(protocol=protocol, response_headers=headers, response_body=body)
    try:
        stable_answer(found)
    except Unreadable:
        pass
    else:
        assert protocol == "grpc"  # an empty message is a message


def headers(**fields: str) -> dict[str, Any]:
    return {"headers": [{"key": key.replace("_", "-"), "raw_value": value.encode()} for key, value in fields.items()]}


def test_a_recording_ends_with_the_answer() -> None:
    recording = Recording(namespace="default", service="emoji", protocol="http")
    pieces: list[dict[str, Any]] = [
        {"request_headers": {"headers": {"headers": [{"key": ":path", "raw_value": b"/v2/models/m/infer"}]}}},
        {"request_body": {"body": b"ab"}},
        {"request_body": {"body": b"c", "end_of_stream": True}},
        {"response_headers": {"headers": {"headers": [{"key": ":status", "raw_value": b"200"}]}}},
        {"response_body": {"body": b"de"}},
        {"response_body": {"body": b"f", "end_of_stream": True}},
    ]
    found = [recording.take(ext_proc.ProcessingRequest(**piece)) for piece in pieces]
    assert found[:-1] == [None] * 5
    assert found[-1] is not None
    assert (found[-1].request_body, found[-1].response_body, found[-1].succeeded) == (b"abc", b"def", True)


def test_a_grpc_status_in_the_trailers_is_a_failure() -> None:
    recording = Recording(namespace="default", service="emoji", protocol="grpc")
    ok = {"response_headers": {"headers": {"headers": [{"key": ":status", "raw_value": b"200"}]}}}
    assert recording.take(ext_proc.ProcessingRequest(**ok)) is None
    trailers = {"response_trailers": {"trailers": headers(grpc_status="13")}}
    found = recording.take(ext_proc.ProcessingRequest(**trailers))
    assert found is not None
    assert not found.succeeded


def test_too_large_an_exchange_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "MAX_BODY_BYTES", 4)
    recording = Recording(namespace="default", service="emoji", protocol="http")
    recording.take(ext_proc.ProcessingRequest(request_body={"body": b"abc"}))
    with pytest.raises(Unreadable, match="more than 4 bytes"):
        recording.take(ext_proc.ProcessingRequest(response_body={"body": b"de"}))

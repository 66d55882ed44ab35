"""Requests and answers survive HTTP and gRPC; hostile bytes end in a V2 error and in nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from belvedere_platform.protocol import grpc_messages, http_messages
from belvedere_platform.protocol.errors import Reason, V2Error
from belvedere_platform.protocol.messages import (
    EMBED_TEXT,
    EMBEDDING,
    TEXT,
    InferRequest,
    InferResponse,
    RequestedOutput,
)
from belvedere_platform.protocol.tensors import Tensor

texts = st.lists(st.text(max_size=12).map(str.encode), min_size=1, max_size=5)


def text_request(elements: list[bytes], **changes: Any) -> InferRequest:
    return InferRequest(
        **{"model_name": EMBED_TEXT, "id": "7", "inputs": (Tensor.of_bytes(TEXT, elements),), **changes}
    )


def an_answer() -> InferResponse:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    return InferResponse(model_name=EMBED_TEXT, model_version="v1", id="7", outputs=(Tensor(EMBEDDING, "FP32", array),))


def error_of(parse: Callable[[], object]) -> V2Error | None:
    try:
        parse()
    except V2Error as error:
        return error
    return None


def header(length: int | None) -> str | None:
    return None if length is None else str(length)


@pytest.mark.parametrize("binary", [True, False])
@given(elements=texts)
def test_a_request_survives_http(binary: bool, elements: list[bytes]) -> None:
    body, length = http_messages.render_infer_request(text_request(elements), binary=binary)
    read = http_messages.parse_infer_request(EMBED_TEXT, "", body, header(length))
    assert read.input(TEXT).array.tolist() == elements
    assert (length is not None) == binary == http_messages.wants_binary(read, EMBEDDING)


@given(elements=texts)
def test_a_request_survives_grpc(elements: list[bytes]) -> None:
    raw = grpc_messages.render_infer_request(text_request(elements)).SerializeToString()
    assert grpc_messages.parse_infer_request(raw).input(TEXT).array.tolist() == elements


def test_grpc_contents_are_read_as_raw_contents_are() -> None:
    message = grpc_messages.pb.ModelInferRequest(model_name=EMBED_TEXT)
    message.inputs.add(name=TEXT, datatype="BYTES", shape=[2]).contents.bytes_contents.extend([b"a", b"bc"])
    assert grpc_messages.parse_infer_request(message.SerializeToString()).input(TEXT).array.tolist() == [b"a", b"bc"]


@pytest.mark.parametrize("binary", [True, False])
def test_an_answer_survives_http(binary: bool) -> None:
    request = text_request([b"x"], parameters={"binary_data_output": binary})
    body, length = http_messages.render_infer_response(request, an_answer())
    read = http_messages.parse_infer_response(body, header(length))
    np.testing.assert_array_equal(read.output(EMBEDDING).array, an_answer().output(EMBEDDING).array)
    assert (read.model_version, read.id) == ("v1", "7")


def test_an_answer_survives_grpc() -> None:
    raw = grpc_messages.render_infer_response(an_answer()).SerializeToString()
    read = grpc_messages.parse_infer_response(raw)
    np.testing.assert_array_equal(read.output(EMBEDDING).array, an_answer().output(EMBEDDING).array)


def test_an_output_may_differ_from_the_default_of_its_request() -> None:
    request = text_request(
        [b"x"], parameters={"binary_data_output": True}, outputs=(RequestedOutput(name=EMBEDDING, binary=False),)
    )
    assert http_messages.render_infer_response(request, an_answer())[1] is None


def test_base64_elements_are_decoded_when_the_request_says_so() -> None:
    tensor = {"name": "IMAGE", "datatype": "BYTES", "shape": [1], "parameters": {"content_type": "base64"}}
    body = json.dumps({"inputs": [{**tensor, "data": ["iVBORw=="]}]}).encode()
    assert http_messages.parse_infer_request("m", "", body, None).inputs[0].array[0] == b"\x89PNG"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
bodies = st.fixed_dictionaries(
    {},
    optional={
        "id": json_values,
        "parameters": json_values,
        "inputs": st.lists(
            st.fixed_dictionaries(
                {"name": st.just("TEXT"), "datatype": st.sampled_from(["BYTES", "FP32", "INT8", "BF16"]) | json_values},
                optional={
                    "shape": st.lists(st.integers(-(2**70), 2**70), max_size=3) | json_values,
                    "data": json_values,
                    "parameters": st.fixed_dictionaries({}, optional={"binary_data_size": json_values}) | json_values,
                },
            ),
            max_size=3,
        )
        | json_values,
        "outputs": json_values,
    },
)


@given(bodies, st.binary(max_size=40), st.none() | st.integers(-5, 400).map(str) | st.text(max_size=15))
def test_any_http_body_is_a_request_or_a_v2_error(body: dict[str, Any], tail: bytes, length: str | None) -> None:
    text = json.dumps(body).encode()
    for header_length in (length, str(len(text))):
        error = error_of(partial(http_messages.parse_infer_request, "m", "", text + tail, header_length))
        assert error is None or (error.reason is Reason.INVALID_ARGUMENT and len(str(error)) < 1000)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_grpc_request_or_a_v2_error(raw: bytes) -> None:
    error = error_of(partial(grpc_messages.parse_infer_request, raw))
    assert error is None or error.reason is Reason.INVALID_ARGUMENT


@given(st.binary(max_size=60), texts)
def test_a_damaged_grpc_request_is_read_or_refused(noise: bytes, elements: list[bytes]) -> None:
    raw = grpc_messages.render_infer_request(text_request(elements)).SerializeToString()
    for damaged in (raw[: len(raw) // 2], raw + noise, noise + raw):
        error = error_of(partial(grpc_messages.parse_infer_request, damaged))
        assert error is None or error.reason is Reason.INVALID_ARGUMENT


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(V2Error):
        http_messages.parse_infer_request("m", "", b"[" * 100_000, None)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ((), "takes one input, 'TEXT'; given: none"),
        ((Tensor.of_bytes("IMAGE", [b""]),), "given: 'IMAGE'"),
        ((Tensor(TEXT, "FP32", np.zeros(2, np.float32)),), "must be BYTES"),
        ((Tensor.of_bytes(TEXT, [b""]), Tensor.of_bytes(TEXT, [b""])), "takes one input"),
    ],
)
def test_a_model_takes_exactly_its_input(inputs: tuple[Tensor, ...], words: str) -> None:
    with pytest.raises(V2Error, match=words):
        text_request([], inputs=inputs).input(TEXT)

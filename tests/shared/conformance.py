"""What every model server of ours must do, asked by unmodified Triton clients. Test files give it a server and run all CHECKS."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import queue
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient import grpc as triton_grpc
from tritonclient import http as triton_http
from tritonclient.utils import InferenceServerException

PROTOCOLS = ("http", "grpc")
LIBRARY: dict[str, Any] = {"http": triton_http, "grpc": triton_grpc}


@dataclass(frozen=True, kw_only=True)
class Target:
    """A server under test, and what is special about it."""

    http: str
    grpc: str
    version: str
    dimension: int
    picture: bytes
    breaking_text: bytes
    """A text on which the engine itself fails."""
    broken_json: int = 400
    """The status of a body that is not JSON: Triton gives 500 where 400 is meant."""
    says_ready: bool = True
    """Whether the health paths say in the body what they mean, as KServe's client reads it: Triton's bodies are empty."""
    reflects: bool = True
    """Whether the server tells its messages by gRPC reflection: Triton does not."""

    def client(self, protocol: str) -> Any:
        """Return Triton's blocking client."""
        if protocol == "http":
            return triton_http.InferenceServerClient(self.http, network_timeout=60, connection_timeout=60)
        return triton_grpc.InferenceServerClient(self.grpc)


def tensor(protocol: str, name: str, values: list[Any], shape: list[int] | None = None, datatype: str = "BYTES") -> Any:
    """Return an input for the client of a protocol."""
    dtype: Any = np.object_ if datatype == "BYTES" else np.float32
    given = LIBRARY[protocol].InferInput(name, shape or [len(values)], datatype)
    given.set_data_from_numpy(np.array(values, dtype=dtype).reshape(shape or [len(values)]))
    return given


def infer(target: Target, protocol: str, model: str, name: str, values: list[Any], **options: Any) -> Any:
    """Return the client's result of one request."""
    given = tensor(protocol, name, values, options.pop("shape", None), options.pop("datatype", "BYTES"))
    client = target.client(protocol)
    try:
        return client.infer(model, [given], **options)
    finally:
        client.close()


def fields(found: Any) -> Any:
    """Return a client's answer as plain data, whichever protocol it came over."""
    if isinstance(found, dict | list):
        return found
    from google.protobuf import json_format

    return json_format.MessageToDict(found, preserving_proto_field_name=True)


def look(target: Target, protocol: str, question: str, *arguments: str) -> Any:
    """Return what a method of the client says, as plain data."""
    client = target.client(protocol)
    try:
        found = getattr(client, question)(*arguments)
        return found if isinstance(found, bool) else fields(found)
    finally:
        client.close()


def both_protocols_give_the_same_unit_vectors(target: Target) -> None:
    for model, name, values in (
        ("embed_text", "TEXT", [b"red apple", b"blue", b"never seen"]),
        ("embed_image", "IMAGE", [target.picture] * 2),
    ):
        vectors = {}
        for protocol in PROTOCOLS:
            answer = infer(target, protocol, model, name, values, request_id="a-7")
            described = fields(answer.get_response())
            assert (described["model_name"], described["model_version"]) == (model, target.version)
            assert described["id"] == "a-7"
            vectors[protocol] = answer.as_numpy("EMBEDDING")
            assert vectors[protocol].shape == (len(values), target.dimension)
            np.testing.assert_allclose(np.linalg.norm(vectors[protocol], axis=1), 1, atol=1e-4)
        np.testing.assert_allclose(vectors["http"], vectors["grpc"], atol=1e-5)


def plain_json_goes_in_and_comes_out(target: Target) -> None:
    body = {"inputs": [{"name": "TEXT", "shape": [2], "datatype": "BYTES", "data": ["red", "blue"]}]}
    status, content = post(target, "/v2/models/embed_text/infer", json.dumps(body).encode())
    output = json.loads(content)["outputs"][0]
    assert (status, output["shape"]) == (200, [2, target.dimension])
    alone = infer(target, "http", "embed_text", "TEXT", [b"red"]).as_numpy("EMBEDDING")
    np.testing.assert_allclose(output["data"][: target.dimension], alone[0], atol=1e-5)


def rows_keep_their_order_beside_other_requests(target: Target) -> None:
    words = [b"red", b"green", b"blue", b"red apple", b"green apple", b"blue apple"]
    alone = {word: infer(target, "grpc", "embed_text", "TEXT", [word]).as_numpy("EMBEDDING")[0] for word in words}

    def ask(number: int) -> None:
        mine = [words[(number + step) % len(words)] for step in range(1 + number % 5)]
        got = infer(target, PROTOCOLS[number % 2], "embed_text", "TEXT", mine).as_numpy("EMBEDDING")
        np.testing.assert_allclose(got, np.stack([alone[word] for word in mine]), atol=1e-5)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(40)))


def a_failing_input_fails_alone(target: Target) -> None:
    def ask(number: int) -> str | None:
        text = target.breaking_text if number % 8 == 3 else b"red"
        try:
            infer(target, "grpc", "embed_text", "TEXT", [text])
        except InferenceServerException as error:
            return str(error.status())
        return None

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(ask, range(32)))
    assert outcomes == ["StatusCode.INTERNAL" if number % 8 == 3 else None for number in range(32)]


def asynchronous_clients_work(target: Target) -> None:
    from tritonclient.grpc import aio as grpc_aio
    from tritonclient.http import aio as http_aio

    async def ask() -> None:
        for protocol, library, address in (("http", http_aio, target.http), ("grpc", grpc_aio, target.grpc)):
            async with library.InferenceServerClient(address) as client:
                inputs = [tensor(protocol, "TEXT", [b"red"])]
                answers = await asyncio.gather(*(client.infer("embed_text", inputs) for _ in range(8)))
                assert {answer.as_numpy("EMBEDDING").shape for answer in answers} == {(1, target.dimension)}

    asyncio.run(ask())


ERRORS: dict[str, tuple[str, str, list[Any], dict[str, Any], str]] = {
    "not UTF-8": ("embed_text", "TEXT", [b"\xff\xfe"], {}, "INVALID_ARGUMENT"),
    "takes one input, 'TEXT'|unexpected inference input 'IMAGE'": (
        *("embed_text", "IMAGE", [b"x"], {}),
        "INVALID_ARGUMENT",
    ),
    "FP32": ("embed_text", "TEXT", [1.0], {"datatype": "FP32"}, "INVALID_ARGUMENT"),
    r"\[1, ?1\]": ("embed_text", "TEXT", [b"x"], {"shape": [1, 1]}, "INVALID_ARGUMENT"),
    "one request may have 1 to": ("embed_text", "TEXT", [b"x"] * 400, {}, "INVALID_ARGUMENT"),
    "0 inputs sent": ("embed_text", "TEXT", [], {}, "INVALID_ARGUMENT"),
    "none of PNG, JPEG, WEBP": ("embed_image", "IMAGE", [b"GIF89a"], {}, "INVALID_ARGUMENT"),
    "cannot be decoded": ("embed_image", "IMAGE", [b"\x89PNG\r\n\x1a\n??"], {}, "INVALID_ARGUMENT"),
    "model.*'embed_sound'": ("embed_sound", "TEXT", [b"x"], {}, "NOT_FOUND"),
    "version '?98765": ("embed_text", "TEXT", [b"x"], {"model_version": "98765"}, "NOT_FOUND"),
}
STATUS = {"INVALID_ARGUMENT": "400", "NOT_FOUND": "404", "INTERNAL": "500"}


def a_stream_answers_each_request(target: Target) -> None:
    """Results and errors come in the stream, by the ids of their requests; an error ends nothing."""
    heard: queue.Queue[tuple[Any, Any]] = queue.Queue()
    given = tensor("grpc", "TEXT", [b"red apple"])
    with contextlib.closing(target.client("grpc")) as client:
        client.start_stream(lambda result, error: heard.put((result, error)))
        for number, model in enumerate(("embed_text", "embed_smell", "embed_text")):
            client.async_stream_infer(model, [given], request_id=str(number))
        answers = [heard.get(timeout=60) for _ in range(3)]
        client.stop_stream()
    expected = infer(target, "grpc", "embed_text", "TEXT", [b"red apple"]).as_numpy("EMBEDDING")
    found = {result.get_response().id: result.as_numpy("EMBEDDING") for result, error in answers if error is None}
    assert sorted(found) == ["0", "2"]
    for vectors in found.values():
        np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert ["embed_smell" in str(error) for _, error in answers if error is not None] == [True]


def errors_have_their_code_and_say_what_is_wrong(target: Target) -> None:
    for words, (model, name, values, options, code) in ERRORS.items():
        for protocol in PROTOCOLS:
            with pytest.raises(InferenceServerException, match=words) as caught:
                infer(target, protocol, model, name, values, **options)
            expected = STATUS[code] if protocol == "http" else f"StatusCode.{code}"
            assert caught.value.status() == expected, (words, protocol)


def an_unknown_output_is_refused(target: Target) -> None:
    for protocol in PROTOCOLS:
        outputs = [LIBRARY[protocol].InferRequestedOutput("SCORE")]
        with pytest.raises(InferenceServerException, match="output 'SCORE'"):
            infer(target, protocol, "embed_text", "TEXT", [b"red"], outputs=outputs)


def malformed_bodies_get_a_v2_error(target: Target) -> None:
    bodies: list[tuple[bytes, dict[str, str], int]] = [
        (b"", {}, 400),
        (b"{", {}, target.broken_json),
        (b'{"inputs": 3}', {}, target.broken_json),
        (b'{"inputs": []}', {"Inference-Header-Content-Length": "99"}, 400),
        (b"\x00" * 1000, {"Content-Encoding": "gzip"}, 400),
    ]
    for body, headers, expected in bodies:
        status, content = post(target, "/v2/models/embed_text/infer", body, headers)
        assert status == expected, (body, content)
        assert json.loads(content)["error"]


def server_and_models_are_ready(target: Target) -> None:
    for protocol in PROTOCOLS:
        for question, arguments, expected in (
            ("is_server_live", (), True),
            ("is_server_ready", (), True),
            ("is_model_ready", ("embed_text",), True),
            ("is_model_ready", ("embed_image", target.version), True),
            ("is_model_ready", ("embed_sound",), False),
            ("is_model_ready", ("embed_text", "98765"), False),
        ):
            assert look(target, protocol, question, *arguments) is expected, (protocol, question, arguments)
    with grpc.insecure_channel(target.grpc) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=60)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def metadata_and_configuration_describe_the_tensors(target: Target) -> None:
    for protocol in PROTOCOLS:
        assert "statistics" in look(target, protocol, "get_server_metadata")["extensions"]
        for model, name in (("embed_text", "TEXT"), ("embed_image", "IMAGE")):
            metadata = look(target, protocol, "get_model_metadata", model)
            assert (metadata["name"], metadata["versions"]) == (model, [target.version])
            assert [shape_of(one) for one in metadata["inputs"]] == [(name, "BYTES", [-1])]
            outputs = [("EMBEDDING", "FP32", [-1, target.dimension])]
            assert [shape_of(one) for one in metadata["outputs"]] == outputs
            config = look(target, protocol, "get_model_config", model)
            config = config.get("config", config)
            assert (config["name"], config.get("max_batch_size", 0)) == (model, 0)
            described = [
                (one["name"], one["data_type"], [int(size) for size in one["dims"]]) for one in config["input"]
            ]
            assert described == [(name, "TYPE_STRING", [-1])]


def shape_of(described: dict[str, Any]) -> tuple[str, str, list[int]]:
    """Return name, datatype and shape of a tensor's metadata."""
    return described["name"], described["datatype"], [int(size) for size in described["shape"]]


def what_is_unknown_is_not_found(target: Target) -> None:
    for protocol in PROTOCOLS:
        for question, arguments in (
            ("get_model_metadata", ("embed_sound",)),
            ("get_model_metadata", ("embed_text", "98765")),
            ("get_model_config", ("embed_sound",)),
        ):
            with pytest.raises(InferenceServerException) as caught:
                look(target, protocol, question, *arguments)
            assert caught.value.status() == ("404" if protocol == "http" else "StatusCode.NOT_FOUND")


def the_index_lists_the_models(target: Target) -> None:
    for protocol in PROTOCOLS:
        found = look(target, protocol, "get_model_repository_index")
        models = found["models"] if isinstance(found, dict) else found
        states = {(one["name"], one["version"]): one["state"] for one in models}
        for model in ("embed_text", "embed_image"):
            assert states[(model, target.version)] == "READY"


def statistics_count_what_was_answered(target: Target) -> None:
    for protocol in PROTOCOLS:
        before = counted(target, protocol)
        infer(target, protocol, "embed_text", "TEXT", [b"red"])
        with pytest.raises(InferenceServerException):
            infer(target, protocol, "embed_text", "TEXT", [b"\xff"])
        after = counted(target, protocol)
        assert after["success"] == before["success"] + 1
        # Triton counts the failure of an ensemble twice.
        assert after["fail"] > before["fail"]
        assert after["ns"] > before["ns"]


def counted(target: Target, protocol: str) -> dict[str, int]:
    """Return a few of the counters of embed_text."""
    (model,) = look(target, protocol, "get_inference_statistics", "embed_text")["model_stats"]
    assert {"queue", "compute_input", "compute_infer", "compute_output"} <= set(model["inference_stats"])
    stages = {name: model["inference_stats"].get(name, {}) for name in ("success", "fail")}
    return {
        **{name: int(stage.get("count", 0)) for name, stage in stages.items()},
        "ns": int(stages["success"].get("ns", 0)),
    }


def no_shared_memory_is_registered(target: Target) -> None:
    for protocol in PROTOCOLS:
        for kind in ("system", "cuda"):
            found = look(target, protocol, f"get_{kind}_shared_memory_status")
            assert not (found.get("regions") if isinstance(found, dict) else found)
        with pytest.raises(InferenceServerException):
            look(target, protocol, "register_system_shared_memory", "mine", "/there-is-none", 64)  # type: ignore[arg-type]


def post(target: Target, path: str, body: bytes, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    """POST and return status and body, whatever the status."""
    request = urllib.request.Request(f"http://{target.http}{path}", body, headers or {}, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


CHECKS: tuple[Callable[[Target], None], ...] = (
    both_protocols_give_the_same_unit_vectors,
    plain_json_goes_in_and_comes_out,
    rows_keep_their_order_beside_other_requests,
    a_failing_input_fails_alone,
    asynchronous_clients_work,
    a_stream_answers_each_request,
    errors_have_their_code_and_say_what_is_wrong,
    an_unknown_output_is_refused,
    malformed_bodies_get_a_v2_error,
    server_and_models_are_ready,
    metadata_and_configuration_describe_the_tensors,
    what_is_unknown_is_not_found,
    the_index_lists_the_models,
    statistics_count_what_was_answered,
    no_shared_memory_is_registered,
)
"""The conformance suite."""


def all_checks(function: Callable[..., None]) -> Callable[..., None]:
    """Parametrize a test with `check`, one test a check."""
    return each_of(CHECKS, function)


def each_of(checks: tuple[Callable[[Target], None], ...], function: Callable[..., None]) -> Callable[..., None]:
    """Parametrize a test with `check`, one test for each of some checks."""
    marked: Callable[..., None] = pytest.mark.parametrize("check", checks, ids=[check.__name__ for check in checks])(
        function
    )
    return marked

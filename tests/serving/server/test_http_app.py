"""The ASGI application, called as a server calls it: any prefix, any body, any time limit."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from belvedere_platform.protocol import EMBED_TEXT, EMBEDDING, TEXT, InferRequest, Tensor
from belvedere_platform.protocol.http_messages import parse_infer_response, render_infer_request
from belvedere_serving.server.door import timeout_of
from belvedere_serving.server.http_app import V2HttpApp, inflated, relative_path
from belvedere_serving.server.service import InferenceService

Reply = tuple[int, dict[str, str], bytes]


async def call(
    app: V2HttpApp, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None, root: str = ""
) -> Reply:
    """Send one request in two chunks and return status, headers and body."""
    half = len(body) // 2
    chunks = [
        {"type": "http.request", "body": body[:half], "more_body": True},
        {"type": "http.request", "body": body[half:]},
    ]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return chunks.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in (headers or {}).items()]
    await app({"type": "http", "method": method, "path": root + path, "root_path": root, "headers": raw}, receive, send)
    start, content = sent
    return start["status"], {k.decode(): v.decode() for k, v in start["headers"]}, content["body"]


def text_body(*texts: str, **parameters: Any) -> tuple[bytes, dict[str, str]]:
    tensor = Tensor.of_bytes(TEXT, [text.encode() for text in texts])
    request = InferRequest(model_name=EMBED_TEXT, inputs=(tensor,), parameters=parameters)
    body, length = render_infer_request(request)
    return body, {"Inference-Header-Content-Length": str(length)}


@pytest.fixture
def app(a_service: InferenceService) -> V2HttpApp:
    return V2HttpApp(a_service, max_body_bytes=4096)


@pytest.mark.parametrize("root", ["", "/default.emoji-v1", "/a/b"])
async def test_it_answers_below_any_prefix(app: V2HttpApp, root: str, tiny: ModuleType) -> None:
    body, headers = text_body("red")
    status, answered, content = await call(app, "POST", "/v2/models/embed_text/infer", body, headers, root)
    vectors = parse_infer_response(content, answered["inference-header-content-length"]).output(EMBEDDING).array
    assert status == 200
    np.testing.assert_allclose(vectors[0], tiny.expected_text(["red"]), atol=1e-6)


async def test_plain_json_goes_in_and_comes_out(app: V2HttpApp) -> None:
    body = json.dumps({"id": "a", "inputs": [{"name": "TEXT", "shape": [1], "datatype": "BYTES", "data": ["red"]}]})
    status, headers, content = await call(app, "POST", "/v2/models/embed_text/versions/tiny-v1/infer", body.encode())
    answer = json.loads(content)
    assert (status, headers["content-type"], answer["id"]) == (200, "application/json", "a")
    assert np.linalg.norm(answer["outputs"][0]["data"]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2", 200),
        ("GET", "/v2/", 200),
        ("GET", "/v2/health/live", 200),
        ("GET", "/v2/health/ready", 200),
        ("GET", "/v2/models/embed_text", 200),
        ("GET", "/v2/models/embed_text/versions/tiny-v1", 200),
        ("GET", "/v2/models/embed_text/versions/tiny-v1/ready", 200),
        ("GET", "/v2/models/embed_text/versions/v9/ready", 404),
        ("GET", "/v2/models/caption/ready", 404),
        ("GET", "/v2/models", 404),
        ("GET", "/", 404),
        ("GET", "/v1/models", 200),
        ("GET", "/v1/nothing", 404),
        ("POST", "/v2", 405),
        ("GET", "/v2/models/embed_text/infer", 405),
    ],
)
async def test_each_path_has_its_status(app: V2HttpApp, method: str, path: str, status: int) -> None:
    got, _, body = await call(app, method, path)
    assert got == status
    assert status == 200 or json.loads(body)["error"]


async def test_a_full_queue_is_429_with_retry_after(app: V2HttpApp, a_service: InferenceService) -> None:
    body, headers = text_body("red")
    batcher = a_service.model(EMBED_TEXT).batcher
    with batcher.admitted(260):
        status, answered, _ = await call(app, "POST", "/v2/models/embed_text/infer", body, headers)
    assert (status, answered["retry-after"]) == (429, "1")


async def test_a_stopping_server_is_not_ready(app: V2HttpApp, a_service: InferenceService) -> None:
    await a_service.close()
    status, answered, _ = await call(app, "GET", "/v2/health/ready")
    assert (status, answered["retry-after"]) == (503, "1")


async def test_the_time_a_request_allows_is_kept(app: V2HttpApp, a_service: InferenceService, recorded: Any) -> None:
    body, headers = text_body("red", timeout=20_000)
    async with a_service.model(EMBED_TEXT).batcher._lane.lock:
        status, _, content = await call(app, "POST", "/v2/models/embed_text/infer", body, headers)
    assert (status, recorded.requests) == (504, [("embed_text", "http", "DEADLINE_EXCEEDED")])
    assert "did not answer in time" in json.loads(content)["error"]


async def test_requests_are_counted_with_their_outcome(app: V2HttpApp, recorded: Any) -> None:
    for texts in (["red"], ["broken"]):
        body, headers = text_body(*texts)
        await call(app, "POST", "/v2/models/embed_text/infer", body, headers)
    await call(app, "POST", "/v2/models/embed_text/infer", b"{")
    assert recorded.requests == [
        ("embed_text", "http", "OK"),
        ("embed_text", "http", "INTERNAL"),
        ("unknown", "http", "INVALID_ARGUMENT"),
    ]


async def test_requests_at_once_are_batched(app: V2HttpApp, recorded: Any) -> None:
    body, headers = text_body("red")
    asks = [call(app, "POST", "/v2/models/embed_text/infer", body, headers) for _ in range(8)]
    assert {status for status, _, _ in await asyncio.gather(*asks)} == {200}
    assert sum(recorded.batches) == 8
    assert max(recorded.batches) == 4


async def test_a_body_that_is_too_large_is_refused(app: V2HttpApp) -> None:
    status, _, content = await call(app, "POST", "/v2/models/embed_text/infer", b"x" * 5000)
    assert (status, "larger than 4096" in content.decode()) == (400, True)
    bomb = {"Content-Encoding": "gzip"}
    status, _, content = await call(app, "POST", "/v2/models/embed_text/infer", gzip.compress(b"0" * 100_000), bomb)
    assert (status, "larger than 4096" in content.decode()) == (400, True)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=st.sampled_from(
        ["embed_text/infer", "embed_image/infer", "embed_text/versions/x/infer", "%00/infer", "infer"]
    ),
    body=st.binary(max_size=200) | st.builds(lambda tail: text_body("red")[0] + tail, st.binary(max_size=20)),
    length=st.none() | st.integers(-2, 300).map(str) | st.text(st.characters(max_codepoint=255), max_size=8),
    encoding=st.sampled_from(["identity", "gzip", "deflate", "br", ""]),
)
async def test_any_request_gets_a_v2_answer(
    app: V2HttpApp, path: str, body: bytes, length: str | None, encoding: str
) -> None:
    headers = {"Content-Encoding": encoding} | ({} if length is None else {"Inference-Header-Content-Length": length})
    status, answered, content = await call(app, "POST", f"/v2/models/{path}", body, headers)
    assert status in (200, 400, 404, 405)
    if status != 200:
        assert json.loads(content)["error"]
    assert answered["content-length"] == str(len(content))


@pytest.mark.parametrize(
    ("path", "root", "expected"),
    [("/v2", "", "/v2"), ("/p/v2", "/p", "/v2"), ("/p/v2", "/p/", "/v2"), ("/pv2", "/p", "/pv2"), ("/v2", "/p", "/v2")],
)
def test_the_prefix_is_taken_off_whole_or_not_at_all(path: str, root: str, expected: str) -> None:
    assert relative_path({"path": path, "root_path": root}) == expected


@pytest.mark.parametrize(
    ("header", "seconds"), [(b"1500", 1.5), (b"0", None), (b"-1", None), (b"x", None), (None, None)]
)
def test_the_gateways_time_limit_is_read(header: bytes | None, seconds: float | None) -> None:
    assert timeout_of(header) == seconds


def test_a_cut_off_body_is_not_taken_for_whole() -> None:
    whole = gzip.compress(b"abc" * 10)
    assert inflated(whole, "gzip", 100) == b"abc" * 10
    check: Callable[..., bytes] = inflated
    with pytest.raises(Exception, match="cut off"):
        check(whole[:-9], "gzip", 100)

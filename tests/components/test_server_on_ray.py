"""The model server on a real Ray Serve with direct ingress: both protocols, torch's vectors and words, errors that harm no replica."""

from __future__ import annotations

import base64
import concurrent.futures
import importlib.util
import json
import queue
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from tritonclient import grpc as triton_grpc
from tritonclient import http as triton_http
from tritonclient.utils import InferenceServerException

from belvedere_platform.artifacts import ArtifactStore
from belvedere_platform.protocol import EMBED_IMAGE, EMBED_TEXT, EMBEDDING
from belvedere_platform.resources.engine import EngineTarget, ParityGate
from conformance import Target, all_checks
from other_clients import other_clients
from ray_application import Application, RayApplication, ray_applications

pytestmark = pytest.mark.slow

PREFIX = "/default.emoji-v1"


class Server:
    """A replica and its clients."""

    def __init__(self, replica: RayApplication) -> None:
        self.replica = replica
        self.http, self.grpc, self.metrics = replica.http, replica.grpc, replica.metrics

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.http}{PREFIX}{path}"

    def infer(self, protocol: str, model: str, name: str, values: list[bytes]) -> np.ndarray:
        if protocol == "http":
            client: Any = triton_http.InferenceServerClient(f"127.0.0.1:{self.http}{PREFIX}", network_timeout=60)
            tensor: Any = triton_http.InferInput(name, [len(values)], "BYTES")
        else:
            client = triton_grpc.InferenceServerClient(f"127.0.0.1:{self.grpc}")
            tensor = triton_grpc.InferInput(name, [len(values)], "BYTES")
        tensor.set_data_from_numpy(np.array(values, dtype=object))
        try:
            vectors: np.ndarray = client.infer(model, [tensor], headers=None).as_numpy("EMBEDDING")
            return vectors
        finally:
            client.close()


def load_stand_in() -> ModuleType:
    path = Path(__file__).parent.parent / "serving" / "engines" / "stand_in.py"
    spec = importlib.util.spec_from_file_location("stand_in", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def stand_in() -> ModuleType:
    return load_stand_in()


@pytest.fixture(scope="module")
def built(stand_in: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[ArtifactStore, str, str]:
    """A store with a model that fails on the word `flag`, and its engine."""
    from belvedere_serving.engines.build import build

    store = ArtifactStore(tmp_path_factory.mktemp("artifacts").as_uri())
    model = stand_in.push(store, num_words=len(stand_in.WORDS) - 1)
    return store, model, build(store, model, EngineTarget(), ParityGate()).digest


@pytest.fixture(scope="module")
def expected(
    stand_in: ModuleType, built: tuple[ArtifactStore, str, str], tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """The source model in torch, from raw texts and pictures to vectors."""
    from belvedere_serving.engines.preprocess import ImagePreprocessor, Recipe, TextPreprocessor
    from belvedere_serving.engines.source import TorchRuntime

    folder = built[0].pull(built[1], tmp_path_factory.mktemp("model") / "files")
    recipe, torch = Recipe.read(folder / "preprocess.json"), TorchRuntime(folder)
    text = TextPreprocessor((folder / "tokenizer.json").read_text(), recipe.text)
    image = ImagePreprocessor(recipe.image)

    def embed(model: str, values: list[bytes]) -> np.ndarray:
        arrays = {"tokens": text(values)} if model == EMBED_TEXT else {"pixels": image(values)}
        return torch.run(model, arrays)[EMBEDDING]

    return embed


WRITER = "default.writer-v1"


@pytest.fixture(scope="module")
def heads() -> Any:
    """A tiny model that writes, in torch."""
    from tiny_writer import TorchHeads

    return TorchHeads(layers=(0, 1))  # exporters take their time for each operator


@pytest.fixture(scope="module")
def served(
    built: tuple[ArtifactStore, str, str], heads: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, RayApplication]]:
    """One Ray with two applications: towers alone, and heads alone."""
    from tiny_writer import push_engine

    store = built[0]
    shared: dict[str, Any] = {"namespace": "default", "version": "v1", "artifacts": store.url, "maxBatchSize": 8}
    towers = {**shared, "service": "emoji", "model": "stand-in", "engineDigest": built[2]}
    writer = {**shared, "service": "writer", "model": "writer", "models": ["match", "explain", "caption", "answer"]}
    writer |= {"engineDigest": push_engine(heads, store, tmp_path_factory.mktemp("heads")), "maxNewTokens": 12}
    applications = {
        PREFIX.strip("/"): Application(arguments=towers, prefix=PREFIX),
        WRITER: Application(arguments=writer, prefix=f"/{WRITER}"),
    }
    with ray_applications(applications) as found:
        yield found


@pytest.fixture(scope="module")
def server(served: dict[str, RayApplication]) -> Server:
    return Server(served[PREFIX.strip("/")])


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_clients_get_the_vectors_of_torch(protocol: str, server: Server, expected: Any, stand_in: ModuleType) -> None:
    texts = [b"red apple", b"blue car", b"a word it has never seen"]
    vectors = server.infer(protocol, EMBED_TEXT, "TEXT", texts)
    np.testing.assert_allclose(vectors, expected(EMBED_TEXT, texts), atol=1e-5)
    pictures = [stand_in.picture(colour, 4) for colour in stand_in.COLOURS.values()]
    pictures.append(stand_in.picture((9, 9, 9), 30, size=200, kind="WEBP"))
    vectors = server.infer(protocol, EMBED_IMAGE, "IMAGE", pictures)
    np.testing.assert_allclose(vectors, expected(EMBED_IMAGE, pictures), atol=1e-5)


@pytest.mark.parametrize(
    ("model", "name", "value", "http_code", "grpc_code"),
    [
        (EMBED_TEXT, "TEXT", b"\xff", "400", "INVALID_ARGUMENT"),
        (EMBED_TEXT, "TEXT", b"red flag", "500", "INTERNAL"),
        (EMBED_IMAGE, "IMAGE", b"not a picture", "400", "INVALID_ARGUMENT"),
        ("embed_smell", "TEXT", b"x", "404", "NOT_FOUND"),
    ],
)
def test_errors_have_their_code(
    server: Server, model: str, name: str, value: bytes, http_code: str, grpc_code: str
) -> None:
    for protocol, code in (("http", http_code), ("grpc", f"StatusCode.{grpc_code}")):
        with pytest.raises(InferenceServerException) as caught:
            server.infer(protocol, model, name, [value])
        assert caught.value.status() == code


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"", {}),
        (b"{", {}),
        (b'{"inputs": 3}', {}),
        (b'{"inputs": []}', {"Inference-Header-Content-Length": "99"}),
        (b"\x00" * 1000, {"Content-Encoding": "gzip"}),
    ],
)
def test_malformed_bodies_get_a_v2_error(server: Server, body: bytes, headers: dict[str, str]) -> None:
    request = urllib.request.Request(server.url("/v2/models/embed_text/infer"), body, headers, method="POST")
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=60)
    with caught.value as error:
        assert error.code == 400
        assert json.load(error)["error"]


def test_one_bad_text_among_many_fails_alone(server: Server, expected: Any) -> None:
    texts = [b"red flag" if number % 8 == 3 else b"green tree" for number in range(32)]

    def ask(text: bytes) -> np.ndarray | str | None:
        try:
            return server.infer("grpc", EMBED_TEXT, "TEXT", [text])
        except InferenceServerException as error:
            return error.status()

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, texts))
    good = expected(EMBED_TEXT, [b"green tree"])
    for text, answer in zip(texts, answers, strict=True):
        if text == b"red flag":
            assert answer == "StatusCode.INTERNAL"
        else:
            np.testing.assert_allclose(np.asarray(answer), good, atol=1e-5)


def test_probes_answer_below_the_prefix(server: Server) -> None:
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/embed_text/versions/v1/ready", "/v2"):
        with urllib.request.urlopen(server.url(path), timeout=60) as answer:
            assert answer.status == 200


@all_checks
def test_v2(check: Callable[[Target], None], server: Server, stand_in: ModuleType) -> None:
    check(target_of(server, stand_in))


@other_clients
def test_other_clients(check: Callable[[Target], None], server: Server, stand_in: ModuleType) -> None:
    check(target_of(server, stand_in))


def target_of(server: Server, stand_in: ModuleType) -> Target:
    return Target(
        http=f"127.0.0.1:{server.http}{PREFIX}",
        grpc=f"127.0.0.1:{server.grpc}",
        version="v1",
        dimension=stand_in.EMBEDDING_SIZE,
        picture=stand_in.picture((9, 9, 9), 4),
        breaking_text=b"red flag",
    )


def test_services_are_found_by_reflection(server: Server) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel:
        found = ProtoReflectionDescriptorDatabase(channel).get_services()
    assert {"inference.GRPCInferenceService", "grpc.health.v1.Health"} <= set(found)


@pytest.fixture(scope="module")
def picture(heads: Any) -> bytes:
    return bytes(load_stand_in().picture((220, 30, 30), 4, size=16))


@pytest.fixture(scope="module")
def caption(heads: Any, picture: bytes) -> str:
    """What the model in torch says of the picture, without cache or server, in as many words as the server may write."""
    from tiny_writer import words_about

    return words_about(heads, picture, 12)


def writer_url(served: dict[str, RayApplication], path: str) -> str:
    return f"http://127.0.0.1:{served[WRITER].http}/{WRITER}{path}"


def ask_in_json(url: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    return urllib.request.urlopen(request, timeout=60)


def events_of(answer: Any) -> list[bytes]:
    assert answer.headers["content-type"].startswith("text/event-stream")
    return [line.removeprefix(b"data: ") for line in answer.read().split(b"\n\n") if line]


def test_heads_answer_on_ray(served: dict[str, RayApplication], picture: bytes, caption: str) -> None:
    body = {"IMAGE": base64.b64encode(picture).decode()}
    with ask_in_json(writer_url(served, "/v2/models/caption/generate"), body) as answer:
        assert json.load(answer)["TEXT"] == caption
    with ask_in_json(writer_url(served, "/v2/models/match/generate"), {**body, "TEXT": "a red circle"}) as answer:
        assert 0 < json.load(answer)["SCORE"] < 1
    with ask_in_json(writer_url(served, "/v2/models/explain/generate"), {**body, "TEXT": "a red circle"}) as answer:
        assert np.shape(json.load(answer)["ATTRIBUTION"])[-2:] == (8, 8)


def test_words_come_as_events_through_ray(served: dict[str, RayApplication], picture: bytes, caption: str) -> None:
    url = "data:image/png;base64," + base64.b64encode(picture).decode()
    with ask_in_json(writer_url(served, "/v2/models/caption/generate_stream"), {"IMAGE": url}) as answer:
        events = [json.loads(event) for event in events_of(answer)]
    assert "".join(event["TEXT"] for event in events) == caption
    assert [event["triton_final_response"] for event in events] == [False] * (len(events) - 1) + [True]
    message = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}
    body = {"model": "writer", "messages": [message], "stream": True}
    with ask_in_json(writer_url(served, "/v1/chat/completions"), body) as answer:
        *chunks, done = events_of(answer)
    assert done == b"[DONE]"
    said = [choice["delta"].get("content") or "" for chunk in chunks for choice in json.loads(chunk)["choices"]]
    assert "".join(said) == caption


def test_words_come_over_a_grpc_stream_through_ray(
    served: dict[str, RayApplication], picture: bytes, caption: str
) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    tensor = triton_grpc.InferInput("IMAGE", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([picture], dtype=object))
    client = triton_grpc.InferenceServerClient(f"127.0.0.1:{served[WRITER].grpc}")
    try:
        client.start_stream(lambda result, error: answers.put((result, error)))
        client.async_stream_infer("caption", [tensor], enable_empty_final_response=True)
        parts, last = [], False
        while not last:
            result, error = answers.get(timeout=60)
            assert error is None, error
            if (text := result.as_numpy("TEXT")) is not None:
                parts.append(text[0])
            last = result.get_response().parameters["triton_final_response"].bool_param
    finally:
        client.close()
    assert b"".join(parts).decode() == caption
    assert len(parts) > 1


def test_a_reader_who_leaves_takes_his_text_with_him(
    served: dict[str, RayApplication], picture: bytes, caption: str
) -> None:
    body = {"IMAGE": base64.b64encode(picture).decode()}
    for _ in range(4):
        with ask_in_json(writer_url(served, "/v2/models/caption/generate_stream"), body) as answer:
            answer.read(1)
    with ask_in_json(writer_url(served, "/v2/models/caption/generate"), body) as answer:
        assert json.load(answer)["TEXT"] == caption


def test_no_replica_was_harmed(served: dict[str, RayApplication]) -> None:
    assert {name: one.replica_states() for name, one in served.items()} == {name: {"RUNNING": 1} for name in served}


def test_what_was_served_is_counted(server: Server) -> None:
    """Ray exports once in a while, and not all at once: this waits until all is there, for no longer than two minutes."""
    import time

    server.infer("grpc", EMBED_TEXT, "TEXT", [b"red apple"])
    with pytest.raises(InferenceServerException):
        server.infer("grpc", EMBED_TEXT, "TEXT", [b"red flag"])
    deadline = time.monotonic() + 120
    while missing := _uncounted(server):
        assert time.monotonic() < deadline, missing
        time.sleep(0.5)


def _uncounted(server: Server) -> list[str]:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics}/metrics", timeout=60) as answer:
        text = answer.read().decode()
    lines = [line for line in text.splitlines() if line.startswith("ray_belvedere_server_")]
    names = (
        "requests_total",
        "errors_total",
        "queue_length",
        "batch_size_count",
        "model_seconds_sum",
        "queue_seconds_count",
    )
    missing = [name for name in names if not any(line.startswith(f"ray_belvedere_server_{name}{{") for line in lines)]
    wanted = ('code="OK"', 'protocol="grpc"', 'version="v1"')
    if not any("requests_total{" in line and all(label in line for label in wanted) for line in lines):
        missing.append(f"requests_total with {', '.join(wanted)}")
    return missing

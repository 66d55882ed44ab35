"""The model server on a real Ray Serve with direct ingress: both protocols, torch's vectors, errors that harm no replica."""

from __future__ import annotations

import concurrent.futures
import importlib.util
import json
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
from conformance import Target, all_checks, other_clients
from ray_application import RayApplication, ray_application

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
            client: Any = triton_http.InferenceServerClient(f"127.0.0.1:{self.http}{PREFIX}", network_timeout=30)
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


@pytest.fixture(scope="module")
def server(built: tuple[ArtifactStore, str, str]) -> Iterator[Server]:
    arguments: dict[str, Any] = {"service": "emoji", "namespace": "default", "model": "stand-in", "version": "v1"}
    arguments |= {"engineDigest": built[2], "artifacts": built[0].url, "maxBatchSize": 8}
    with ray_application(arguments, name=PREFIX.strip("/"), prefix=PREFIX) as replica:
        yield Server(replica)


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
        urllib.request.urlopen(request, timeout=20)
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
        with urllib.request.urlopen(server.url(path), timeout=20) as answer:
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


def test_no_replica_was_harmed(server: Server) -> None:
    assert server.replica.replica_states() == {"RUNNING": 1}


def test_what_was_served_is_counted(server: Server) -> None:
    """Ray exports once in a while, and not all at once: this waits until all is there, for no longer than a minute."""
    import time

    deadline = time.monotonic() + 60
    while missing := _uncounted(server):
        assert time.monotonic() < deadline, missing
        time.sleep(0.5)


def _uncounted(server: Server) -> list[str]:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics}/metrics", timeout=20) as answer:
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

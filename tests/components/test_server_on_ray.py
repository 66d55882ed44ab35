"""The model server on a real Ray Serve with direct ingress: both protocols, torch's vectors, errors that harm no replica."""

from __future__ import annotations

import concurrent.futures
import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
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

pytestmark = pytest.mark.slow

PREFIX = "/default.emoji-v1"
HOST = """
import json, sys
import ray
from ray import serve
from ray.serve.config import gRPCOptions

given = json.loads(sys.argv[1])
ray.init(_temp_dir=given["temp"], num_cpus=4, include_dashboard=False, object_store_memory=100_000_000,
         log_to_driver=False, logging_level="ERROR", _metrics_export_port=given["metrics"])
serve.start(http_options={"host": "127.0.0.1", "port": given["http"]},
            grpc_options=gRPCOptions(port=given["grpc"], grpc_servicer_functions=[
                "belvedere_serving.server.grpc_service.add_to_server"]))
from belvedere_serving.server.app import build
serve.run(build(given["args"]), name="default.emoji-v1", route_prefix=given["prefix"])
from ray.serve.context import _get_global_client
groups = ray.get(_get_global_client()._controller.get_target_groups.remote())
addresses = {str(group.protocol.value).lower(): [target.port for target in group.targets] for group in groups}

def replicas():
    status = serve.status().applications["default.emoji-v1"].deployments["V2Server"]
    return {str(state): number for state, number in status.replica_states.items()}

print(json.dumps(addresses), flush=True)
for line in sys.stdin:
    print(json.dumps(replicas()), flush=True)
serve.shutdown()
ray.shutdown()
"""


class Server:
    """A replica behind its own ports."""

    def __init__(self, process: subprocess.Popen[str], http: int, grpc: int, metrics: int) -> None:
        self.process, self.http, self.grpc, self.metrics = process, http, grpc, metrics

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.http}{PREFIX}{path}"

    def replica_states(self) -> dict[str, int]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        states: dict[str, int] = json.loads(self.process.stdout.readline())
        return states

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
    temp = tempfile.mkdtemp(prefix="bv-srv-", dir="/tmp")
    base = random.randrange(20_000, 29_000)
    arguments = {"service": "emoji", "namespace": "default", "model": "stand-in", "version": "v1"}
    arguments |= {"engineDigest": built[2], "artifacts": built[0].url, "maxBatchSize": 8}
    given = {"temp": temp, "http": base, "grpc": base + 1, "metrics": base + 2, "prefix": PREFIX, "args": arguments}
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_raylet_start_wait_time_s": "180",
        "RAY_worker_niceness": "0",
        # A proxy that has no core to start on within five seconds would be killed.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120",
        "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "120",
        "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(base + 100),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(base + 199),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(base + 200),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(base + 299),
        "BELVEDERE_CACHE": f"{temp}/cache",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", HOST, json.dumps(given)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            _, errors = process.communicate(timeout=30)
            pytest.fail(f"Ray Serve did not start: {errors[-3000:]}")
        addresses = json.loads(line)
        yield Server(process, addresses["http"][0], addresses["grpc"][0], base + 2)
    finally:
        stop(process)
        shutil.rmtree(temp, ignore_errors=True)


def stop(process: subprocess.Popen[str]) -> None:
    """End the host, and what is left of its session if it does not end in time."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=10)
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()


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
    check(
        Target(
            http=f"127.0.0.1:{server.http}{PREFIX}",
            grpc=f"127.0.0.1:{server.grpc}",
            version="v1",
            dimension=stand_in.EMBEDDING_SIZE,
            picture=stand_in.picture((9, 9, 9), 4),
            breaking_text=b"red flag",
        )
    )


def test_services_are_found_by_reflection(server: Server) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel:
        found = ProtoReflectionDescriptorDatabase(channel).get_services()
    assert {"inference.GRPCInferenceService", "grpc.health.v1.Health"} <= set(found)


def test_no_replica_was_harmed(server: Server) -> None:
    assert server.replica_states() == {"RUNNING": 1}


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

"""The generated repository in the real Triton: the conformance suite, the cache, the queue, and the way it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import pytest
from tritonclient.utils import InferenceServerException

from belvedere_platform.artifacts import ArtifactKind, ArtifactStore
from belvedere_platform.ports import free_ports
from belvedere_serving.triton.options import RepositoryOptions
from belvedere_serving.triton.repository import write_repository
from belvedere_serving.triton.server import tracing_of
from conformance import Target, all_checks, counted, infer
from other_clients import other_clients
from span_collector import Collector, collecting
from triton_process import TritonProcess, find_or_skip, start_triton, triton_folder, wait_ready

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="module")
def triton(tiny: ModuleType, collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonProcess]:
    folder = tmp_path_factory.mktemp("triton")
    told = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "50"}
    with serve(tiny, folder, tracing=tracing_of(told, version="tiny-v7")) as running:
        yield running


@contextlib.contextmanager
def serve(
    tiny: ModuleType, folder: Path, *, cache_mib: int = 0, tracing: Mapping[str, str] = MappingProxyType({})
) -> Iterator[TritonProcess]:
    """Serve the tiny engine."""
    options = RepositoryOptions(
        version="tiny-v7", max_batch_size=4, response_cache=cache_mib > 0, batch_wait_milliseconds=0
    )
    repository = write_repository(tiny.write(folder / "engine"), folder / "repository", options)
    with start_triton(repository, folder, cache_mib=cache_mib, tracing=tracing) as running:
        yield running


def target_of(running: TritonProcess, tiny: ModuleType) -> Target:
    """Return the server as the conformance suite wants it."""
    return Target(
        http=f"127.0.0.1:{running.http_port}",
        grpc=f"127.0.0.1:{running.grpc_port}",
        version="7",
        dimension=tiny.DIMENSION,
        picture=tiny.picture(),
        breaking_text=b"a broken apple",
        broken_json=500,
        says_ready=False,
        reflects=False,
    )


@pytest.fixture(scope="module")
def target(triton: TritonProcess, tiny: ModuleType) -> Target:
    return target_of(triton, tiny)


@all_checks
def test_v2(check: object, target: Target) -> None:
    assert callable(check)
    check(target)


@other_clients
def test_other_clients(check: object, target: Target) -> None:
    assert callable(check)
    check(target)


def test_it_gives_the_vectors_of_the_engine(target: Target, tiny: ModuleType) -> None:
    import numpy as np

    vectors = infer(target, "http", "embed_text", "TEXT", [b"red apple"]).as_numpy("EMBEDDING")
    np.testing.assert_allclose(vectors[0], tiny.expected_text(["red", "apple"]), atol=1e-6)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_request_belongs_to_the_trace_of_its_client(target: Target, collector: Collector, protocol: str) -> None:
    trace, parent = uuid.uuid4().hex, "b7ad6b7169203331"
    infer(target, protocol, "embed_text", "TEXT", [b"red"], headers={"traceparent": f"00-{trace}-{parent}-01"})
    mine: list[dict[str, Any]] = []
    while not mine or mine[-1]["name"] != "InferRequest":
        mine += [span for span in collector.until("InferRequest") if span["traceId"] == trace]
    assert {span["name"] for span in mine} == {
        *("InferRequest", "embed_text", "embed_text_preprocess", "embed_text_engine", "compute")
    }
    assert mine[-1]["parentSpanId"] == parent


def test_the_same_input_is_answered_from_the_cache(tiny: ModuleType, tmp_path: Path) -> None:
    with serve(tiny, tmp_path, cache_mib=4) as running:
        _check_cache(target_of(running, tiny))


def _check_cache(target: Target) -> None:
    def hits() -> int:
        client = target.client("http")
        try:
            (model,) = client.get_inference_statistics("embed_text_engine")["model_stats"]
            return int(model["inference_stats"]["cache_hit"]["count"])
        finally:
            client.close()

    infer(target, "http", "embed_text", "TEXT", [b"green green blue"])
    before = hits()
    infer(target, "http", "embed_text", "TEXT", [b"green green blue"])
    assert hits() == before + 1
    # Why the cache is off unless asked for: this Triton remembers a failure as an answer without outputs.
    with pytest.raises(InferenceServerException):
        infer(target, "grpc", "embed_text", "TEXT", [b"a broken apple"])
    assert infer(target, "grpc", "embed_text", "TEXT", [b"a broken apple"]).as_numpy("EMBEDDING") is None


def test_a_request_whose_time_is_up_is_refused(target: Target) -> None:
    failed = counted(target, "http")["fail"]
    with pytest.raises(InferenceServerException):
        infer(target, "grpc", "embed_image", "IMAGE", [target.picture] * 16, client_timeout=1e-4)
    assert counted(target, "http")["fail"] >= failed


def test_the_command_serves_an_engine_drains_and_ends(tiny: ModuleType, tmp_path: Path) -> None:
    find_or_skip()
    store = ArtifactStore((tmp_path / "artifacts").as_uri())
    files: dict[str, Path | bytes] = {path.name: path for path in tiny.write(tmp_path / "files").iterdir()}
    digest = store.push(ArtifactKind.ENGINE, files, config={"modelDigest": "sha256:" + "0" * 64}).digest
    http, grpc, metrics = free_ports(3)
    words = [sys.executable, "-m", "belvedere_platform.cli.main", "triton", "serve", digest]
    words += ["--model-version", "tiny-v7", "--artifacts", store.url, "--drain-seconds", "1"]
    words += ["--http-port", str(http), "--grpc-port", str(grpc), "--metrics-port", str(metrics)]
    environment = {**os.environ, "BELVEDERE_CACHE": str(tmp_path / "cache"), "BELVEDERE_TRITON": triton_folder()}
    log = tmp_path / "triton.log"
    with log.open("wb") as out:
        process = subprocess.Popen(words, env=environment, stdout=out, stderr=subprocess.STDOUT)
    running = TritonProcess(process=process, http_port=http, grpc_port=grpc, metrics_port=metrics, log=log)
    try:
        wait_ready(running)
        target = target_of(running, tiny)
        process.send_signal(signal.SIGTERM)
        assert infer(target, "http", "embed_text", "TEXT", [b"red"]).as_numpy("EMBEDDING").shape == (1, 4)
        assert process.wait(60) == 0, log.read_text()[-2000:]
    finally:
        process.kill()
        process.wait()


def test_it_ends_when_told(triton: TritonProcess) -> None:
    """Last: the server is gone after it."""
    triton.process.send_signal(signal.SIGTERM)
    try:
        assert triton.process.wait(30) == 0
    except subprocess.TimeoutExpired:
        pytest.fail(f"Triton did not end: {triton.log.read_text()[-2000:]}")

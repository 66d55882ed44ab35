"""What clients other than Triton's libraries expect of a model server: by reflection, grpcurl, KServe's SDK, perf_analyzer."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from conformance import PROTOCOLS, Target, each_of, infer

TOOLS = Path(os.environ.get("BELVEDERE_CACHE") or Path.home() / ".cache" / "belvedere") / "tools"
PEER_CLIENT = Path(__file__).parents[2] / "deploy" / "benchmarks" / "kserve_client.py"


def reflection_is_enough_to_infer(target: Target) -> None:
    """As grpcurl does it: the messages come from the server."""
    with grpc.insecure_channel(target.grpc) as channel:
        if not target.reflects:
            with pytest.raises(grpc.RpcError, match="UNIMPLEMENTED"):
                ProtoReflectionDescriptorDatabase(channel).get_services()
            return
        service = DescriptorPool(ProtoReflectionDescriptorDatabase(channel)).FindServiceByName(
            "inference.GRPCInferenceService"
        )
        method = service.methods_by_name["ModelInfer"]
        request_kind, answer_kind = map(GetMessageClass, (method.input_type, method.output_type))
        given = {"name": "TEXT", "datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": [b"red"]}}
        infer_unary = channel.unary_unary(
            f"/{service.full_name}/ModelInfer",
            request_serializer=request_kind.SerializeToString,
            response_deserializer=answer_kind.FromString,
        )
        answer: Any = infer_unary(request_kind(model_name="embed_text", inputs=[given]), timeout=60)
    assert list(answer.outputs[0].shape) == [1, target.dimension]


def grpcurl_finds_its_way(target: Target) -> None:
    """The program itself, which knows of the server what reflection says."""
    program = next(iter(sorted((TOOLS / "grpcurl").glob("*/grpcurl"))), None)
    if program is None:
        pytest.skip("grpcurl is not built: deploy/benchmarks/grpcurl.sh")

    def ask(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([program, *words], capture_output=True, text=True, timeout=60, check=False)

    listed = ask("-plaintext", target.grpc, "list")
    if not target.reflects:
        assert "does not support the reflection API" in listed.stderr
        return
    assert {"inference.GRPCInferenceService", "grpc.health.v1.Health"} <= set(listed.stdout.split())
    health = ask("-plaintext", target.grpc, "grpc.health.v1.Health/Check")
    assert json.loads(health.stdout) == {"status": "SERVING"}, health.stderr
    given = {"name": "TEXT", "datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": ["cmVk"]}}
    words = json.dumps({"model_name": "embed_text", "inputs": [given]})
    answer = ask("-plaintext", "-d", words, target.grpc, "inference.GRPCInferenceService/ModelInfer")
    assert answer.returncode == 0, answer.stderr
    (output,) = json.loads(answer.stdout)["outputs"]
    assert output["shape"] == ["1", str(target.dimension)]


def kserves_clients_work(target: Target) -> None:
    python = TOOLS / "serving-peers" / "bin" / "python"
    if not python.exists():
        pytest.skip("KServe's SDK is not set up: deploy/benchmarks/peers.sh")
    words = [str(python), str(PEER_CLIENT), target.http, target.grpc, *(["--health"] if target.says_ready else [])]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    expected = infer(target, "grpc", "embed_text", "TEXT", [b"red", b"blue"]).as_numpy("EMBEDDING")
    for way in ("rest json", "rest binary", "grpc"):
        np.testing.assert_allclose(np.reshape(seen[way], expected.shape), expected, atol=1e-5, err_msg=way)
    health = [way for way in seen if way.endswith("health")]
    assert health == (["rest health", "grpc health"] if target.says_ready else ["grpc health"])
    assert all(seen[way] == [True, True, True] for way in health)


def perf_analyzer_measures(target: Target) -> None:
    home = TOOLS / "perf-analyzer"
    if not home.exists():
        pytest.skip("perf_analyzer is not set up: deploy/benchmarks/peers.sh")
    for protocol in PROTOCOLS:
        words = [
            *(home / "bin" / "perf_analyzer", "-m", "embed_text", "-i", protocol, "-u", getattr(target, protocol)),
            *("--shape", "TEXT:1", "--string-data", "red", "--measurement-mode", "count_windows"),
            *("--measurement-request-count", "20", "-r", "10", "-s", "999", "--concurrency-range", "2"),
        ]
        environment = {**os.environ, "LD_LIBRARY_PATH": str(home / "lib")}
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        # Its second part is what it makes of the server's statistics.
        for said in ("Concurrency: 2, throughput: ", "Successful request count: ", "compute infer "):
            assert said in done.stdout, protocol


OTHER_CLIENTS: tuple[Callable[[Target], None], ...] = (
    reflection_is_enough_to_infer,
    grpcurl_finds_its_way,
    kserves_clients_work,
    perf_analyzer_measures,
)
"""What clients other than Triton's libraries expect."""


def other_clients(function: Callable[..., None]) -> Callable[..., None]:
    """Parametrize a test with `check`, one test a client."""
    return each_of(OTHER_CLIENTS, function)

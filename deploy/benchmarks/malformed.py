"""Requests that are wrong in every way we could think of, made from a seed: what a server must answer with a V2 error."""

from __future__ import annotations

import gzip
import json
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

from tritonclient.grpc import service_pb2 as pb

MODELS = {"embed_text": "TEXT", "embed_image": "IMAGE"}


@dataclass(frozen=True)
class Malformed:
    """A request over HTTP: path, body and headers."""

    path: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


def malformed_http(chooser: random.Random) -> Malformed:
    """Return a wrong request."""
    return chooser.choice(_HTTP)(chooser)


def malformed_grpc(chooser: random.Random) -> bytes:
    """Return bytes for ModelInfer that are no request, or a wrong one."""
    return chooser.choice(_GRPC)(chooser)


def _infer_path(chooser: random.Random) -> str:
    return f"/v2/models/{chooser.choice(list(MODELS))}/infer"


def _noise(chooser: random.Random, most: int = 2000) -> bytes:
    return chooser.randbytes(chooser.randrange(most))


def _bytes(chooser: random.Random) -> Malformed:
    headers = chooser.choice([{}, {"Inference-Header-Content-Length": str(chooser.randrange(-5, 3000))}])
    return Malformed(_infer_path(chooser), _noise(chooser), headers)


def _wrong_json(chooser: random.Random) -> Malformed:
    value = _json_value(chooser, 4)
    inputs = [
        {
            "name": chooser.choice(["TEXT", "IMAGE", "", "x" * 300, 3, None]),
            "shape": chooser.choice([[1], [0], [-1], [2, 2], [1 << 40], [1] * 70, "1", None, [1.5], [10**30]]),
            "datatype": chooser.choice(["BYTES", "FP32", "INT64", "FP16", "BOOL", "", 7, None]),
            "data": value,
            "parameters": chooser.choice([{}, {"binary_data_size": -1}, {"binary_data_size": "x"}, [], None]),
        }
        for _ in range(chooser.randrange(3))
    ]
    body = {"inputs": chooser.choice([inputs, inputs, value]), "outputs": chooser.choice([[], value])}
    return Malformed(_infer_path(chooser), json.dumps(body).encode())


def _json_value(chooser: random.Random, depth: int) -> object:
    if depth == 0 or chooser.random() < 0.4:
        return chooser.choice([None, True, "x", "\ud800", "red" * 100, 3, -1, 1e308, float("nan"), float("inf"), 2**70])
    if chooser.random() < 0.5:
        return [_json_value(chooser, depth - 1) for _ in range(chooser.randrange(4))]
    return {str(key): _json_value(chooser, depth - 1) for key in range(chooser.randrange(4))}


def _deep_json(chooser: random.Random) -> Malformed:
    depth = chooser.choice([50, 1000, 100_000])
    return Malformed(_infer_path(chooser), b'{"inputs":' + b"[" * depth + b"]" * chooser.choice([0, depth]))


def _wrong_binary(chooser: random.Random) -> Malformed:
    """Return a request whose binary part does not hold what its JSON part promises."""
    model, name = chooser.choice(list(MODELS.items()))
    count = chooser.choice([0, 1, 2, 1000, 1 << 23])
    rest = chooser.choice(
        [
            b"",
            _noise(chooser),
            struct.pack("<I", 0xFFFFFFFF),
            struct.pack("<I", 5) + b"abc",
            struct.pack("<I", 2) + b"\xff\xfe",
            struct.pack("<I", 8) + b"\x89PNG\r\n\x1a\n",
            struct.pack("<I", 100) + b"\x89PNG\r\n\x1a\n" + bytes(92),
        ]
    )
    size = chooser.choice([len(rest), len(rest) + 1, max(0, len(rest) - 1), 1 << 40])
    tensor = {"name": name, "shape": [count], "datatype": "BYTES", "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [tensor]}).encode()
    length = chooser.choice([len(head), len(head) - 1, len(head) + 1])
    return Malformed(f"/v2/models/{model}/infer", head + rest, {"Inference-Header-Content-Length": str(length)})


def _bomb(chooser: random.Random) -> Malformed:
    """Return a body that inflates to far more than it is, or does not inflate at all."""
    kind = chooser.choice(["gzip", "deflate", "br", "gzip", "identity "])
    zeros = bytes(chooser.choice([100, 1 << 20, 80 << 20]) if chooser.random() < 0.05 else 1000)
    body = chooser.choice([gzip.compress(zeros, 1), zlib.compress(zeros, 1), _noise(chooser)])
    return Malformed(
        _infer_path(chooser), body[: chooser.choice([len(body), len(body) // 2])], {"Content-Encoding": kind}
    )


def _picture_bomb(chooser: random.Random) -> Malformed:
    """Return a PNG of a few bytes that says it has billions of pixels."""
    header = struct.pack(
        ">IIBBBBB", chooser.choice([1, 60_000, 1 << 30]), chooser.choice([0, 60_000, 1 << 30]), 8, 2, 0, 0, 0
    )
    chunk = b"IHDR" + header
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    data = zlib.compress(bytes(100))
    png += struct.pack(">I", len(data)) + b"IDAT" + data + struct.pack(">I", zlib.crc32(b"IDAT" + data))
    blob = struct.pack("<I", len(png)) + png
    tensor = {"name": "IMAGE", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(blob)}}
    head = json.dumps({"inputs": [tensor]}).encode()
    return Malformed("/v2/models/embed_image/infer", head + blob, {"Inference-Header-Content-Length": str(len(head))})


def _wrong_path(chooser: random.Random) -> Malformed:
    name = chooser.choice(
        ["embed_smell", "..%2f..%2fetc", "%00", "embed_text%20", "x" * 3000, "embed_text/versions/-1"]
    )
    return Malformed(f"/v2/models/{name}/infer", b'{"inputs": []}')


_HTTP: tuple[Callable[[random.Random], Malformed], ...] = (
    _bytes,
    _wrong_json,
    _wrong_json,
    _deep_json,
    _wrong_binary,
    _wrong_binary,
    _bomb,
    _picture_bomb,
    _wrong_path,
)


def _grpc_noise(chooser: random.Random) -> bytes:
    return _noise(chooser)


def _grpc_wrong(chooser: random.Random) -> bytes:
    model, name = chooser.choice([*MODELS.items(), ("nope", "TEXT"), ("", "")])
    request = pb.ModelInferRequest(model_name=model, model_version=chooser.choice(["", "9", "x"]))
    for _ in range(chooser.randrange(3)):
        tensor = request.inputs.add(
            name=chooser.choice([name, "x"]), datatype=chooser.choice(["BYTES", "FP32", "FP16", "?"])
        )
        tensor.shape.extend(chooser.choice([[1], [0], [-1], [2, 3], [1 << 62], [1] * 20]))
        if chooser.random() < 0.3:
            tensor.contents.fp32_contents.extend([float("nan"), float("inf")])
        if chooser.random() < 0.3:
            tensor.contents.bytes_contents.append(b"\xff")
    for _ in range(chooser.randrange(3)):
        request.raw_input_contents.append(_noise(chooser, 200))
    raw: bytes = request.SerializeToString()
    return raw if chooser.random() < 0.5 else raw[: chooser.randrange(len(raw) + 1)]


_GRPC: tuple[Callable[[random.Random], bytes], ...] = (_grpc_noise, _grpc_wrong, _grpc_wrong)

"""The conformance suite against the application that Ray Serve hosts, served here without Ray."""

from __future__ import annotations

import asyncio
import re
import urllib.request
from collections.abc import Callable
from types import ModuleType

import grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from conformance import Target, all_checks
from other_clients import other_clients


async def test_services_are_found_by_reflection(ports: tuple[int, int]) -> None:
    def names() -> set[str]:
        with grpc.insecure_channel(f"127.0.0.1:{ports[1]}") as channel:
            return set(ProtoReflectionDescriptorDatabase(channel).get_services())

    assert {"inference.GRPCInferenceService", "grpc.health.v1.Health"} <= await asyncio.to_thread(names)


async def test_an_answer_says_where_its_time_went(ports: tuple[int, int]) -> None:
    def ask() -> str:
        body = b'{"inputs": [{"name": "TEXT", "shape": [1], "datatype": "BYTES", "data": ["red"]}]}'
        request = urllib.request.Request(f"http://127.0.0.1:{ports[0]}/v2/models/embed_text/infer", body)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return str(answer.headers["Server-Timing"])

    stages = re.findall(r"(\w+);dur=([0-9.]+)", await asyncio.to_thread(ask))
    assert [name for name, _ in stages] == ["pre", "queue", "model", "post"]
    assert float(dict(stages)["model"]) > 0


@all_checks
async def test_v2(check: Callable[[Target], None], ports: tuple[int, int], tiny: ModuleType) -> None:
    await asyncio.to_thread(check, target_of(ports, tiny))


@other_clients
async def test_other_clients(check: Callable[[Target], None], ports: tuple[int, int], tiny: ModuleType) -> None:
    await asyncio.to_thread(check, target_of(ports, tiny))


def target_of(ports: tuple[int, int], tiny: ModuleType) -> Target:
    return Target(
        http=f"127.0.0.1:{ports[0]}",
        grpc=f"127.0.0.1:{ports[1]}",
        version="tiny-v1",
        dimension=tiny.DIMENSION,
        picture=tiny.picture(),
        breaking_text=b"a broken apple",
    )

"""Engines beside torch, and our model server beside others: `make bench-serving`.

usage: serving_bench.py --output FILE [--overload-seconds N] [--malformed N] [--only GROUP...]

Groups: engines, texts (run in their own length), generation (what cache, batching and kept pictures save), servers (ours beside others), overload, malformed.
Both sides of a comparison take turns on the same machine, which the load generator shares with them. The servers all run the
same engine with one thread, one run at a time, and get the same bytes over HTTP from the same client. Only under too much load the
client has a core of its own, where there are two.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import grpc

from belvedere_platform.artifacts import ArtifactStore
from belvedere_platform.errors import BelvedereError, Unavailable
from belvedere_platform.protocol import EMBED_IMAGE
from belvedere_platform.resources.engine import EngineTarget, ParityGate
from belvedere_platform.telemetry.benchmark import Row, result, write_benchmark
from belvedere_serving.client.grpc_load import messages
from belvedere_serving.client.load import Body, Outcome, bodies, closed_loop
from belvedere_serving.engines.build import build
from belvedere_serving.gateway.world import Replica
from belvedere_serving.tuning.search import Settings
from belvedere_serving.tuning.servers import own_server
from ending import end_in_order
from engine_rows import engine_rows
from front import in_front_of
from generation import generation_rows
from head_rows import int8_head_rows
from length_rows import length_rows
from malformed import malformed_grpc, malformed_http
from overload import (
    DEADLINE_SECONDS,
    Way,
    on_cores,
    over_grpc,
    over_http,
    overload,
    overload_rows,
    said_cores,
    server_and_client_cores,
)
from peer_engine import Engine
from ray_application import ray_application
from scratch import scratch
from servers import peer, triton
from usage import usage
from vision import Vision, picture, push_model

PACKAGES = ("belvedere", "torch", "onnxruntime", "openvino", "ray", "tritonclient", "aiohttp")
GATE = ParityGate(cosine_minimum=0.99, top1_agreement_minimum=0.9)
GROUPS = ("engines", "texts", "generation", "servers", "overload", "malformed")
LEVELS = (1, 4, 16)
OWN = "ray serve"
ROUNDS = 5
LEVEL_SECONDS = 2.0
P95_MILLISECONDS = 100.0
SMALL = 64
"""Edge of the pictures that the servers are compared with: a small model, so that the server is felt."""


def say(message: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {message}", flush=True)


async def server_rows(store: ArtifactStore, folder: Path, options: argparse.Namespace) -> list[Row]:
    """Return the rows of servers."""
    from torch import manual_seed

    manual_seed(0)
    small = Vision(size=SMALL, patch=16, width=192, layers=4, heads=3)
    model = push_model(store, size=SMALL, vision=small, name="small")
    engine = build(store, model, EngineTarget(), GATE, say=say)
    given = bodies(EMBED_IMAGE, [picture(number, SMALL) for number in range(32)])
    arguments: dict[str, Any] = {"service": "bench", "model": "small", "version": "bench-v1", "maxBatchSize": 16}
    arguments |= {"engineDigest": engine.digest, "artifacts": store.url}
    rows = []
    if set(options.only) & {"servers", "malformed"}:
        say("starting our server")
        with ray_application(arguments, name="bench") as own:
            url = f"http://127.0.0.1:{own.http}"
            if "servers" in options.only:
                files = store.pull(engine.digest, folder / "engine")
                rows += await _compared(url, files, folder, given)
                rows.append(await _overhead(url, given, Engine(files)))
            if "malformed" in options.only:
                rows.append(await _malformed(url, f"127.0.0.1:{own.grpc}", given, options.malformed))
    if "overload" in options.only:
        rows += await _ray_overload(arguments, given, folder, options.overload_seconds)
        rows += await _bare_overload(engine.digest, store.url, given, options.overload_seconds)
    return rows


async def _compared(own: str, files: Path, folder: Path, given: list[Body]) -> list[Row]:
    """Return the rows of our server beside the others, of which some may be missing."""
    urls, missing = {OWN: own}, {}
    starters: dict[str, Callable[[], Any]] = {
        "fastapi": lambda: peer("peer_fastapi.py", files, folder),
        "kserve": lambda: peer("peer_kserve.py", files, folder),
        "triton": lambda: triton(files, folder, max_batch_size=16),
    }
    with contextlib.ExitStack() as stack:
        for name, start in starters.items():
            say(f"starting {name}")
            try:
                urls[name] = stack.enter_context(start())
            except (BelvedereError, OSError) as error:
                missing[name] = str(error)[:300]
        as_text = bodies(EMBED_IMAGE, [base64.b64encode(picture(number, SMALL)) for number in range(32)])
        measured = await _compare(urls, {name: as_text if name == "kserve" else given for name in urls})
    return _comparison_rows(measured, missing)


async def _compare(urls: dict[str, str], given: dict[str, list[Body]]) -> dict[str, list[float]]:
    """Return the throughput of each server in each round: the most that it answers with its p95 below the limit."""
    rounds: dict[str, list[float]] = {name: [] for name in urls}
    for number in range(ROUNDS + 1):
        for name, url in urls.items():
            best = 0.0
            for clients in LEVELS:
                outcome = await closed_loop(url, given[name], clients=clients, seconds=LEVEL_SECONDS)
                _check(outcome, name)
                if outcome.percentile(95) <= P95_MILLISECONDS:
                    best = max(best, outcome.per_second)
            if number > 0:  # the first round warms up
                rounds[name].append(best)
            say(f"round {number}: {name} {best:.0f}/s")
    return rounds


def _check(outcome: Outcome, name: str) -> None:
    wrong = {status: count for status, count in outcome.statuses.items() if status != "200"}
    if wrong:
        raise Unavailable(f"{name} answered {wrong} to good requests")


def _comparison_rows(measured: dict[str, list[float]], missing: dict[str, str]) -> list[Row]:
    rows = []
    own = measured[OWN]
    aims = {"kserve": 1.0, "fastapi": 1.0, "triton": 1 / 1.5}
    for name, target in aims.items():
        row = f"serve_vs_{name}_throughput"
        if name not in measured:
            rows.append(result(row, None, "x", "higher", target, note=missing[name]))
            continue
        ratios = [mine / theirs if theirs else float("inf") for mine, theirs in zip(own, measured[name], strict=True)]
        rows.append(
            result(
                row,
                statistics.median(ratios),
                "x",
                "higher",
                target,
                peer=name,
                peer_value=statistics.median(measured[name]),
                own_value=statistics.median(own),
                rounds=len(ratios),
                spread=[min(ratios), max(ratios)],
                note=f"answers a second with p95 <= {P95_MILLISECONDS:g} ms at {LEVELS} clients, one replica, one picture a request"
                + ("; pictures in base64 to KServe's SDK, which takes no other bytes" if name == "kserve" else ""),
            )
        )
    return rows


async def _overhead(url: str, given: list[Body], engine: Engine) -> Row:
    """Return how much longer one request takes than preprocessing and engine called in this process."""
    pictures = [picture(number, SMALL) for number in range(32)]
    served, bare = [], []
    for _ in range(ROUNDS):
        served.append((await closed_loop(url, given, clients=1, seconds=LEVEL_SECONDS)).percentile(50))
        taken: list[float] = []
        end = time.perf_counter() + LEVEL_SECONDS
        while time.perf_counter() < end:
            started = time.perf_counter()
            engine.run(EMBED_IMAGE, [pictures[len(taken) % len(pictures)]])
            taken.append(time.perf_counter() - started)
        bare.append(1000 * statistics.median(taken))
    return result(
        "serve_overhead_p50_ms",
        statistics.median(served) - statistics.median(bare),
        "ms",
        "lower",
        None,
        peer="preprocessing and engine in one process",
        peer_value=statistics.median(bare),
        own_value=statistics.median(served),
        rounds=ROUNDS,
        note="one client over HTTP; the client's own time is in it",
    )


async def _ray_overload(arguments: dict[str, Any], given: list[Body], folder: Path, seconds: float) -> list[Row]:
    """Return how our application does on Ray Serve; over gRPC and behind the gateway for a fifth of the time each."""
    say("starting our server for too much load")
    servers, client = server_and_client_cores()
    calls = messages(EMBED_IMAGE, [picture(number, SMALL) for number in range(32)])
    rows: list[Row] = []

    where = said_cores(servers, client)

    async def to(way: Way, name: str, seconds: float, between: str = "") -> None:
        found = await overload(way, seconds=seconds, used=own.usage, say=say)
        rows.extend(overload_rows(found, name=name, where=where + between))

    async with contextlib.AsyncExitStack() as stack:
        with on_cores(servers):
            own = stack.enter_context(ray_application(arguments, name="bench"))
        stack.enter_context(on_cores(client))
        await to(over_http(f"http://127.0.0.1:{own.http}", given), "overload", seconds)
        await to(over_grpc(f"127.0.0.1:{own.grpc}", calls), "overload_grpc", seconds / 5)
        replica = Replica(address="127.0.0.1", http_port=own.http, grpc_port=own.grpc)
        front = in_front_of(replica, folder, timeout_seconds=DEADLINE_SECONDS)
        port = await stack.enter_async_context(front)
        await to(over_http(f"http://127.0.0.1:{port}", given), "overload_gateway", seconds / 5, " and Envoy")
        await to(over_grpc(f"127.0.0.1:{port}", calls), "overload_gateway_grpc", seconds / 5, " and Envoy")
    return rows


async def _bare_overload(engine: str, artifacts: str, given: list[Body], seconds: float) -> list[Row]:
    """Return how our server does without Ray around it."""
    settings = Settings(engine=engine, max_batch_size=16, batch_wait_milliseconds=2)
    servers, client = server_and_client_cores()
    with contextlib.ExitStack() as stack:
        with on_cores(servers):
            url = stack.enter_context(own_server(settings, artifacts=artifacts))
        port = url.rpartition(":")[2]
        used = partial(usage, lambda words: b"--http-port" in words and port.encode() in words)
        with on_cores(client):
            found = await overload(over_http(url, given), seconds=seconds, used=used, say=say)
    return overload_rows(found, name="overload_bare", where=said_cores(servers, client))


async def _malformed(url: str, address: str, given: list[Body], number: int) -> Row:
    """Return how many malformed requests were not answered with a V2 error, and whether the server still serves."""
    say(f"{number} malformed requests")
    chooser, wrong = random.Random(7), []
    async with aiohttp.ClientSession() as session, grpc.aio.insecure_channel(address) as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for index in range(number):
            try:
                problem = await (_ask_http(session, url, chooser) if index % 3 else _ask_grpc(infer, chooser))
            except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
                problem = f"no answer: {type(error).__name__} {error}"
            if problem:
                wrong.append(problem)
    outcome = await closed_loop(url, given, clients=2, seconds=1)
    _check(outcome, "the server after malformed requests")
    samples = sorted(set(wrong))[:3]
    note = f"of {number}, two thirds over HTTP; it still serves" + (f"; {samples}" if samples else "")
    return result("malformed_requests_crashes", float(len(wrong)), "requests", "lower", 0.0, note=note)


async def _ask_http(session: aiohttp.ClientSession, url: str, chooser: random.Random) -> str:
    made = malformed_http(chooser)
    timeout = aiohttp.ClientTimeout(total=30)
    async with session.post(url + made.path, data=made.body, headers=made.headers, timeout=timeout) as answer:
        content = await answer.read()
        if answer.status == 200:
            return ""
        try:
            said = json.loads(content)["error"]
        except (ValueError, KeyError, TypeError):
            return f"{answer.status} without a V2 error: {content[:100]!r}"
        return f"500 {said}" if answer.status == 500 else ""


async def _ask_grpc(infer: Any, chooser: random.Random) -> str:
    try:
        await infer(malformed_grpc(chooser), timeout=30)
    except grpc.aio.AioRpcError as error:
        bad = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE)
        return f"{error.code().name} {error.details()}" if error.code() in bad else ""
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--overload-seconds", type=float, default=300)
    parser.add_argument("--malformed", type=int, default=10_000)
    parser.add_argument("--only", choices=GROUPS, nargs="+", default=GROUPS)
    options = parser.parse_args()
    end_in_order()
    started, rows = time.monotonic(), []
    with scratch("belvedere-serving-") as folder:
        store = ArtifactStore((folder / "artifacts").as_uri())
        if "engines" in options.only:
            rows += engine_rows(store, say)
        if "texts" in options.only:
            rows += length_rows(store, folder, say)
        if "generation" in options.only:
            rows += generation_rows(folder, say)
            rows += int8_head_rows(folder, say)
        if set(options.only) - {"engines", "texts", "generation"}:
            rows += asyncio.run(server_rows(store, folder, options))
    write_benchmark(options.output, rows, seconds=round(time.monotonic() - started, 1), packages=PACKAGES)


if __name__ == "__main__":
    main()
